"""Non-local means, with which Di-Fusion is compared: the mean over places that look alike."""

from __future__ import annotations

import numpy as np

from ...dwi.series import Scan
from ..spec import Citation
from .task import DenoiseSpec
from .untrained import UntrainedDenoiser

RADII = (1, 2)  # voxels: of the patches that are compared, and of the search

SPEC = DenoiseSpec(
    name="nlm",
    title="Non-local means",
    line="the run, each voxel averaged with those around it that look alike (nothing is learnt)",
    summary="denoises each volume by averaging voxels whose surroundings look alike",
    citation=Citation(
        key="coupe2008",
        text=(
            "Coupé P, Yger P, Prima S, Hellier P, Kervrann C, Barillot C (2008). An optimized blockwise nonlocal means "
            "denoising filter for 3-D magnetic resonance images. IEEE Transactions on Medical Imaging 27(4):425-441"
        ),
        bibtex=(
            "@article{coupe2008,\n"
            "  title = {An optimized blockwise nonlocal means denoising filter for 3-{D} magnetic resonance images},\n"
            "  author = {Coup\\'e, Pierrick and Yger, Pierre and Prima, Sylvain and Hellier, Pierre and "
            "Kervrann, Charles and Barillot, Christian},\n  journal = {IEEE Transactions on Medical Imaging},\n"
            "  year = {2008},\n  volume = {27},\n  pages = {425--441}\n}"
        ),
    ),
    min_directions=1,
    good_directions=1,
    needs_weights=False,
    samplers={"fast": "none: weighted means", "paper": "none: weighted means"},
    sizes=("small",),
    draws=False,
    denoised="The series was denoised by non-local means [coupe2008; dipy].",
)


def non_local_means(scan: Scan, patch: int = RADII[0], search: int = RADII[1]) -> np.ndarray:
    """Return the denoised series (X, Y, Z, N), by DIPY, for noise of one level and Rician magnitudes.

    Parameters
    ----------
    scan
        The series, with its brain mask.
    patch, search
        Radii in voxels: of the patches that are compared, and of the search around a voxel.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    from dipy.denoise.nlmeans import nlmeans

    from ...dwi.noise import estimate_sigma

    sigma, data = estimate_sigma(scan).sigma, np.asarray(scan.data, dtype=np.float32)
    # One thread: several threads of the library add to the same voxels at once, and lose some of the sums.
    found = nlmeans(data, sigma, mask=scan.mask, patch_radius=patch, block_radius=search, rician=True, num_threads=1)
    return np.where(found > 0, found, data).astype(np.float32)


def build() -> UntrainedDenoiser:
    """Return the method."""
    return UntrainedDenoiser(SPEC, non_local_means)
