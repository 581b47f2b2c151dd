"""Cubic B-spline interpolation between grids whose axes are parallel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NO_EXTENT = 1e-3  # of a voxel: what sticks out by less needs no voxel more
LEAST_SEEN = 0.3  # smallest singular value that is inverted, relative to the largest


def even_points(n: int, wanted: int) -> np.ndarray:
    """Return (wanted,) indices along an axis of n voxels: centres of equal voxels that fill its extent."""
    return (np.arange(wanted) + 0.5) * (n / wanted) - 0.5


def points_of_size(n: int, voxel: float) -> np.ndarray:
    """Return indices along an axis of n voxels: centres of voxels of size `voxel` (in old voxels) that cover it."""
    wanted = max(int(np.ceil(n / voxel - NO_EXTENT)), 1)
    return (n - 1) / 2 + voxel * (np.arange(wanted) - (wanted - 1) / 2)


def resampled(volumes: Tensor, points: Sequence[np.ndarray]) -> Tensor:
    """Return volumes (..., X, Y, Z) at the points of a grid, (..., P, Q, R).

    Interpolating cubic splines along each axis, mirrored about the first and last voxel.

    Parameters
    ----------
    volumes
        Of any floating-point type.
    points
        (P,), (Q,) and (R,) in voxel indices.
    """
    for axis, wanted in zip((-3, -2, -1), points, strict=True):
        n = volumes.shape[axis]
        if len(wanted) != n or not np.array_equal(wanted, np.arange(n)):
            volumes = _along(volumes, axis, spline_weights(n, wanted))
    return volumes


def condensed(volumes: Tensor, points: Sequence[np.ndarray], shape: Sequence[int]) -> Tensor:
    """Return volumes (..., X, Y, Z) whose splines fit volumes (..., P, Q, R) of a finer grid by least squares.

    This inverts `resampled`; finer detail and noise are averaged. Components that hardly change the values at the
    points are left out; they occur where the voxels of both grids have nearly the same size.

    Parameters
    ----------
    volumes
        Of any floating-point type.
    points
        (P,), (Q,) and (R,) of the finer grid in indices of the voxels that are returned.
    shape
        (X, Y, Z), each no larger than there are points.
    """
    for axis, positions, n in zip((-3, -2, -1), points, shape, strict=True):
        volumes = _along(volumes, axis, np.linalg.pinv(spline_weights(n, positions), LEAST_SEEN))
    return volumes


def _along(volumes: Tensor, axis: int, weights: np.ndarray) -> Tensor:
    return (volumes.movedim(axis, -1) @ torch.as_tensor(weights).to(volumes).T).movedim(-1, axis)


def spline_weights(n: int, points: np.ndarray) -> np.ndarray:
    """Return the weights (P, n) that turn n values on an axis into those at the points (P,), in voxel indices."""
    return _basis(n, points) @ np.linalg.inv(_basis(n, np.arange(n, dtype=np.float64)))


def _basis(n: int, points: np.ndarray) -> np.ndarray:
    """Return the cubic B-splines centred on n voxels at P points, (P, n); those beyond the ends are mirrored."""
    reach = np.arange(-2, n + 2)
    distance = np.abs(np.asarray(points, np.float64)[:, None] - reach)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    values = np.where(distance < 1, near, far)
    period = max(2 * (n - 1), 1)
    inside = (n - 1) - np.abs((n - 1) - reach % period)
    folded = np.zeros((len(values), n))
    np.add.at(folded.T, np.clip(inside, 0, n - 1), values.T)
    return folded
