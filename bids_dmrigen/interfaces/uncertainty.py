"""Nipype interfaces that turn standard errors of maps into quantiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from ..spatial.io import read_image, write_image


class _UndistortMapsInput(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="maps on the acquired grid")
    in_field = File(exists=True, mandatory=True, desc="displacement along the phase axis, mm towards higher index")
    phase_encoding_direction = traits.Enum("i", "i-", "j", "j-", "k", "k-", mandatory=True, desc="BIDS")


class _UndistortMapsOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="the maps in the reference space, in that order")


class UndistortMaps(SimpleInterface):
    """Undo the susceptibility distortion of maps of a series as acquired.

    They are maps of all volumes together, so that the head's motion between volumes cannot be undone.
    """

    input_spec = _UndistortMapsInput
    output_spec = _UndistortMapsOutput

    def _run_interface(self, runtime):
        from ..spatial.resample import sample_volume

        axis = "ijk".index(self.inputs.phase_encoding_direction[0])
        field, image = read_image(self.inputs.in_field)
        displacement = field / image.header.get_zooms()[axis]
        self._results["out_files"] = []
        for number, path in enumerate(self.inputs.in_files):
            values, image = read_image(path)
            moved = sample_volume(values, np.eye(4), displacement, axis, order=1)
            self._results["out_files"].append(str(write_image(Path(runtime.cwd) / f"map{number}.nii", moved, image)))
        return runtime


class _QuantilesInput(BaseInterfaceInputSpec):
    names = traits.List(traits.Str, mandatory=True, desc="names of the maps")
    in_maps = traits.List(File(exists=True), mandatory=True, desc="best estimates, in that order")
    in_errors = traits.List(File(exists=True), mandatory=True, desc="their standard errors")


class _QuantilesOutput(TraitedSpec):
    out_errors = traits.List(File(exists=True), desc="standard errors, in that order")
    out_low = traits.List(File(exists=True), desc="5 % quantiles")
    out_high = traits.List(File(exists=True), desc="95 % quantiles")


class Quantiles(SimpleInterface):
    """Write the quantiles of maps: those of normal distributions, within the range that a map can have."""

    input_spec = _QuantilesInput
    output_spec = _QuantilesOutput

    def _run_interface(self, runtime):
        from ..dwi.uncertainty import interval

        i, folder = self.inputs, Path(runtime.cwd)
        self._results |= {"out_errors": list(i.in_errors), "out_low": [], "out_high": []}
        for name, path, error_path in zip(i.names, i.in_maps, i.in_errors, strict=True):
            best, image = read_image(path)
            low, high = interval(name, best, read_image(error_path)[0])
            for key, values in (("low", low), ("high", high)):
                self._results[f"out_{key}"].append(str(write_image(folder / f"{name}_{key}.nii", values, image)))
        return runtime
