"""Combine an acquired series with an independent estimate of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .noise import rician_mean, rician_signal

SCALES = 2  # details of one and of two voxels; a third band holds the rest


def fuse(
    acquired: np.ndarray,
    estimate: np.ndarray,
    mask: np.ndarray,
    sigma: float,
    noise: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the best linear combination of acquired volumes and an independent estimate of them.

    The difference of both is split into bands d_k from fine to coarse, and x^ = mu + sum_k w_k d_k with
    w_k = max(0, v_k - n_k s²) / v_k: v_k is the mean of d_k² over the volumes and the neighbouring voxels, s²
    the variance of a Rician magnitude there, n_k the share of white noise that falls into the band. That is
    the local linear estimate of least mean square error, scale by scale. Where the estimate is perfect v_k = n_k s²,
    and the result is the estimate. Where the estimate misses a detail, the acquired signal is kept.

    The detail in a band is known to the variance w_k n_k s². With `noise`, the result is a sample of what is possible.

    Parameters
    ----------
    acquired, estimate
        (X, Y, Z, J) float32 volumes of one kind (one shell, or the b0s), in scanner units. The noise of
        each acquired volume must be independent of its estimate. The estimate is that of the mean magnitude, noise
        floor included, and so is the result.
    mask
        (X, Y, Z) bool; outside it the acquired signal is returned.
    sigma
        Noise level in scanner units.
    noise
        Number of a volume -> standard normal noise (X, Y, Z); None for the best estimate.
    """
    inside, volumes = torch.from_numpy(mask), range(acquired.shape[3])
    power = torch.zeros(mask.shape)
    energy = [torch.zeros(mask.shape) for _ in range(SCALES + 1)]
    for j in volumes:  # volume by volume: this is what bounds the memory
        mu = torch.from_numpy(np.ascontiguousarray(estimate[..., j]))
        power += rician_variance(mu, sigma) / len(volumes)
        for k, band in enumerate(bands(torch.from_numpy(np.ascontiguousarray(acquired[..., j])) - mu, inside)):
            energy[k] += band.square() / len(volumes)
    weights = []
    for k, share in enumerate(noise_shares()):
        v = local_mean(energy[k], inside, radius=1 + k)
        weights.append(((v - share * local_mean(power, inside)) / v.clamp_min(1e-12)).clamp(0, 1))
    fused = np.array(acquired)
    for j in volumes:
        mu = torch.from_numpy(np.ascontiguousarray(estimate[..., j]))
        split = bands(torch.from_numpy(np.ascontiguousarray(acquired[..., j])) - mu, inside)
        best = mu + sum(w * d for w, d in zip(weights, split, strict=True))
        if noise is not None:
            drawn = bands(torch.from_numpy(noise(j).astype(np.float32)) * power.clamp_min(0).sqrt(), inside)
            best = best + sum(w.sqrt() * d for w, d in zip(weights, drawn, strict=True))
        fused[mask, j] = best[inside].clamp_min(0).numpy()
    return fused


def bands(image: Tensor, mask: Tensor) -> list[Tensor]:
    """Return `SCALES` + 1 images (X, Y, Z) that add up to the masked one, from fine to coarse.

    An undecimated pyramid (à trous): each band is the detail that one more smoothing, of doubled width, removes.
    """
    split, rest = [], image * mask
    for scale in range(SCALES):
        smooth = _smooth(rest, 2**scale) / _smooth(mask.to(image), 2**scale).clamp_min(1e-6) * mask
        split.append(rest - smooth)
        rest = smooth
    return [*split, rest]


def noise_shares() -> list[float]:
    """Return the share of white noise's variance in each band, away from the mask's edge."""
    size = 2 ** (SCALES + 2) + 1
    point = torch.zeros(size, size, size)
    point[size // 2, size // 2, size // 2] = 1.0
    return [float(band.square().sum()) for band in bands(point, torch.ones_like(point, dtype=torch.bool))]


def _smooth(image: Tensor, step: int) -> Tensor:
    """Return the image convolved along each axis with (1, 2, 1) / 4 at distances of `step` voxels."""
    for axis in range(3):
        sides = [0] * 6
        sides[2 * (2 - axis)] = sides[2 * (2 - axis) + 1] = step
        padded, n = F.pad(image, sides), image.shape[axis]
        image = (padded.narrow(axis, 0, n) + 2 * image + padded.narrow(axis, 2 * step, n)) / 4
    return image


def rician_variance(mean: Tensor, sigma: float) -> Tensor:
    """Return the variance of Rician magnitudes with this mean: A² + 2 sigma² - mean² (Koay & Basser 2006)."""
    signal = rician_signal(mean.clamp_min(0).double(), sigma)
    return (signal**2 + 2 * sigma**2 - rician_mean(signal, sigma) ** 2).to(mean.dtype)


def local_mean(values: Tensor, mask: Tensor, radius: int = 1) -> Tensor:
    """Return the mean of (X, Y, Z) values over the masked voxels of the (2 radius + 1)³ cube around each."""
    stacked = torch.stack([values * mask, mask.to(values)])[:, None]  # (2, 1, X, Y, Z)
    padded = F.pad(stacked, [radius] * 6)  # an image may be thinner than the cube
    total = F.avg_pool3d(padded, 2 * radius + 1, stride=1)[:, 0]
    return total[0] / total[1].clamp_min(1e-6)
