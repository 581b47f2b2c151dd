"""Phy-Diff's own network without diffusion: the noisy image and the time are always 0.

Everything else is Phy-Diff's: the network, its examples, its loss, its use. So this arm says what diffusion adds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import phydiff
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectImages

SPEC = replace(
    phydiff.SPEC,
    name="phydiffdirect",
    twin=phydiff.SPEC.name,
    title="Regression by the network of Phy-Diff",
    line="images of any b-value and direction from the b0 by the network of Phy-Diff, without diffusion",
    summary=(
        "makes diffusion-weighted images of any b-value and direction from the b0 by the network of Phy-Diff, trained "
        "as a regression"
    ),
    **LEARNT,
)


def build() -> DirectImages:
    """Return the method."""
    from torch import Tensor

    from .direct import DirectImages
    from .inputs import Condition
    from .phydiff_model import SIZES, TractHDiT

    class Network(TractHDiT):
        def forward(self, condition: Condition) -> Tensor:  # type: ignore[override] # the others come from it
            nothing = condition.images.new_zeros((len(condition.images), 1, *condition.images.shape[2:]))
            return super().forward(nothing, nothing.new_zeros(len(nothing)), replace(condition, tracts=None))

    return DirectImages(SPEC, lambda: Network(SIZES["small"], with_atlas=True))
