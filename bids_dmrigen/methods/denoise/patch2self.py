"""Patch2Self, with which Di-Fusion is compared: every volume by linear regression on the others."""

from __future__ import annotations

import numpy as np

from ...dwi.series import Scan, ScanError
from ..spec import Citation
from .classical import MIN_VOLUMES_PATCH2SELF, MIXED_UP, denoise, mixed_up
from .task import DenoiseSpec
from .untrained import UntrainedDenoiser

SPEC = DenoiseSpec(
    name="patch2self",
    title="Patch2Self",
    line="the run, each volume predicted from the others by linear regression (nothing is learnt beforehand)",
    summary="denoises the series by predicting each volume from all others by linear regression",
    citation=Citation(
        key="fadnavis2020",
        text=(
            "Fadnavis S, Batson J, Garyfallidis E (2020). Patch2Self: Denoising Diffusion MRI with Self-Supervised "
            "Learning. NeurIPS 2020. arXiv:2011.01355"
        ),
        bibtex=(
            "@inproceedings{fadnavis2020,\n"
            "  title = {{Patch2Self}: Denoising Diffusion {MRI} with Self-Supervised Learning},\n"
            "  author = {Fadnavis, Shreyas and Batson, Joshua and Garyfallidis, Eleftherios},\n"
            "  booktitle = {Advances in Neural Information Processing Systems},\n  year = {2020},\n"
            "  eprint = {2011.01355},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=MIN_VOLUMES_PATCH2SELF,
    good_directions=30,
    needs_weights=False,
    samplers={"fast": "none: linear regression", "paper": "none: linear regression"},
    sizes=("small",),
    draws=False,
    denoises=False,  # `--denoise patch2self` is a step of its own
)


def regressed(scan: Scan) -> np.ndarray:
    """Return the denoised series (X, Y, Z, N); `ScanError` where the library would exchange volumes."""
    if mixed_up(scan.data.shape[3]):
        raise ScanError(MIXED_UP.format(found=scan.data.shape[3]))
    return denoise(scan, SPEC.name)[0]


def build() -> UntrainedDenoiser:
    """Return the method."""
    return UntrainedDenoiser(SPEC, regressed)
