"""Tensors and their maps from few directions, slice by slice: what all networks of this room have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.training import Plan
from ...dwi.gradients import SAME_DEGREES, distinct, even_subset
from ...dwi.noise import shell_sigma
from ...dwi.series import Scan
from ...dwi.tensor import design_matrix
from ...dwi.uncertainty import TISSUES
from ...simulate.examples import SimulatedSubjects, numbers_of_step
from ..at_once import always_the_same
from ..base import MAP_WIDTHS, Generated, LeftOut, Request, Samples, TrainedAtOnce
from ..making import Making, Means, asked_for_mean, label, slice_by_slice
from .balance import anisotropy_factor, sized, tensor_in, with_length
from .examples import Batch, examples, zeros_around
from .inputs import MD_UNIT, Condition, along, condition_of, lengthened, noise_levels, tensor_of
from .outputs import one_after_another
from .starts import few_of, starts_of_few
from .task import (
    LEAST,
    MOST,
    NOT_ALL,
    OTHER_SCHEME,
    SAID,
    SCHEME_DEGREES,
    TENSOR,
    MapsSpec,
    choose_volumes,
    nearest_to_scheme,
)

SLICES_AT_ONCE = 8
MOST_UNUSED = 12  # directions that samples are calibrated on
MARGIN = 4  # voxels around the brain that the network sees


class SliceMaps(TrainedAtOnce):
    """A method whose network sees slices, and says their tensors or (`paper`) their maps."""

    spec: MapsSpec
    steps = (1, 1, 1)  # evaluations, as `Making` takes them

    def seeded(self, make: Callable[[], nn.Module], size: str) -> nn.Module:
        """Return an untrained network, always the same, with factors for the spread of its samples."""
        net = always_the_same(make)
        # Factors that convert the samples' standard deviations into errors; one where nothing calibrates them.
        columns = sum(MAP_WIDTHS.get(name, 1) for name in self.spec.maps_of(size))
        net.register_buffer("spread", torch.ones(MOST - LEAST + 1, len(TISSUES), columns))
        return net

    def batch(self, size: str) -> int:
        """Return the examples per step; those of Diff-DTI's paper are eight."""
        return 8 if size == "paper" else 32

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return the number of fixed batches, and of examples in each; few for `paper`, with whole slices."""
        return (4, 1) if size == "paper" else (8, 32)

    def training_plan(self, size: str) -> Plan:
        """Return the training's default budget and settings; `paper` has the rate, clipping and average of Diff-DTI."""
        common: dict[str, Any] = {"evaluate_every": 250, "patience": 1000, "save_every": 250, "ema": 0.999}
        if size == "paper":
            return Plan(steps=1_000_000, learning_rate=2e-4, warmup=0, **common)
        # Without normalisation in the network, a few examples have gradients a hundred times larger than others.
        return Plan(steps=200_000, learning_rate=1e-3, warmup=200, clip=0.25, betas=(0.9, 0.99), **common)

    def examples(
        self, source: SimulatedSubjects | Prepared, size: str, batch: int, seed: int
    ) -> Callable[[int], Batch]:
        """Return index -> batch of examples on the source's device."""
        return lambda index: examples(source, size, batch, numbers_of_step(seed, index, source.device))

    @abstractmethod
    def draw(
        self,
        net: nn.Module,
        condition: Condition,
        sampler: str,
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        precision: str,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return what the network makes of S slices, (S, C, H, W), as `Condition` takes it.

        Parameters
        ----------
        net
            The network, in evaluation mode.
        condition
            Condition of the slices.
        sampler
            "fast" or "paper".
        times
            Times of the evaluations, as from `times`.
        noise
            Number of the draw -> standard normal noise (S, C, H, W).
        precision
            "fp32" or "bf16".
        mean
            What it said at the last time, where that is known.
        """

    def times(self, sampler: str, evaluations: int) -> list[int]:
        """Return the times of the evaluations; a network without a time is asked once."""
        return [0]

    def asked_at_a_time(self, sampler: str) -> int:
        """Return how often the network is asked at each time."""
        return 1

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Generate the maps of a scan with `net`, or with stored weights where `net` is None."""
        # bfloat16 is not enough here: its rounding errors are multiplied by the largest sigma.
        precision = None if request.size == "small" else "fp32"
        making: Making[nn.Module] = Making(self, net, request, self.steps, precision)
        making.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch types leave it out
        warnings = self.spec.check(scan)
        bval, volumes, n_directions = choose_volumes(scan.gradients)
        more: dict[str, Any] = {}
        if request.size == "paper":
            volumes, apart = _of_scheme(scan, bval)
            if len(volumes) < n_directions <= MOST:
                warnings.append(NOT_ALL.format(used=len(volumes), found=n_directions, bval=bval))
            more["DegreesFromScheme"] = round(apart, 1)
            if apart > SCHEME_DEGREES:
                warnings.append(OTHER_SCHEME.format(apart=apart))
        series = starts_of_few(scan, volumes) if request.size == "small" else {"acquired": few_of(scan, volumes)}
        maker = _Maker(self, making, series, bval, len(volumes))
        mean, samples = making.result(maker.make)
        names, checks = self.spec.maps_of(request.size), {"colour_mismatch": maker.mismatch}
        if request.size == "small":
            tensor = with_length(tensor_in(mean[..., :-1]), mean[..., -1])
            factor = anisotropy_factor(scan, bval, volumes, tensor)
            mean = sized(tensor, factor)
            if samples is not None:
                samples = samples.after(lambda drawn: sized(tensor_in(drawn[..., :-1]), factor))
            more |= {"StartsFrom": list(series), "AnisotropyFactor": round(factor, 3)}
            checks = {}  # all maps follow from one tensor
        more |= {
            "Volumes": {"b0": np.flatnonzero(scan.gradients.is_b0).tolist(), f"b={bval:.0f}": volumes.tolist()},
            "NoiseLevel": [round(float(level), 4) for level in maker.inputs[0].noise],
        }
        left_out = None
        if samples is not None:
            samples = replace(samples, factors=_by_tissue(maker.factors, names))
            if request.left_out and "tensor" in names:
                left_out = unused_volumes(scan, volumes, mean, samples)
        evaluations = len(self.times(request.sampler, making.steps)) * self.asked_at_a_time(request.sampler)
        acquired, record = np.zeros(mean.shape[3], bool), making.record(evaluations, **more)
        return Generated(mean, samples, None, names, acquired, record, checks, tuple(warnings), left_out)


def unused_volumes(scan: Scan, used: np.ndarray, maps: np.ndarray, samples: Samples) -> LeftOut | None:
    """Return what tensors predict for the other directions of their shell; None where there are too few.

    Parameters
    ----------
    scan
        The acquired series.
    used
        Volumes of the shell that the tensors were made from.
    maps
        (X, Y, Z, 13) best estimate, the tensor last, as in `one_after_another`.
    samples
        Samples of it.
    """
    shell = next(volumes for _, volumes in scan.gradients.shells() if np.isin(used, volumes).all())
    bvecs = scan.gradients.bvecs
    near = np.abs(bvecs[shell] @ bvecs[used].T).max(axis=1) > np.cos(np.deg2rad(SAME_DEGREES))
    unused = shell[~near]
    if len(unused) < LEAST:
        return None
    unused = np.sort(unused[even_subset(bvecs[unused], min(len(unused), MOST_UNUSED))])
    design = design_matrix(scan.gradients.bvals[unused], scan.gradients.world_directions(scan.affine)[unused])
    b0 = scan.mean_b0()[..., None]

    def predicted(values: np.ndarray) -> np.ndarray:
        exponent = np.minimum(values[..., -6:] @ np.asarray(design[:, :6], np.float32).T, 0)
        return np.asarray(b0 * np.exp(exponent), np.float32)

    return LeftOut(unused, predicted(maps), samples.after(predicted).std())


def _by_tissue(factors: Tensor, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the factors of the spread of the maps that are one volume, for each tissue."""
    widths = [MAP_WIDTHS.get(name, 1) for name in names]
    parts = np.split(np.round(factors.double().numpy(), 3), np.cumsum(widths)[:-1], axis=1)
    return {name: part[:, 0].tolist() for name, part in zip(names, parts, strict=True) if part.shape[1] == 1}


def _of_scheme(scan: Scan, bval: float) -> tuple[np.ndarray, float]:
    """Return the volumes of a shell nearest to a scheme's, in its order, and their largest difference, degrees."""
    volumes = dict(scan.gradients.shells())[bval]
    volumes = volumes[distinct(scan.gradients.bvecs[volumes])]
    chosen, apart = nearest_to_scheme(scan.gradients.world_directions(scan.affine)[volumes])
    return volumes[chosen], apart


class _Input:
    """What the network sees of a series of b0s and, after them, n directions of one shell."""

    def __init__(self, scan: Scan, bval: float, n: int, box: tuple[slice, slice], request: Request):
        self.scan, self.bval, self.box, self.request = scan, bval, box, request
        self.volumes = np.arange(len(scan.gradients))[-n:]
        self.noise = self._noise()
        self.b0 = scan.mean_b0()
        self.unit = float(self.b0[scan.mask].mean())
        self.bvecs = torch.as_tensor(scan.gradients.world_directions(scan.affine)[self.volumes], dtype=torch.float32)

    def _noise(self) -> Tensor:
        """Return the noise levels (2,): the median over the slices."""
        data = torch.from_numpy(np.ascontiguousarray(self.scan.data[..., self.volumes], dtype=np.float32))
        levels = noise_levels(data.permute(2, 3, 0, 1), torch.from_numpy(self.scan.mask).permute(2, 0, 1))
        noise = levels.nanmedian(dim=0).values
        if not noise.isfinite().all():  # no slice shows enough brain
            noise = torch.full((2,), shell_sigma(self.scan, self.volumes))
        return noise

    def condition(self, part: np.ndarray, around: tuple[int, int, int, int]) -> Condition:
        """Return the condition of some slices, with zeros `around` them, as for `F.pad`."""
        three = np.clip(part[:, None] + [-1, 0, 1], 0, self.scan.mask.shape[2] - 1)  # (S, 3)

        def block(volume: np.ndarray) -> Tensor:  # (h, w, S, 3, ...)
            part = torch.from_numpy(np.ascontiguousarray(volume[self.box][:, :, three], dtype=np.float32))
            columns, rows = around[:2], around[2:]
            return F.pad(part, (0, 0) * (part.ndim - 2) + (*columns, *rows))

        device, n = self.request.device, len(part)
        return condition_of(
            block(self.b0).permute(2, 0, 1, 3).to(device),
            block(self.scan.data[..., self.volumes]).permute(2, 4, 0, 1, 3).to(device),
            self.bvecs.to(device).expand(n, -1, -1),
            torch.full((n,), self.bval, device=device),
            self.noise.to(device).expand(n, -1),
            torch.full((n,), self.unit, device=device),
            self.request.size,
        )


class _Maker:
    """Generates the maps of one scan, slice by slice.

    The best estimate is the mean over the series that the network starts from. Samples start from one of them each, in
    turn; what they differ from the mean of that one is added to the best estimate.
    """

    def __init__(self, method: SliceMaps, making: Making[nn.Module], series: Mapping[str, Scan], bval: float, n: int):
        self.method, self.making, self.scan, self.request = method, making, series["acquired"], making.request
        self.means, self.mismatch = Means(), 0.0
        self.box, self.slices = self.scan.brain_window(MARGIN)
        # A network of size `paper` has only seen slices with zeros around them.
        self.around = (0, 0, 0, 0)
        if self.request.size == "paper":
            self.around = zeros_around(*(part.stop - part.start for part in self.box))
        self.inputs = [_Input(scan, bval, n, self.box, self.request) for scan in series.values()]
        self.factors = cast("Tensor", making.net.spread)[n - LEAST].cpu()  # (tissues, columns)

    @torch.no_grad()  # inference mode does not apply in the threads that compute tensor maps
    def make(self, sample: int | None) -> np.ndarray:
        """Return a sample, or (None) the mean, (X, Y, Z, N).

        With `small`, the lengths of the anisotropic parts follow the maps. The mean mismatch of colour FA and FA is
        kept as `mismatch`.
        """
        mask, mismatch, voxels = self.scan.mask, 0.0, 0

        def at(part: np.ndarray) -> Tensor:
            nonlocal mismatch, voxels
            inside = torch.from_numpy(np.ascontiguousarray(mask[self.box][:, :, part])).permute(2, 0, 1)[:, None]
            if sample is None or not asked_for_mean(self.request):
                result = self._averaged(part, sample)
            else:
                result = self._about_mean(part, sample)
            maps, difference = maps_in(result)
            if result.shape[1] == SAID:
                maps = torch.cat([maps, lengthened(result)[:, TENSOR:]], dim=1)
            mismatch += float((difference * inside[:, 0]).sum())
            voxels += int(inside.sum())
            return (maps * inside).permute(2, 3, 0, 1)

        parts = np.split(self.slices, range(SLICES_AT_ONCE, len(self.slices), SLICES_AT_ONCE))
        columns = self.factors.shape[1] + int(self.request.size == "small")
        made = slice_by_slice((*mask.shape, columns), self.box, parts, self.request, at, label("slices", sample))
        self.mismatch = mismatch / max(voxels, 1)
        return made

    def _averaged(self, part: np.ndarray, sample: int | None) -> Tensor:
        """Return the mean over the series of a sample, or (None) of the mean, (S, C, h, w) of some slices.

        They are numbers of tensors or (`paper`) maps.
        """
        made = []
        for number, seen in enumerate(self.inputs):
            condition = seen.condition(part, self.around)
            made.append(self._result(condition, self._output(number, condition, part, sample)))
        return torch.stack(made).mean(dim=0)

    def _about_mean(self, part: np.ndarray, sample: int) -> Tensor:
        """Return the best estimate, and what a sample of one of the series differs from the mean of that series."""
        chosen, means = sample % len(self.inputs), []
        for number, seen in enumerate(self.inputs):
            condition, mean = seen.condition(part, self.around), self.means.of((number, int(part[0])))
            assert mean is not None  # the mean is made first
            means.append(self._result(condition, mean.to(condition.centre)))
            if number == chosen:
                drawn = self._result(condition, self._output(number, condition, part, sample))
        return torch.stack(means).mean(dim=0) + drawn - means[chosen]

    def _result(self, condition: Condition, output: Tensor) -> Tensor:
        """Return the numbers or maps (S, C, h, w) for what the network says, without the zeros around the slices."""
        left, right, top, bottom = self.around
        height, width = condition.centre.shape[2:]
        return corrected(condition, output).cpu()[..., top : height - bottom, left : width - right]

    def _output(self, number: int, condition: Condition, part: np.ndarray, sample: int | None) -> Tensor:
        """Return what the network says of a series, of a sample or (None) as the mean, as `draw`."""
        request = self.request
        addresses = [(0, int(z), sample or 0) for z in part]
        shape = tuple(condition.centre.shape[1:])
        noise = NoiseSource(
            request.seed, request.subject, request.run, self.method.spec.name, addresses, shape, request.device
        )
        net, precision, place = self.making.net, self.making.precision, (number, int(part[0]))
        mean = None if sample is None else self.means.of(place)
        steps = self.making.steps if sample is None else self.making.sample_steps
        times = self.method.times(request.sampler, steps)
        output = self.method.draw(net, condition, request.sampler, times, noise, precision, mean)
        if sample is None and request.n_samples > 1:
            self.means.keep(place, output)
        return output


def corrected(condition: Condition, output: Tensor) -> Tensor:
    """Return the result (S, C, H, W) for what a network says, as `Condition` takes it.

    Six directions determine a tensor (`small`): the fit is an estimate too, and the result is the mean of both.
    """
    if condition.with_fit and condition.bvecs.shape[1] == MOST:
        output = output / 2
    return (condition.centre + condition.scale * output).float()


def tensor_error(result: Tensor, batch: Batch, unit: Tensor | float = 1.0) -> Tensor:
    """Return the weighted mean squared error of the diffusivities of tensors along the batch's other directions.

    It is relative to the mean diffusivity (`inputs.Condition.weight`). Where the length of the anisotropic part is
    known, its error counts as it does in the mean over all directions.

    Parameters
    ----------
    result
        (B, 7, H, W) numbers of tensors, as `numbers_of`.
    batch
        The examples.
    unit
        What errors are divided by, (B, 1, 1, 1) or a number.
    """
    condition = batch.condition
    error = ((along(result, batch.hidden_bvecs) - batch.hidden) / unit).square().mean(dim=1, keepdim=True)
    if batch.with_length:
        wanted = condition.centre + condition.scale * batch.x0
        error = error + 2 / 15 * ((result - wanted)[:, TENSOR:] / unit).square()
    return (error * batch.weight).sum() / (batch.weight > 0).sum().clamp_min(1)


def maps_in(result: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps (S, N, H, W), one after another, of what was drawn, and how far colour and FA differed (S, H, W).

    The maps of tensors, with anisotropic parts as long as is said (`lengthened`), are as in `one_after_another`; those
    of size `paper` are FA, MD and colour FA.
    """
    if result.shape[1] == SAID:
        columns = one_after_another(tensor_of(lengthened(result)).permute(0, 2, 3, 1).reshape(-1, TENSOR))
        maps = columns.reshape(len(result), *result.shape[2:], -1).permute(0, 3, 1, 2)
        return maps, result.new_zeros((len(result), *result.shape[2:]))
    return consistent(result)


def consistent(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps (S, 5, H, W) in their ranges and units, with colour FA as long as FA, and the mismatch before."""
    fa, md, colour = maps[:, :1].clamp(0, 1), maps[:, 1:2].clamp_min(0), maps[:, 2:].clamp_min(0)
    length = colour.norm(dim=1, keepdim=True)
    return torch.cat([fa, MD_UNIT * md, colour * fa / length.clamp_min(1e-6)], dim=1), (length - fa).abs()[:, 0]
