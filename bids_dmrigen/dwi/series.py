"""The scan: a diffusion-weighted series as arrays, with its geometry, gradients and mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .gradients import GradientTable

NOT_4D = "expected a 4-D series (x, y, z, volume), found shape {shape}"
COUNT_MISMATCH = "{n_volumes} volumes but {n_gradients} entries in the gradient table"
MASK_MISMATCH = "the mask has shape {mask}, the series {series}"
NO_B0 = "no b0 volume: no b-value is at or below {threshold:g} s/mm² (lowest found: {lowest:g})"


class ScanError(ValueError):
    """A series that cannot be processed, with the reason."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One diffusion-weighted series.

    Parameters
    ----------
    data
        (X, Y, Z, N) float32 in scanner units; may be memory-mapped.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    gradients
        N entries, in this image's voxel axes.
    mask
        (X, Y, Z) bool, True in the brain.
    """

    data: np.ndarray
    affine: np.ndarray
    gradients: GradientTable
    mask: np.ndarray

    def __post_init__(self) -> None:
        if self.data.ndim != 4:
            raise ScanError(NOT_4D.format(shape=self.data.shape))
        if self.data.shape[3] != len(self.gradients):
            raise ScanError(COUNT_MISMATCH.format(n_volumes=self.data.shape[3], n_gradients=len(self.gradients)))
        if self.mask.shape != self.data.shape[:3]:
            raise ScanError(MASK_MISMATCH.format(mask=self.mask.shape, series=self.data.shape[:3]))

    @property
    def zooms_mm(self) -> np.ndarray:
        """Voxel size along each axis (3,), mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def mean_b0(self) -> np.ndarray:
        """Return the mean (X, Y, Z) of the b0 volumes; `ScanError` where there is none."""
        if not self.gradients.is_b0.any():
            raise ScanError(NO_B0.format(threshold=self.gradients.b0_threshold, lowest=self.gradients.bvals.min()))
        b0s = np.asarray(self.data[..., self.gradients.is_b0], dtype=np.float32)
        return np.asarray(b0s.mean(axis=3))

    def brain_window(self, margin: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the rows and columns that hold the mask with a margin in voxels, and the slices with brain.

        The window ends at the edge of the image.
        """
        inside = np.argwhere(self.mask)
        low, high = np.maximum(inside.min(axis=0) - margin, 0), inside.max(axis=0) + 1 + margin
        rows, columns = (
            slice(int(a), int(b)) for a, b in zip(low[:2], np.minimum(high, self.mask.shape)[:2], strict=True)
        )
        return (rows, columns), np.flatnonzero(self.mask.any(axis=(0, 1)))
