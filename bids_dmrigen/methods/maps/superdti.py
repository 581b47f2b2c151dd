"""A U-Net that says maps at once, with which Diff-DTI is compared: SuperDTI (Li et al. 2021).

In its manner: one network from images to the result, no fit in between. Here it says the correction of a tensor fit,
since directions differ from scan to scan, and FA, MD and colour FA follow from that tensor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import Citation
from . import diffdti
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectMaps

SPEC = replace(
    diffdti.SPEC,
    name="superdti",
    title="SuperDTI",
    line="the tensor and its maps from three to six directions by a U-Net, in the manner of SuperDTI",
    summary="estimates the diffusion tensor from a b0 and three to six directions by a U-Net",
    citation=Citation(
        key="li2021superdti",
        text=(
            "Li H, Liang Z, Zhang C, Liu R, Li J, Zhang W, Liang D, Shen B, Zhang X, Ge Y, Zhang J, Ying L (2021). "
            "SuperDTI: Ultrafast DTI and fiber tractography with deep learning. Magnetic Resonance in Medicine "
            "86(6):3334-3347. doi:10.1002/mrm.28937"
        ),
        bibtex=(
            "@article{li2021superdti,\n"
            "  title = {{SuperDTI}: Ultrafast {DTI} and fiber tractography with deep learning},\n"
            "  author = {Li, Hongyu and Liang, Zifei and Zhang, Chaoyi and Liu, Ruiying and Li, Jing and Zhang, "
            "Weihong and Liang, Dong and Shen, Bowen and Zhang, Xiaoliang and Ge, Yulin and Zhang, Jiangyang and "
            "Ying, Leslie},\n  journal = {Magnetic Resonance in Medicine},\n  year = {2021},\n  volume = {86},\n"
            "  number = {6},\n  pages = {3334--3347},\n  doi = {10.1002/mrm.28937}\n}"
        ),
    ),
    **LEARNT,
)


def build() -> DirectMaps:
    """Return the method."""
    from ...nets.compared import PlainUNet
    from .direct import DirectMaps, OfSlices
    from .inputs import IMAGES, NUMBERS
    from .task import SAID

    return DirectMaps(SPEC, lambda: OfSlices(PlainUNet(IMAGES + NUMBERS, SAID)))
