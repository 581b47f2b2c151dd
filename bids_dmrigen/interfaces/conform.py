"""Nipype interfaces of a run's first step: refuse unusable series, write the others in one standard form."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from ..bids.tables import write_gradients
from ..spatial.checks import check_values
from ..spatial.io import read_scan, write_image
from .base import SeriesInputSpec


class _ConformInput(SeriesInputSpec):
    leave_out_trace = traits.Bool(False, usedefault=True, desc="leave out trace images at the end of the series")
    in_state = traits.Str(desc="checksums: other content is noticed where size and time of a file are the same")


class _ConformOutput(TraitedSpec):
    out_file = File(desc="the series, float32, scaling applied, uncompressed")
    out_bval = File(desc="b-values in one row")
    out_bvec = File(desc="unit directions in three rows, zero for b0")
    warnings = traits.List(traits.Str, desc="what was repaired")


class Conform(SimpleInterface):
    """Check a run and write it as float32 with a plain gradient table."""

    input_spec = _ConformInput
    output_spec = _ConformOutput

    def _run_interface(self, runtime):
        i, cwd = self.inputs, Path(runtime.cwd)
        scan, image = read_scan(
            i.in_file, i.in_bval, i.in_bvec, b0_threshold=i.b0_threshold, leave_out_trace=i.leave_out_trace
        )
        data, warnings = check_values(scan.data, i.in_file)
        write_gradients(scan.gradients, cwd / "dwi.bval", cwd / "dwi.bvec")
        self._results.update(
            out_file=str(write_image(cwd / "dwi.nii", data, image)),
            out_bval=str(cwd / "dwi.bval"),
            out_bvec=str(cwd / "dwi.bvec"),
            warnings=warnings,
        )
        return runtime


class _MeanB0Output(TraitedSpec):
    out_file = File(desc="mean of the b0 volumes")


class MeanB0(SimpleInterface):
    """Average the b0 volumes of a series."""

    input_spec = SeriesInputSpec
    output_spec = _MeanB0Output

    def _run_interface(self, runtime):
        i = self.inputs
        scan, image = read_scan(i.in_file, i.in_bval, i.in_bvec, b0_threshold=i.b0_threshold)
        path = write_image(Path(runtime.cwd) / "b0.nii", scan.mean_b0(), image)
        self._results["out_file"] = str(path)
        return runtime


class _NotesInput(BaseInterfaceInputSpec):
    repaired = traits.List(traits.Str, mandatory=True, desc="what was repaired on reading")
    noise = traits.Str(desc="what was done about noise")
    in_record = File(exists=True, desc="JSON: how a method denoised the series")
    susceptibility = File(exists=True, desc="JSON: results of the susceptibility correction")


class _NotesOutput(TraitedSpec):
    out_record = File(desc="JSON for the sidecar of the preprocessed series")


class Notes(SimpleInterface):
    """Collect the notes of the steps, for the sidecar and the report."""

    input_spec = _NotesInput
    output_spec = _NotesOutput

    def _run_interface(self, runtime):
        path = Path(runtime.cwd) / "notes.json"
        record = {"Warnings": self.inputs.repaired}
        if isdefined(self.inputs.noise):
            record["Noise"] = self.inputs.noise
        if isdefined(self.inputs.susceptibility):
            record["SusceptibilityCorrection"] = json.loads(Path(self.inputs.susceptibility).read_text())
        if isdefined(self.inputs.in_record):
            record |= json.loads(Path(self.inputs.in_record).read_text())
        path.write_text(json.dumps(record))
        self._results["out_record"] = str(path)
        return runtime
