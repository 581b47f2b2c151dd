"""Tensor maps of a series."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, traits

from ..bids.names import TENSOR_MAPS
from ..spatial.io import read_scan, write_image
from .base import SeriesInputSpec


class _TensorMapsInput(SeriesInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="brain mask")
    volumes = traits.Either(None, traits.List(traits.Int), usedefault=True, desc="fitted volumes (default: all)")
    method = traits.Enum("wls", "ols", usedefault=True, desc="weighted or ordinary least squares")


class _TensorMapsOutput(TraitedSpec):
    fa = File(desc="fractional anisotropy, 0 to 1")
    md = File(desc="mean diffusivity, mm²/s")
    ad = File(desc="axial diffusivity, mm²/s")
    rd = File(desc="radial diffusivity, mm²/s")
    dec = File(desc="FA times |principal direction| in world axes: red, green, blue = x, y, z")
    tensor = File(desc="tensor, mm²/s, world axes")


class TensorMaps(SimpleInterface):
    """Fit the tensor in the mask and write its maps on the series' grid."""

    input_spec = _TensorMapsInput
    output_spec = _TensorMapsOutput

    def _run_interface(self, runtime):
        import torch

        from ..dwi.series import Scan
        from ..dwi.tensor import fit_maps

        i = self.inputs
        torch.set_num_threads(i.num_threads)
        scan, image = read_scan(i.in_file, i.in_bval, i.in_bvec, i.in_mask, i.b0_threshold)
        if i.volumes is not None:
            scan = Scan(scan.data[..., i.volumes], scan.affine, scan.gradients[i.volumes], scan.mask)
        maps = fit_maps(scan, method=i.method)
        for name in TENSOR_MAPS:
            self._results[name] = str(write_image(Path(runtime.cwd) / f"{name}.nii", maps[name], image))
        return runtime
