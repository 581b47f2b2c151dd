"""Nipype interfaces that remove noise and Gibbs ringing from a raw diffusion series."""

from __future__ import annotations

import os

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from ..methods.denoise.classical import METHODS
from .base import SeriesInputSpec


class DenoiseInputSpec(SeriesInputSpec):
    """Inputs of `Denoise`."""

    in_mask = File(exists=True, desc="mask; voxels outside keep their acquired values")
    method = traits.Enum(*METHODS, usedefault=True, desc="denoising method")


class DenoiseOutputSpec(TraitedSpec):
    """Outputs of `Denoise`."""

    out_file = File(exists=True, desc="denoised series, float32, scanner units")
    out_sigma = traits.Float(desc="noise standard deviation before denoising, scanner units; NaN if unknown")
    out_message = traits.Str(desc="what was done, with the reason where it differs from the request")


class Denoise(SimpleInterface):
    """Denoise a diffusion series, and estimate its noise level."""

    input_spec = DenoiseInputSpec
    output_spec = DenoiseOutputSpec

    def _run_interface(self, runtime):
        from ..methods.denoise.classical import denoise, limited_threads, noise_level
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
    """Inputs of `Degibbs`."""

    in_file = File(exists=True, mandatory=True, desc="image (3-D or 4-D) on the acquired grid")
    slice_axis = traits.Range(0, 2, value=2, usedefault=True, desc="axis along which slices were acquired")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="CPU threads")


class DegibbsOutputSpec(TraitedSpec):
    """Outputs of `Degibbs`."""

    out_file = File(exists=True, desc="image without Gibbs ringing, float32, scanner units")


class Degibbs(SimpleInterface):
    """Remove Gibbs ringing by local sub-voxel shifts."""

    input_spec = DegibbsInputSpec
    output_spec = DegibbsOutputSpec

    def _run_interface(self, runtime):
        from ..dwi.gibbs import remove_gibbs
        from ..methods.denoise.classical import limited_threads
        from ..spatial.io import read_image, write_image

        with limited_threads(self.inputs.num_threads):
            data, image = read_image(self.inputs.in_file)
            restored = remove_gibbs(np.nan_to_num(data), self.inputs.slice_axis)
        out_file = os.path.join(runtime.cwd, "degibbs_dwi.nii")
        self._results["out_file"] = str(write_image(out_file, restored, image))
        return runtime
