"""QID²: more directions on a shell by a diffusion model told the nearest acquired ones (Chen et al., CDMRI 2024).

`paper` is the paper's network: it sees the R nearest references and makes the image. `small`, the default, is also told
what a spherical-harmonic fit of all acquired directions predicts, in the slice and its neighbours, and makes the
difference from it, in units of that prediction's own noise: what the references say well costs it nothing.
"""

from __future__ import annotations

from . import interp
from .task import DIRECTIONS, REFERENCES, DirectionsSpec

SPEC = DirectionsSpec(
    name="qid2",
    title="QID²",
    line="more directions by a diffusion model that sees the nearest acquired ones",
    summary=(
        "adds diffusion directions to each shell by a diffusion model that is told the images of the nearest "
        "acquired directions"
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
