"""Samplers: pure functions from a noisy start to a clean image, with the noise handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .processes import Process


@dataclass(frozen=True)
class Sampled:
    """What a sampler returns.

    Parameters
    ----------
    x0
        Same shape as the start.
    evaluations
        (B,) int64: network evaluations each sample used.
    """

    x0: Tensor
    evaluations: Tensor


def run_walk_times(start: int = 300, run: int = 10, walk_from: int = 50) -> list[int]:
    """Return Di-Fusion's evaluation times: `run` apart down to `walk_from`, then every one down to 0."""
    return [*range(start, walk_from - 1, -run), *range(walk_from - 1, -1, -1)]


def run_walk(
    denoise: Callable[[Tensor, int], Tensor],
    process: Process,
    x_start: Tensor,
    times: Sequence[int],
    noise: Callable[[int], Tensor] | None = None,
    eta: float = 0.0,
    stop: Callable[[Tensor, int], Tensor] | None = None,
) -> Sampled:
    """Walk from x_start towards time 0 by exact Gaussian posteriors over steps of any length.

    From time t to the next one s: x_s = mean + eta std noise of q(x_s | x_t, x0 = denoise(x_t, t)); the last
    estimate of x0 is returned (Di-Fusion, Eq. 10, with the exact posterior for its long steps).

    Parameters
    ----------
    denoise
        (x_t, t) -> estimate of x_0, same shape.
    process
        The forward process.
    x_start
        (B, ...) images at time times[0].
    times
        Falling evaluation times.
    noise
        step index -> standard normal noise shaped as x_start; asked for only where eta > 0.
    eta
        0 walks along the posterior means, 1 samples.
    stop
        (x0 estimate, step index) -> (B,) bool: samples that end here and keep this estimate.

    Returns
    -------
    Sampled

    Raises
    ------
    ValueError
        Where the times do not fall, or eta > 0 and there is no noise.
    """
    if not times or any(s >= t for t, s in pairwise(times)):
        raise ValueError(f"sampling times must fall from step to step, found {list(times)}")
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 needs a source of noise")
    x, result = x_start, torch.zeros_like(x_start)
    running = torch.ones(len(x), dtype=torch.bool, device=x.device)
    evaluations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for step, t in enumerate(times):
        x0 = denoise(x, t)
        result[running] = x0[running]
        evaluations[running] += 1
        if step == len(times) - 1:
            break
        if stop is not None:
            running = running & ~stop(x0, step)
            if not running.any():
                break
        x, std = process.posterior(x0, x, t, times[step + 1])
        if eta > 0:
            x = x + eta * std * noise(step)
    return Sampled(result, evaluations)
