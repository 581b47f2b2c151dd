"""Between the scan's grid and a finer one over its extent: the brain mask there, and what was made there back here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from ..spatial.io import image_on_grid, read_image, read_volume, write_image


def read_at(values: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return an image (X, Y, Z[, C]) at the centres of another grid's voxels, by linear interpolation, (*shape[, C]).

    `affine` (4, 4) is the image's, `grid` the other one's.
    """
    from scipy import ndimage

    between = np.linalg.inv(affine) @ grid  # indices there to indices here
    volumes = values[..., None] if values.ndim == 3 else values
    read = [
        ndimage.affine_transform(
            volumes[..., k], between[:3, :3], between[:3, 3], tuple(shape), np.float32, order=1, mode="nearest"
        )
        for k in range(volumes.shape[3])
    ]
    return read[0] if values.ndim == 3 else np.stack(read, axis=-1)


def condensed_series(values: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return a series (P, Q, R, N) of a finer grid on the voxels (X, Y, Z) of another with parallel axes; at least 0.

    Parameters
    ----------
    values, affine
        The series, and the (4, 4) affine of its grid.
    shape, grid
        Of the other grid, (3,) and (4, 4).
    """
    import torch

    from ..dwi.spline import condensed

    between = np.linalg.inv(grid) @ affine
    points = [between[axis, axis] * np.arange(n) + between[axis, 3] for axis, n in enumerate(values.shape[:3])]
    series = condensed(torch.from_numpy(values).permute(3, 0, 1, 2), points, shape)
    return series.clamp_min(0).permute(1, 2, 3, 0).numpy()


class _FinerMaskInput(BaseInterfaceInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the scan's grid")
    voxel_mm = traits.Float(mandatory=True, desc="edge of the finer grid's voxels, mm")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _FinerMaskOutput(TraitedSpec):
    out_mask = File(exists=True, desc="brain mask on the finer grid")


class FinerMask(SimpleInterface):
    """Write the brain mask on the finer grid of the methods that make one."""

    input_spec = _FinerMaskInput
    output_spec = _FinerMaskOutput

    def _run_interface(self, runtime):
        import torch

        from ..methods.base import finer_grid

        torch.set_num_threads(self.inputs.num_threads)
        mask, image = read_volume(self.inputs.in_mask)
        _, grid = finer_grid(mask > 0.5, image.affine, self.inputs.voxel_mm)
        like = image_on_grid(grid.mask.shape, grid.affine, image)
        self._results["out_mask"] = str(write_image(Path(runtime.cwd) / "mask.nii", grid.mask, like, np.uint8))
        return runtime


class _OntoScanInput(BaseInterfaceInputSpec):
    in_series = traits.List(File(exists=True), desc="series on the finer grid")
    in_maps = traits.List(File(exists=True), desc="maps there, 0 outside the mask")
    in_mask = File(exists=True, mandatory=True, desc="brain mask there")
    reference = File(exists=True, mandatory=True, desc="an image on the scan's grid")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")


class _OntoScanOutput(TraitedSpec):
    out_series = traits.List(File(exists=True), desc="the series on the scan's grid, in that order")
    out_maps = traits.List(File(exists=True), desc="the maps there")


class OntoScan(SimpleInterface):
    """Bring what lies on a finer grid to the scan's voxels, where it is compared with the scan.

    Series as `dwi.spline.condensed`, so that what was only up-sampled comes back as it was; maps are read at the
    voxels' centres, from what lies in the mask alone.
    """

    input_spec = _OntoScanInput
    output_spec = _OntoScanOutput

    def _run_interface(self, runtime):
        import torch

        i, folder = self.inputs, Path(runtime.cwd)
        torch.set_num_threads(i.num_threads)
        _, scan = read_image(i.reference)
        shape, results = scan.shape[:3], {"out_series": [], "out_maps": []}
        for number, path in enumerate(i.in_series or ()):
            values, image = read_image(path)
            series = condensed_series(values, image.affine, shape, scan.affine)
            results["out_series"].append(str(write_image(folder / f"series{number}.nii", series, scan)))
        mask, image = read_volume(i.in_mask)
        inside = mask > 0.5
        share = read_at(inside.astype(np.float32), image.affine, shape, scan.affine)
        for number, path in enumerate(i.in_maps or ()):
            values = read_image(path)[0]
            wide = (..., *[None] * (values.ndim - 3))
            read = read_at(values * inside[wide], image.affine, shape, scan.affine)
            read = np.where(share[wide] > 0, read / np.maximum(share[wide], 1e-6), 0)
            results["out_maps"].append(str(write_image(folder / f"map{number}.nii", read, scan)))
        self._results |= results
        return runtime
