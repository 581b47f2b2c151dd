"""Phy-Diff without its physics, the paper's ablation DDPM-HDiT: the noise is the same everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import phydiff

if TYPE_CHECKING:
    from .phydiff_model import PhyDiff

SPEC = replace(
    phydiff.SPEC,
    name="ddpmhdit",
    title="DDPM-HDiT",
    line="images of any b-value and direction from the b0 by the network of Phy-Diff, without its physics",
    summary=(
        "makes diffusion-weighted images of any b-value and direction from the b0 by a diffusion model in the "
        "template's space, whose noise is the same everywhere"
    ),
    sizes=("small",),
)


def build() -> PhyDiff:
    """Return the method."""
    from .phydiff_model import PhyDiff

    return PhyDiff(SPEC, physics=False)
