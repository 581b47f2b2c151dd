"""Diff-DTI's own network without diffusion: the noisy tensor is left out, and the time is always 0.

Everything else is Diff-DTI's: the network, its examples, its loss, its use. So this arm says what diffusion adds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import diffdti
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectMaps

SPEC = replace(
    diffdti.SPEC,
    name="diffdtidirect",
    twin=diffdti.SPEC.name,
    title="Regression by the network of Diff-DTI",
    line="the tensor and its maps from three to six directions by the network of Diff-DTI, without diffusion",
    summary=(
        "estimates the diffusion tensor from a b0 and three to six directions by the network of Diff-DTI, trained as a "
        "regression"
    ),
    **LEARNT,
)


def build() -> DirectMaps:
    """Return the method."""
    from torch import Tensor, nn

    from ...nets.fefm import FusedUNet
    from .diffdti_model import FEN, SIZES
    from .direct import DirectMaps
    from .inputs import IMAGES, NUMBERS, Condition

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = FusedUNet(replace(SIZES["small"], in_channels=IMAGES), FEN["small"], NUMBERS)

        def forward(self, condition: Condition) -> Tensor:
            c, time = condition, condition.numbers.new_zeros(len(condition.numbers))
            return self.body(c.images, time, c.acquired, c.bvecs, c.bvals, c.numbers)

    return DirectMaps(SPEC, Network)
