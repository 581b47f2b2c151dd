"""A convolutional network from 3T to 7T, with which RISH latent diffusion is compared (after Bahrami et al. 2016).

In their manner: plain convolutions, no skips. Here it corrects the rotation-invariant features of a shell, on the same
examples and with the same input as the other arms of the room.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import DIRECT, Citation
from . import rishldm
from .task import VOXEL_SIZE

if TYPE_CHECKING:
    from .direct import DirectEnhancement

WIDTH, LAYERS = 48, 6

SPEC = replace(
    rishldm.SPEC,
    name="cnn7t",
    title="CNN 3T to 7T",
    line="the shell as a better scanner would show it, by plain convolutions",
    summary=(
        "corrects the strength of the signal's spherical harmonics, as a better scanner would show it, by six "
        "convolutions"
    ),
    citation=Citation(
        key="bahrami2016cnn",
        text=(
            "Bahrami K, Shi F, Rekik I, Shen D (2016). Convolutional neural network for reconstruction of 7T-like "
            "images from 3T MRI using appearance and anatomical features. DLMIA 2016. doi:10.1007/978-3-319-46976-8_5"
        ),
        bibtex=(
            "@inproceedings{bahrami2016cnn,\n"
            "  title = {Convolutional neural network for reconstruction of 7{T}-like images from 3{T} {MRI} using "
            "appearance and anatomical features},\n  author = {Bahrami, Khosro and Shi, Feng and Rekik, Islem and "
            "Shen, Dinggang},\n  booktitle = {DLMIA},\n  year = {2016},\n"
            "  doi = {10.1007/978-3-319-46976-8_5}\n}"
        ),
    ),
    options=(VOXEL_SIZE,),
    **DIRECT,
)


def build() -> DirectEnhancement:
    """Return the method."""
    from ...nets.compared import PlainCNN
    from .direct import CHANNELS, DirectEnhancement, DirectNet
    from .inputs import DEGREES

    return DirectEnhancement(SPEC, lambda: DirectNet(PlainCNN(CHANNELS, len(DEGREES), WIDTH, LAYERS, dims=3)))
