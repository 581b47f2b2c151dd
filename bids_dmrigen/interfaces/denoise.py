"""Nipype interfaces that take noise and Gibbs ringing out of a raw diffusion series."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from ..dwi.series import Scan, ScanError
from .base import SeriesInputSpec

METHODS = ("mppca", "patch2self", "none")
MIN_VOLUMES_MPPCA = 5  # fewer hold no redundancy to tell signal from noise
GOOD_VOLUMES_PATCH2SELF = 30
MIN_VOLUMES_PATCH2SELF = 10

UNKNOWN_METHOD = "unknown denoising method {method!r}; choose one of {methods}"
TOO_FEW_VOLUMES = "{method} needs at least {needed} volumes, found {found}; the series was not denoised"
TOO_FEW_FOR_PATCH2SELF = (
    "Patch2Self lost direction contrast in series of fewer than {good} volumes, this one has {found}; "
    "compare the directional maps with those of the acquired series, or use mppca"
)


class DenoiseInputSpec(SeriesInputSpec):
    """What `Denoise` takes."""

    in_mask = File(exists=True, desc="mask; voxels outside keep their acquired values")
    method = traits.Enum(*METHODS, usedefault=True, desc="denoising method")


class DenoiseOutputSpec(TraitedSpec):
    """What `Denoise` gives."""

    out_file = File(exists=True, desc="denoised series, float32, scanner units")
    out_sigma = traits.Float(desc="noise standard deviation before denoising, scanner units; NaN if unknown")
    out_message = traits.Str(desc="what was done, and why if it is not what was asked for")


class Denoise(SimpleInterface):
    """Denoise a diffusion series, and estimate its noise level."""

    input_spec = DenoiseInputSpec
    output_spec = DenoiseOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.io import read_scan, write_image

        inputs = self.inputs
        mask = inputs.in_mask if inputs.in_mask else None
        with limited_threads(inputs.num_threads):
            scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, mask, inputs.b0_threshold)
            denoised, message = denoise(scan, inputs.method)
            sigma, noise_message = noise_level(scan)
        out_file = os.path.join(runtime.cwd, "denoised_dwi.nii")
        self._results["out_file"] = str(write_image(out_file, denoised, image))
        self._results["out_sigma"] = sigma
        self._results["out_message"] = f"{message} {noise_message}"
        return runtime


class DegibbsInputSpec(BaseInterfaceInputSpec):
    """What `Degibbs` takes."""

    in_file = File(exists=True, mandatory=True, desc="image (3-D or 4-D) on the acquired grid")
    slice_axis = traits.Range(0, 2, value=2, usedefault=True, desc="axis along which slices were acquired")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="CPU threads")


class DegibbsOutputSpec(TraitedSpec):
    """What `Degibbs` gives."""

    out_file = File(exists=True, desc="image without Gibbs ringing, float32, scanner units")


class Degibbs(SimpleInterface):
    """Remove Gibbs ringing by local sub-voxel shifts."""

    input_spec = DegibbsInputSpec
    output_spec = DegibbsOutputSpec

    def _run_interface(self, runtime):
        from ..dwi.gibbs import remove_gibbs
        from ..spatial.io import read_image, write_image

        with limited_threads(self.inputs.num_threads):
            data, image = read_image(self.inputs.in_file)
            restored = remove_gibbs(np.nan_to_num(data), self.inputs.slice_axis)
        out_file = os.path.join(runtime.cwd, "degibbs_dwi.nii")
        self._results["out_file"] = str(write_image(out_file, restored, image))
        return runtime


def denoise(scan: Scan, method: str) -> tuple[np.ndarray, str]:
    """Return the denoised (X, Y, Z, N) float32 series and a sentence on what was done.

    Voxels outside the mask, constant ones and those out of the method's reach keep their acquired values.

    Parameters
    ----------
    scan
        The series as acquired, before any interpolation.
    method
        `mppca` (Veraart et al. 2016), `patch2self` (version 3, Fadnavis et al. 2024) or `none`.
    """
    acquired = np.nan_to_num(np.asarray(scan.data, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    n_volumes = acquired.shape[3]
    minimum = {"mppca": MIN_VOLUMES_MPPCA, "patch2self": MIN_VOLUMES_PATCH2SELF, "none": 0}
    if method not in minimum:
        raise ValueError(UNKNOWN_METHOD.format(method=method, methods=METHODS))
    if method == "none":
        return acquired, "Not denoised, as asked."
    if n_volumes < minimum[method]:
        text = TOO_FEW_VOLUMES.format(method=method, needed=minimum[method], found=n_volumes)
        return acquired, text[0].upper() + text[1:] + "."
    measured = scan.mask & (np.ptp(acquired, axis=3) > 0)  # zeroed backgrounds hold nothing to denoise
    if method == "mppca":
        denoised, message = _mppca(acquired, measured)
    else:
        denoised, message = _patch2self(acquired, scan)
    usable = measured[..., None] & np.isfinite(denoised)
    return np.where(usable, np.maximum(denoised, 0), acquired).astype(np.float32), message


def noise_level(scan: Scan) -> tuple[float, str]:
    """Return the noise standard deviation in scanner units, NaN where it is unknown, and a sentence on it."""
    from ..dwi.noise import estimate_sigma

    try:
        estimate = estimate_sigma(scan)
    except ScanError as error:
        text = str(error)
        return float("nan"), text[0].upper() + text[1:] + "."
    source = "differences between neighbouring voxels" if estimate.spatial else "the residuals of each shell"
    return estimate.sigma, (
        f"Noise standard deviation {estimate.sigma:.4g} (from {source}), b0 signal-to-noise ratio "
        f"{estimate.b0_snr:.1f}."
    )


def patch_radius(shape: tuple[int, ...]) -> np.ndarray:
    """Return the radii (3,) of the smallest patch that holds more voxels than the series has volumes.

    Axes that are shorter than the patch get what fits, and the others more.
    """
    radius = np.ones(3, dtype=int)
    limit = (np.array(shape[:3]) - 1) // 2
    while np.prod(2 * np.minimum(radius, limit) + 1) <= shape[3] and (radius < limit).any():
        radius += 1
    return np.minimum(radius, limit)


def _mppca(acquired: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, str]:
    from dipy.denoise.localpca import mppca

    radius = patch_radius(acquired.shape)
    size = " x ".join(str(2 * r + 1) for r in radius)
    with np.errstate(invalid="ignore", divide="ignore"):  # voxels that no patch covers: 0/0
        denoised = mppca(acquired, mask=mask, patch_radius=radius, suppress_warning=True)
    return denoised, f"Denoised by MP-PCA in patches of {size} voxels."


def _patch2self(acquired: np.ndarray, scan: Scan) -> tuple[np.ndarray, str]:
    import tempfile

    from dipy.denoise.patch2self import patch2self

    # Version 3 works in memory-mapped files of the whole series: too much for the /tmp of many containers.
    with tempfile.TemporaryDirectory(dir=os.curdir) as folder:
        denoised = patch2self(
            acquired,
            scan.gradients.bvals,
            b0_threshold=scan.gradients.b0_threshold,
            shift_intensity=False,
            tmp_dir=folder,
            version=3,
        )
    message = "Denoised by Patch2Self (version 3)."
    if acquired.shape[3] < GOOD_VOLUMES_PATCH2SELF:
        warning = TOO_FEW_FOR_PATCH2SELF.format(good=GOOD_VOLUMES_PATCH2SELF, found=acquired.shape[3])
        message += f" {warning}."
    return denoised, message


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Limit torch to `count` threads, and BLAS to one: on the tiny matrices of a patch more only slow it."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
