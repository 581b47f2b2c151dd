"""Nipype interfaces of the brain mask and of the bias field of the receive coil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined

from .base import SeriesInputSpec


class _BrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="1 in the brain, 0 elsewhere, uint8")


class BrainMask(SimpleInterface):
    """Find the brain in a diffusion-weighted series."""

    input_spec = SeriesInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.brain_mask import brain_of
        from ..spatial.io import read_scan, write_image

        inputs = self.inputs
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, b0_threshold=inputs.b0_threshold)
        path = write_image(Path(runtime.cwd) / "mask.nii", brain_of(scan), image, dtype=np.uint8)
        self._results["out_mask"] = str(path)
        return runtime


class _CoverageInputSpec(SeriesInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="brain mask")


class _CoverageOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="1 in the brain where every volume has data, 0 elsewhere, uint8")


class Coverage(SimpleInterface):
    """Find where every volume of a series has data."""

    input_spec = _CoverageInputSpec
    output_spec = _CoverageOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.coverage import complete_voxels
        from ..spatial.io import read_scan, write_image

        i = self.inputs
        scan, image = read_scan(i.in_file, i.in_bval, i.in_bvec, i.in_mask, i.b0_threshold)
        complete = complete_voxels(scan.data, scan.mask)
        path = write_image(Path(runtime.cwd) / "coverage.nii", complete, image, dtype=np.uint8)
        self._results["out_mask"] = str(path)
        return runtime


class _BiasFieldInputSpec(SeriesInputSpec):
    in_mask = File(exists=True, desc="brain mask (default: computed from the series)")


class _BiasFieldOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the series divided by the bias field, input's signal units")
    out_field = File(exists=True, desc="bias field, a factor with geometric mean 1 in the mask")


class BiasField(SimpleInterface):
    """Remove the receive coil's bias field (N4 on the mean b0, one factor for all volumes)."""

    input_spec = _BiasFieldInputSpec
    output_spec = _BiasFieldOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.ants_tools import set_threads
        from ..spatial.bias import without_bias
        from ..spatial.io import read_scan, write_image

        inputs = self.inputs
        set_threads(inputs.num_threads)
        mask = inputs.in_mask if isdefined(inputs.in_mask) else None
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, mask, inputs.b0_threshold)
        corrected, field = without_bias(scan, scan.mask if mask else None)
        folder = Path(runtime.cwd)
        self._results["out_field"] = str(write_image(folder / "bias_field.nii", field, image))
        self._results["out_file"] = str(write_image(folder / "unbiased.nii", corrected, image))
        return runtime


class _DivideByBiasInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="series or volume on the field's grid")
    in_field = File(exists=True, mandatory=True, desc="bias field, a factor")


class _DivideByBiasOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="series or volume divided by the field")


class DivideByBias(SimpleInterface):
    """Divide a series by a bias field that was estimated on another series on the same grid."""

    input_spec = _DivideByBiasInputSpec
    output_spec = _DivideByBiasOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.io import read_image, write_image

        data, image = read_image(self.inputs.in_file)
        field = read_image(self.inputs.in_field)[0]
        path = write_image(Path(runtime.cwd) / "unbiased.nii", data / field[..., None], image)
        self._results["out_file"] = str(path)
        return runtime
