"""Up-sampling by B-splines, the comparison for RISH latent diffusion on finer voxels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ...dwi.series import Scan
from ..base import Generated, Method, Request
from ..spec import Citation
from .task import VOXEL_SIZE, EnhanceSpec

if TYPE_CHECKING:
    from torch import nn

SPEC = EnhanceSpec(
    name="bspline",
    title="B-spline up-sampling",
    line="the series on finer voxels, by cubic B-splines (nothing is learnt)",
    summary="brings the series to finer voxels by cubic B-spline interpolation; nothing is learnt",
    citation=Citation(
        key="dyrby2014",
        text=(
            "Dyrby TB, Lundell H, Burke MW, Reislev NL, Paulson OB, Ptito M, Siebner HR (2014). Interpolation of "
            "diffusion weighted imaging datasets. NeuroImage 103:202-213. doi:10.1016/j.neuroimage.2014.09.005"
        ),
        bibtex=(
            "@article{dyrby2014,\n"
            "  title = {Interpolation of diffusion weighted imaging datasets},\n"
            "  author = {Dyrby, Tim B and Lundell, Henrik and Burke, Mark W and Reislev, Nina L and "
            "Paulson, Olaf B and Ptito, Maurice and Siebner, Hartwig R},\n  journal = {NeuroImage},\n"
            "  year = {2014},\n  volume = {103},\n  pages = {202--213},\n"
            "  doi = {10.1016/j.neuroimage.2014.09.005}\n}"
        ),
    ),
    min_directions=1,
    good_directions=1,
    needs_weights=False,
    samplers={"fast": "none: interpolation", "paper": "none: interpolation"},
    options=(VOXEL_SIZE,),
    sizes=("small",),
    draws=False,
    only_finer=True,
)


class SplineUpsampling(Method):
    """Every volume on finer voxels, by cubic B-splines. `Request.options`: `voxel_mm`, their edge."""

    spec = SPEC

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Up-sample a scan; `ScanError` where no finer voxels are requested."""
        from .resampling import generated, upsampled

        begun = time.monotonic()
        warnings = SPEC.check(scan)
        series, grid = upsampled(SPEC, scan, request)
        return generated(SPEC, scan, series, grid, np.ones(len(scan.gradients), bool), begun, warnings)


def build() -> SplineUpsampling:
    """Return the method."""
    return SplineUpsampling()
