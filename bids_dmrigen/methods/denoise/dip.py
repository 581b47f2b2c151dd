"""Deep image prior, with which Di-Fusion is compared (Ulyanov et al. 2018).

In its manner: a U-Net makes the run of fixed noise, and is stopped before it makes the run's noise too. One network
makes all volumes of a slice at once. It sees the mean images of the b0s and of each shell beside the noise, and says
what is to be added to them: of noise alone it takes thousands of steps for every slice. Here it is stopped by samples
that it is not fitted to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import Citation
from . import difusion
from .difusion import MINUTES, TRAINING_STEPS

if TYPE_CHECKING:
    from .on_run import OnRun

SPEC = replace(
    difusion.SPEC,
    name="dip",
    title="Deep image prior",
    line="the run, as a network says it that is fitted to the run alone (deep image prior)",
    summary="denoises the series by a network that is fitted to it from fixed noise, and stopped early",
    citation=Citation(
        key="ulyanov2018dip",
        text=("Ulyanov D, Vedaldi A, Lempitsky V (2018). Deep Image Prior. CVPR 2018. arXiv:1711.10925"),
        bibtex=(
            "@inproceedings{ulyanov2018dip,\n  title = {Deep Image Prior},\n"
            "  author = {Ulyanov, Dmitry and Vedaldi, Andrea and Lempitsky, Victor},\n  booktitle = {CVPR},\n"
            "  year = {2018},\n  eprint = {1711.10925},\n  archivePrefix = {arXiv}\n}"
        ),
    ),
    min_directions=1,
    good_directions=6,
    samplers=dict.fromkeys(("fast", "paper"), "none: the output for fixed noise"),
    options=(MINUTES, TRAINING_STEPS),
    sizes=("small",),
    draws=False,
    denoised="The series was denoised by Deep image prior, trained on the run itself [ulyanov2018dip].",
    definitions={},
)


def build() -> OnRun:
    """Return the method."""
    from .dip_model import ImagePrior
    from .on_run import OnRun

    return OnRun(SPEC, ImagePrior)
