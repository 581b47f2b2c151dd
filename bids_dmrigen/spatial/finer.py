"""Series and maps of a finer grid over the scan, brought to the voxels of the scan."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from ..dwi.spline import condensed


def read_at(values: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return an image (X, Y, Z[, C]) at the centres of another grid's voxels, by linear interpolation, (*shape[, C]).

    `affine` (4, 4) is the image's, `grid` the other one's.
    """
    between = np.linalg.inv(affine) @ grid  # indices there to indices here
    volumes = values[..., None] if values.ndim == 3 else values
    read = [
        ndimage.affine_transform(
            volumes[..., k], between[:3, :3], between[:3, 3], tuple(shape), np.float32, order=1, mode="nearest"
        )
        for k in range(volumes.shape[3])
    ]
    return read[0] if values.ndim == 3 else np.stack(read, axis=-1)


def condensed_series(values: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return a series (P, Q, R, N) of a finer grid on the voxels (X, Y, Z) of another with parallel axes; at least 0.

    Parameters
    ----------
    values, affine
        The series, and the (4, 4) affine of its grid.
    shape, grid
        Of the other grid, (3,) and (4, 4).
    """
    between = np.linalg.inv(grid) @ affine
    points = [between[axis, axis] * np.arange(n) + between[axis, 3] for axis, n in enumerate(values.shape[:3])]
    series = condensed(torch.from_numpy(values).permute(3, 0, 1, 2), points, shape)
    return series.clamp_min(0).permute(1, 2, 3, 0).numpy()


def read_in_mask(values: np.ndarray, mask: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return what `read_at` does from the values in a mask alone; 0 where no voxel of the mask is near.

    `mask` (X, Y, Z) bool lies on the grid of the image.
    """
    share = read_at(mask.astype(np.float32), affine, shape, grid)
    wide = (..., *[None] * (values.ndim - 3))
    read = read_at(values * mask[wide], affine, shape, grid)
    return np.where(share[wide] > 0, read / np.maximum(share[wide], 1e-6), 0)
