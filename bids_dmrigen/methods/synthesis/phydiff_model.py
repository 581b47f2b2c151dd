"""Phy-Diff's network, its training, and the generation of images; see `phydiff`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.numerics import autocast
from ...diffusion.samplers import ancestral, dpm_solver_pp_2m, even_times, two_times
from ...diffusion.training import Plan
from ...dwi.gradients import GradientTable
from ...dwi.series import Scan, ScanError
from ...nets.adapter import Adapter, tract_condition
from ...nets.hdit import HDiT, HDiTSpec
from ...nets.template_atlas import IMAGES as ATLAS_IMAGES
from ...nets.template_atlas import TemplateAtlas
from ...simulate.adc import mean_adc
from ...simulate.atlas import Atlas
from ...simulate.examples import SimulatedSubjects, numbers_of_step
from ...simulate.individual import ALIGNED
from ..base import Generated, Population, Request, TrainedAtOnce
from ..making import Making, Means, denoiser, label, slice_by_slice
from .examples import BVALS, Batch, Cohort, continued, examples, zeros_around
from .inputs import IMAGES, PROCESS, Condition, PopulationMaps, adc_for, condition_of
from .phydiff import SPEC
from .task import DEFAULT_BVALUES, SynthesisSpec, wanted_table

STRENGTH = 0.8  # share of the process: the paper's sampler starts from the b0 noised up to this time
STEPS = (round(STRENGTH * PROCESS.steps), 1, 2)  # of the paper's sampler, of the fast one for the mean, for a sample
IMAGES_AT_ONCE = 16
MARGIN = 4  # voxels around the brain that the network sees
TRACTS = 42
ADC_SUBJECTS = 8  # subjects whose mean ADC is the atlas of a training
SIZES = {
    "small": HDiTSpec(1 + IMAGES, widths=(64, 128, 256), depths=(2, 2, 4), head=32),
    "paper": HDiTSpec(1 + 1, widths=(128, 256, 512), depths=(2, 2, 4), head=64, recompute=True),
}
NO_POPULATION = "Phy-Diff needs the ADC atlas on the scan's grid, in the template's space; found none"
OTHER_GRID = "the ADC atlas has shape {found}, the scan {expected}: both must share one grid"
NO_TRACTS = "Phy-Diff ran without tracts: give XTRACT with --xtract-dir"
UNTRAINED_TRACTS = "Phy-Diff's weights were not trained with tracts: those of --xtract-dir change nothing"
UNTRAINED_B = "b = {bvals} s/mm² lie outside what the weights were trained on, {low:.0f} to {high:.0f}"


class TractHDiT(nn.Module):
    """The backbone, a learnt atlas of directions in the template (`small`), and the adapter for tracts.

    Without tracts, or untrained, the adapter adds nothing. The atlas's image is an input of the backbone, and is added
    to the backbone's output.
    """

    physics = True  # selects the process of training and sampling; see `PhyDiff.network`

    def __init__(self, spec: HDiTSpec, with_atlas: bool = False):
        super().__init__()
        self.atlas = TemplateAtlas() if with_atlas else None
        self.backbone = HDiT(replace(spec, in_channels=spec.in_channels + ATLAS_IMAGES * with_atlas))
        self.adapter = Adapter(TRACTS, spec.patch, spec.widths)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the prediction (B, 1, H, W) from noisy images (B, 1, H, W), times (B,) and their condition."""
        maps = None
        if condition.tracts is not None:
            b0 = condition.images[:, 1:2] if condition.images.shape[1] > 1 else condition.images
            maps = self.adapter(tract_condition(condition.tracts, b0))
        seen = [x, condition.images]
        if self.atlas is not None:
            with autocast(x.device, "fp32"):
                seen.append(self.atlas(condition.places.float(), condition.bvecs, condition.bvals))
        output = self.backbone(
            torch.cat(seen, dim=1), t.float(), condition.bvecs, condition.bvals, condition.position, maps
        )
        return output if self.atlas is None else output + seen[2][:, :1]


class PhyDiff(TrainedAtOnce):
    """Phy-Diff. `Request.options`: table, the wanted `GradientTable` (N,), in the scan's voxel axes.

    Parameters
    ----------
    spec
        The specification.
    physics
        Whether the noise follows the ADC atlas.
    """

    def __init__(self, spec: SynthesisSpec = SPEC, physics: bool = True):
        self.spec, self._physics = spec, physics

    def network(self, size: str, physics: bool | None = None, query_mapping: bool = True) -> nn.Module:
        """Return an untrained network, always the same; without `query_mapping` it is the paper's ablation.

        `physics` selects the process of training and sampling; None for the method's own.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            spec = replace(SIZES[size], query_mapping=query_mapping)
            net = TractHDiT(spec, with_atlas=size == "small" and query_mapping)
        net.physics = self._physics if physics is None else physics
        return net

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture of this size and the range of the training data."""
        return {**vars(SIZES[size]), "bvals": list(BVALS), "tracts": TRACTS, "learnt_atlas": size == "small"}

    # -- training

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return the number of fixed batches, and of examples in each; few for `paper`, with whole slices."""
        return (1, 4) if size == "paper" else (8, 32)

    def training_plan(self, size: str) -> Plan:
        """Return the training's default budget and settings: the paper's optimiser."""
        common: dict[str, Any] = {"learning_rate": 5e-4, "betas": (0.9, 0.95), "weight_decay": 1e-4, "ema": 0.999}
        common |= {"warmup": 200, "evaluate_every": 250, "patience": 1000, "save_every": 250}
        return Plan(steps=1_000_000 if size == "paper" else 200_000, **common)

    def subjects(
        self,
        atlas: Atlas,
        n: int,
        held_out: bool = False,
        device: str | torch.device = "cpu",
        population: Population | None = None,
    ) -> Cohort:
        """Return simulated subjects, aligned to the template as by registration, and the population's maps.

        `population` is on the atlas's grid; by default its ADC is the mean of `ADC_SUBJECTS` such subjects.
        """
        subjects = SimulatedSubjects.from_atlas(atlas, n, held_out, ALIGNED, device)
        return Cohort(subjects, _maps(atlas, population, device))

    def placed(self, scans: Prepared, atlas: Atlas, population: Population | None = None) -> Cohort:
        """Return scans in the template's space, and the population's maps as for `subjects`."""
        return Cohort(scans, _maps(atlas, population, scans.device))

    def freeze(self, net: nn.Module, source: Cohort) -> None:
        """Freeze one part of the network: the adapter where there are no tracts, else the backbone and the atlas."""
        network = cast("TractHDiT", net)
        network.adapter.requires_grad_(source.maps.tracts is not None)
        for part in (network.backbone, network.atlas):
            if part is not None:
                part.requires_grad_(source.maps.tracts is None)

    def examples(self, source: Cohort, size: str, batch: int, seed: int) -> Callable[[int], Batch]:
        """Return index -> batch of examples on the source's device."""
        return lambda index: examples(source, size, batch, numbers_of_step(seed, index, source.device))

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted mean squared error of the network's prediction: noise (`paper`) or image (`small`)."""
        t = batch.t.reshape(-1, 1, 1, 1)
        x_t = batch.condition.process(_physics(net)).add_noise(batch.x0, t, batch.noise)
        target = batch.x0 if _makes_image(batch.condition) else batch.noise
        prediction = net(x_t, batch.t, batch.condition)
        return ((prediction - target).square() * batch.weight).sum() / batch.weight.sum()

    # -- generation

    def draw(
        self,
        net: nn.Module,
        condition: Condition,
        sampler: str,
        times: list[int],
        noise: Callable[[int], Tensor],
        precision: str,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return x_0 (B, 1, H, W), as `Condition` takes it; see the function `draw`."""
        return draw(net, condition, sampler, times, noise, precision, mean)

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Generate the wanted images from the mean b0 of a scan in the template's space, in and around the brain.

        Diffusion-weighted volumes of the scan are not used.

        Raises
        ------
        ScanError
            Where the population's maps are missing or on another grid.
        """
        making: Making[nn.Module] = Making(self, net, request, STEPS)
        if request.population is None or request.population.adc is None:
            raise ScanError(NO_POPULATION)
        if request.population.adc.shape[:3] != scan.mask.shape:
            raise ScanError(OTHER_GRID.format(found=request.population.adc.shape[:3], expected=scan.mask.shape))
        table = request.options.get("table") or wanted_table(scan)
        maker = _Maker(self, making, scan, table)
        mean, samples = making.result(maker.make)
        bvals = sorted({round(b) for b in table.bvals if not BVALS[0] <= b <= BVALS[1]})
        warnings = [UNTRAINED_B.format(bvals=bvals, low=BVALS[0], high=BVALS[1])] if bvals else []
        more: dict[str, Any] = {}
        if "tracts" in self.spec.population:
            with_tracts, more["Tracts"] = request.population.tracts is not None, _adapted(making.net, request)
            if not more["Tracts"]:
                warnings.append(UNTRAINED_TRACTS if with_tracts else NO_TRACTS)
        acquired = np.zeros(len(table), bool)
        record = making.record(len(maker.times(None)), **more)
        return Generated(mean, samples, table, (), acquired, record, {}, tuple(warnings))


def _adapted(net: nn.Module, request: Request) -> bool:
    """Return whether there are tracts, and an adapter that was trained for them."""
    learnt = cast("TractHDiT", net).adapter.out.named_parameters()
    trained = any(bool(values.any()) for name, values in learnt if name.endswith("weight"))
    return trained and request.population is not None and request.population.tracts is not None


class _Maker:
    """Generates the images of one scan, slice by slice."""

    def __init__(self, method: PhyDiff, making: Making[nn.Module], scan: Scan, table: GradientTable):
        self.method, self.making, self.request = method, making, making.request
        self.scan, self.table = scan, table
        b0 = scan.mean_b0()
        self.unit = float(b0[scan.mask].mean())
        self.b0 = torch.from_numpy(np.ascontiguousarray(b0, dtype=np.float32)) / self.unit
        self.bvecs = torch.as_tensor(table.world_directions(scan.affine), dtype=torch.float32)
        self.bvals = torch.tensor(table.bvals.tolist())
        self.box, brain_slices = scan.brain_window(MARGIN)
        # Around the brain too: resampling to another grid needs neighbours.
        self.slices = np.arange(max(brain_slices[0] - MARGIN, 0), min(brain_slices[-1] + MARGIN + 1, self.b0.shape[2]))
        # A network of size `paper` has only seen slices with zeros around them.
        self.around = (0, 0, 0, 0)
        if self.request.size == "paper":
            self.around = zeros_around(*(part.stop - part.start for part in self.box))
        self.means = Means()

    def times(self, sample: int | None) -> list[int]:
        """Return the times of the evaluations for a sample, or (None) for the mean."""
        steps = self.making.steps if sample is None else self.making.sample_steps
        if self.request.sampler == "paper":
            return even_times(round(STRENGTH * PROCESS.steps), steps)
        return two_times(PROCESS) if steps == 2 else even_times(PROCESS.steps, steps)

    @torch.inference_mode()
    def make(self, sample: int | None) -> np.ndarray:
        """Return a sample, or (None) the mean, (X, Y, Z, N), in the scan's units; 0 far from the brain."""

        def at(part: np.ndarray) -> Tensor:
            images = self._made(int(part[0]), sample).clamp_min(0) * self.unit
            return images.permute(1, 2, 0)[:, :, None]

        volume, parts = (*self.scan.mask.shape, len(self.table)), np.split(self.slices, len(self.slices))
        return slice_by_slice(volume, self.box, parts, self.request, at, label("slices", sample))

    def _made(self, z: int, sample: int | None) -> Tensor:
        """Return a sample, or (None) the mean, (N, h, w) of every wanted image of a slice, in units of the mean b0."""
        request, parts = self.request, []
        for part in torch.arange(len(self.table)).split(IMAGES_AT_ONCE):
            condition = self._condition(z, part)
            addresses = [(int(n), z, sample or 0) for n in part]
            shape = tuple(condition.centre.shape[1:])
            name, net, precision = self.method.spec.name, self.making.net, self.making.precision
            noise = NoiseSource(request.seed, request.subject, request.run, name, addresses, shape, request.device)
            place = int(part[0]), z
            mean = None if sample is None else self.means.of(place)
            output = self.method.draw(net, condition, request.sampler, self.times(sample), noise, precision, mean)
            if sample is None and request.n_samples > 1:
                self.means.keep(place, output)
            parts.append((condition.centre + condition.scale * output)[:, 0].cpu())
        images = torch.cat(parts)
        left, right, top, bottom = self.around
        return images[..., top : images.shape[1] - bottom, left : images.shape[2] - right]

    def _condition(self, z: int, part: Tensor) -> Condition:
        """Return the condition of some images of a slice."""
        request, n = self.request, len(part)
        population, device = request.population, request.device
        assert population is not None  # `generate` has checked it
        assert population.adc is not None
        around = [min(max(z + k, 0), self.b0.shape[2] - 1) for k in (-1, 0, 1)]

        def image(volume: np.ndarray) -> Tensor:  # (C, h, w)
            values = np.ascontiguousarray(volume[(*self.box, z)], dtype=np.float32)
            return F.pad(torch.from_numpy(values).permute(2, 0, 1), self.around).to(device)

        bvals = self.bvals[part].to(device)
        adc = adc_for(image(population.adc).expand(n, -1, -1, -1), torch.as_tensor(population.bvals), bvals)
        index = np.meshgrid(*(np.arange(s.start, s.stop) for s in self.box), indexing="ij")
        places = np.einsum("ij,jhw->ihw", self.scan.affine[:3, :3], np.stack([*index, np.full_like(index[0], z)]))
        places = torch.from_numpy((places + self.scan.affine[:3, 3, None, None]).astype(np.float32))[None].to(device)
        b0 = F.pad(self.b0[self.box][:, :, around], (0, 0, *self.around))
        tracts = None if population.tracts is None else image(population.tracts).expand(n, -1, -1, -1)
        return condition_of(
            b0.expand(n, -1, -1, -1).to(device), adc, self.bvecs[part].to(device), bvals,
            continued(places, self.around).expand(n, -1, -1, -1), request.size, tracts,
        )  # fmt: skip


def draw(
    net: nn.Module,
    condition: Condition,
    sampler: str,
    times: list[int],
    noise: Callable[[int], Tensor],
    precision: str,
    mean: Tensor | None = None,
) -> Tensor:
    """Return x_0 (B, 1, H, W) as `Condition` takes it: images are centre + scale x_0.

    Parameters
    ----------
    net
        The network, in evaluation mode.
    condition
        Condition of B images.
    sampler
        "fast" starts from noise; "paper" from the noised b0 (`paper`) or the noised isotropic prediction (`small`).
    times
        Times of the evaluations, decreasing.
    noise
        Number of the draw -> standard normal noise (B, 1, H, W).
    precision
        "fp32" or "bf16".
    mean
        x_0 at the last time, where it is known.
    """
    process, kind = condition.process(_physics(net)), "x0" if _makes_image(condition) else "noise"

    denoise = denoiser(lambda x, t: net(x, t, condition), process, kind, precision, mean)
    if sampler == "fast":
        return dpm_solver_pp_2m(denoise, process, noise(0), times).x0
    first = torch.zeros_like(condition.centre) if _makes_image(condition) else 1.5 * (condition.images + 1) - 1
    return ancestral(denoise, process, process.add_noise(first, times[0], noise(0)), times, noise).x0


def _maps(atlas: Atlas, population: Population | None, device: str | torch.device) -> PopulationMaps:
    """Return a population's maps on the atlas's grid; by default the ADC is the mean of `ADC_SUBJECTS` subjects."""
    if population is None:
        population = Population(_mean_adc(atlas), np.array(DEFAULT_BVALUES))
    return PopulationMaps.of(population, atlas.affine, device)


@cache
def _mean_adc(atlas: Atlas) -> np.ndarray:
    """Return the mean ADC (X, Y, Z, K) of an anatomy's subjects, mm²/s; the same for training and held-out data."""
    return mean_adc(atlas, DEFAULT_BVALUES, ADC_SUBJECTS)


def _makes_image(condition: Condition) -> bool:
    """Whether the output is the image's difference from a prediction (`small`), or the noise (`paper`)."""
    return condition.images.shape[1] > 1


def _physics(net: nn.Module) -> bool:
    return getattr(getattr(net, "module", net), "physics", True)


def build() -> PhyDiff:
    """Return the method."""
    return PhyDiff()
