"""Noisier2Noise, with which Di-Fusion is compared (Moran et al. 2020).

In its manner: to a volume y noise of the run's own level is added, z; a network learns to say y of z, f(z), and
2 f(z) - z has no noise in the mean. Noise counts as Gaussian. Here slices have their neighbours, and the result is the
mean over several z.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import Citation
from . import difusion
from .difusion import MINUTES, TRAINING_STEPS

if TYPE_CHECKING:
    from .on_run import OnRun

SPEC = replace(
    difusion.SPEC,
    name="noisier2noise",
    title="Noisier2Noise",
    line="the run, by a network that learnt to remove noise added to it (Noisier2Noise)",
    summary="denoises each volume by a network that learnt to find the acquired volume in a noisier one",
    citation=Citation(
        key="moran2020noisier2noise",
        text=(
            "Moran N, Schmidt D, Zhong Y, Coady P (2020). Noisier2Noise: Learning to Denoise from Unpaired Noisy Data. "
            "CVPR 2020. arXiv:1910.11908"
        ),
        bibtex=(
            "@inproceedings{moran2020noisier2noise,\n"
            "  title = {{Noisier2Noise}: Learning to Denoise from Unpaired Noisy Data},\n"
            "  author = {Moran, Nick and Schmidt, Dan and Zhong, Yu and Coady, Patrick},\n  booktitle = {CVPR},\n"
            "  year = {2020},\n  eprint = {1910.11908},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=1,
    good_directions=6,
    samplers=dict.fromkeys(("fast", "paper"), "none: means over added noise"),
    options=(MINUTES, TRAINING_STEPS),
    sizes=("small",),
    draws=False,
    denoised="The series was denoised by Noisier2Noise, trained on the run itself [moran2020noisier2noise].",
    definitions={},
)


def build() -> OnRun:
    """Return the method."""
    from .noisier2noise_model import Noisier
    from .on_run import OnRun

    return OnRun(SPEC, Noisier)
