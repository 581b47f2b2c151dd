"""Correct head motion, eddy currents and susceptibility distortion together, with one interpolation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ..dwi.series import Scan, ScanError
from .rigid import rigid_part

FIELD_MISMATCH = "the displacement field has shape {field}, the series {series}; both must share one grid"
COUNT_MISMATCH = "expected {expected} transforms (4, 4), one per volume, found shape {shape}"


def sample_volume(
    volume: np.ndarray,
    matrix: np.ndarray,
    displacement_voxels: np.ndarray | None = None,
    axis: int = 1,
    order: int = 3,
) -> np.ndarray:
    """Return the volume (X, Y, Z) at `matrix @ (index + displacement along axis)`, by spline interpolation.

    Cubic B-splines (order 3) have the frequency response of a windowed sinc with twice the support, at half the
    cost, and need no choice of a window.

    Parameters
    ----------
    volume
        (X, Y, Z) signal.
    matrix
        (4, 4) from the output's voxel indices to the volume's.
    displacement_voxels
        (X, Y, Z) shift of the output's index along `axis` before the matrix acts; None is zero.
    axis
        Voxel axis 0, 1 or 2 of the displacement.
    order
        Order of the spline: 1 or 3.

    Returns
    -------
    (X, Y, Z) float32. Up to half a voxel outside the grid, values continue from the edge; further out they are 0.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if displacement_voxels is None and np.allclose(matrix, np.eye(4), atol=1e-9):
        return np.asarray(volume, dtype=np.float32)
    index = list(np.ogrid[tuple(slice(0, n) for n in volume.shape)])
    if displacement_voxels is not None:
        index[axis] = index[axis] + displacement_voxels
    points = np.empty((3, *volume.shape), np.float32)
    outside = np.zeros(volume.shape, bool)
    for row, size in enumerate(volume.shape):
        points[row] = sum(matrix[row, a] * index[a] for a in range(3)) + matrix[row, 3]
        outside |= (points[row] < -0.5) | (points[row] > size - 0.5)
        np.clip(points[row], 0, size - 1, out=points[row])
    sampled = ndimage.map_coordinates(
        np.asarray(volume, dtype=np.float32), points, order=order, mode="mirror", output=np.float32
    )
    sampled[outside] = 0
    return sampled


def resample_series(
    scan: Scan, transforms: np.ndarray | None = None, field: np.ndarray | None = None, axis: int | None = None
) -> Scan:
    """Resample every volume to the reference space, with one interpolation.

    A reference point is displaced along the phase axis by the field, then taken to the volume by its transform.
    The signal is multiplied by how much the map stretches space: (1 + d field / d axis) det(transform). Negative
    overshoots become 0 (if the volume had none). With neither motion nor field, the data are returned unchanged.

    Parameters
    ----------
    scan
        The series.
    transforms
        (N, 4, 4) world RAS+ mm, reference points to volume points (`motion.estimate_motion`); None: no motion.
    field
        (X, Y, Z) mm along `axis`, towards higher index: where in the distorted image the content of each
        reference voxel is (`susceptibility.estimate_displacement`); None: no displacement.
    axis
        Phase-encoding voxel axis; needed with a field, and separates head rotation from eddy-current shears.

    Raises
    ------
    ScanError
        Where transforms or field do not fit the series.
    """
    n, shape = scan.data.shape[3], scan.data.shape[:3]
    if transforms is None:
        transforms = np.tile(np.eye(4), (n, 1, 1))
    if transforms.shape != (n, 4, 4):
        raise ScanError(COUNT_MISMATCH.format(expected=n, shape=transforms.shape))
    if field is not None and (field.shape != shape or axis is None):
        raise ScanError(FIELD_MISMATCH.format(field=field.shape, series=shape))
    displacement = stretch = None
    if field is not None and np.any(field):
        displacement = field / scan.zooms_mm[axis]
        stretch = np.maximum(1 + np.gradient(displacement, axis=axis), 0).astype(np.float32)
    to_index = np.linalg.inv(scan.affine)
    data = np.empty(scan.data.shape, np.float32)
    for volume in range(n):
        source = np.asarray(scan.data[..., volume], dtype=np.float32)
        matrix = to_index @ transforms[volume] @ scan.affine
        moved = sample_volume(source, matrix, displacement, axis or 0)
        if moved is not source:
            np.maximum(moved, min(source.min(), 0.0), out=moved)
            moved *= np.float32(np.linalg.det(matrix[:3, :3]))
        data[..., volume] = moved if stretch is None else moved * stretch
    # The anatomy moves from the volume to the reference, which is the inverse of the transform.
    rigid = rigid_part(transforms, scan.affine, axis)
    turned = scan.gradients.turned(np.linalg.inv(rigid)[:, :3, :3], scan.affine)
    return replace(scan, data=data, gradients=turned)
