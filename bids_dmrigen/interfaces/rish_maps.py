"""RISH maps of a series."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import File, SimpleInterface, TraitedSpec

from ..spatial.io import read_scan, write_image
from .base import SeriesInputSpec


class _RishMapsInput(SeriesInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="brain mask")


class _RishMapsOutput(TraitedSpec):
    rish0 = File(desc="|C_0|² of S / S0")
    rish2 = File(desc="|C_2|²")
    rish4 = File(desc="|C_4|², where the directions determine it")


class RishMaps(SimpleInterface):
    """Map the strength of the spherical harmonics of each degree in the mask, on the series' grid."""

    input_spec = _RishMapsInput
    output_spec = _RishMapsOutput

    def _run_interface(self, runtime):
        import torch

        from ..dwi.rish import rish_maps

        i = self.inputs
        torch.set_num_threads(i.num_threads)
        scan, image = read_scan(i.in_file, i.in_bval, i.in_bvec, i.in_mask, i.b0_threshold)
        for degree, values in rish_maps(scan).items():
            name = f"rish{degree}"
            self._results[name] = str(write_image(Path(runtime.cwd) / f"{name}.nii", values, image))
        return runtime
