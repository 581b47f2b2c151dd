"""A network of single voxels, with which Diff-DTI is compared: q-space deep learning (Golkov et al. 2016).

In their manner: three hidden layers of 150. Here the voxel's tensor fit and its noise are the input, since directions
differ from scan to scan, and the tensor is the output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..citations import GOLKOV
from . import diffdti
from .task import LEARNT

if TYPE_CHECKING:
    from .direct import DirectMaps

SPEC = replace(
    diffdti.SPEC,
    name="mlp",
    title="Voxel network",
    line="the tensor and its maps from three to six directions by a network of single voxels",
    summary="estimates the diffusion tensor from a b0 and three to six directions by a network that sees one voxel",
    citation=GOLKOV,
    **LEARNT,
)


def build() -> DirectMaps:
    """Return the method."""
    from ...nets.compared import PlainCNN
    from .direct import AROUND, DirectMaps, OfSlices
    from .inputs import IMAGES, NUMBERS
    from .task import SAID

    n_in = IMAGES - 2 * AROUND // 3 + NUMBERS
    return DirectMaps(SPEC, lambda: OfSlices(PlainCNN(n_in, SAID, 150, 4, kernel=1), alone=True))
