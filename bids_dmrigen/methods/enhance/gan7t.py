"""A GAN from 3T to 7T, with which RISH latent diffusion is compared (after Nie et al. 2018).

In their manner: convolutions in three dimensions, judged by a discriminator of patches. Here the generator is that of
`refinement`, and the error is squared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import DIRECT, Citation
from . import rishldm
from .task import VOXEL_SIZE

if TYPE_CHECKING:
    from .direct import DirectEnhancement

SPEC = replace(
    rishldm.SPEC,
    name="gan7t",
    title="GAN 3T to 7T",
    line="the shell as a better scanner would show it, by an adversarial network",
    summary=(
        "corrects the strength of the signal's spherical harmonics, as a better scanner would show it, by a generative "
        "adversarial network"
    ),
    citation=Citation(
        key="nie2018gan",
        text=(
            "Nie D, Trullo R, Lian J, Wang L, Petitjean C, Ruan S, Wang Q, Shen D (2018). Medical Image Synthesis with "
            "Deep Convolutional Adversarial Networks. IEEE Transactions on Biomedical Engineering 65(12):2720-2730. "
            "doi:10.1109/TBME.2018.2814538"
        ),
        bibtex=(
            "@article{nie2018gan,\n"
            "  title = {Medical Image Synthesis with Deep Convolutional Adversarial Networks},\n"
            "  author = {Nie, Dong and Trullo, Roger and Lian, Jun and Wang, Li and Petitjean, Caroline and Ruan, Su "
            "and Wang, Qian and Shen, Dinggang},\n  journal = {IEEE Transactions on Biomedical Engineering},\n"
            "  year = {2018},\n  volume = {65},\n  number = {12},\n  pages = {2720--2730},\n"
            "  doi = {10.1109/TBME.2018.2814538}\n}"
        ),
    ),
    options=(VOXEL_SIZE,),
    **DIRECT,
)


def build() -> DirectEnhancement:
    """Return the method."""
    from ...nets.rish_ldm import Refiner
    from .direct import DirectEnhancement, adversaries
    from .inputs import CONDITION_CHANNELS, DEGREES
    from .rishldm_model import SIZES

    told, spec = CONDITION_CHANNELS["small"], SIZES["small"]
    return DirectEnhancement(SPEC, lambda: adversaries(Refiner(len(DEGREES), told, spec.width, spec.blocks)))
