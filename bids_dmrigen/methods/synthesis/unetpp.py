"""A nested U-Net, with which Phy-Diff is compared: U-Net++ (Zhou et al. 2018).

As `unet2dwi`, with blocks between both sides of each level. There is one output, at the end.
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
    name="unetpp",
    title="U-Net++",
    line="images of any b-value and direction from the b0 by a nested U-Net",
    summary="makes diffusion-weighted images of any b-value and direction from the b0 by a nested U-Net",
    citation=Citation(
        key="zhou2018unetpp",
        text=(
            "Zhou Z, Siddiquee MMR, Tajbakhsh N, Liang J (2018). UNet++: A Nested U-Net Architecture for Medical Image "
            "Segmentation. DLMIA 2018. arXiv:1807.10165"
        ),
        bibtex=(
            "@inproceedings{zhou2018unetpp,\n"
            "  title = {{UNet++}: A Nested {U-Net} Architecture for Medical Image Segmentation},\n"
            "  author = {Zhou, Zongwei and Siddiquee, Md Mahfuzur Rahman and Tajbakhsh, Nima and Liang, Jianming},\n"
            "  booktitle = {DLMIA},\n  year = {2018},\n  eprint = {1807.10165},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    **LEARNT,
)


def build() -> DirectImages:
    """Return the method."""
    from ...nets.compared import NestedUNet
    from ..at_once import Translation
    from .direct import TOLD, DirectImages, told
    from .inputs import IMAGES

    return DirectImages(SPEC, lambda: Translation(NestedUNet(IMAGES + TOLD, 1), told))
