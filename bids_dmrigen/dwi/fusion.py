"""Combining an acquired series with an estimate that has not seen it: the noise level, the fusion, the noise floor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR_ITERATIONS = 12


def local_mean(values: Tensor, mask: Tensor, radius: int = 1) -> Tensor:
    """Return the mean of (X, Y, Z) values over the masked voxels of a (2 radius + 1)³ cube around each voxel."""
    stacked = torch.stack([values * mask, mask.to(values)])[:, None]  # (2, 1, X, Y, Z)
    size = 2 * radius + 1
    total = F.avg_pool3d(stacked, size, stride=1, padding=radius, count_include_pad=True)[:, 0]
    return total[0] / total[1].clamp_min(1e-6)


def rician_mean(signal: Tensor, sigma: float) -> Tensor:
    """Return the mean of a Rician magnitude: sigma sqrt(pi/2) L_1/2(-S² / (2 sigma²)) (Koay & Basser 2006)."""
    y = (signal / sigma) ** 2 / 4
    # exp(-y) I_n(y) are the scaled Bessel functions, so that large y does not overflow
    bessel = (1 + 2 * y) * torch.special.i0e(y) + 2 * y * torch.special.i1e(y)
    return sigma * (torch.pi / 2) ** 0.5 * bessel


def rician_variance(signal: Tensor, sigma: float) -> Tensor:
    """Return the variance of a Rician magnitude: S² + 2 sigma² - mean²."""
    return (signal**2 + 2 * sigma**2 - rician_mean(signal, sigma) ** 2).clamp_min(0.4 * sigma**2)


def remove_noise_floor(mean: Tensor, sigma: float) -> Tensor:
    """Return the signal whose Rician mean this is; 0 at or below the noise floor sigma sqrt(pi/2).

    Bisection of the monotone `rician_mean`, which lies between S and S + sigma sqrt(pi/2).
    """
    low, high = (mean - 1.2534 * sigma).clamp_min(0), mean.clamp_min(0)
    for _ in range(FLOOR_ITERATIONS):
        middle = (low + high) / 2
        above = rician_mean(middle, sigma) > mean
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def noise_from_residual(acquired: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Return sigma from acquired minus an independent estimate, where the estimate is best.

    The local variance of the residual is noise plus the estimate's error: its tenth percentile over the brain
    is where the error is least. Arrays (X, Y, Z, J) of diffusion-weighted volumes; mask (X, Y, Z).
    """
    residual = torch.from_numpy(acquired - estimate)
    inside = torch.from_numpy(mask)
    variance = local_mean((residual**2).mean(dim=3), inside)[inside]
    level = torch.from_numpy(estimate).mean(dim=3)[inside]
    sigma = float(variance.quantile(0.1).sqrt()) if variance.numel() < 2**24 else float(variance[::7].quantile(0.1).sqrt())
    for _ in range(5):
        share = rician_variance(remove_noise_floor(level, sigma), sigma) / sigma**2
        sigma = float(np.percentile((variance / share).numpy(), 10)) ** 0.5
    return sigma


def fuse(acquired: np.ndarray, estimate: np.ndarray, mask: np.ndarray, sigma: float, floor: bool = True) -> np.ndarray:
    """Return the best linear combination of an acquired group of volumes and an independent estimate of them.

    x^ = mu + w (x - mu), w = max(0, v - s²) / v, with v the mean of (x - mu)² over volumes and neighbouring
    voxels and s² the noise variance of a magnitude there: the local linear minimum-mean-square-error estimate.
    """
    x, mu, inside = torch.from_numpy(acquired), torch.from_numpy(estimate), torch.from_numpy(mask)
    signal = remove_noise_floor(mu, sigma)
    noise = local_mean(rician_variance(signal, sigma).mean(dim=3), inside)
    v = local_mean(((x - mu) ** 2).mean(dim=3), inside)
    w = ((v - noise) / v.clamp_min(1e-12)).clamp(0, 1)[..., None]
    fused = mu + w * (x - mu)
    if floor:
        fused = remove_noise_floor(fused, sigma)
    return torch.where(inside[..., None], fused, x).numpy()
