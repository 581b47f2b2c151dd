"""DDM², with which Di-Fusion is compared (Xiang et al. 2023), written from the paper.

In its manner: a network says each volume from others (stage I); the time of a diffusion process is found at which its
noise is that of the run (stage II); a diffusion model is trained on what stage I said, and takes the acquired volume
from that time to the beginning (stage III). Stage I corrects the linear prediction from all others, as Patch2Self makes
it.
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
    name="ddm2",
    title="DDM²",
    line="the run, by a diffusion model in three stages that is trained on it alone (DDM²)",
    summary="denoises the series by a diffusion model in three stages, which is trained on the run itself",
    citation=Citation(
        key="xiang2023ddm2",
        text=(
            "Xiang T, Yurt M, Syed AB, Setsompop K, Chaudhari A (2023). DDM²: Self-Supervised Diffusion MRI Denoising "
            "with Generative Diffusion Models. ICLR 2023. arXiv:2302.03018"
        ),
        bibtex=(
            "@inproceedings{xiang2023ddm2,\n"
            "  title = {{DDM\\textsuperscript{2}}: Self-Supervised Diffusion {MRI} Denoising with Generative "
            "Diffusion Models},\n  author = {Xiang, Tiange and Yurt, Mahmut and Syed, Ali B and Setsompop, Kawin and "
            "Chaudhari, Akshay},\n  booktitle = {ICLR},\n  year = {2023},\n  eprint = {2302.03018},\n"
            "  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=6,
    good_directions=12,
    samplers=dict.fromkeys(("fast", "paper"), "DDIM, from the time that the noise of the run matches"),
    options=(MINUTES, TRAINING_STEPS),
    sizes=("small",),
    draws=False,
    denoised="The series was denoised by DDM², trained on the run itself [xiang2023ddm2].",
    definitions={},
)


def build() -> OnRun:
    """Return the method."""
    from .ddm2_model import ThreeStages
    from .on_run import OnRun

    return OnRun(SPEC, ThreeStages)
