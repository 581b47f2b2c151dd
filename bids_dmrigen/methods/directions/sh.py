"""Interpolation by regularised spherical harmonics, a strong classical method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..spec import Citation
from .task import DIRECTIONS, DirectionsSpec
from .weighted_sum import WeightedSum

if TYPE_CHECKING:
    from torch import Tensor

SPEC = DirectionsSpec(
    name="sh",
    title="Spherical-harmonic interpolation",
    line="more directions by a fit of spherical harmonics (nothing is learnt)",
    summary="adds directions by a regularised fit of spherical harmonics to each shell; nothing is learnt",
    citation=Citation(
        key="descoteaux2007",
        text=(
            "Descoteaux M, Angelino E, Fitzgibbons S, Deriche R (2007). Regularized, fast, and robust analytical "
            "Q-ball imaging. Magnetic Resonance in Medicine 58(3):497-510"
        ),
        bibtex=(
            "@article{descoteaux2007,\n"
            "  title = {Regularized, fast, and robust analytical {Q}-ball imaging},\n"
            "  author = {Descoteaux, Maxime and Angelino, Elaine and Fitzgibbons, Shaun and Deriche, Rachid},\n"
            "  journal = {Magnetic Resonance in Medicine},\n  year = {2007},\n  volume = {58},\n"
            "  pages = {497--510}\n}"
        ),
    ),
    min_directions=6,
    good_directions=15,
    needs_weights=False,
    samplers={"fast": "none: a least-squares fit", "paper": "none: a least-squares fit"},
    options=(DIRECTIONS,),
    sizes=("small",),
    draws=False,
)


class HarmonicInterpolation(WeightedSum):
    """Interpolation by regularised spherical harmonics."""

    spec = SPEC

    def weights(self, acquired: Tensor, wanted: Tensor, options: Mapping[str, Any], signal: Tensor) -> Tensor:
        """Return the weights of a fit. Its order is the highest, up to 4, that the directions determine."""
        from ...dwi.harmonics import order_for, prediction_weights

        return prediction_weights(acquired, wanted, order_for(len(acquired)))


def build() -> HarmonicInterpolation:
    """Return the method."""
    return HarmonicInterpolation()
