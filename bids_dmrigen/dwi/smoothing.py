"""The directional contrast of a scan, smoothed a little: the simple estimate that is hardest to beat.

Noise hides most of what distinguishes directions, but little of what they have in common. So only the contrast is
smoothed: what the logarithm of a volume differs from its mean over the directions of the shell. The mean stays sharp.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .noise import estimate_sigma
from .series import Scan

REACH = 3.5  # standard deviations, radius of the Gaussian
NO_WIDTH = 0.05  # voxels: narrower Gaussians change nothing
WIDEST = 1.0  # voxels
DARKEST = 0.1  # standard deviations of the noise: the lowest signal in logarithms
# width = AT + PER * ln(noise / NOISE): the rule was fitted to the scans to choose on, see `benchmarks/rivals.py`.
NOISE = 0.1  # 1e-3 mm²/s
WIDTH_AT, WIDTH_PER = 0.575, 0.1


def smooth_contrast(scan: Scan, width: float | None = None) -> Scan:
    """Return a scan with the directional contrast of every shell smoothed by a Gaussian.

    Of a shell with directions i, ln S_i = m + a_i, where m is the mean over the directions. The result is
    exp(m + G a_i). G takes no samples from outside the mask or from missing ones, and missing samples stay as they are.

    Parameters
    ----------
    scan
        The series, with its brain mask; samples that are not positive are missing.
    width
        Standard deviation of the Gaussian in voxels of the finest edge; None for `width_of` of every shell.

    Raises
    ------
    ScanError
        Where the noise level, which the width depends on, cannot be estimated.
    """
    sigma = estimate_sigma(scan).sigma
    data = np.array(scan.data, dtype=np.float32)
    mask = torch.from_numpy(np.ascontiguousarray(scan.mask))
    finest = scan.zooms_mm.min() / scan.zooms_mm
    for bval, volumes in scan.gradients.shells():
        signal = torch.from_numpy(np.moveaxis(data[..., volumes], 3, 0).copy())
        present = (signal > 0) & mask
        logs = torch.where(present, signal.clamp_min(DARKEST * sigma).log(), 0)
        mean = logs.sum(dim=0) / present.sum(dim=0).clamp_min(1)
        chosen = width_of(shell_noise(scan, bval, volumes, sigma)) if width is None else width
        contrast = smooth((logs - mean) * present, present, chosen * finest)
        signal[present] = (mean + contrast)[present].exp()
        data[..., volumes] = np.moveaxis(signal.numpy(), 0, 3)
    return Scan(data, scan.affine, scan.gradients, scan.mask)


def smooth_slices(dwis: Tensor, mask: Tensor, sigma: Tensor, widths: Tensor) -> Tensor:
    """Return slices of one shell with their directional contrast smoothed, as by `smooth_contrast`.

    Parameters
    ----------
    dwis
        (S, n, H, W, 3) images of n directions, each slice with its two neighbours; 0 where missing.
    mask
        (S, H, W) the brain in the middle slices, used for their neighbours too.
    sigma, widths
        (S,) noise levels, in the unit of the images, and standard deviations of the Gaussian, voxels.
    """
    brain = mask[:, None, :, :, None] & (dwis > 0)
    logs = torch.where(brain, dwis.clamp_min(DARKEST * sigma[:, None, None, None, None]).log(), 0)
    mean = logs.sum(dim=1, keepdim=True) / brain.sum(dim=1, keepdim=True).clamp_min(1)
    contrast = (logs - mean) * brain
    smoothed = torch.stack([
        smooth(c, inside, [float(width)] * 3) for c, inside, width in zip(contrast, brain, widths, strict=True)
    ])  # fmt: skip
    return torch.where(brain, (mean + smoothed).exp(), dwis)


def shell_noise(scan: Scan, bval: float, volumes: np.ndarray, sigma: float) -> float:
    """Return the noise of a shell's diffusivities, sigma / (S b sqrt(n)), in 1e-3 mm²/s.

    It is that of n directions together; S is the median over the mask of the shell's mean signal.

    Parameters
    ----------
    scan
        The series, with its brain mask.
    bval, volumes
        b-value of the shell, s/mm², and its n volumes.
    sigma
        Noise level, in the units of the series.
    """
    signal = np.asarray(scan.data[scan.mask][:, volumes], dtype=np.float32).mean(axis=1)
    typical = max(float(np.median(signal)), 1e-6 * sigma)
    return float(sigma / typical / (bval / 1000) / np.sqrt(len(volumes)))


def width_of(noise: float) -> float:
    """Return the width of the Gaussian, voxels of the finest edge, for the `shell_noise` of a shell."""
    return float(np.clip(WIDTH_AT + WIDTH_PER * np.log(max(noise, 1e-6) / NOISE), 0, WIDEST))


def smooth(volumes: Tensor, weights: Tensor, widths: Sequence[float] | np.ndarray) -> Tensor:
    """Return volumes smoothed by a Gaussian, as weighted means: voxels of weight 0 have no effect.

    Parameters
    ----------
    volumes
        (K, X, Y, Z) float, 0 where the weight is 0.
    weights
        (K, X, Y, Z) or (1, X, Y, Z), not negative.
    widths
        (3,) standard deviations along the axes, voxels.

    Returns
    -------
    Tensor
        (K, X, Y, Z), 0 where the weight is 0.
    """
    kernels = [_gaussian(width).to(volumes) for width in widths]
    weights = weights.to(volumes.dtype)
    total = [_convolved(weight, kernels) for weight in weights]
    out = torch.empty_like(volumes)
    for k, volume in enumerate(volumes):
        j = min(k, len(weights) - 1)
        out[k] = _convolved(volume * weights[j], kernels) / total[j].clamp_min(1e-6) * (weights[j] > 0)
    return out


def _gaussian(width: float) -> Tensor:
    if width < NO_WIDTH:
        return torch.ones(1)
    radius = int(np.ceil(REACH * width))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / width) ** 2)
    return kernel / kernel.sum()


def _convolved(volume: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Return a volume (X, Y, Z) convolved along each axis with the kernel of that axis; zero outside."""
    for axis, kernel in enumerate(kernels):
        if len(kernel) > 1:
            rows = volume.movedim(axis, 2)
            flat = F.conv1d(rows.reshape(-1, 1, rows.shape[2]), kernel[None, None], padding=len(kernel) // 2)
            volume = flat.reshape(rows.shape).movedim(2, axis)
    return volume
