"""The brain mask of a diffusion series, and masks grown and shrunk in mm."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from ..dwi.series import Scan, ScanError

NO_BRAIN = "no brain found: after thresholding and opening nothing is left; check that the b0 volumes hold signal"
SMOOTHING_MM = 1.0
CORE_MM = 6.0  # voxels this far inside the edge are certainly brain
COIL_MM = 30.0  # variation slower than this is the coil's gain
BRAIN_FRACTION = 0.42  # of the brain's local signal; muscle and skin are darker
DIM_FRACTION = 0.28  # enough between bright parts: the pons is rich in iron and far from every coil
OPENING_MM, CLOSING_MM, HOLLOW_MM = 6.0, 6.0, 15.0


def brain_mask(b0: np.ndarray, zooms_mm: np.ndarray, mean_dwi: np.ndarray | None = None) -> np.ndarray:
    """Return the brain mask (X, Y, Z) bool, from the mean b0 and, where there is one, the mean DWI.

    Echo-planar scans suppress fat, so the brain is the largest bright body. Its core sets the local signal
    level, which corrects for the coil. Of the voxels that are bright enough, an opening removes thin bridges to
    eyes and neck. A closing follows. Hollows are filled where there is some signal, holes always.

    Parameters
    ----------
    b0
        (X, Y, Z) mean of the b0 volumes.
    zooms_mm
        (3,) voxel size.
    mean_dwi
        (X, Y, Z) mean of the diffusion-weighted volumes of the lowest shell; eyes and muscle are dark in it.

    Raises
    ------
    ScanError
        Where no brain is left.
    """
    zooms = np.asarray(zooms_mm, dtype=np.float64)
    levels = [_relative_signal(image, zooms) for image in (b0, mean_dwi) if image is not None]
    level = np.mean(levels, axis=0)
    inside = level > BRAIN_FRACTION
    for radius_mm in (OPENING_MM, OPENING_MM / 2, 0.0):  # a brain in few slices may be thinner than the bridges
        opened = largest(erode(inside, radius_mm, zooms))
        if opened.any():
            break
    else:
        raise ScanError(NO_BRAIN)
    brain = inside & dilate(opened, 1.25 * radius_mm, zooms)
    brain |= _closed(brain, CLOSING_MM, zooms)
    hollow = brain | (_closed(brain, HOLLOW_MM, zooms) & (level > DIM_FRACTION))
    brain |= hollow & dilate(erode(hollow, OPENING_MM / 2, zooms), 1.25 * OPENING_MM / 2, zooms)
    for axis in range(3):
        for plane in np.moveaxis(brain, axis, 0):  # views: sulci and ventricles may open to one side only
            plane[:] = ndimage.binary_fill_holes(plane)
    return largest(brain)


def brain_of(scan: Scan) -> np.ndarray:
    """Return the brain mask (X, Y, Z) bool of a series, from its b0s and lowest shell; raises as `brain_mask`."""
    return brain_mask(scan.mean_b0(), scan.zooms_mm, mean_dwi(scan))


def mean_dwi(scan: Scan) -> np.ndarray | None:
    """Return the mean (X, Y, Z) of a scan's lowest shell, None where there is no diffusion weighting."""
    shells = scan.gradients.shells()
    if not shells:
        return None
    return np.asarray(scan.data[..., shells[0][1]], dtype=np.float32).mean(axis=3)


def _relative_signal(image: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Return the image (X, Y, Z) without its noise floor, relative to the signal of the brain nearby."""
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), SMOOTHING_MM / zooms)
    smooth = ndimage.median_filter(smooth, size=3)
    bright = smooth > threshold_otsu(np.minimum(smooth, np.percentile(smooth, 98)))
    if not bright.any() or bright.all():
        raise ScanError(NO_BRAIN)
    smooth = np.maximum(smooth - np.median(smooth[~bright]), 0)
    depth = ndimage.distance_transform_edt(largest(bright), sampling=zooms)
    core = depth > min(CORE_MM, depth.max() / 2)
    typical = np.median(smooth[core])
    weight = ndimage.gaussian_filter(core.astype(np.float32), COIL_MM / zooms)
    level = ndimage.gaussian_filter(np.minimum(smooth, 2 * typical) * core, COIL_MM / zooms)
    # Far from the core, the weight is small and the typical signal is used.
    return np.minimum(smooth / ((level + 1e-3 * typical) / (weight + 1e-3)), 1.2)


def dilate(mask: np.ndarray, radius_mm: float, zooms_mm: np.ndarray) -> np.ndarray:
    """Return the mask (X, Y, Z) grown by a ball."""
    return ndimage.distance_transform_edt(~mask, sampling=zooms_mm) <= radius_mm


def erode(mask: np.ndarray, radius_mm: float, zooms_mm: np.ndarray) -> np.ndarray:
    """Return the mask (X, Y, Z) shrunk by a ball, but not from the edges of the field of view."""
    # The brain continues beyond these edges: a slab is not eroded from above and below.
    pad = int(np.ceil(radius_mm / np.min(zooms_mm))) + 1
    depth = ndimage.distance_transform_edt(np.pad(mask, pad, mode="edge"), sampling=zooms_mm)
    return depth[pad:-pad, pad:-pad, pad:-pad] > radius_mm


def _closed(mask: np.ndarray, radius_mm: float, zooms: np.ndarray) -> np.ndarray:
    return erode(dilate(mask, radius_mm, zooms), radius_mm, zooms)


def largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask (X, Y, Z)."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
