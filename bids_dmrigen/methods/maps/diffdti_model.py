"""Diff-DTI's network, its training, the calibration of its spread, and the generation of maps; see `diffdti`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.numerics import autocast
from ...diffusion.samplers import dpm_solver_pp_2m, karras_times, predictor_corrector, two_times
from ...dwi.uncertainty import NORMAL_90, SCALARS, TISSUES, map_errors, tissue_of
from ...nets.fefm import FENSpec, FusedUNet
from ...nets.unet import UNetSpec
from ...simulate.examples import SimulatedSubjects
from ..making import denoiser
from .diffdti import SPEC
from .examples import PROCESS, Batch
from .inputs import IMAGES, NUMBERS, Condition
from .slices import SliceMaps, corrected, maps_in, tensor_error
from .task import BVALS, CHANNELS, LEAST, MOST, SAID, SCHEMES

STEPS = (2000, 1, 2)  # evaluations: paper's sampler (two per time); fast sampler for the mean, for a sample
CORRECTOR_SNR = 0.075
CALIBRATION_BATCH = {"small": 16, "paper": 2}  # slices; those of `paper` have nine times the voxels
CALIBRATION_SAMPLES = 8  # as many as the app draws
FEWEST_VOXELS = 200  # fewest voxels of a tissue for separate factors
LEAST_ERROR = 1e-12  # in the unit of a map
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
        self, net: nn.Module, sources: Sequence[SimulatedSubjects | Prepared], size: str, seed: int, batches: int = 2
    ) -> None:
        """Set the factors of the maps' errors so that a 90 % interval contains 90 % of the true values.

        The interval is the best estimate plus and minus 1.645 standard errors (`dwi.uncertainty.map_errors`) of
        `CALIBRATION_SAMPLES` samples, each multiplied by its factor. The subjects are not those of the training.
        Factors differ by number of directions and by tissue, as classified from the best estimate; each number of
        directions gets `batches` batches of each source.
        """
        slices = CALIBRATION_BATCH[size]
        examples = [self.examples(source, size, slices, seed + 1) for source in sources]
        network = cast("FusedUNet", net.eval())
        numbers = SCHEMES if size == "paper" else range(LEAST, MOST + 1)
        results: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {n: [] for n in numbers}
        for number, make in enumerate(examples, 1):
            for index in count():
                if all(len(parts) == number * batches for parts in results.values()):
                    break
                batch = make(index)
                parts = results[batch.condition.bvecs.shape[1]]
                if len(parts) < number * batches:
                    parts.append(_ratios(network, batch, index, seed, size))
        for n, parts in results.items():
            ratios, tissues = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            for k in range(len(TISSUES)):
                chosen = ratios[tissues == k] if (tissues == k).sum() >= FEWEST_VOXELS else ratios
                factors = np.quantile(chosen, 0.9, axis=0) / NORMAL_90
                network.spread[n - LEAST, k, : len(factors)] = torch.as_tensor(factors).to(network.spread)

    # -- generation

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
        """Return what the network makes of S slices; see the function `draw`."""
        return draw(net, condition, sampler, times, noise, precision, mean)

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
    mean: Tensor | None = None,
) -> Tensor:
    """Return x_0 (S, C, H, W) as `Condition` takes it, drawn from noise.

    They are numbers of tensors (`small`), as `numbers_of`, or maps (`paper`).

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
    mean
        x_0 at the last time, where it is known.
    """

    def ask(x: Tensor, t: Tensor) -> Tensor:
        return _raw(net, x, t, condition)

    denoise = denoiser(ask, PROCESS, "noise", precision)
    if condition.with_fit:
        raw = denoiser(ask, PROCESS, "x0", precision)

        def denoise(x: Tensor, t: int) -> Tensor:
            if mean is not None and t == PROCESS.steps:
                return mean.to(x)
            skip, out = _preconditioning(torch.full((len(x),), t), x)
            return skip * x + out * raw(x, t)

    start = noise(0) * PROCESS.marginal(times[0])[1].to(condition.centre)
    if sampler == "fast":
        return dpm_solver_pp_2m(denoise, PROCESS, start, times).x0
    return predictor_corrector(denoise, PROCESS, start, times, noise, 1, CORRECTOR_SNR).x0


def _ratios(net: FusedUNet, batch: Batch, index: int, seed: int, size: str) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of scalar maps over their expected errors (V, `SCALARS`), and tissues (V,), of a batch's brains."""
    condition, x0 = batch.condition, batch.x0
    addresses = [(index, k, 0) for k in range(len(x0))]

    def made(sample: int, times: Sequence[int], mean: Tensor | None = None) -> Tensor:
        noise = NoiseSource(seed, "calibrate", str(sample), SPEC.name, addresses, x0.shape[1:], x0.device)
        return draw(net, condition, "fast", times, noise, "fp32", mean)

    def scalars(result: Tensor) -> dict[str, np.ndarray]:
        maps, names = maps_in(result)[0].permute(2, 3, 0, 1).cpu().numpy(), SPEC.maps_of(size)
        return {name: maps[..., names.index(name)] for name in SCALARS if name in names}

    mean = made(0, _times("fast", STEPS[1 if size == "small" else 2]))
    best, known = scalars(corrected(condition, mean)), mean if size == "small" else None
    drawn = (made(k, _times("fast", STEPS[2]), known) for k in range(CALIBRATION_SAMPLES))
    inside = (batch.weight[:, 0] > 0).permute(1, 2, 0).cpu().numpy()
    errors = map_errors(best, (scalars(corrected(condition, sample)) for sample in drawn), inside, {})
    truth = scalars(condition.centre + condition.scale * x0)
    ratios = [abs(truth[name] - best[name])[inside] / np.maximum(errors[name][inside], LEAST_ERROR) for name in best]
    return np.stack(ratios, axis=1), tissue_of(best["fa"], best["md"])[inside]


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
    if sampler == "fast" and evaluations == 2:
        return two_times(PROCESS)
    steps = max(evaluations // 2, 1) if sampler == "paper" else evaluations
    if sampler == "paper" and steps == PROCESS.steps:
        return list(range(steps, 0, -1))
    return karras_times(PROCESS, PROCESS.steps, steps)


def build() -> DiffDTI:
    """Return the method."""
    return DiffDTI()
