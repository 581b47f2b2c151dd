"""Where every volume of a series has data: zeros that motion or masking left are missing samples, not signal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ..bids.run import Run
from ..dwi.series import Scan, ScanError
from .brain_mask import brain_of
from .io import read_scan

ALL_B0 = "all volumes are b0"
NO_TABLE = "the run has no b-values or no directions"


def complete_voxels(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask that have data in every volume.

    A sample is missing where it is 0 together with its neighbours in a plane, 3 x 3 voxels along two of the axes: a
    part of a volume that moved out of the field of view, or a slab that was masked. A single 0 is a dark voxel.

    Parameters
    ----------
    data
        (X, Y, Z, N) signals.
    mask
        (X, Y, Z) bool.

    Returns
    -------
    numpy.ndarray
        (X, Y, Z) bool.
    """
    complete = mask.copy()
    for volume in range(data.shape[3]):
        zero = np.asarray(data[..., volume]) == 0
        if (zero & mask).any():
            complete &= ~_flat_parts(zero)
    return complete


def read_run(run: Run, b0_threshold: float) -> Scan:
    """Return a run, raw or preprocessed, with its brain mask (or the one found in it) within its coverage.

    Raises
    ------
    ScanError
        Where a file cannot be read, all volumes are b0, or no brain is found.
    GradientError
        Where the gradient tables cannot be read.
    """
    if run.bval is None or run.bvec is None:
        raise ScanError(run.fault or NO_TABLE)
    scan, _ = read_scan(run.image, run.bval, run.bvec, run.mask, b0_threshold)
    if scan.gradients.is_b0.all():
        raise ScanError(ALL_B0)
    return within_coverage(scan if run.mask is not None else replace(scan, mask=brain_of(scan)))


def within_coverage(scan: Scan) -> Scan:
    """Return the scan with the voxels of its mask that have data in every volume as mask; as it is if none has."""
    complete = complete_voxels(scan.data, scan.mask)
    return replace(scan, mask=complete) if complete.any() else scan


def _flat_parts(zero: np.ndarray) -> np.ndarray:
    """Return the zeros (X, Y, Z) that belong to a plane of 3 x 3 zeros; outside the image counts as zero."""
    parts = np.zeros_like(zero)
    for axis in range(3):
        plane = np.ones([1 if k == axis else 3 for k in range(3)], bool)
        core = ndimage.binary_erosion(zero, plane, border_value=True)
        parts |= ndimage.binary_dilation(core, plane)
    return parts & zero
