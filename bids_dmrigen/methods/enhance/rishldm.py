"""RISH latent diffusion: a shell as a better scanner would show it (Zhu et al. 2024).

How strong the signal's spherical harmonics of each degree are is made anew, in a latent space; where they point stays.
`paper` is the paper's; `small`, the default, has a super-resolution that also sees what was measured and how noisy it
is, adds to that, and does nearly all of the work.
"""

from __future__ import annotations

from ...dwi.gradients import LEAST_DIRECTIONS
from ..spec import RISH, TENSOR, Citation
from .task import GOOD, VOXEL_SIZE, RishSpec

FAST_STEPS, PAPER_STEPS = 4, 50  # of the inversion, and as many back

SPEC = RishSpec(
    name="rishldm",
    title="RISH latent diffusion",
    line="the shell as a better scanner would show it, on finer voxels where asked for, by latent diffusion",
    summary=(
        "makes the strength of the signal's spherical harmonics anew, as a better scanner would show it, by a "
        "latent diffusion model and super-resolution, and keeps where they point"
    ),
    citation=Citation(
        key="zhu2024rish",
        text=(
            "Zhu X, Zhang W, Li Y, O'Donnell LJ, Zhang F (2024). When Diffusion MRI Meets Diffusion Model: A Novel "
            "Deep Generative Model for Diffusion MRI Generation. MICCAI 2024. arXiv:2408.12897"
        ),
        bibtex=(
            "@inproceedings{zhu2024rish,\n"
            "  title = {When Diffusion {MRI} Meets Diffusion Model: A Novel Deep Generative Model for Diffusion "
            "{MRI} Generation},\n"
            "  author = {Zhu, Xi and Zhang, Wei and Li, Yijie and O'Donnell, Lauren J. and Zhang, Fan},\n"
            "  booktitle = {Medical Image Computing and Computer Assisted Intervention},\n  year = {2024},\n"
            "  eprint = {2408.12897},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=LEAST_DIRECTIONS,
    good_directions=GOOD,
    needs_weights=True,
    samplers={
        "paper": f"DDIM inversion and DDIM, {PAPER_STEPS} steps each",
        "fast": f"DDIM inversion and DDIM, {FAST_STEPS} steps each",
    },
    options=(VOXEL_SIZE,),
    draws=False,
    fits=(TENSOR, RISH),
    paired=True,
)
