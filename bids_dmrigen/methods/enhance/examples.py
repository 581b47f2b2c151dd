"""Training examples for enhancement: pairs of a poor and a good scan of simulated subjects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...dwi.gradients import even_directions
from ...dwi.harmonics import order_for
from ...simulate.examples import THICKNESS_MM, SimulatedSubjects, Slices, numbers_from
from ...simulate.imaging import Imaging, measure
from .inputs import ORDER, Shell, fitted
from .task import BVALS

SIDE = {"small": (32, 32, 16), "paper": (96, 96, 96)}  # voxels of a training block, at least
# Edges of the poor scan's voxels, in the plane and across. Blocks of `paper` contain a whole head, as in the paper.
VOXEL_MM = {"small": (1.5, 3.5), "paper": (1.5, 2.5)}
ACROSS_MM = {"small": THICKNESS_MM, "paper": (1.5, 2.5)}
DIRECTIONS = (6, 8, 12, 16, 20, 30, 45, 64)
B0S = (1, 1, 2, 4)
# Number of the good scan's voxels per voxel of the poor scan, along each axis.
ZOOMS = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1.25, 1.25, 1.25), (1.5, 1.5, 1.5), (1, 1, 2))
UNEVEN = 0.15  # how far directions stray from even ones
TRUTH_DIRECTIONS = 45
IMAGING = Imaging(acquired=(0.75, 1.0), noise_alone=True)

T = TypeVar("T")


class Pair(NamedTuple):
    """A poor scan and a good one of the same blocks of the same subjects."""

    low: Shell
    coarse: Tensor  # (B, 3, H, W, D) the good scan's features on the poor one's grid
    fine: Tensor  # (B, 3, X, Y, Z) the good scan's features on its own grid
    coarse_mask: Tensor  # (B, H, W, D) where the good scan has data
    fine_mask: Tensor  # (B, X, Y, Z)


def simulated(
    subjects: SimulatedSubjects,
    batch: int,
    generator: torch.Generator,
    both: bool = True,
    side: tuple[int, int, int] = SIDE["small"],
    network: str = "small",
) -> Pair:
    """Return pairs of blocks of simulated subjects.

    Parameters
    ----------
    subjects
        Subjects to draw from.
    batch
        Number of blocks.
    generator
        The only source of random numbers.
    both
        Whether the fine grid is needed; else `fine` is `coarse`.
    side
        Voxels of the poor scan's blocks.
    network
        Size of the network.
    """
    device = subjects.device
    uniform, normal = numbers_from(generator)

    def one_of(options: Sequence[T]) -> T:
        return options[int(uniform(1) * len(options))]

    n, b0s, zoom = one_of(DIRECTIONS), one_of(B0S), one_of(ZOOMS) if both else ZOOMS[0]
    bval = BVALS[0] * (BVALS[1] / BVALS[0]) ** uniform(batch)
    turn = torch.linalg.qr(normal(batch, 3, 3)).Q
    bvecs = F.normalize(_even(n, device) @ turn + UNEVEN * uniform(batch, 1, 1) * normal(batch, n, 3), dim=2)
    blocks = subjects.slices(generator, batch, side, VOXEL_MM[network], ACROSS_MM[network])
    b0, dwis = _signal(blocks, bval, bvecs)
    clean = torch.cat([b0.expand(-1, b0s, -1, -1, -1), dwis], dim=1)
    seen = measure(clean, torch.ones_like(bval), generator, IMAGING)
    mask, count = blocks.mask(), torch.full_like(bval, b0s)
    b0 = seen.signal[:, :b0s].mean(dim=1)
    size, order = blocks.affine[:, :3, :3].norm(dim=1), order_for(n, ORDER)
    low = fitted(b0, seen.signal[:, b0s:], bvecs, bval, seen.sigma, count, mask, size, order)
    coarse = fine = _true_features(blocks, bval)
    if zoom != ZOOMS[0]:
        size = tuple(round(z * n) for z, n in zip(zoom, side, strict=True))
        fine = _true_features(subjects.finer(blocks, size, generator), bval)
    everywhere = [torch.ones_like(features[:, 0], dtype=torch.bool) for features in (coarse, fine)]
    return Pair(low, coarse, fine, *everywhere)


def _true_features(blocks: Slices, bval: Tensor) -> Tensor:
    """Return the features (B, 3, ...) of noise-free blocks, from many directions."""
    bvecs = _even(TRUTH_DIRECTIONS, bval.device).expand(len(bval), -1, -1)
    b0, dwis = _signal(blocks, bval, bvecs)
    nothing, one = torch.zeros_like(bval), torch.ones_like(bval)
    size = blocks.affine[:, :3, :3].norm(dim=1)
    return fitted(b0[:, 0], dwis, bvecs, bval, nothing, one, blocks.mask(), size, ORDER).features


def _signal(blocks: Slices, bval: Tensor, bvecs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise-free b0 (B, 1, ...) and diffusion-weighted volumes (B, n, ...) of blocks."""
    bvals = F.pad(bval[:, None].expand(-1, bvecs.shape[1]), (1, 0))
    signal = blocks.signal(bvals, F.pad(bvecs, (0, 0, 1, 0)))
    return signal[:, :1], signal[:, 1:]


@cache
def _even(n: int, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(even_directions(n)), dtype=torch.float32, device=device)
