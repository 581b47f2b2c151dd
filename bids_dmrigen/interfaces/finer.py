"""Nipype interfaces that resample between the scan's grid and a finer one: brain mask, series and maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from ..spatial.io import image_on_grid, read_image, read_volume, write_image


class _FinerMaskInput(BaseInterfaceInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the scan's grid")
    voxel_mm = traits.Float(mandatory=True, desc="edge of the finer grid's voxels, mm")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _FinerMaskOutput(TraitedSpec):
    out_mask = File(exists=True, desc="brain mask on the finer grid")


class FinerMask(SimpleInterface):
    """Write the brain mask on the finer grid, for the methods whose results are on that grid."""

    input_spec = _FinerMaskInput
    output_spec = _FinerMaskOutput

    def _run_interface(self, runtime):
        import torch

        from ..methods.enhance.grid import finer_grid

        torch.set_num_threads(self.inputs.num_threads)
        mask, image = read_volume(self.inputs.in_mask)
        _, grid = finer_grid(mask > 0.5, image.affine, self.inputs.voxel_mm)
        like = image_on_grid(grid.mask.shape, grid.affine, image)
        self._results["out_mask"] = str(write_image(Path(runtime.cwd) / "mask.nii", grid.mask, like, np.uint8))
        return runtime


class _OntoScanInput(BaseInterfaceInputSpec):
    in_series = traits.List(File(exists=True), desc="series on the finer grid")
    in_maps = traits.List(File(exists=True), desc="maps on the finer grid, 0 outside the mask")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the finer grid")
    reference = File(exists=True, mandatory=True, desc="an image on the scan's grid")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _OntoScanOutput(TraitedSpec):
    out_series = traits.List(File(exists=True), desc="the series on the scan's grid, in that order")
    out_maps = traits.List(File(exists=True), desc="the maps on the scan's grid, in that order")


class OntoScan(SimpleInterface):
    """Resample series and maps from a finer grid to the scan's voxels, where they are compared with the scan.

    A series is condensed (`dwi.spline.condensed`): a series that was only up-sampled gets its original values back. A
    map is interpolated at the centres of the voxels, from its values in the mask only.
    """

    input_spec = _OntoScanInput
    output_spec = _OntoScanOutput

    def _run_interface(self, runtime):
        import torch

        from ..spatial.finer import condensed_series, read_in_mask

        i, folder = self.inputs, Path(runtime.cwd)
        torch.set_num_threads(i.num_threads)
        _, scan = read_image(i.reference)
        shape = scan.shape[:3]
        results: dict[str, list[str]] = {"out_series": [], "out_maps": []}
        for number, path in enumerate(i.in_series or ()):
            values, image = read_image(path)
            series = condensed_series(values, image.affine, shape, scan.affine)
            results["out_series"].append(str(write_image(folder / f"series{number}.nii", series, scan)))
        mask, image = read_volume(i.in_mask)
        for number, path in enumerate(i.in_maps or ()):
            values = read_in_mask(read_image(path)[0], mask > 0.5, image.affine, shape, scan.affine)
            results["out_maps"].append(str(write_image(folder / f"map{number}.nii", values, scan)))
        self._results |= results
        return runtime
