"""BM4D on a b0 and six directions, then a tensor fit, with which Diff-DTI is compared (Maggioni et al. 2013).

The filter is that of the package `bm4d` of its authors. Its licence allows non-commercial use only, so that it is no
dependency: who may use it installs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from ...dwi.series import Scan, ScanError
from ..spec import Citation
from .fitted import Fitted, FittedSpec
from .task import choose_volumes

NOT_INSTALLED = (
    "{title} needs the package bm4d of its authors, which is not installed; its licence allows non-commercial use "
    "only: if that is yours, `pip install bm4d`"
)


@dataclass(frozen=True)
class _Spec(FittedSpec):
    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` also where the package is not installed."""
        if find_spec("bm4d") is None:
            raise ScanError(NOT_INSTALLED.format(title=self.title))
        return super().check(scan)


SPEC = _Spec(
    name="bm4d",
    title="BM4D",
    line="the tensor and its maps from six directions, each image denoised by BM4D (non-commercial package)",
    summary=(
        "denoises a b0 and six directions by block matching and four-dimensional filtering, and fits the diffusion "
        "tensor by linear least squares"
    ),
    citation=Citation(
        key="maggioni2013bm4d",
        text=(
            "Maggioni M, Katkovnik V, Egiazarian K, Foi A (2013). Nonlocal transform-domain filter for volumetric data "
            "denoising and reconstruction. IEEE Transactions on Image Processing 22(1):119-133. "
            "doi:10.1109/TIP.2012.2210725"
        ),
        bibtex=(
            "@article{maggioni2013bm4d,\n"
            "  title = {Nonlocal transform-domain filter for volumetric data denoising and reconstruction},\n"
            "  author = {Maggioni, Matteo and Katkovnik, Vladimir and Egiazarian, Karen and Foi, Alessandro},\n"
            "  journal = {IEEE Transactions on Image Processing},\n  year = {2013},\n  volume = {22},\n"
            "  number = {1},\n  pages = {119--133},\n  doi = {10.1109/TIP.2012.2210725}\n}"
        ),
    ),
)


def denoised(scan: Scan) -> Scan:
    """Return a scan whose b0s and chosen directions are denoised, each volume alone; missing samples stay missing.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    from bm4d import bm4d

    from ...dwi.noise import sigma_of_few

    _, volumes, _ = choose_volumes(scan.gradients, SPEC.title)
    used = np.sort(np.r_[np.flatnonzero(scan.gradients.is_b0), volumes])
    sigma, data = sigma_of_few(scan, volumes), np.array(scan.data, dtype=np.float32)
    for k in used:
        acquired = data[..., k].astype(np.float64)
        found = np.asarray(bm4d(acquired, sigma)).reshape(acquired.shape)
        data[..., k] = np.where((acquired > 0) & scan.mask & (found > 0), found, acquired)
    return replace(scan, data=data)


def build() -> Fitted:
    """Return the method."""
    return Fitted(SPEC, "ols", denoised)
