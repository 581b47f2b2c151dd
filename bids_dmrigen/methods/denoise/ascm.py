"""ASCM, with which Di-Fusion is compared: non-local means of two patch sizes, mixed wavelet by wavelet."""

from __future__ import annotations

import numpy as np

from ...dwi.series import Scan
from ..spec import Citation
from .task import DenoiseSpec
from .untrained import UntrainedDenoiser

PATCHES, SEARCH = (1, 2), 1  # voxels, as in DIPY's example
LEAST_EDGE = 16  # voxels; the wavelets have ten

SPEC = DenoiseSpec(
    name="ascm",
    title="ASCM",
    line="the run, by non-local means of two patch sizes, mixed wavelet by wavelet (nothing is learnt)",
    summary=(
        "denoises each volume by non-local means with small and with large patches, and mixes both results by their "
        "wavelet coefficients"
    ),
    citation=Citation(
        key="coupe2012",
        text=(
            "Coupé P, Manjón JV, Robles M, Collins DL (2012). Adaptive multiresolution non-local means filter for "
            "three-dimensional magnetic resonance image denoising. IET Image Processing 6(5):558-568"
        ),
        bibtex=(
            "@article{coupe2012,\n"
            "  title = {Adaptive multiresolution non-local means filter for three-dimensional magnetic resonance image "
            "denoising},\n  author = {Coup\\'e, Pierrick and Manj\\'on, Jos\\'e V and Robles, Montserrat and "
            "Collins, D Louis},\n  journal = {IET Image Processing},\n  year = {2012},\n  volume = {6},\n"
            "  pages = {558--568}\n}"
        ),
    ),
    min_directions=1,
    good_directions=1,
    needs_weights=False,
    samplers={"fast": "none: weighted means", "paper": "none: weighted means"},
    sizes=("small",),
    draws=False,
    denoised="The series was denoised by adaptive soft coefficient matching [coupe2012; dipy].",
)


def adaptive_soft_matching(scan: Scan) -> np.ndarray:
    """Return the denoised series (X, Y, Z, N), by DIPY.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    from dipy.denoise.adaptive_soft_matching import adaptive_soft_matching as mixed

    from ...dwi.noise import estimate_sigma
    from .nlm import non_local_means

    small, large = (non_local_means(scan, patch, SEARCH).astype(np.float64) for patch in PATCHES)
    sigma, shape = estimate_sigma(scan).sigma, scan.mask.shape
    # DIPY would fill up to a power of two with zeros, whose edge the wavelets carry into the brain, and wrap around.
    wanted = [max(2 ** int(np.ceil(np.log2(n))), LEAST_EDGE) for n in shape]
    around = [(0, more - n) for more, n in zip(wanted, shape, strict=True)]
    noisy, small, large = (
        np.pad(x, [*around, (0, 0)], "symmetric") for x in (np.asarray(scan.data, np.float64), small, large)
    )
    volumes = range(noisy.shape[3])
    parts = [mixed(noisy[..., k], small[..., k], large[..., k], sigma) for k in volumes]  # type: ignore[no-untyped-call]
    return np.stack(parts, axis=3)[: shape[0], : shape[1], : shape[2]]


def build() -> UntrainedDenoiser:
    """Return the method."""
    return UntrainedDenoiser(SPEC, adaptive_soft_matching)
