"""Checks of the input: empty volumes and masks on another grid are refused, single bad voxels are repaired."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ..dwi.series import ScanError

EMPTY_VOLUMES = (
    "{path}: volumes {volumes} (counted from 0) hold nothing but {what}; the transfer or the reconstruction "
    "failed. Export the series again, or take these volumes out of the image, the .bval and the .bvec"
)


NO_SIGNAL = "{path}: the first volume {what}; it holds no image: export the series again, or take it out of the dataset"


def check_first_volume(image: nib.Nifti1Image, path: str | Path) -> None:
    """Refuse a series whose first volume is constant or has no positive value; only that volume is read.

    Parameters
    ----------
    image
        The series (X, Y, Z, ...).
    path
        Its file, named in messages.

    Raises
    ------
    ScanError
        Where the volume cannot be read, or holds no image.
    """
    from .io import readable

    with readable(path):
        first = np.asarray(image.dataobj[(slice(None),) * 3 + (0,) * (len(image.shape) - 3)], dtype=np.float32)
    values = first[np.isfinite(first)]
    if not len(values) or values.min() == values.max():
        what = "has no finite value" if not len(values) else f"is {values[0]:g} everywhere"
        raise ScanError(NO_SIGNAL.format(path=path, what=what))
    if values.max() <= 0:
        raise ScanError(NO_SIGNAL.format(path=path, what=f"has no positive value (largest: {values.max():g})"))


def check_values(data: np.ndarray, path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Return the series with isolated non-finite voxels set to 0, and warnings.

    Parameters
    ----------
    data
        (X, Y, Z, N) float32.
    path
        File of the series, named in messages.

    Raises
    ------
    ScanError
        Where a whole volume is zero or not finite.
    """
    flat = data.reshape(-1, data.shape[3])
    finite = np.isfinite(flat)
    for what, empty in (("NaN or infinity", ~finite.any(axis=0)), ("zeros", (flat == 0).all(axis=0))):
        if empty.any():
            raise ScanError(EMPTY_VOLUMES.format(path=path, volumes=np.flatnonzero(empty).tolist(), what=what))
    count = int((~finite).sum())
    if not count:
        return data, []
    return np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0), [
        f"{count} voxel values were NaN or infinite and were set to 0"
    ]


def check_mask(mask: np.ndarray, shape: tuple[int, ...], path: str | Path) -> None:
    """Refuse a brain mask (X, Y, Z) bool that is empty or not of the scan's `shape`; `path` is named in messages.

    Raises
    ------
    ScanError
        Where the mask is empty or of another shape.
    """
    if mask.shape != shape or not mask.any():
        raise ScanError(f"{path}: expected a brain mask of shape {shape}, found {mask.shape} with {mask.sum()} voxels")
