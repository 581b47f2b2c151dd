"""A finer grid that covers the extent of a scan."""

from __future__ import annotations

import numpy as np
import torch

from ...dwi.spline import points_of_size, resampled
from ..base import Grid


def finer_grid(mask: np.ndarray, affine: np.ndarray, edge_mm: float) -> tuple[list[np.ndarray], Grid]:
    """Return a grid of cubes over the extent of a scan: its points, in the scan's voxel indices, and the grid.

    Parameters
    ----------
    mask, affine
        (X, Y, Z) bool and (4, 4), mask and affine of the scan.
    edge_mm
        Edge of the cubes, no larger than the scan's voxels.
    """
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    points = [points_of_size(n, edge_mm / zoom) for n, zoom in zip(mask.shape, zooms, strict=True)]
    finer = np.array(affine, dtype=np.float64)
    finer[:3, 3] += finer[:3, :3] @ [p[0] for p in points]
    finer[:3, :3] *= edge_mm / zooms
    inside = resampled(torch.from_numpy(mask.astype(np.float32)), points).numpy() > 0.5
    return points, Grid(finer, inside)
