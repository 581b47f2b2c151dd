"""Where the brain is, and the receive coil's bias field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
)

from ..dwi.series import ScanError
from .base import SeriesInputSpec

NO_BRAIN = "no brain found: after thresholding and opening nothing is left; check that the b0 volumes hold signal"
SMOOTHING_MM = 1.0
CORE_MM = 6.0  # this far inside the edge is brain for certain
COIL_MM = 30.0  # what varies more slowly than this is the coil's gain
BRAIN_FRACTION = 0.42  # of the brain's own local signal; muscle and skin stay below
DIM_FRACTION = 0.28  # enough for what lies between bright parts: the pons, iron-rich and far from every coil
OPENING_MM, CLOSING_MM, HOLLOW_MM = 6.0, 6.0, 15.0
BIAS_MM = 8.0  # grid that N4 works on; the coil varies far more slowly


def brain_mask(b0: np.ndarray, zooms_mm: np.ndarray, mean_dwi: np.ndarray | None = None) -> np.ndarray:
    """Return the brain (X, Y, Z) bool of a mean b0, and of the mean DWI where there is one.

    Echo-planar scans suppress fat, so the brain is the largest bright body. Its core sets the local signal
    level, which levels out the coil; what is bright enough is freed of thin bridges to eyes and neck by an
    opening, closed, its hollows filled where there is some signal, and its holes in any case.

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
        Where nothing is left.
    """
    from scipy import ndimage

    zooms = np.asarray(zooms_mm, dtype=np.float64)
    levels = [_relative_signal(image, zooms) for image in (b0, mean_dwi) if image is not None]
    level = np.mean(levels, axis=0)
    inside = level > BRAIN_FRACTION
    for radius_mm in (OPENING_MM, OPENING_MM / 2, 0.0):  # a brain in few slices is thinner than the bridges are
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


def _relative_signal(image: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Return the image (X, Y, Z) relative to the signal of the brain around, noise floor taken off."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), SMOOTHING_MM / zooms)
    smooth = ndimage.median_filter(smooth, size=3)
    bright = smooth > otsu_threshold(np.minimum(smooth, np.percentile(smooth, 98)))
    if not bright.any() or bright.all():
        raise ScanError(NO_BRAIN)
    smooth = np.maximum(smooth - np.median(smooth[~bright]), 0)
    depth = ndimage.distance_transform_edt(largest(bright), sampling=zooms)
    core = depth > min(CORE_MM, depth.max() / 2)
    typical = np.median(smooth[core])
    weight = ndimage.gaussian_filter(core.astype(np.float32), COIL_MM / zooms)
    level = ndimage.gaussian_filter(np.minimum(smooth, 2 * typical) * core, COIL_MM / zooms)
    # Far from the core the typical signal takes over.
    return np.minimum(smooth / ((level + 1e-3 * typical) / (weight + 1e-3)), 1.2)


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that best separates values into two classes (largest between-class variance)."""
    low, high = np.min(values), np.max(values)
    if low == high:
        return float(low)
    counts, edges = np.histogram(values, bins=bins)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    # Between two heaps that are far apart the variance is flat: take the middle.
    return float(centers[between >= np.nanmax(between) * (1 - 1e-9)].mean())


def dilate(mask: np.ndarray, radius_mm: float, zooms_mm: np.ndarray) -> np.ndarray:
    """Return the mask (X, Y, Z) grown by a ball."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~mask, sampling=zooms_mm) <= radius_mm


def erode(mask: np.ndarray, radius_mm: float, zooms_mm: np.ndarray) -> np.ndarray:
    """Return the mask (X, Y, Z) shrunk by a ball, but not from the edges of the field of view."""
    from scipy import ndimage

    # There the brain goes on: a slab is not eroded from above and below.
    pad = int(np.ceil(radius_mm / np.min(zooms_mm))) + 1
    depth = ndimage.distance_transform_edt(np.pad(mask, pad, mode="edge"), sampling=zooms_mm)
    return depth[pad:-pad, pad:-pad, pad:-pad] > radius_mm


def _closed(mask: np.ndarray, radius_mm: float, zooms: np.ndarray) -> np.ndarray:
    return erode(dilate(mask, radius_mm, zooms), radius_mm, zooms)


def largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask (X, Y, Z)."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def bias_field(b0: np.ndarray, affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Estimate the receive coil's smooth gain (N4; Tustison et al. 2010).

    Parameters
    ----------
    b0
        (X, Y, Z) mean b0.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    mask
        (X, Y, Z) bool, where the signal is looked at.

    Returns
    -------
    (X, Y, Z) positive factor with geometric mean 1 in the mask: corrected = signal / factor.
    """
    import ants

    from ..spatial.ants_tools import to_ants

    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    shrink = max(1, round(BIAS_MM / zooms.max()))
    field = ants.n4_bias_field_correction(
        to_ants(np.maximum(b0, 0), affine),
        mask=to_ants(mask, affine),
        shrink_factor=shrink,
        convergence={"iters": [40, 30, 20], "tol": 1e-6},
        spline_param=200,
        return_bias_field=True,
    ).numpy()
    log_field = np.log(np.clip(field, 1e-3, None))
    return np.exp(log_field - log_field[mask].mean()).astype(np.float32)


class _BrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="1 in the brain, 0 elsewhere, uint8")


class BrainMask(SimpleInterface):
    """Find the brain in a diffusion-weighted series."""

    input_spec = SeriesInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.io import read_scan, write_image

        inputs = self.inputs
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, b0_threshold=inputs.b0_threshold)
        mask = brain_mask(scan.mean_b0(), scan.zooms_mm, mean_dwi(scan))
        path = write_image(Path(runtime.cwd) / "mask.nii", mask, image, dtype=np.uint8)
        self._results["out_mask"] = str(path)
        return runtime


def mean_dwi(scan) -> np.ndarray | None:
    """Return the mean (X, Y, Z) of a scan's lowest shell, None where there is no diffusion weighting."""
    shells = scan.gradients.shells()
    if not shells:
        return None
    return np.asarray(scan.data[..., shells[0][1]], dtype=np.float32).mean(axis=3)


class _BiasFieldInputSpec(SeriesInputSpec):
    in_mask = File(exists=True, desc="brain; found where not given")


class _BiasFieldOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the series divided by the bias field, input's signal units")
    out_field = File(exists=True, desc="bias field, a factor with geometric mean 1 in the mask")


class BiasField(SimpleInterface):
    """Remove the receive coil's bias field (N4 on the mean b0, one factor for all volumes)."""

    input_spec = _BiasFieldInputSpec
    output_spec = _BiasFieldOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.ants_tools import set_threads
        from ..spatial.io import read_scan, write_image

        inputs = self.inputs
        set_threads(inputs.num_threads)
        given = inputs.in_mask if isdefined(inputs.in_mask) else None
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, given, inputs.b0_threshold)
        b0 = scan.mean_b0()
        mask = scan.mask if given else brain_mask(b0, scan.zooms_mm, mean_dwi(scan))
        field = bias_field(b0, scan.affine, mask)
        folder = Path(runtime.cwd)
        self._results["out_field"] = str(write_image(folder / "bias_field.nii", field, image))
        corrected = scan.data / field[..., None]
        self._results["out_file"] = str(write_image(folder / "unbiased.nii", corrected, image))
        return runtime


class _DivideByBiasInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="series or volume on the field's grid")
    in_field = File(exists=True, mandatory=True, desc="bias field, a factor")


class _DivideByBiasOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="divided by the field")


class DivideByBias(SimpleInterface):
    """Take a bias field that was estimated on one series out of another on the same grid."""

    input_spec = _DivideByBiasInputSpec
    output_spec = _DivideByBiasOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.io import read_image, write_image

        data, image = read_image(self.inputs.in_file)
        field = read_image(self.inputs.in_field)[0]
        path = write_image(Path(runtime.cwd) / "unbiased.nii", data / field[..., None], image)
        self._results["out_file"] = str(path)
        return runtime
