"""A deep network that denoises images, and a fit, with which Diff-DTI is compared: DeepDTI (Tian et al. 2020).

In its manner: what is to be added to a b0 and to images along six fixed directions, by ten convolutions, then a tensor
fit. Here the images follow from the fit to the acquired directions; there is no T1w image, and slices are
two-dimensional with their neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import Citation
from . import diffdti
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectMaps

WIDTH, LAYERS = 64, 10

SPEC = replace(
    diffdti.SPEC,
    name="deepdti",
    title="DeepDTI",
    line="the tensor and its maps from three to six directions by denoised images, in the manner of DeepDTI",
    summary=(
        "estimates the diffusion tensor from a b0 and three to six directions: a network corrects the b0 and images "
        "along six fixed directions, to which a tensor is then fitted"
    ),
    citation=Citation(
        key="tian2020deepdti",
        text=(
            "Tian Q, Bilgic B, Fan Q, Liao C, Ngamsombat C, Hu Y, Witzel T, Setsompop K, Polimeni JR, Huang SY (2020). "
            "DeepDTI: High-fidelity six-direction diffusion tensor imaging using deep learning. NeuroImage 219:117017. "
            "doi:10.1016/j.neuroimage.2020.117017"
        ),
        bibtex=(
            "@article{tian2020deepdti,\n"
            "  title = {{DeepDTI}: High-fidelity six-direction diffusion tensor imaging using deep learning},\n"
            "  author = {Tian, Qiyuan and Bilgic, Berkin and Fan, Qiuyun and Liao, Congyu and Ngamsombat, Chanon and "
            "Hu, Yuxin and Witzel, Thomas and Setsompop, Kawin and Polimeni, Jonathan R and Huang, Susie Y},\n"
            "  journal = {NeuroImage},\n  year = {2020},\n  volume = {219},\n  pages = {117017},\n"
            "  doi = {10.1016/j.neuroimage.2020.117017}\n}"
        ),
    ),
    **LEARNT,
)


def build() -> DirectMaps:
    """Return the method."""
    from ...nets.compared import PlainCNN
    from .direct import DirectMaps, SixImages
    from .inputs import IMAGES, NUMBERS
    from .task import MOST

    n = 1 + MOST
    return DirectMaps(SPEC, lambda: SixImages(PlainCNN(n + IMAGES + NUMBERS, n, WIDTH, LAYERS)))
