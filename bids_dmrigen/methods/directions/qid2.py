"""QID²: more directions on a shell by a diffusion model (Chen et al., CDMRI 2024).

`paper` is the paper's network: it is conditioned on the R nearest acquired images, the references, and generates the
image. `small`, the default, also sees the prediction of a spherical-harmonic fit to all acquired directions, in the
slice and its neighbours. It generates the difference from that prediction, in units of the prediction's noise.
"""

from __future__ import annotations

from . import interp
from .task import DIRECTIONS, REFERENCES, DirectionsSpec

SPEC = DirectionsSpec(
    name="qid2",
    title="QID²",
    line="more directions by a diffusion model that sees the nearest acquired ones",
    summary=(
        "adds diffusion directions to each shell by a diffusion model that is conditioned on the images of the "
        "nearest acquired directions"
    ),
    citation=interp.SPEC.citation,
    min_directions=6,
    good_directions=12,
    needs_weights=True,
    samplers={
        "paper": "ancestral",
        "fast": "DPM-Solver++(2M)",
        "mean": "none: the mean of the distribution, estimated from noise alone",
    },
    options=(DIRECTIONS, REFERENCES),
)
