"""A network of single voxels, with which Phy-Diff is compared: q-space deep learning (Golkov et al. 2016).

In their manner: three hidden layers of 150. Here the voxel's b0, its place and the population's ADC are the input, with
direction and b-value; the image is the output.
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
    name="qdl",
    title="q-DL",
    line="images of any b-value and direction from the b0 by a network of single voxels",
    summary="makes diffusion-weighted images of any b-value and direction from the b0 by a network that sees one voxel",
    citation=GOLKOV,
    **LEARNT,
)


def build() -> DirectImages:
    """Return the method."""
    from ...nets.compared import PlainCNN
    from ..at_once import Translation
    from .direct import BESIDE, TOLD, DirectImages, told
    from .inputs import IMAGES

    n_in = IMAGES - len(BESIDE) + TOLD
    return DirectImages(SPEC, lambda: Translation(PlainCNN(n_in, 1, 150, 4, kernel=1), told, without=BESIDE))
