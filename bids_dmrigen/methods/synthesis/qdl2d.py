"""A network of neighbouring voxels, with which Phy-Diff is compared: `qdl` with convolutions of 3 x 3 voxels.

As there, with the slices above and below as further input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..citations import GOLKOV
from . import phydiff
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectImages

SPEC = replace(
    phydiff.SPEC,
    name="qdl2d",
    title="q-DL 2D",
    line="images of any b-value and direction from the b0 by four convolutions",
    summary="makes diffusion-weighted images of any b-value and direction from the b0 by four convolutions",
    citation=GOLKOV,
    **LEARNT,
)


def build() -> DirectImages:
    """Return the method."""
    from ...nets.compared import PlainCNN
    from ..at_once import Translation
    from .direct import TOLD, DirectImages, told
    from .inputs import IMAGES

    return DirectImages(SPEC, lambda: Translation(PlainCNN(IMAGES + TOLD, 1, 150, 4), told))
