"""Diff-DTI's network, its training, the calibration of its spread, and the generation of maps; see `diffdti`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.numerics import autocast
from ...diffusion.samplers import dpm_solver_pp_2m, karras_times, predictor_corrector
from ...nets.fefm import FENSpec, FusedUNet
from ...nets.unet import UNetSpec
from ...simulate.examples import SimulatedSubjects
from ..making import denoiser
from .diffdti import SPEC
from .examples import PROCESS, Batch
from .inputs import IMAGES, NUMBERS, Condition
from .slices import TISSUES, SliceMaps, corrected, maps_in, tensor_error, tissue
from .task import BVALS, CHANNELS, LEAST, MOST, SAID, SCHEMES

STEPS = (2000, 1, 24)  # evaluations: paper's sampler (two per time); fast sampler for one sample, for several
CORRECTOR_SNR = 0.075
CALIBRATION_BATCH = {"small": 16, "paper": 2}  # slices; those of `paper` have nine times the voxels
CALIBRATION_SAMPLES = 16
FEWEST_VOXELS = 200  # fewest voxels of a tissue for separate factors
NORMAL_90 = 1.645  # half the 90 % interval of a normal distribution, in standard deviations
LEAST_SPREAD = 1e-8  # of samples, in the unit of a map
SIZES = {
    "small": UNetSpec(SAID + IMAGES, SAID, base=24, multipliers=(1, 2, 3, 4), blocks=1, attention=(3,),
                      groups=0, bottom=False, heads=4, zero_output=True),
    "paper": UNetSpec(CHANNELS + 1 + MOST, CHANNELS, base=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(3,)),
}  # fmt: skip
FEN = {
    "small": FENSpec(),
    "paper": FENSpec(patch=16, width=512, layers=6, heads=8, directions=False),
}


class DiffDTI(SliceMaps):
    """Diff-DTI."""

    spec, steps = SPEC, STEPS

    def network(self, size: str, fefm: bool = True) -> nn.Module:
        """Return an untrained network, always the same; without FEFM it is the paper's ablation."""
        fen, numbers = FEN[size] if fefm else None, NUMBERS if size == "small" else 0
        return self.seeded(lambda: FusedUNet(SIZES[size], fen, numbers), size)

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture of this size and the range of the training data."""
        settings = {**vars(SIZES[size]), "fen": vars(FEN[size]), "bvals": list(BVALS), "directions": [LEAST, MOST]}
        return settings | ({"schemes": [scheme.tolist() for scheme in SCHEMES.values()]} if size == "paper" else {})

    # -- training

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted mean squared error: of the noise (`paper`), or of diffusivities along other directions.

        The latter (`tensor_error`) are relative to how far x_0 can be known from x_t.
        """
        condition, t = batch.condition, batch.t.reshape(-1, 1, 1, 1)
        x_t = PROCESS.add_noise(batch.x0, t, batch.noise)
        prediction = _raw(net, x_t, batch.t, condition)
        if not condition.with_fit:
            return ((prediction - batch.noise).square() * batch.weight).sum() / batch.weight.sum()
        skip, out = _preconditioning(batch.t, x_t)
        with autocast(x_t.device, "fp32"):
            return tensor_error(condition.centre + condition.scale * (skip * x_t + out * prediction), batch, out)

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

    def draw(
        self,
        net: nn.Module,
        condition: Condition,
        sampler: str,
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        precision: str,
    ) -> Tensor:
        """Return what the network makes of S slices; see the function `draw`."""
        return draw(net, condition, sampler, times, noise, precision)

    def times(self, sampler: str, evaluations: int) -> list[int]:
        """Return the times for a number of evaluations; the paper's sampler evaluates twice at each time."""
        return _times(sampler, evaluations)

    def asked_at_a_time(self, sampler: str) -> int:
        """Return how often the network is asked at each time."""
        return 2 if sampler == "paper" else 1


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
    return corrected(condition, output)


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
