"""Phy-Diff: diffusion-weighted images at any b-value and direction from the b0 alone (Zhang et al. 2024).

`paper` follows the paper: the network sees the b0, and generates the image from the noised b0. `small`, the default,
also sees its place in the template and the prediction of isotropic diffusion with the ADC atlas. It generates the
difference from that prediction.
"""

from __future__ import annotations

from ..spec import Citation
from .task import BVALUES, DIRECTIONS, GRID_MM, SynthesisSpec

SPEC = SynthesisSpec(
    name="phydiff",
    title="Phy-Diff",
    line="images of any b-value and direction from the b0 by a physics-guided diffusion model",
    summary=(
        "makes diffusion-weighted images of any b-value and direction from the b0 by a diffusion model in the "
        "template's space, whose noise follows an atlas of the apparent diffusion coefficient"
    ),
    citation=Citation(
        key="zhang2024phydiff",
        text=(
            "Zhang J, Yan R, Perelli A, Chen X, Li C (2024). Phy-Diff: Physics-Guided Hourglass Diffusion Model "
            "for Diffusion MRI Synthesis. MICCAI 2024. arXiv:2406.03002"
        ),
        bibtex=(
            "@inproceedings{zhang2024phydiff,\n"
            "  title = {{Phy-Diff}: Physics-Guided Hourglass Diffusion Model for Diffusion {MRI} Synthesis},\n"
            "  author = {Zhang, Juanhua and Yan, Ruodan and Perelli, Alessandro and Chen, Xi and Li, Chao},\n"
            "  booktitle = {Medical Image Computing and Computer Assisted Intervention -- {MICCAI}},\n"
            "  year = {2024},\n  eprint = {2406.03002},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=0,
    good_directions=0,
    needs_weights=True,
    samplers={
        "paper": "ancestral, from the noised b0",
        "fast": "DPM-Solver++(2M)",
        "mean": "none: the mean of the distribution, estimated from noise alone",
    },
    options=(BVALUES, DIRECTIONS),
    population=("adc", "tracts"),
    grid_mm=GRID_MM,
)
