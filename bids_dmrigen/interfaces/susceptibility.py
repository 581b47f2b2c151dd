"""Nipype interfaces of susceptibility distortion, from two b0s of opposite phase encoding or from a field map."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import File, InputMultiPath, SimpleInterface, TraitedSpec, isdefined, traits

from .base import SeriesInputSpec


class _SusceptibilityInputSpec(SeriesInputSpec):
    phase_encoding_direction = traits.Enum("i", "i-", "j", "j-", "k", "k-", mandatory=True, desc="BIDS")
    opposite_file = File(exists=True, mandatory=True, desc="b0 volume, or a series, of opposite phase encoding")
    opposite_bval = File(exists=True, desc="b-values of the opposite series, s/mm²; not given: every volume is a b0")
    opposite_bvec = File(exists=True, desc="b-vectors of the opposite series; only its b0s are used")
    opposite_direction = traits.Enum("i", "i-", "j", "j-", "k", "k-", mandatory=True, desc="BIDS")
    readout_time = traits.Float(desc="TotalReadoutTime, s; not given: the report has no field in Hz")
    random_seed = traits.Int(1, usedefault=True, desc="seed of the head-motion metric's sampling")


class _SusceptibilityOutputSpec(TraitedSpec):
    out_field = File(
        exists=True,
        desc="displacement along the phase axis, mm towards higher index: from true to distorted positions",
    )
    out_b0 = File(exists=True, desc="mean b0 before the correction")
    out_opposite = File(exists=True, desc="opposite b0 before the correction, on the scan's grid")
    out_corrected_b0 = File(exists=True, desc="mean b0 undistorted, signal modulated")
    out_corrected_opposite = File(exists=True, desc="opposite b0 undistorted, signal modulated")
    out_report = File(exists=True, desc="JSON: correlations before and after, displacements (mm), readout time (s)")


class Susceptibility(SimpleInterface):
    """Estimate susceptibility distortion from two b0s of opposite phase encoding."""

    input_spec = _SusceptibilityInputSpec
    output_spec = _SusceptibilityOutputSpec

    def _run_interface(self, runtime):
        from ..diffusion.storage import write_text
        from ..spatial.ants_tools import set_threads
        from ..spatial.io import read_scan, write_image
        from ..spatial.susceptibility import find_distortion, phase_axis, read_opposite_b0

        inputs = self.inputs
        set_threads(inputs.num_threads)
        axis = phase_axis(inputs.phase_encoding_direction, inputs.opposite_direction, inputs.opposite_file)
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, b0_threshold=inputs.b0_threshold)
        bval = inputs.opposite_bval if isdefined(inputs.opposite_bval) else None
        opposite = read_opposite_b0(inputs.opposite_file, bval, inputs.b0_threshold)
        readout_s = float(inputs.readout_time) if isdefined(inputs.readout_time) else None
        images, report = find_distortion(scan, *opposite, axis, readout_s=readout_s, seed=inputs.random_seed)
        folder = Path(runtime.cwd)
        for name, data in images.items():
            self._results[f"out_{name}"] = str(write_image(folder / f"{name}.nii", data, image))
        path = write_text(folder / "susceptibility.json", json.dumps(report, indent=2))
        self._results["out_report"] = str(path)
        return runtime


class _FieldMapInputSpec(SeriesInputSpec):
    phase_encoding_direction = traits.Enum("i", "i-", "j", "j-", "k", "k-", mandatory=True, desc="BIDS")
    readout_time = traits.Float(mandatory=True, desc="TotalReadoutTime of the series, s")
    kind = traits.Enum("phasediff", "phases", "fieldmap", mandatory=True, desc="what the images hold")
    images = InputMultiPath(File(exists=True), mandatory=True, desc="phase difference, two phases, or field")
    magnitude = File(exists=True, mandatory=True, desc="magnitude image on their grid")
    echo_times = traits.List(traits.Float, desc="echo times of the two echoes, s; phase images only")
    units = traits.Enum("", "Hz", "rad/s", "T", usedefault=True, desc="of a field")
    random_seed = traits.Int(1, usedefault=True, desc="seed of the registration metric's sampling")


class _FieldMapOutputSpec(TraitedSpec):
    out_field = File(
        exists=True,
        desc="displacement along the phase axis, mm towards higher index: from true to distorted positions",
    )
    out_b0 = File(exists=True, desc="mean b0 before the correction")
    out_corrected_b0 = File(exists=True, desc="mean b0 undistorted, signal modulated")
    out_magnitude = File(exists=True, desc="magnitude image of the field map, on the scan's grid")
    out_report = File(exists=True, desc="JSON: similarity before and after, displacements (mm), field (Hz)")


class FieldMapCorrection(SimpleInterface):
    """Compute susceptibility distortion from a field map."""

    input_spec = _FieldMapInputSpec
    output_spec = _FieldMapOutputSpec

    def _run_interface(self, runtime):
        from ..bids.run import FieldMap
        from ..diffusion.storage import write_text
        from ..spatial.ants_tools import set_threads
        from ..spatial.fieldmap import correct_with_field, read_field
        from ..spatial.io import read_scan, write_image

        inputs = self.inputs
        set_threads(inputs.num_threads)
        scan, image = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, b0_threshold=inputs.b0_threshold)
        echo_times = tuple(inputs.echo_times) if isdefined(inputs.echo_times) else ()
        paths = tuple(Path(path) for path in inputs.images)
        field = read_field(FieldMap(inputs.kind, paths, Path(inputs.magnitude), echo_times, inputs.units))
        direction, readout_s = inputs.phase_encoding_direction, inputs.readout_time
        images, report = correct_with_field(scan, field, direction, readout_s, seed=inputs.random_seed)
        folder = Path(runtime.cwd)
        for name, data in images.items():
            self._results[f"out_{name}"] = str(write_image(folder / f"{name}.nii", data, image))
        path = write_text(folder / "susceptibility.json", json.dumps(report, indent=2))
        self._results["out_report"] = str(path)
        return runtime
