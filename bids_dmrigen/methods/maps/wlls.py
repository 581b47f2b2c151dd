"""Weighted linear least squares on six directions, with which Diff-DTI is compared."""

from __future__ import annotations

from ..spec import Citation
from .fitted import Fitted, FittedSpec

SPEC = FittedSpec(
    name="wlls",
    title="Weighted least squares on six directions",
    line="the tensor and its maps from six directions by weighted linear least squares (nothing is learnt)",
    summary="fits the diffusion tensor to a b0 and six directions by weighted linear least squares",
    citation=Citation(
        key="veraart2013weighted",
        text=(
            "Veraart J, Sijbers J, Sunaert S, Leemans A, Jeurissen B (2013). Weighted linear least squares estimation "
            "of diffusion MRI parameters: strengths, limitations, and pitfalls. NeuroImage 81:335-346"
        ),
        bibtex=(
            "@article{veraart2013weighted,\n"
            "  title = {Weighted linear least squares estimation of diffusion {MRI} parameters: strengths, "
            "limitations, and pitfalls},\n  author = {Veraart, Jelle and Sijbers, Jan and Sunaert, Stefan and "
            "Leemans, Alexander and Jeurissen, Ben},\n  journal = {NeuroImage},\n  year = {2013},\n  volume = {81},\n"
            "  pages = {335--346}\n}"
        ),
    ),
)


def build() -> Fitted:
    """Return the method."""
    return Fitted(SPEC, "wls")
