"""A GAN whose layers are told the direction, with which QID² is compared: qGAN (Ren et al. 2021).

In its manner: direction and b-value scale and shift the features of every block of the generator. Here the input is
the nearest images, as for all arms, instead of a b0 and structural images; the error is squared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..citations import REN
from ..spec import DIRECT
from . import qid2

if TYPE_CHECKING:
    from torch import nn

    from .direct import AdversarialDirections

SPEC = replace(
    qid2.SPEC,
    name="qgan",
    title="qGAN",
    line="more directions by a GAN whose layers are told direction and b-value",
    summary="adds diffusion directions to each shell by a generative adversarial network that is told the direction",
    citation=REN,
    **DIRECT,
)


def build() -> AdversarialDirections:
    """Return the method, with the default number of references."""
    from ...nets.compared import PlainUNet
    from ..at_once import Translation
    from .direct import AdversarialDirections, adversaries, told, told_to
    from .inputs import EXTRA

    def network(references: int) -> nn.Module:
        body = PlainUNet(references + EXTRA, 1, told=told_to(references))
        return adversaries(Translation(body, told, spread=False), references)

    return AdversarialDirections(SPEC, network)
