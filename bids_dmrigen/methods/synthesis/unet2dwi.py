"""A U-Net, with which Phy-Diff is compared (Ronneberger et al. 2015).

Direction, b-value and height are images that are the same everywhere. Here normalisation is left out, as in the other
networks of the room: it would remove the scale of the image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import Citation
from . import phydiff
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectImages

SPEC = replace(
    phydiff.SPEC,
    name="unet2dwi",
    title="U-Net",
    line="images of any b-value and direction from the b0 by a U-Net",
    summary="makes diffusion-weighted images of any b-value and direction from the b0 by a U-Net",
    citation=Citation(
        key="ronneberger2015unet",
        text=(
            "Ronneberger O, Fischer P, Brox T (2015). U-Net: Convolutional Networks for Biomedical Image Segmentation. "
            "MICCAI 2015. arXiv:1505.04597"
        ),
        bibtex=(
            "@inproceedings{ronneberger2015unet,\n"
            "  title = {{U-Net}: Convolutional Networks for Biomedical Image Segmentation},\n"
            "  author = {Ronneberger, Olaf and Fischer, Philipp and Brox, Thomas},\n  booktitle = {MICCAI},\n"
            "  year = {2015},\n  eprint = {1505.04597},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    **LEARNT,
)


def build() -> DirectImages:
    """Return the method."""
    from ...nets.compared import PlainUNet
    from ..at_once import Translation
    from .direct import TOLD, DirectImages, told
    from .inputs import IMAGES

    return DirectImages(SPEC, lambda: Translation(PlainUNet(IMAGES + TOLD, 1), told))
