"""Nipype interface of the one interpolation that corrects head motion, eddy currents and susceptibility distortion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from ..dwi.series import ScanError
from .base import SeriesInputSpec


class _ResampleInputSpec(SeriesInputSpec):
    in_transforms = File(exists=True, desc="(N, 4, 4) .npy: reference points to volume points, world RAS+ mm")
    in_field = File(exists=True, desc="displacement along the phase-encoding axis, mm towards higher index")
    phase_encoding_direction = traits.Enum("i", "i-", "j", "j-", "k", "k-", desc="BIDS; needed with a field")


class _ResampleOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the series in the reference space, input's signal units")
    out_bval = File(exists=True, desc="b-values, s/mm²")
    out_bvec = File(exists=True, desc="b-vectors turned with the head")


class Resample(SimpleInterface):
    """Apply head motion, eddy-current and susceptibility corrections in one interpolation."""

    input_spec = _ResampleInputSpec
    output_spec = _ResampleOutputSpec

    def _run_interface(self, runtime):
        from ..bids.tables import write_gradients
        from ..spatial.io import read_image, read_scan, write_image
        from ..spatial.resample import resample_series

        inputs = self.inputs
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, b0_threshold=inputs.b0_threshold)
        transforms = np.load(inputs.in_transforms) if isdefined(inputs.in_transforms) else None
        field = read_image(inputs.in_field)[0] if isdefined(inputs.in_field) else None
        direction = inputs.phase_encoding_direction
        if field is not None and not isdefined(direction):
            raise ScanError(f"{inputs.in_field}: a displacement field needs phase_encoding_direction; give it")
        axis = "ijk".index(direction[0]) if isdefined(direction) else None
        moved = resample_series(scan, transforms, field, axis)
        folder = Path(runtime.cwd)
        self._results["out_file"] = str(write_image(folder / "resampled.nii", moved.data, image))
        self._results["out_bval"] = str(folder / "resampled.bval")
        self._results["out_bvec"] = str(folder / "resampled.bvec")
        write_gradients(moved.gradients, self._results["out_bval"], self._results["out_bvec"])
        return runtime
