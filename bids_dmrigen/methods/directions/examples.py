"""Training examples of QID²: slices of simulated subjects and of prepared scans."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...diffusion.processes import linear
from ...dwi.gradients import even_directions, even_subset
from ...dwi.noise import rician_mean
from ...dwi.smoothing import smooth_slices, width_of
from ...simulate.examples import VOXEL_MM as VOXEL_MM_OF_SCANS
from ...simulate.examples import SimulatedSubjects, numbers_from
from ...simulate.imaging import measure
from .inputs import Condition, condition_of
from .task import REFERENCES

SIDE = {"small": (64, 64), "paper": (145, 174)}  # of training slices
VOXEL_MM = {"small": VOXEL_MM_OF_SCANS, "paper": (1.25, 2.5)}  # in the plane; the paper's are 1.25 mm
TARGETS = {"small": 4, "paper": 1}  # directions per training slice
DIRECTIONS = (6, 64)  # acquired directions of training examples
BVALS = (600.0, 3200.0)  # s/mm²
SIGMA_ERROR = 0.25  # relative: how well a noise level is known
SMOOTHED = (0.4, 1.0)  # share of the smoothed series in what the network starts from; two thirds in `mean_start`
OUTSIDE = 0.1  # weight of voxels outside the brain in the loss

NOISE_ONLY_SHARE = 0.01  # share of the image in the variance of x_t; below it x_t counts as noise alone

PROCESS = linear()
FIRST_NOISE_ONLY = int((PROCESS.marginal(torch.arange(PROCESS.steps + 1))[0].square() >= NOISE_ONLY_SHARE).sum())


class Batch(NamedTuple):
    """A batch of training examples."""

    condition: Condition
    x0: Tensor  # (B, 1, H, W) the image to predict
    weight: Tensor  # (B, 1, H, W)
    t: Tensor  # (B,)
    noise: Tensor  # (B, 1, H, W)


class Acquisition(NamedTuple):
    """One shell of S slices: the acquired images and the target images."""

    b0: Tensor  # (S, H, W, 3) mean b0 of the slice and its two neighbours
    shell: Tensor  # (S, N, H, W, 3)
    target: Tensor  # (S, T, H, W)
    acquired: Tensor  # (S, N, 3) unit vectors in the slice's voxel axes
    wanted: Tensor  # (S, T, 3)
    bval: Tensor  # (S,)
    sigma: Tensor  # (S,)
    mask: Tensor  # (S, H, W)


def simulated(subjects: SimulatedSubjects, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of subjects, measured along even directions; targets are along others, without noise.

    Acquired volumes are magnitudes: a target is the mean of such a magnitude.
    """
    uniform, normal = numbers_from(generator)
    targets = TARGETS[size]
    n_slices = max(batch // targets, 1)
    n = int(_log_uniform(*DIRECTIONS, uniform(1)))
    bval = BVALS[0] * (BVALS[1] / BVALS[0]) ** uniform(n_slices)
    turn = torch.linalg.qr(normal(n_slices, 3, 3)).Q
    scheme = torch.tensor(_even(n), dtype=torch.float32, device=subjects.device)
    acquired = F.normalize(scheme @ turn + 0.1 * normal(n_slices, n, 3), dim=2)
    wanted = F.normalize(normal(n_slices, targets, 3), dim=2)
    slices = subjects.slices(generator, n_slices, (*SIDE[size], 3), VOXEL_MM[size])
    directions = torch.cat([torch.zeros_like(acquired[:, :1]), acquired, wanted], dim=1)
    bvals = bval[:, None].repeat(1, 1 + n + targets)
    bvals[:, 0] = 0
    clean = slices.signal(bvals, directions)  # (S, 1 + n + T, H, W, 3)
    measured = measure(clean[:, : 1 + n], torch.ones_like(bval), generator, noiseless=clean[:, 1 + n :, :, :, 1:2])
    assert measured.expected is not None  # because `noiseless` was given
    expected = rician_mean(measured.expected[..., 0], measured.sigma.reshape(-1, 1, 1, 1))
    axes = slices.axes()
    return Acquisition(
        measured.signal[:, 0], measured.signal[:, 1:], expected, acquired @ axes, wanted @ axes, bval, measured.sigma,
        slices.mask()[..., 1],
    )  # fmt: skip


def measured(scans: Prepared, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of a measured shell: some directions are inputs; others, with their noise, are targets.

    Raises
    ------
    ValueError
        Where no scan has a shell with enough directions.
    """
    uniform, _ = numbers_from(generator)
    needed, n_slices = DIRECTIONS[0] + TARGETS[size], max(batch // TARGETS[size], 1)
    views, b0s, volumes = scans.shell_slices(generator, n_slices, (*SIDE[size], 3), needed, (0.0, math.inf))
    targets, rest = volumes[: TARGETS[size]], volumes[TARGETS[size] :]
    n = int(_log_uniform(DIRECTIONS[0], min(len(rest), DIRECTIONS[1]), uniform(1)))
    directions = views.directions
    kept = rest[even_subset(directions[rest].cpu().numpy(), n)]
    ones = torch.ones(len(views.signal), device=scans.device)

    def along(chosen: Tensor) -> Tensor:
        return (directions[chosen] @ views.axes).expand(len(ones), -1, -1)

    return Acquisition(
        views.signal[:, b0s].mean(dim=1), views.signal[:, kept], views.signal[:, targets][..., 1],
        along(kept), along(targets), views.bvals[volumes].mean() * ones, views.sigma * ones, views.mask[..., 1],
    )  # fmt: skip


def examples(
    source: SimulatedSubjects | Prepared,
    size: str,
    batch: int,
    generator: torch.Generator,
    references: int = REFERENCES.default,
) -> Batch:
    """Return a batch of training examples.

    Parameters
    ----------
    source
        Simulated subjects or measured scans.
    size
        Size of the network.
    batch
        Number of images.
    generator
        The only source of random numbers.
    references
        Number of references that the network sees.
    """
    noisy = isinstance(source, Prepared)
    if isinstance(source, Prepared):
        a = measured(source, size, batch, generator)
    else:
        a = simulated(source, size, batch, generator)
    uniform, normal = numbers_from(generator)
    brain = a.mask.sum(dim=(1, 2)).clamp_min(1)
    unit = ((a.shell[..., 1].mean(dim=1) * a.mask).sum(dim=(1, 2)) / brain).clamp_min(1e-3)
    unit = unit * torch.exp(0.2 * normal(len(unit)))  # at generation the unit is of a whole brain, not of a slice
    sigma = a.sigma * torch.exp(SIGMA_ERROR * normal(len(unit)))
    shell = _start(a, uniform) if size == "small" else a.shell
    condition = condition_of(a.b0, shell, a.acquired, a.wanted, a.bval, sigma, unit, size, references)
    x0 = (a.target.flatten(0, 1)[:, None] - condition.centre) / condition.scale
    # A measured scan has no data outside its mask.
    weight = torch.where(a.mask, 1.0, 0.0 if noisy else OUTSIDE).repeat_interleave(TARGETS[size], dim=0)[:, None]
    # Where x_t is noise alone, the best prediction is the mean, without the noise of a measured target. At earlier
    # times the network would learn that noise. The mean is also the most frequent use: half of all images train it.
    noise_only = (uniform(len(x0)) < (1.0 if noisy else 0.5)) & condition.with_prediction
    first = torch.where(noise_only, FIRST_NOISE_ONLY, 1)
    t = first + (uniform(len(x0)) * (PROCESS.steps + 1 - first)).long()
    return Batch(condition, x0.clamp(-20, 20), weight, t, normal(*x0.shape))


def _start(a: Acquisition, uniform: Callable[..., Tensor]) -> Tensor:
    """Return the series (S, N, H, W, 3) that the network starts from, almost as `starts.mean_start`.

    A slice is too small for MP-PCA: what it would change is left to the varied share of the smoothed series.
    """
    inside = a.mask[:, None] & (a.shell[..., 1] > 0)
    signal = (a.shell[..., 1] * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp_min(1)
    noise = a.sigma / signal.clamp_min(1e-6) / (a.bval / 1000) / a.shell.shape[1] ** 0.5
    widths = torch.tensor([width_of(float(level)) for level in noise])
    low, high = SMOOTHED
    share = (low + (high - low) * uniform(len(a.shell)))[:, None, None, None, None]
    return torch.lerp(a.shell, smooth_slices(a.shell, a.mask, a.sigma, widths), share)


def _log_uniform(low: int, high: int, uniform: Tensor) -> float:
    """Return a number from `low` to just below `high + 1`, uniform in its logarithm."""
    return low * ((high + 1) / low) ** float(uniform)


@cache
def _even(n: int) -> np.ndarray:
    return even_directions(n)
