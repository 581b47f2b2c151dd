"""Diff-DTI's network, its training, the calibration of its spread, and the generation of maps; see `diffdti`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.numerics import autocast
from ...diffusion.samplers import dpm_solver_pp_2m, karras_times, predictor_corrector
from ...diffusion.training import Plan
from ...dwi.gradients import distinct
from ...dwi.noise import shell_sigma
from ...dwi.series import Scan
from ...nets.fefm import FENSpec, FusedUNet
from ...nets.unet import UNetSpec
from ...simulate.examples import SimulatedSubjects, numbers_of_step
from ..base import MAP_WIDTHS, Generated, Request, TrainedAtOnce
from ..making import Making, denoiser, slice_by_slice
from .balance import anisotropy_factor, sized, tensor_in, with_length
from .diffdti import SPEC
from .examples import PROCESS, Batch, examples, zeros_around
from .inputs import IMAGES, MD_UNIT, NUMBERS, Condition, along, condition_of, lengthened, noise_levels, tensor_of
from .outputs import one_after_another
from .starts import few_of, starts_of_few
from .task import (
    BVALS,
    CHANNELS,
    LEAST,
    MOST,
    NOT_ALL,
    OTHER_SCHEME,
    SAID,
    SCHEME_DEGREES,
    SCHEMES,
    TENSOR,
    choose_volumes,
    nearest_to_scheme,
)

STEPS = (2000, 1, 24)  # evaluations: paper's sampler (two per time); fast sampler for one sample, for several
CORRECTOR_SNR = 0.075
SLICES_AT_ONCE = 8
CALIBRATION_BATCH = {"small": 16, "paper": 2}  # slices; those of `paper` have nine times the voxels
CALIBRATION_SAMPLES = 16
FEWEST_VOXELS = 200  # fewest voxels of a tissue for separate factors
TISSUES = ("white matter", "grey matter", "CSF")  # as classified by `tissue`
WHITE_FA, FLUID_MD = 0.25, 1.5e-3  # lower limits of white matter, and (mm²/s) of fluid
NORMAL_90 = 1.645  # half the 90 % interval of a normal distribution, in standard deviations
LEAST_SPREAD = 1e-8  # of samples, in the unit of a map
MARGIN = 4  # voxels around the brain that the network sees
SIZES = {
    "small": UNetSpec(SAID + IMAGES, SAID, base=24, multipliers=(1, 2, 3, 4), blocks=1, attention=(3,),
                      groups=0, bottom=False, heads=4, zero_output=True),
    "paper": UNetSpec(CHANNELS + 1 + MOST, CHANNELS, base=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(3,)),
}  # fmt: skip
FEN = {
    "small": FENSpec(),
    "paper": FENSpec(patch=16, width=512, layers=6, heads=8, directions=False),
}


class DiffDTI(TrainedAtOnce):
    """Diff-DTI."""

    spec = SPEC

    def network(self, size: str, fefm: bool = True) -> FusedUNet:
        """Return an untrained network, always the same; without FEFM it is the paper's ablation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = FusedUNet(SIZES[size], FEN[size] if fefm else None, NUMBERS if size == "small" else 0)
        # Factors that convert the samples' standard deviations into errors; see `calibrate`.
        columns = sum(MAP_WIDTHS.get(name, 1) for name in SPEC.maps_of(size))
        net.register_buffer("spread", torch.ones(MOST - LEAST + 1, len(TISSUES), columns))
        return net

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture of this size and the range of the training data."""
        settings = {**vars(SIZES[size]), "fen": vars(FEN[size]), "bvals": list(BVALS), "directions": [LEAST, MOST]}
        return settings | ({"schemes": [scheme.tolist() for scheme in SCHEMES.values()]} if size == "paper" else {})

    # -- training

    def batch(self, size: str) -> int:
        """Return the examples per step; the paper's are eight."""
        return 8 if size == "paper" else 32

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return the number of fixed batches, and of examples in each; few for `paper`, with whole slices."""
        return (4, 1) if size == "paper" else (8, 32)

    def training_plan(self, size: str) -> Plan:
        """Return the training's default budget and settings; `paper` has the paper's rate, clipping and average."""
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

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted mean squared error: of the noise (`paper`), or of diffusivities along other directions.

        The latter are relative to the mean diffusivity (`inputs.Condition.weight`), and to how far x_0 can be known
        from x_t.
        """
        condition, t = batch.condition, batch.t.reshape(-1, 1, 1, 1)
        x_t = PROCESS.add_noise(batch.x0, t, batch.noise)
        prediction = _raw(net, x_t, batch.t, condition)
        if not condition.with_fit:
            return ((prediction - batch.noise).square() * batch.weight).sum() / batch.weight.sum()
        skip, out = _preconditioning(batch.t, x_t)
        with autocast(x_t.device, "fp32"):
            result = condition.centre + condition.scale * (skip * x_t + out * prediction)
            error = ((along(result, batch.hidden_bvecs) - batch.hidden) / out).square().mean(dim=1, keepdim=True)
            if batch.with_length:  # as the anisotropic part has in the mean over all directions
                wanted = condition.centre + condition.scale * batch.x0
                length = (result - wanted)[:, TENSOR:] / out
                error = error + 2 / 15 * length.square()
        return (error * batch.weight).sum() / (batch.weight > 0).sum().clamp_min(1)

    @torch.no_grad()
    def calibrate(
        self, net: nn.Module, source: SimulatedSubjects | Prepared, size: str, seed: int, batches: int = 2
    ) -> None:
        """Set the factors of the samples' spread so that a 90 % interval contains 90 % of the true values.

        The interval is the mean of `CALIBRATION_SAMPLES` samples plus and minus 1.645 standard deviations, each
        multiplied by its factor. The subjects are not those of the training. Factors differ by number of directions and
        by tissue, as classified from the mean; each number of directions gets `batches` batches.
        """
        slices = CALIBRATION_BATCH[size]
        make, times = self.examples(source, size, slices, seed + 1), _times("fast", STEPS[2])
        network = cast("FusedUNet", net.eval())
        numbers = SCHEMES if size == "paper" else range(LEAST, MOST + 1)
        results: dict[int, list[tuple[Tensor, Tensor]]] = {n: [] for n in numbers}
        for index in count():
            if all(len(parts) == batches for parts in results.values()):
                break
            batch = make(index)
            parts = results[batch.condition.bvecs.shape[1]]
            if len(parts) == batches:
                continue
            addresses = [(index, k, 0) for k in range(slices)]
            drawn = []
            for sample in range(CALIBRATION_SAMPLES):
                noise = NoiseSource(
                    seed, "calibrate", str(sample), SPEC.name, addresses, batch.x0.shape[1:], source.device
                )
                drawn.append(draw(net, batch.condition, "fast", times, noise, "fp32"))
            samples = torch.stack([maps_in(result)[0] for result in drawn])
            mean, _ = maps_in(torch.stack(drawn).mean(dim=0))
            truth, _ = maps_in(batch.condition.centre + batch.condition.scale * batch.x0)
            inside = batch.weight[:, 0] > 0
            ratio = (truth - mean).abs() / samples.std(dim=0).clamp_min(LEAST_SPREAD)
            parts.append((ratio.movedim(1, 3)[inside], tissue(mean[:, 0], mean[:, 1])[inside]))
        for n, parts in results.items():
            ratios, tissues = (torch.cat(columns) for columns in zip(*parts, strict=True))
            for k in range(len(TISSUES)):
                chosen = ratios[tissues == k] if (tissues == k).sum() >= FEWEST_VOXELS else ratios
                network.spread[n - LEAST, k] = chosen.float().quantile(0.9, dim=0) / NORMAL_90

    # -- generation

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Generate the maps of a scan with `net`, or with stored weights where `net` is None."""
        # bfloat16 is not enough here: its rounding errors are multiplied by the largest sigma.
        precision = None if request.size == "small" else "fp32"
        making: Making[FusedUNet] = Making(self, net, request, STEPS, precision)
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
        maker = _Maker(making, series, bval, len(volumes))
        mean, std, mismatch = maker.make()
        names, checks = self.spec.maps_of(request.size), {"colour_mismatch": mismatch}
        if request.size == "small":
            tensor = with_length(tensor_in(mean[..., :-1]), mean[..., -1])
            factor = anisotropy_factor(scan, bval, volumes, tensor)
            mean, std = sized(tensor, None if std is None else std[..., :-1], factor)
            more |= {"StartsFrom": list(series), "AnisotropyFactor": round(factor, 3)}
            checks = {}  # all maps follow from one tensor
        more |= {
            "Volumes": {"b0": np.flatnonzero(scan.gradients.is_b0).tolist(), f"b={bval:.0f}": volumes.tolist()},
            "NoiseLevel": [round(float(level), 4) for level in maker.inputs[0].noise],
        }
        if std is not None:
            more["SpreadFactors"] = _by_tissue(maker.factors, names)
        evaluations = len(maker.times) * (2 if request.sampler == "paper" else 1)
        acquired, record = np.zeros(mean.shape[3], bool), making.record(evaluations, **more)
        return Generated(mean, std, None, names, acquired, record, checks, tuple(warnings))


def _by_tissue(factors: Tensor, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Return the factors of the spread by map and tissue; those of a map with several volumes are listed."""
    widths = [MAP_WIDTHS.get(name, 1) for name in names]
    parts = np.split(np.round(factors.double().numpy(), 3), np.cumsum(widths)[:-1], axis=1)
    return {
        name: {tissue: part[k].tolist() for k, tissue in enumerate(TISSUES)}
        for name, part in zip(names, parts, strict=True)
    }


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
    """Generates the maps of one scan, slice by slice: each sample is the mean over what the network starts from."""

    def __init__(self, making: Making[FusedUNet], series: Mapping[str, Scan], bval: float, n: int):
        self.making, self.scan, self.request = making, series["acquired"], making.request
        self.times = _times(self.request.sampler, making.steps)
        self.box, self.slices = self.scan.brain_window(MARGIN)
        # A network of size `paper` has only seen slices with zeros around them.
        self.around = (0, 0, 0, 0)
        if self.request.size == "paper":
            self.around = zeros_around(*(part.stop - part.start for part in self.box))
        self.inputs = [_Input(scan, bval, n, self.box, self.request) for scan in series.values()]
        self.factors = making.net.spread[n - LEAST].cpu()  # (tissues, columns)

    @torch.no_grad()  # inference mode does not apply in the threads that compute tensor maps
    def make(self) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Return mean and (of several samples) spread (X, Y, Z, N), and the mean mismatch of colour FA and FA.

        With `small`, the lengths of the anisotropic parts follow the maps.
        """
        mask, mismatch, voxels = self.scan.mask, 0.0, 0

        def at(part: np.ndarray) -> Callable[[int], Tensor]:
            conditions = [seen.condition(part, self.around) for seen in self.inputs]
            inside = torch.from_numpy(np.ascontiguousarray(mask[self.box][:, :, part])).permute(2, 0, 1)[:, None]

            def sample(k: int) -> Tensor:
                nonlocal mismatch, voxels
                drawn = [self._sample(condition, part, k) for condition in conditions]
                result = torch.stack(drawn).mean(dim=0)
                maps, difference = maps_in(result)
                if result.shape[1] == SAID:
                    maps = torch.cat([maps, lengthened(result)[:, TENSOR:]], dim=1)
                mismatch += float((difference * inside[:, 0]).sum())
                voxels += int(inside.sum())
                return (maps * inside).permute(2, 3, 0, 1)

            return sample

        parts = np.split(self.slices, range(SLICES_AT_ONCE, len(self.slices), SLICES_AT_ONCE))
        columns = self.factors.shape[1]
        extra = int(self.request.size == "small")
        mean, std = slice_by_slice((*mask.shape, columns + extra), self.box, parts, self.request, at)
        if std is not None:
            kind = tissue(torch.from_numpy(mean[..., 0]), torch.from_numpy(mean[..., 1]))
            std[..., :columns] *= self.factors[kind].numpy()
        return mean, std, mismatch / max(voxels, 1)

    def _sample(self, condition: Condition, part: np.ndarray, sample: int) -> Tensor:
        """Return one sample (S, C, h, w) of some slices, as `draw`."""
        request = self.request
        addresses = [(0, int(z), sample) for z in part]
        left, right, top, bottom = self.around
        height, width = condition.centre.shape[2:]
        shape = (condition.centre.shape[1], height, width)
        noise = NoiseSource(request.seed, request.subject, request.run, SPEC.name, addresses, shape, request.device)
        result = draw(self.making.net, condition, request.sampler, self.times, noise, self.making.precision).cpu()
        return result[..., top : height - bottom, left : width - right]


def draw(
    net: nn.Module,
    condition: Condition,
    sampler: str,
    times: Sequence[int],
    noise: Callable[[int], Tensor],
    precision: str,
) -> Tensor:
    """Return the numbers of tensors (`small`), as `numbers_of`, or maps (`paper`), drawn from noise.

    They are (S, C, H, W). Of the maps, MD is in units of `MD_UNIT`, and colour FA not yet as long as FA.

    Parameters
    ----------
    net
        The network, in evaluation mode.
    condition
        Condition of S slices.
    sampler
        "fast" or "paper".
    times
        Times of the evaluations; the first is the last time of the process.
    noise
        Number of the draw -> standard normal noise (S, C, H, W).
    precision
        "fp32" or "bf16".
    """

    def ask(x: Tensor, t: Tensor) -> Tensor:
        return _raw(net, x, t, condition)

    denoise = denoiser(ask, PROCESS, "noise", precision)
    if condition.with_fit:
        raw = denoiser(ask, PROCESS, "x0", precision)

        def denoise(x: Tensor, t: int) -> Tensor:
            skip, out = _preconditioning(torch.full((len(x),), t), x)
            return skip * x + out * raw(x, t)

    start = noise(0) * PROCESS.marginal(times[0])[1].to(condition.centre)
    if sampler == "fast":
        output = dpm_solver_pp_2m(denoise, PROCESS, start, times).x0
    else:
        output = predictor_corrector(denoise, PROCESS, start, times, noise, 1, CORRECTOR_SNR).x0
    if condition.with_fit and condition.bvecs.shape[1] == MOST:
        output = output / 2  # six directions determine a tensor: the fit is an estimate too; the mean of both
    return (condition.centre + condition.scale * output).float()


def tissue(fa: Tensor, md: Tensor) -> Tensor:
    """Return indices into `TISSUES`: CSF by high MD (mm²/s), then white matter by high FA."""
    return torch.where(md > FLUID_MD, 2, torch.where(fa > WHITE_FA, 0, 1))


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


def _raw(net: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Return the network's output; x_t is scaled to about unit variance at every time."""
    sigma = PROCESS.marginal(t.cpu())[1].to(x).reshape(-1, 1, 1, 1)
    seen = torch.cat([x / (1 + sigma.square()).sqrt(), condition.images], dim=1)
    return net(seen, t.float(), condition.acquired, condition.bvecs, condition.bvals, condition.numbers)


def _preconditioning(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors with x_0 = skip x_t + out network, for x_0 of unit variance (Karras et al. 2022, Table 1)."""
    sigma = PROCESS.marginal(t.cpu())[1].to(x).reshape(-1, 1, 1, 1)
    return 1 / (1 + sigma.square()), sigma / (1 + sigma.square()).sqrt()


def _times(sampler: str, evaluations: int) -> list[int]:
    """Return the times for a number of evaluations; the paper's sampler evaluates twice at each time."""
    steps = max(evaluations // 2, 1) if sampler == "paper" else evaluations
    if sampler == "paper" and steps == PROCESS.steps:
        return list(range(steps, 0, -1))
    return karras_times(PROCESS, PROCESS.steps, steps)


def build() -> DiffDTI:
    """Return the method."""
    return DiffDTI()
