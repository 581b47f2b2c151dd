"""Series and maps on a finer grid than the scan's, resampled to the voxels of the scan."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from ..dwi.spline import condensed


def read_at(values: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return an image (X, Y, Z[, C]) on another grid, by linear interpolation at the voxels' centres.

    `affine` (4, 4) belongs to the image; `shape` (3,) and `grid` (4, 4) to the other grid. The result is (*shape[, C]).
    """
    between = np.linalg.inv(affine) @ grid  # indices of the other grid to indices of the image
    volumes = values[..., None] if values.ndim == 3 else values
    read = [
        ndimage.affine_transform(
            volumes[..., k], between[:3, :3], between[:3, 3], tuple(shape), np.float32, order=1, mode="nearest"
        )
        for k in range(volumes.shape[3])
    ]
    return read[0] if values.ndim == 3 else np.stack(read, axis=-1)


def condensed_series(values: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return a series (P, Q, R, N) on a coarser grid (X, Y, Z) with parallel axes; negative values become 0.

    Parameters
    ----------
    values, affine
        The series on the finer grid, and that grid's (4, 4) affine.
    shape, grid
        Shape (3,) and affine (4, 4) of the coarser grid.
    """
    between = np.linalg.inv(grid) @ affine
    points = [between[axis, axis] * np.arange(n) + between[axis, 3] for axis, n in enumerate(values.shape[:3])]
    series = condensed(torch.from_numpy(values).permute(3, 0, 1, 2), points, shape)
    return series.clamp_min(0).permute(1, 2, 3, 0).numpy()


def read_in_mask(values: np.ndarray, mask: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return the same as `read_at`, using only voxels in a mask; 0 where no voxel of the mask is near.

    `mask` (X, Y, Z) bool is on the grid of the image.
    """
    share = read_at(mask.astype(np.float32), affine, shape, grid)
    wide = (..., *[None] * (values.ndim - 3))
    read = read_at(values * mask[wide], affine, shape, grid)
    return np.where(share[wide] > 0, read / np.maximum(share[wide], 1e-6), 0)
