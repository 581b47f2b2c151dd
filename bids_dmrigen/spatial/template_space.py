"""Resampling between a scan and the template's space, for methods that rely on positions in the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..dwi.gradients import GradientTable, nearest_rotation
from ..dwi.series import Scan, ScanError

MARGIN_MM, NODES_MM = 60.0, 20.0  # box in which a transform is sampled: margin around the image, node spacing
MOST_MM, ROUND_MM = 2.0, 0.5  # the edge of the template grid's voxels: largest value, and its step
FINER = 0.6  # voxel edge relative to the scan's shortest edge, so that resampling back and forth changes little
INVERSIONS = 8  # Newton steps: they reduce an error of 0.1 mm to 0.001 mm where the warp is strong
BORDER_MM = 6.0  # margin around the brain
NOT_ON_GRID = "its transform maps no brain to the template's grid; check the registration"


@dataclass(frozen=True, eq=False)
class TemplateSpace:
    """A scan's grid, a grid of the template, and the points to which the voxels of each are mapped in the other.

    Gradient directions are rotated once for the whole head: by the rotation in the affine map that fits the transform
    best over the brain. Local rotations of the warp are ignored, as a volume has only one direction.

    Parameters
    ----------
    scan_affine
        (4, 4) voxel indices of the scan's grid to world RAS+, mm.
    shape, affine
        Shape (3,) and affine (4, 4) of the template's grid.
    to_scan
        (*shape, 3) point of the scan's world, mm, for every voxel of the template's grid.
    to_template
        (X, Y, Z, 3) point of the template's world, mm, for every voxel of the scan.
    mask
        (X, Y, Z) bool: the brain, over which the rotation is estimated.
    """

    scan_affine: np.ndarray
    shape: tuple[int, int, int]
    affine: np.ndarray
    to_scan: np.ndarray
    to_template: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(
        cls,
        mask: np.ndarray,
        scan_affine: np.ndarray,
        template_mask: np.ndarray,
        template_affine: np.ndarray,
        to_template: Sequence[str | Path],
        from_template: Sequence[str | Path],
        edge_mm: float | None = None,
    ) -> TemplateSpace:
        """Return the space of a scan, with a template grid that contains the brains of both template and scan.

        Voxels are cubes along the world axes. Their edge is at most three fifths of the scan's shortest edge, and at
        most `MOST_MM`.

        Parameters
        ----------
        mask, scan_affine
            Brain (X, Y, Z) bool on the scan's grid, and that grid's (4, 4) affine.
        template_mask, template_affine
            Brain of the template, and the (4, 4) affine of its grid.
        to_template, from_template
            Transform files as `Normalize` gives them: the first resamples the scan onto the template.
        edge_mm
            Edge of the grid's voxels; None chooses it as above.
        """
        # The two files are inverse to each other only to a tenth of a millimetre, which is visible in the result. So
        # the way back is refined below. A transform maps points of the target grid to points of the source image.
        to_points = mapped_points(from_template, mask.shape, scan_affine, template_mask.shape, template_affine)
        brain_points = to_points[mask]
        brain = np.argwhere(template_mask) @ template_affine[:3, :3].T + template_affine[:3, 3]
        edge = np.linalg.norm(np.asarray(scan_affine)[:3, :3], axis=0).min() * FINER
        edge = edge_mm or min(MOST_MM, max(ROUND_MM, np.floor(edge / ROUND_MM + 0.01) * ROUND_MM))
        shape, affine = _box(np.concatenate([brain, brain_points[np.isfinite(brain_points).all(axis=1)]]), edge)
        to_scan = mapped_points(to_template, shape, affine, mask.shape, scan_affine)
        to_points = _inverted(to_scan, affine, to_points, scan_affine, _linear(to_points, mask, scan_affine))
        return cls(np.asarray(scan_affine), shape, affine, to_scan, to_points, mask)

    @cached_property
    def rotation(self) -> np.ndarray:
        """(3, 3) from directions in the scan's world to those in the template's."""
        return nearest_rotation(_linear(self.to_template, self.mask, self.scan_affine))

    def onto_template(self, volume: np.ndarray, order: int = 3) -> np.ndarray:
        """Return an image of the scan (X, Y, Z[, N]) on the template's grid; 0 outside its field of view."""
        return _read(volume, self.to_scan, self.scan_affine, order)

    def onto_scan(self, volume: np.ndarray, order: int = 3) -> np.ndarray:
        """Return an image on the template's grid (U, V, W[, N]) on the scan's; 0 outside the template's box."""
        return _read(volume, self.to_template, self.affine, order)

    def table_on_template(self, gradients: GradientTable) -> GradientTable:
        """Return a gradient table of the scan, rotated to an image on the template's grid."""
        world = gradients.world_directions(self.scan_affine) @ self.rotation.T
        return GradientTable.from_world(gradients.bvals, world, self.affine, gradients.b0_threshold)

    def table_on_scan(self, gradients: GradientTable) -> GradientTable:
        """Return a gradient table of an image on the template's grid, rotated to the scan."""
        world = gradients.world_directions(self.affine) @ self.rotation
        return GradientTable.from_world(gradients.bvals, world, self.scan_affine, gradients.b0_threshold)


def series_in_template(scan: Scan, to_template: str | Path, shape: Sequence[int], affine: np.ndarray) -> Scan:
    """Return a whole series on a grid of the template, its directions rotated once for the head, as `TemplateSpace`.

    Parameters
    ----------
    scan
        The preprocessed series with its brain mask.
    to_template
        Transform that resamples the scan onto the template.
    shape, affine
        Shape (3,) of the grid, and its (4, 4) voxel indices to world RAS+, mm.

    Raises
    ------
    ScanError
        Where the scan's brain is not on the grid.
    """
    points = mapped_points([to_template], shape, affine, scan.mask.shape, scan.affine)
    mask = _read(scan.mask.astype(np.float32), points, scan.affine, order=1) > 0.5
    if not mask.any():
        raise ScanError(NOT_ON_GRID)
    rotation = nearest_rotation(np.linalg.inv(_linear(points, mask, affine)))
    world = scan.gradients.world_directions(scan.affine) @ rotation.T
    table = GradientTable.from_world(scan.gradients.bvals, world, affine, scan.gradients.b0_threshold)
    data = _read(scan.data, points, scan.affine, order=3).clip(0)
    return Scan(data * mask[..., None], affine, table, mask)


def _linear(points: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the (3, 3) linear part of the affine map that fits `points` (X, Y, Z, 3) best over the mask."""
    target = points[mask].astype(np.float64)
    finite = np.isfinite(target).all(axis=1)
    source, target = (np.argwhere(mask) @ affine[:3, :3].T)[finite], target[finite]
    return np.linalg.lstsq(source - source.mean(axis=0), target - target.mean(axis=0), rcond=None)[0].T


def _inverted(
    to_scan: np.ndarray, affine: np.ndarray, start: np.ndarray, scan_affine: np.ndarray, linear: np.ndarray
) -> np.ndarray:
    """Return the points (X, Y, Z, 3) of the template that `to_scan` maps to the voxels of the scan.

    Newton's method, with one Jacobian for all points: warps are small compared with the affine map. Where they are not,
    a step that increases the error is halved.

    Parameters
    ----------
    to_scan, affine
        (U, V, W, 3) points of the scan's world for every voxel of the template's grid, mm, and that grid's affine.
    start
        (X, Y, Z, 3) points of the template, mm, near the solution.
    scan_affine
        (4, 4) affine of the scan's grid.
    linear
        (3, 3) from differences between points of the scan to those between points of the template.
    """
    wanted = np.indices(start.shape[:3]).reshape(3, -1).T @ scan_affine[:3, :3].T + scan_affine[:3, 3]
    points, wanted = start.astype(np.float32), wanted.reshape(start.shape).astype(np.float32)
    filled = np.where(np.isfinite(to_scan).all(axis=3, keepdims=True), to_scan, 0)
    inside = np.zeros(to_scan.shape[:3], np.float32)  # the outermost voxels are not used
    inside[1:-1, 1:-1, 1:-1] = np.isfinite(to_scan).all(axis=3)[1:-1, 1:-1, 1:-1]
    step = np.zeros_like(points)
    best, nearest, share = points, np.full(points.shape[:3], np.inf, np.float32), np.ones((*points.shape[:3], 1))
    for _ in range(INVERSIONS):
        points = best + share.astype(np.float32) * step
        error = _read(filled, points, affine, order=1) - wanted
        # Where a neighbour has no point, interpolation is wrong: the start is kept.
        distance = np.where(_read(inside, points, affine, order=1) > 1 - 1e-3, np.linalg.norm(error, axis=3), np.inf)
        better = (distance < nearest)[..., None]
        best, nearest = np.where(better, points, best), np.minimum(distance, nearest)
        step = np.where(better, -error @ linear.T.astype(np.float32), step)
        share = np.where(better, 1, share / 2)
    return best


def _box(points: np.ndarray, edge: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of a grid of cubes around points (P, 3), mm."""
    # A multiple of `MOST_MM`, so that grids of every resolution share a corner.
    low = np.floor((points.min(axis=0) - BORDER_MM) / MOST_MM) * MOST_MM
    shape = np.ceil((points.max(axis=0) + BORDER_MM - low) / edge).astype(int) + 1
    affine = np.diag([edge, edge, edge, 1.0])
    affine[:3, 3] = low
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def mapped_points(
    transforms: Sequence[str | Path], shape: Sequence[int], affine: np.ndarray, moving_shape, moving_affine
) -> np.ndarray:
    """Return (*shape, 3) float32: for every voxel of a grid the world point, mm, in the moving image.

    An image of the moving image's coordinates is resampled through the transforms. The coordinates are linear between
    nodes, so that a few nodes are exact. Points more than `MARGIN_MM` outside the moving image are NaN.

    Parameters
    ----------
    transforms
        Transform files in ITK's order: the last acts first.
    shape, affine
        Shape (3,) and affine (4, 4) of the grid.
    moving_shape, moving_affine
        Shape (3,) and affine (4, 4) of the image that the transforms map to.
    """
    from .ants_tools import to_ants, warp

    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in moving_shape], indexing="ij"), axis=-1).reshape(-1, 3)
    world = ends @ moving_affine[:3, :3].T + moving_affine[:3, 3]
    low, high = world.min(axis=0) - MARGIN_MM, world.max(axis=0) + MARGIN_MM
    box = np.diag([NODES_MM, NODES_MM, NODES_MM, 1.0])
    box[:3, 3] = low
    nodes = np.indices(np.ceil((high - low) / NODES_MM).astype(int) + 1, dtype=np.float32)
    reference = to_ants(np.zeros(shape, np.float32), affine)
    points = np.empty((*shape, 3), np.float32)
    for axis in range(3):
        # Nodes count from 1, as ANTs fills voxels outside the box with 0.
        read = warp(to_ants(nodes[axis] + 1, box), reference, transforms).numpy()
        points[..., axis] = np.where(read >= 1, (read - 1) * NODES_MM + low[axis], np.nan)
    return points


def _read(volume: np.ndarray, points: np.ndarray, affine: np.ndarray, order: int) -> np.ndarray:
    """Return an image (X, Y, Z[, N]) at world points (..., 3), by spline interpolation; 0 outside the image."""
    from scipy import ndimage

    inverse = np.linalg.inv(affine)
    index = np.moveaxis(points @ inverse[:3, :3].T + inverse[:3, 3], -1, 0).astype(np.float32)
    size = np.array(volume.shape[:3]).reshape(3, *[1] * (index.ndim - 1))
    with np.errstate(invalid="ignore"):
        inside = ((index >= -0.5) & (index <= size - 0.5)).all(axis=0)
    at = np.clip(index[:, inside], 0, size.reshape(3, 1) - 1)
    volumes = volume[..., None] if volume.ndim == 3 else volume
    out = np.zeros((*points.shape[:-1], volumes.shape[3]), np.float32)
    for k in range(volumes.shape[3]):
        source = np.asarray(volumes[..., k], np.float32)
        out[..., k][inside] = ndimage.map_coordinates(source, at, order=order, mode="mirror", output=np.float32)
    return out[..., 0] if volume.ndim == 3 else out
