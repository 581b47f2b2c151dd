"""Linear least squares on six directions, with which Diff-DTI is compared."""

from __future__ import annotations

from ..spec import Citation
from .fitted import Fitted, FittedSpec

SPEC = FittedSpec(
    name="lls",
    title="Least squares on six directions",
    line="the tensor and its maps from six directions by linear least squares (nothing is learnt)",
    summary="fits the diffusion tensor to a b0 and six directions by linear least squares",
    citation=Citation(
        key="basser1994estimation",
        text=(
            "Basser PJ, Mattiello J, LeBihan D (1994). Estimation of the effective self-diffusion tensor from the NMR "
            "spin echo. Journal of Magnetic Resonance B 103(3):247-254"
        ),
        bibtex=(
            "@article{basser1994estimation,\n"
            "  title = {Estimation of the effective self-diffusion tensor from the {NMR} spin echo},\n"
            "  author = {Basser, Peter J and Mattiello, James and LeBihan, Denis},\n"
            "  journal = {Journal of Magnetic Resonance, Series B},\n  year = {1994},\n  volume = {103},\n"
            "  pages = {247--254}\n}"
        ),
    ),
)


def build() -> Fitted:
    """Return the method."""
    return Fitted(SPEC, "ols")
