"""The refinement network of RISH latent diffusion alone: nothing is generated in the latent space.

Super-resolution makes nearly all of the change in size `small`, so it has a name of its own. It is trained without the
decoded features, on the same examples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..spec import DIRECT
from . import rishldm
from .task import VOXEL_SIZE

if TYPE_CHECKING:
    from .direct import DirectEnhancement

SPEC = replace(
    rishldm.SPEC,
    name="refinement",
    twin=rishldm.SPEC.name,
    title="Refinement of RISH features",
    line="the shell as a better scanner would show it, by the last network of RISH latent diffusion alone",
    summary=(
        "corrects the strength of the signal's spherical harmonics, as a better scanner would show it, by the "
        "refinement network of RISH latent diffusion, without diffusion"
    ),
    options=(VOXEL_SIZE,),
    **DIRECT,
)


def build() -> DirectEnhancement:
    """Return the method."""
    from ...nets.rish_ldm import Refiner
    from .direct import DirectEnhancement, DirectNet
    from .inputs import CONDITION_CHANNELS, DEGREES
    from .rishldm_model import SIZES

    told, spec = CONDITION_CHANNELS["small"], SIZES["small"]
    return DirectEnhancement(SPEC, lambda: DirectNet(Refiner(len(DEGREES), told, spec.width, spec.blocks)))
