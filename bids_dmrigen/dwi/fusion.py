"""Combining an acquired series with an estimate that has not seen it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .noise import rician_mean, rician_signal

LEAST_SIGNAL = 0.5  # share of a magnitude that stays without its noise floor: zero has no logarithm


def fuse(
    acquired: np.ndarray, estimate: np.ndarray, mask: np.ndarray, sigma: float, keep_floor: bool = False
) -> np.ndarray:
    """Return the best linear combination of acquired volumes and an independent estimate of them.

    x^ = mu + w (x - mu), w = max(0, v - s²) / v, with v the mean of (x - mu)² over the volumes and the
    neighbouring voxels, and s² the variance of a Rician magnitude there: the local linear estimate of least
    mean square error. Where the estimate is perfect v = s² and w = 0; where it is poor the acquired stays.

    Parameters
    ----------
    acquired, estimate
        (X, Y, Z, J) float32 volumes of one kind (one shell, or the b0s), in scanner units. The noise of
        `acquired` must be independent of `estimate`, and the estimate is one of its mean, noise floor
        included.
    mask
        (X, Y, Z) bool; outside it the acquired is returned.
    sigma
        Noise level in scanner units.
    keep_floor
        False takes the noise floor off: the result is the signal whose Rician mean was estimated, and at
        least half of that mean.
    """
    inside = torch.from_numpy(mask)
    n = acquired.shape[3]
    total, noise = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for j in range(n):  # volume by volume: the moments need double precision and the memory that goes with it
        mu = torch.from_numpy(np.ascontiguousarray(estimate[..., j]))
        total += (torch.from_numpy(np.ascontiguousarray(acquired[..., j])) - mu).square() / n
        noise += rician_variance(mu, sigma) / n
    v = local_mean(total, inside)
    weight = ((v - local_mean(noise, inside)) / v.clamp_min(1e-12)).clamp(0, 1).numpy()
    fused = np.array(acquired)
    for j in range(n):
        x, mu = acquired[..., j][mask], estimate[..., j][mask]
        best = np.maximum(mu + weight[mask] * (x - mu), 0)
        if not keep_floor:
            signal = rician_signal(torch.from_numpy(best), sigma).numpy()
            best = np.maximum(signal, LEAST_SIGNAL * best)
        fused[mask, j] = best
    return fused


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
