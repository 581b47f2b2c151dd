"""A GAN whose layers are told direction and b-value, with which Phy-Diff is compared: SMRI2DWI (Ren et al. 2021).

In its manner: both scale and shift the features of every block of the generator. Here the input is that of all arms of
the room, without T1w and T2w images; the error is squared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..citations import REN
from . import phydiff
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import AdversarialImages

SPEC = replace(
    phydiff.SPEC,
    name="smri2dwi",
    title="SMRI2DWI",
    line="images of any b-value and direction from the b0 by a GAN whose layers are told both",
    summary=(
        "makes diffusion-weighted images of any b-value and direction from the b0 by a generative adversarial network"
    ),
    citation=REN,
    **LEARNT,
)


def build() -> AdversarialImages:
    """Return the method."""
    from ...nets.compared import PlainUNet
    from ..at_once import Translation
    from .direct import TOLD, AdversarialImages, adversaries, told
    from .inputs import IMAGES

    return AdversarialImages(
        SPEC, lambda: adversaries(Translation(PlainUNet(IMAGES, 1, told=TOLD), told, spread=False))
    )
