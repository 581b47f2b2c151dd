"""Diff-DTI: maps of the tensor from three to six directions by a joint diffusion model (Zhang et al. 2024).

`paper` follows the paper: the network sees the images, and generates FA, MD and colour FA from noise. `small`, the
default, also sees a ridge fit of the tensor, its noise and its directions. It generates the tensor, as the difference
from that fit. From six directions it does so for three series, and their tensors are averaged (`starts`, `balance`).
"""

from __future__ import annotations

from ..spec import Citation
from .task import LEAST, MAPS, MISMATCH, TENSOR_MAPS, MapsSpec

SPEC = MapsSpec(
    name="diffdti",
    title="Diff-DTI",
    line="the tensor and its maps from three to six directions by a joint diffusion model",
    summary=(
        "makes the maps of the diffusion tensor jointly from a b0 and three to six directions by a diffusion model"
    ),
    citation=Citation(
        key="zhang2024diffdti",
        text=(
            "Zhang L, He J, Liang D, Zheng H, Zhu Y (2024). Diff-DTI: Fast Diffusion Tensor Imaging Using A "
            "Feature-Enhanced Joint Diffusion Model. arXiv:2405.15830"
        ),
        bibtex=(
            "@article{zhang2024diffdti,\n"
            "  title = {{Diff-DTI}: Fast Diffusion Tensor Imaging Using A Feature-Enhanced Joint Diffusion "
            "Model},\n"
            "  author = {Zhang, Lang and He, Jinling and Liang, Dong and Zheng, Hairong and Zhu, Yanjie},\n"
            "  year = {2024},\n  eprint = {2405.15830},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=LEAST,
    good_directions=LEAST,
    needs_weights=True,
    maps=TENSOR_MAPS,
    maps_of_size={"paper": MAPS},
    samplers={
        "paper": "predictor-corrector",
        "fast": "DPM-Solver++(2M)",
        "mean": "none: the mean of the distribution, estimated from noise alone",
    },
    definitions={"colour_mismatch": MISMATCH},
)
