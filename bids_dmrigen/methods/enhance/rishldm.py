"""RISH latent diffusion: a shell as a better scanner would show it (Zhu et al. 2024).

The strength of the signal's spherical harmonics of each degree is generated in a latent space; their orientation is
kept. `paper` follows the paper. In `small`, the default, the super-resolution network also sees the measured features
and their noise, and predicts a correction of them; it makes nearly all of the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dwi.gradients import LEAST_DIRECTIONS
from ..spec import RISH, TENSOR, Citation, Option, OptionError
from .task import GOOD, VOXEL_SIZE, RishSpec

FAST_STEPS, PAPER_STEPS = 4, 50  # steps of the inversion, and of the way back
TIMES = 1000  # of the diffusion process
ONE_EACH = "{flag}: expected three numbers, for degrees 0, 2 and 4, found {found}"
TOO_LATE = "{flag}: expected times of at most {most}, found {found}"

GUIDANCE = Option(
    "rishldm_guidance",
    "strength w of classifier-free guidance for degrees 0, 2 and 4 (default: 0 0 0, none)",
    (0.0, 0.0, 0.0),
    float,
    key="guidance",
    least=0,
    metavar="W",
)
NOISE = Option(
    "rishldm_noise",
    f"time to which features of degrees 0, 2 and 4 are noised, of {TIMES} (default: 100 100 100)",
    (100, 100, 100),
    int,
    key="noise",
    least=1,
    metavar="T",
)


class _Spec(RishSpec):
    def check_options(self, values: Mapping[str, Any], b0_threshold: float) -> None:
        """Raise `OptionError` without one value for each degree, or for times after the last of the diffusion."""
        for option in (GUIDANCE, NOISE):
            if len(values[option.name]) != 3:
                raise OptionError(ONE_EACH.format(flag=option.flag, found=len(values[option.name])))
        if max(values[NOISE.name]) > TIMES:
            raise OptionError(TOO_LATE.format(flag=NOISE.flag, most=TIMES, found=max(values[NOISE.name])))


SPEC = _Spec(
    name="rishldm",
    title="RISH latent diffusion",
    line="the shell as a better scanner would show it, on finer voxels where asked for, by latent diffusion",
    summary=(
        "generates the strength of the signal's spherical harmonics, as a better scanner would show it, by a "
        "latent diffusion model and super-resolution, and keeps their orientation"
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
    options=(VOXEL_SIZE, GUIDANCE, NOISE),
    draws=False,
    fits=(TENSOR, RISH),
    paired=True,
    blocks=True,
)
