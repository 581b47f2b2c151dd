"""Samplers: pure functions from a noisy start to a clean image; the noise is an argument.

All but `run_walk` have the same arguments, `sampler(denoise, process, x_start, times, noise)`:

denoise
    (x_t, t) -> estimate of x_0, same shape; `Process.to_x0` makes one from any other prediction.
process
    The forward process; its alpha and sigma may differ from voxel to voxel.
x_start
    (B, ...) images at time times[0].
times
    Falling evaluation times, T >= t >= 1. The estimate of x_0 at the last one is the result, which is the same as a
    step to time 0.
noise
    number of the draw, from 1 -> standard normal noise shaped as x_start. Draw 0 is reserved for x_start, so that one
    source serves both (`noise.NoiseSource`).

They return `Sampled`, and raise `ValueError` where the times do not fall, or where noise is needed but not given.
Coefficients are computed in double precision from `Process.marginal` and then converted to the images' type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .processes import Process

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]

NOT_FALLING = "sampling times must fall from at most {steps} to at least 1, found {times}"
NO_NOISE = "{sampler} needs a source of noise"


@dataclass(frozen=True)
class Sampled:
    """The result of a sampler.

    Parameters
    ----------
    x0
        Same shape as the start.
    evaluations
        (B,) int64 number of network evaluations of each sample.
    """

    x0: Tensor
    evaluations: Tensor


def run_walk_times(start: int = 300, run: int = 10, walk_from: int = 50) -> list[int]:
    """Return Di-Fusion's evaluation times: every `run`-th down to `walk_from`, then every one down to 0."""
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
        step index -> standard normal noise shaped as x_start; used only where eta > 0.
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
    _check_walk(times, eta, noise)
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
        if noise is not None and eta > 0:
            x = x + eta * std * noise(step)
    return Sampled(result, evaluations)


def _check_walk(times: Sequence[int], eta: float, noise: Callable[[int], Tensor] | None) -> None:
    if not times or any(s >= t for t, s in pairwise(times)):
        raise ValueError(f"sampling times must fall from step to step, found {list(times)}")
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 needs a source of noise")


def even_times(start: int, n: int) -> list[int]:
    """Return n evaluation times, evenly from `start` down to 1; fewer where rounding makes two of them equal.

    >>> even_times(300, 4)
    [300, 200, 101, 1]
    >>> even_times(3, 50)
    [3, 2, 1]
    """
    return _distinct(torch.linspace(start, 1, n, dtype=torch.float64))


def karras_times(process: Process, start: int, n: int, rho: float = 7.0) -> list[int]:
    """Return n evaluation times from `start` down to 1, dense where there is little noise.

    The noise-to-signal ratio to the power 1/rho falls in equal steps (Karras et al. 2022, Eq. 5); the nearest
    integer times are taken, and fewer where two of them are equal. Where alpha and sigma vary by voxel, by
    the mean logarithm of their ratio.
    """
    log_ratio = torch.stack([_log_ratio(process, t).mean() for t in range(1, start + 1)])
    scaled = (log_ratio / rho).exp()
    wanted = torch.linspace(float(scaled[-1]), float(scaled[0]), n, dtype=scaled.dtype)
    return _distinct((scaled[None] - wanted[:, None]).abs().argmin(dim=1) + 1)


def two_times(process: Process) -> list[int]:
    """Return the last time, and that at which the noise is as strong as data of unit variance.

    The quickest way to a sample. At the last time there is noise alone, and x0 = denoise(x, T) is the mean of the
    distribution, the same for every sample. Noised anew and denoised once more, it becomes a sample. With data of
    variance s² it has the standard deviation s² alpha sigma / (alpha² s² + sigma²), the most of what one evaluation can
    give where sigma = alpha s.

    Parameters
    ----------
    process
        A process that is the same in every voxel.
    """
    alpha, sigma = process.marginal(torch.arange(1, process.steps + 1))
    return [process.steps, 1 + int((sigma / alpha).log().abs().argmin())]


def ancestral(denoise: Denoise, process: Process, x_start: Tensor, times: Sequence[int], noise: Noise) -> Sampled:
    """Draw each x_s from the exact posterior q(x_s | x_t, x_0 = denoise(x_t, t)) (Ho et al. 2020, Algorithm 2)."""
    _check_times(process, times)
    _check_noise(noise, "ancestral sampling")
    x = x_start
    for draw, (t, s) in enumerate(pairwise(times), 1):
        mean, std = process.posterior(denoise(x, t), x, t, s)
        x = mean + std * noise(draw)
    return _sampled(denoise(x, times[-1]), len(times))


def ddim(
    denoise: Denoise,
    process: Process,
    x_start: Tensor,
    times: Sequence[int],
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Sampled:
    """Keep a share of the present noise and replace the rest (Song et al. 2021, Eq. 12).

    x_s = alpha_s x_0 + sqrt(sigma_s² - std²) (x_t - alpha_t x_0) / sigma_t + std z, std = eta times that of the
    posterior: eta = 0 solves the probability-flow equation to first order, eta = 1 is `ancestral`.
    """
    _check_times(process, times)
    if eta > 0:
        _check_noise(noise, "DDIM with eta > 0")
    x = x_start
    for draw, (t, s) in enumerate(pairwise(times), 1):
        (alpha, sigma), (alpha_s, sigma_s) = process.marginal(t), process.marginal(s)
        std = eta * sigma_s * (1 - (alpha / alpha_s * sigma_s / sigma) ** 2).sqrt()
        keep = (sigma_s**2 - std**2).sqrt() / sigma
        x0 = denoise(x, t)
        x = _as(keep, x) * x + _as(alpha_s - keep * alpha, x) * x0
        if noise is not None and eta > 0:
            x = x + _as(std, x) * noise(draw)
    return _sampled(denoise(x, times[-1]), len(times))


def ddim_inverse(
    predicted: Callable[[Tensor, int], Tensor], process: Process, x_start: Tensor, times: Sequence[int]
) -> Sampled:
    """Walk DDIM backwards, from an image to the noise that DDIM would turn into it (Song et al. 2021, Sec. 4.3).

    x_s = alpha_s / alpha_t x_t + (sigma_s - alpha_s / alpha_t sigma_t) e(x_t, t), s > t, from t = 0.

    Parameters
    ----------
    predicted
        (x_t, t) -> estimate of the noise in x_t, same shape; at t = 0 it is asked for t = 1.
    process
        The forward process.
    x_start
        (B, ...) clean images.
    times
        Rising times, 1 to T. The result, in the field `x0` of `Sampled`, is the images at the last of them.
    """
    _check_times(process, times[::-1])
    x = x_start
    for t, s in pairwise([0, *times]):
        (alpha, sigma), (alpha_s, sigma_s) = process.marginal(t), process.marginal(s)
        noise = predicted(x, max(t, 1))
        x = _as(alpha_s / alpha, x) * x + _as(sigma_s - alpha_s / alpha * sigma, x) * noise
    return _sampled(x, len(times))


def dpm_solver_pp_2m(
    denoise: Denoise, process: Process, x_start: Tensor, times: Sequence[int], noise: Noise | None = None
) -> Sampled:
    """Solve the probability-flow equation with the last two estimates (Lu et al. 2022, DPM-Solver++(2M)).

    With lambda = ln(alpha / sigma) and h = lambda_s - lambda_t: x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D,
    D = x_0 + h / (2 h_before) (x_0 - x_0 before), and D = x_0 in the first step. Deterministic: `noise` is not used.
    """
    _check_times(process, times)
    x = x_start
    before: tuple[Tensor, Tensor] | None = None  # the last estimate, and the last h
    for t, s in pairwise(times):
        sigma, (alpha_s, sigma_s) = process.marginal(t)[1], process.marginal(s)
        h = _log_ratio(process, t) - _log_ratio(process, s)
        x0 = denoise(x, t)
        estimate = x0 if before is None else x0 + _as(h / (2 * before[1]), x) * (x0 - before[0])
        x = _as(sigma_s / sigma, x) * x - _as(alpha_s * torch.expm1(-h), x) * estimate
        before = x0, h
    return _sampled(denoise(x, times[-1]), len(times))


def heun(
    denoise: Denoise, process: Process, x_start: Tensor, times: Sequence[int], noise: Noise | None = None
) -> Sampled:
    """Solve the probability-flow equation by the trapezoidal rule (Karras et al. 2022, Algorithm 1).

    In y = x / alpha and r = sigma / alpha, dy/dr is the noise (x_t - alpha_t x_0) / sigma_t. Two evaluations per step,
    one in the last. Deterministic: `noise` is not used.
    """
    _check_times(process, times)
    x = x_start
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = process.marginal(t), process.marginal(s)
        along, step = _as(alpha_s / alpha, x) * x, _as(sigma_s - alpha_s * sigma / alpha, x)
        noise_t = (x - _as(alpha, x) * denoise(x, t)) / _as(sigma, x)
        x_s = along + step * noise_t
        noise_s = (x_s - _as(alpha_s, x) * denoise(x_s, s)) / _as(sigma_s, x)
        x = along + step * (noise_t + noise_s) / 2
    return _sampled(denoise(x, times[-1]), 2 * len(times) - 1)


def predictor_corrector(
    denoise: Denoise,
    process: Process,
    x_start: Tensor,
    times: Sequence[int],
    noise: Noise,
    corrections: int = 1,
    snr: float = 0.16,
) -> Sampled:
    """Correct by Langevin steps, then predict by reverse diffusion (Song et al. 2021, Algorithms 2, 4 and 5).

    Corrector: x + e sigma² score + sqrt(2 e) sigma z, e = 2 (snr |z| / |sigma score|)² for each image by itself. Where
    sigma is the same for all voxels this is the corrector of the paper; the factor sigma² lets sigma vary.
    Predictor: x_s = (x_t + b² score + b z) / a, a = alpha_t / alpha_s and b² = sigma_t² - a² sigma_s².
    """
    _check_times(process, times)
    _check_noise(noise, "predictor-corrector sampling")
    x, draw = x_start, 0
    for index, t in enumerate(times):
        alpha, sigma = process.marginal(t)
        for _ in range(corrections):
            draw += 1
            z, pull = noise(draw), (_as(alpha, x) * denoise(x, t) - x) / _as(sigma, x)  # pull = sigma score
            size = 2 * (snr * _norm(z) / _norm(pull)) ** 2
            x = x + _as(sigma, x) * (size * pull + (2 * size).sqrt() * z)
        x0 = denoise(x, t)
        if index == len(times) - 1:
            break
        draw += 1
        alpha_s, sigma_s = process.marginal(times[index + 1])
        a = alpha / alpha_s
        added = (sigma**2 - (a * sigma_s) ** 2).sqrt()
        score = (_as(alpha, x) * x0 - x) / _as(sigma**2, x)
        x = (x + _as(added**2, x) * score + _as(added, x) * noise(draw)) / _as(a, x)
    return _sampled(x0, len(times) * (corrections + 1))


def _check_times(process: Process, times: Sequence[int]) -> None:
    if not times or times[0] > process.steps or times[-1] < 1 or any(s >= t for t, s in pairwise(times)):
        raise ValueError(NOT_FALLING.format(steps=process.steps, times=list(times)))


def _check_noise(noise: Noise | None, sampler: str) -> None:
    if noise is None:
        raise ValueError(NO_NOISE.format(sampler=sampler))


def _sampled(x0: Tensor, evaluations: int) -> Sampled:
    return Sampled(x0, torch.full((len(x0),), evaluations, device=x0.device))


def _as(coefficient: Tensor, image: Tensor) -> Tensor:
    return coefficient.to(image.device, image.dtype)


def _log_ratio(process: Process, t: int) -> Tensor:
    """Return ln(sigma_t / alpha_t)."""
    alpha, sigma = process.marginal(t)
    return sigma.log() - alpha.log()


def _norm(image: Tensor) -> Tensor:
    """Return the Euclidean norm of each image of a batch, (B, 1, ...)."""
    norm: Tensor = torch.linalg.vector_norm(image.flatten(1), dim=1)
    return norm.reshape(-1, *[1] * (image.dim() - 1))


def _distinct(times: Tensor) -> list[int]:
    return sorted({round(t) for t in times.tolist()}, reverse=True)
