"""Maps of a run on a grid over the template that is the same for every run."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from ..methods.synthesis.task import GRID_MM
from ..spatial.io import image_in_template, read_image, write_image


def standard_grid(shape, affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of a grid of cubes over a template's field of view, axes those of the world.

    Its voxels have the edge that methods work on there. It depends on the template alone, and its voxels' centres lie
    at multiples of that edge: those of `TemplateSpace` are among them.
    """
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij"), axis=-1).reshape(-1, 3)
    world = ends @ affine[:3, :3].T + affine[:3, 3]
    low = np.ceil(world.min(axis=0) / GRID_MM - 1e-3) * GRID_MM
    n = np.floor((world.max(axis=0) - low) / GRID_MM + 1e-3).astype(int) + 1
    grid = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    grid[:3, 3] = low
    return tuple(int(k) for k in n), grid


def placed(volume: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return an image (X, Y, Z, ...) on a grid of voxels like its own, some whole voxels apart; 0 outside it."""
    shift = np.rint((affine[:3, 3] - grid[:3, 3]) / np.diag(grid)[:3]).astype(int)  # of its first voxel
    out = np.zeros((*shape, *volume.shape[3:]), volume.dtype)
    into = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(shift, volume.shape, shape, strict=False))
    own = tuple(slice(i.start - s, i.stop - s) for i, s in zip(into, shift, strict=True))
    out[into] = volume[own]
    return out


class _ToTemplateInput(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="scalar maps on the scan's grid")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on that grid")
    to_template = File(exists=True, mandatory=True, desc=".h5 that resamples the scan onto the template")
    template_brain = File(exists=True, mandatory=True, desc="brain mask of the template, on its grid")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class _ToTemplateOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="the maps there, in that order")
    out_mask = File(exists=True, desc="brain mask there")


class ToTemplate(SimpleInterface):
    """Resample maps onto `standard_grid`; what lies outside the brain (0) does not enter the averages."""

    input_spec = _ToTemplateInput
    output_spec = _ToTemplateOutput

    def _run_interface(self, runtime):
        from ..spatial.ants_tools import set_threads, to_ants, warp

        i, folder = self.inputs, Path(runtime.cwd)
        set_threads(i.num_threads)
        template = nib.load(i.template_brain)
        shape, affine = standard_grid(template.shape, template.affine)
        reference = to_ants(np.zeros(shape, np.float32), affine)
        grid, (mask, image) = image_in_template(shape, affine), read_image(i.in_mask)

        def moved(volume: np.ndarray) -> np.ndarray:
            return warp(to_ants(volume.astype(np.float32), image.affine), reference, [i.to_template]).numpy()

        inside = mask > 0.5
        share = moved(inside)
        brain, files = share > 0.5, []
        for number, path in enumerate(i.in_files):
            values = np.where(brain, moved(read_image(path)[0] * inside) / np.maximum(share, 0.5), 0)
            files.append(str(write_image(folder / f"map{number}.nii", values, grid)))
        self._results["out_files"] = files
        self._results["out_mask"] = str(write_image(folder / "mask.nii", brain, grid, np.uint8))
        return runtime
