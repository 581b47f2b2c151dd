"""Nipype interface that resamples the maps of a run onto a grid over the template; all runs have the same grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from ..spatial.io import image_in_template, open_image, read_image, write_image


class _ToTemplateInput(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="scalar maps on the scan's grid")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on that grid")
    to_template = File(exists=True, mandatory=True, desc=".h5 that resamples the scan onto the template")
    template_brain = File(exists=True, mandatory=True, desc="brain mask of the template, on its grid")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class _ToTemplateOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="the maps on the template's grid, in that order")
    out_mask = File(exists=True, desc="brain mask on the template's grid")


class ToTemplate(SimpleInterface):
    """Resample maps onto `standard_grid`; voxels outside the brain (0) do not enter the averages."""

    input_spec = _ToTemplateInput
    output_spec = _ToTemplateOutput

    def _run_interface(self, runtime):
        from ..spatial.ants_tools import set_threads
        from ..spatial.standard_grid import maps_on_standard_grid, standard_grid

        i, folder = self.inputs, Path(runtime.cwd)
        set_threads(i.num_threads)
        template = open_image(i.template_brain)
        shape, affine = standard_grid(template.shape, template.affine)
        mask, image = read_image(i.in_mask)
        maps = (read_image(path)[0] for path in i.in_files)
        moved, brain = maps_on_standard_grid(maps, mask > 0.5, image.affine, (shape, affine), i.to_template)
        like = image_in_template(shape, affine)
        self._results["out_files"] = [
            str(write_image(folder / f"map{number}.nii", values, like)) for number, values in enumerate(moved)
        ]
        self._results["out_mask"] = str(write_image(folder / "mask.nii", brain, like, np.uint8))
        return runtime
