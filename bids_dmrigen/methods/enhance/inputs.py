"""A shell as spherical harmonics: rotation-invariant features, their noise, and the way back to signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...dwi.harmonics import SMOOTHING, degree_sizes, n_harmonics, rish, scaled, undamped_weights
from ...dwi.rish import LEAST_B0
from ...dwi.spline import resampled

ORDER = 4
DEGREES = (0, 2, 4)
# Units of the features |C_l| / sqrt(4 pi), the roots of the RISH features; at l = 0 this is the mean of S / S0.
UNITS = (0.5, 0.1, 0.03)
FLOOR = 0.1  # uncertainty of a feature in addition to its noise, in `UNITS`
LARGEST_RATIO = 2.0  # of S / S0
LARGEST_SCALE = 3.0  # of coefficients
TINY = 1e-3  # added to features in denominators, in `UNITS`
BVAL_UNIT, SNR_LOG = 1000.0, math.log(20.0)
CONDITION_CHANNELS = {"small": 3 * len(DEGREES) + 4 + 6, "paper": 0}
VOXEL_UNIT = 2.0  # mm


class Shell(NamedTuple):
    """The signal S / S0 of a shell on a grid, as harmonics; outside the brain too, where they have little meaning."""

    coefficients: Tensor  # (B, 15, H, W, D), 0 where the directions do not determine them
    s0: Tensor  # (B, 1, H, W, D) the mean b0, with a small lower limit
    sigma: Tensor  # (B,) standard deviation of a volume's noise
    variance: Tensor  # (B, 3) sum of the variances of each degree's coefficients for unit noise, in `UNITS` squared
    bval: Tensor  # (B,) s/mm²
    b0s: Tensor  # (B,) number of b0s in the mean S0
    mask: Tensor  # (B, H, W, D)
    voxel_mm: Tensor  # (B, 3) edges of the voxels
    acquired_mm: Tensor  # (B, 3) edges of the acquired voxels

    @property
    def determined(self) -> Tensor:
        """(B, 3): 1 for degrees that the directions determine, else 0."""
        return (self.variance > 0).to(self.variance)

    @property
    def features(self) -> Tensor:
        """(B, 3, H, W, D), 0 outside the brain; see `features`."""
        return features(self.coefficients) * self.mask[:, None]

    @property
    def noise(self) -> Tensor:
        """(B, 1, H, W, D) standard deviation of a volume's noise over S0, 0 outside the brain."""
        return self.sigma.reshape(-1, 1, 1, 1, 1) / self.s0 * self.mask[:, None]


class Condition(NamedTuple):
    """The condition of super-resolution; the result is centre + scale * output."""

    images: Tensor  # (B, C, H, W, D), C of `CONDITION_CHANNELS`
    centre: Tensor  # (B, 3, H, W, D) features without the bias by noise
    scale: Tensor  # (B, 3, H, W, D) uncertainty of `centre`


def fitted(
    b0: Tensor,
    dwis: Tensor,
    bvecs: Tensor,
    bval: Tensor,
    sigma: Tensor,
    b0s: Tensor,
    mask: Tensor,
    voxel_mm: Tensor,
    order: int,
    smoothing: float = SMOOTHING,
) -> Shell:
    """Return shells as harmonics, by a regularised fit that is corrected for its mean damping of each degree.

    Parameters
    ----------
    b0
        (B, H, W, D) mean b0.
    dwis
        (B, n, H, W, D) diffusion-weighted volumes.
    bvecs
        (B, n, 3) unit vectors.
    bval, sigma, b0s
        (B,) b-value, standard deviation of the noise, number of b0s.
    mask
        (B, H, W, D) bool.
    voxel_mm
        (B, 3) edges of the voxels.
    order
        Order of the fit, 2 or 4: the highest that the different directions determine.
    smoothing
        Weight of the fit's penalty.
    """
    weights = undamped_weights(bvecs, order, smoothing)  # (B, K, n)
    brain = (b0 * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1)
    s0 = torch.maximum(b0, LEAST_B0 * brain.reshape(-1, 1, 1, 1)).clamp_min(1e-12)[:, None]
    coefficients = torch.einsum("bkn,bnxyz->bkxyz", weights, (dwis / s0).clamp(0, LARGEST_RATIO))
    missing = n_harmonics(ORDER) - n_harmonics(order)
    coefficients = torch.nn.functional.pad(coefficients, (0, 0, 0, 0, 0, 0, 0, missing))
    variance = torch.stack([v.sum(dim=1) for v in weights.square().sum(dim=2).split(degree_sizes(order), dim=1)], dim=1)
    variance = torch.nn.functional.pad(variance, (0, len(DEGREES) - variance.shape[1])) / _units(b0).square()
    return Shell(coefficients, s0, sigma, variance, bval, b0s, mask, voxel_mm, voxel_mm)


def on_grid(shell: Shell, points: Sequence[np.ndarray]) -> Shell:
    """Return a shell at the points of another grid, in voxel indices along each axis.

    Cubic splines of S and of S0, not of their ratio, which is very noisy beside the brain.
    """
    steps = [p[1] - p[0] if len(p) > 1 else n / len(p) for p, n in zip(points, shell.mask.shape[1:], strict=True)]
    s0 = resampled(shell.s0, points).clamp_min(float(shell.s0.min()))
    return shell._replace(
        coefficients=resampled(shell.coefficients * shell.s0, points) / s0,
        s0=s0,
        mask=resampled(shell.mask.to(s0), points) > 0.5,
        voxel_mm=shell.voxel_mm * torch.tensor(steps, dtype=torch.float32, device=s0.device),
    )


def features(coefficients: Tensor) -> Tensor:
    """Return |C_l| / sqrt(4 pi) (B, 3, H, W, D) of coefficients (B, 15, H, W, D), in `UNITS`."""
    return rish(coefficients, ORDER, dim=1).sqrt() / _column(_units(coefficients))


def cross_power(first: Tensor, second: Tensor) -> Tensor:
    """Return sum_m C_lm C'_lm / (4 pi) (B, 3, H, W, D) of two sets (B, 15, H, W, D), in `UNITS` squared.

    Of one place measured twice it is |C_l|² / (4 pi) in the mean: noise that the two do not share adds nothing.
    """
    parts = (first * second).split(degree_sizes(ORDER), dim=1)
    return torch.stack([part.sum(dim=1) for part in parts], dim=1) / _column(_units(first).square())


def condition_of(shell: Shell) -> Condition:
    """Return the condition of super-resolution for shells.

    Noise raises the mean of |C_l|² by the sum of the coefficients' variances, which is subtracted.
    """
    measured, noise_power = shell.features, _column(shell.variance) * shell.noise.square()
    centre = (measured.square() - noise_power).clamp_min(0).sqrt()
    counts = _column(torch.tensor(degree_sizes(ORDER), dtype=measured.dtype, device=measured.device))
    of_b0 = measured.square() * shell.noise.square() / shell.b0s.reshape(-1, 1, 1, 1, 1)
    scale = (noise_power / counts + of_b0).sqrt() + FLOOR
    inside = shell.mask[:, None].to(measured)
    bval = (shell.bval / BVAL_UNIT).log().reshape(-1, 1, 1, 1, 1).expand_as(inside)
    order4 = shell.determined[:, 2].reshape(-1, 1, 1, 1, 1).expand_as(inside)
    level = (shell.noise.clamp_min(1e-4).log() + SNR_LOG) * inside
    sizes = (torch.cat([shell.voxel_mm, shell.acquired_mm], dim=1) / VOXEL_UNIT).log()
    sizes = sizes[:, :, None, None, None] * inside
    channels = [measured, centre, scale.log() * inside, level, inside, bval * inside, order4 * inside, sizes]
    images = torch.cat(channels, dim=1)
    return Condition(images, centre, scale)


def scales(wanted: Tensor, coefficients: Tensor, determined: Tensor) -> Tensor:
    """Return lambda_l = |C_l| wanted / (|C_l| + tau), (B, 3, H, W, D), within [0, 3]; 1 for degrees not determined.

    Parameters
    ----------
    wanted
        (B, 3, H, W, D), as from `features`.
    coefficients
        (B, 15, H, W, D).
    determined
        (B, 3), see `Shell.determined`.
    """
    ratio = (wanted / (features(coefficients) + TINY)).clamp(0, LARGEST_SCALE)
    return torch.where(_column(determined) > 0, ratio, 1.0)


def signals(coefficients: Tensor, scale: Tensor, basis: Tensor) -> Tensor:
    """Return S / S0 (B, T, H, W, D): the sum of lambda_l C_lm Y_lm along directions with this basis (T, 15)."""
    return torch.einsum("tk,bkxyz->btxyz", basis, scaled(coefficients, scale, ORDER, dim=1))


def _units(like: Tensor) -> Tensor:
    return torch.tensor(UNITS, dtype=like.dtype, device=like.device) * math.sqrt(4 * math.pi)


def _column(values: Tensor) -> Tensor:
    """Return (B, F) or (F,) values as (B or 1, F, 1, 1, 1)."""
    return values.reshape(*([1] if values.ndim == 1 else []), *values.shape, 1, 1, 1)
