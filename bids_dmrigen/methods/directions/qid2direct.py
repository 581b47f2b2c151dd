"""QID²'s own network without diffusion: the noisy image is left out, and the time is always 0.

Everything else is QID²'s: the network, its examples, its loss, its use. So this arm says what diffusion adds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import DIRECT
from . import qid2

if TYPE_CHECKING:
    from .direct import DirectDirections

SPEC = replace(
    qid2.SPEC,
    name="qid2direct",
    twin=qid2.SPEC.name,
    title="Regression by the network of QID²",
    line="more directions by the network of QID², without diffusion",
    summary="adds diffusion directions to each shell by the network of QID², trained as a regression",
    **DIRECT,
)


def build() -> DirectDirections:
    """Return the method, with the default number of references."""
    from torch import Tensor, nn

    from ...nets.direction_unet import DirectionUNet
    from .direct import DirectDirections
    from .inputs import EXTRA, Condition
    from .qid2_model import SIZES

    class Network(nn.Module):
        def __init__(self, references: int) -> None:
            super().__init__()
            self.body = DirectionUNet(replace(SIZES["small"], in_channels=references + EXTRA), references)

        def forward(self, condition: Condition) -> Tensor:
            c, time = condition, condition.log_sigma.new_zeros(len(condition.log_sigma))
            return self.body(c.images, time, c.bvecs, c.bvals, c.log_sigma)

    return DirectDirections(SPEC, Network)
