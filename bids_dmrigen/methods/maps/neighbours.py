"""The tensor from three to six directions: those of a voxel's neighbours, weighted by a small network.

Nothing is generated. The network learns from acquired volumes that it was not shown (`hidden`), and says of every voxel
how much remains unknown.
"""

from __future__ import annotations

from ..spec import Citation, ExtraMap
from .task import LEAST, TENSOR_MAPS, MapsSpec

UNKNOWN = ExtraMap(
    param="unknown",
    title="Unknown part of the tensor",
    description="square root of the expected squared size of the difference between the tensor and its estimate",
    units="mm^2/s",
)

SPEC = MapsSpec(
    name="neighbours",
    title="Neighbour attention",
    line="the tensor and its maps from three to six directions: those of neighbours, weighted by a small network",
    summary=(
        "estimates the diffusion tensor and its maps from a b0 and three to six directions: each "
        "voxel is a weighted mean of the tensors around it, with weights of a network that learnt to predict acquired "
        "volumes which it was not shown"
    ),
    # The idea: a network that predicts one noisy copy from another learns what they have in common.
    citation=Citation(
        key="lehtinen2018noise2noise",
        text=(
            "Lehtinen J, Munkberg J, Hasselgren J, Laine S, Karras T, Aittala M, Aila T (2018). Noise2Noise: Learning "
            "Image Restoration without Clean Data. ICML 2018. arXiv:1803.04189"
        ),
        bibtex=(
            "@inproceedings{lehtinen2018noise2noise,\n"
            "  title = {{Noise2Noise}: Learning Image Restoration without Clean Data},\n"
            "  author = {Lehtinen, Jaakko and Munkberg, Jacob and Hasselgren, Jon and Laine, Samuli and Karras, Tero "
            "and Aittala, Miika and Aila, Timo},\n  booktitle = {ICML},\n"
            "  year = {2018},\n  eprint = {1803.04189},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=LEAST,
    good_directions=LEAST,
    needs_weights=True,
    maps=TENSOR_MAPS,
    samplers={"fast": "none: a weighted mean of neighbours", "paper": "none: a weighted mean of neighbours"},
    sizes=("small",),
    draws=False,
    blocks=True,
    extra_maps=(UNKNOWN,),
)
