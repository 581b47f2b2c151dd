"""The question of this room: what would images of any b-value and direction look like, from the b0 alone?

In: the mean b0 in the template's space, and what is known of the population there. Out: the wanted images, beside
the acquired series. Scored against acquired volumes, which are never shown to the methods: the papers' tables are PSNR
and SSIM of the images by b-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...dwi.gradients import GradientTable, even_directions
from ...dwi.series import Scan
from ..spec import Directions, Header, MethodPlan, MethodSpec, Option, OptionError, vectors_of

GRID_MM = 2.0  # of the slices that are looked at: cubes, axes those of the template's world
DEFAULT_BVALUES, DEFAULT_DIRECTIONS = (1000.0, 2000.0, 3000.0), 30
TENSOR_B = 1000.0  # s/mm², near which the tensor describes white matter best
NOT_ABOVE_B0 = "{flag}: expected b-values above --b0-threshold, {threshold:g}, found {found}"

BVALUES = Option(
    "phydiff_bvalues",
    "b-values to make, s/mm² (default: 1000 2000 3000)",
    DEFAULT_BVALUES,
    float,
    key="bvalues",
    metavar="B",
)
DIRECTIONS = Option(
    "phydiff_directions",
    "directions to make at each of them, or a file of b-vectors (FSL convention, the run's voxel axes) "
    f"(default: {DEFAULT_DIRECTIONS})",
    DEFAULT_DIRECTIONS,
    Directions,
    key="directions",
    metavar="N|FILE",
)


class SynthesisSpec(MethodSpec):
    """Of a method that makes images from the b0."""

    def check_options(self, values: Mapping[str, Any], b0_threshold: float) -> None:
        """Refuse b-values that would be those of a b0, with an `OptionError`."""
        bvalues = values[BVALUES.name]
        if min(bvalues, default=0) <= b0_threshold:
            found = ", ".join(f"{b:g}" for b in bvalues) or "none"
            raise OptionError(NOT_ABOVE_B0.format(flag=BVALUES.flag, threshold=b0_threshold, found=found))

    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return the plan: the acquired volumes, then every wanted direction at every b-value.

        Shells that are made from b0s alone are a choice of whoever called, from 500 to 3000 s/mm²: a fit to all of
        them, and to what was acquired, would be no tensor. Tensor maps are those of the one nearest to `TENSOR_B`.
        """
        bvalues = values[BVALUES.name]
        table = header.gradients.followed_by(bvalues, vectors_of(values[DIRECTIONS.name]))
        nearest = min(bvalues, key=lambda b: abs(b - TENSOR_B))
        made = np.arange(len(table)) >= len(header.gradients)
        fitted = np.flatnonzero(table.is_b0 | (made & (table.bvals == nearest))).tolist()
        options = self.own_options(values) | {BVALUES.key: list(bvalues)}
        return MethodPlan(options, table, fitted, nearest)


def wanted_table(
    scan: Scan, bvalues: Sequence[float] = DEFAULT_BVALUES, directions: int | np.ndarray = DEFAULT_DIRECTIONS
) -> GradientTable:
    """Return the table of every direction at every b-value, b-value by b-value.

    Parameters
    ----------
    scan
        Whose voxel axes the table is in.
    bvalues
        s/mm².
    directions
        How many, spread evenly over the half-sphere and the same for every b-value; or (N, 3) b-vectors in the scan's
        voxel axes.
    """
    if np.ndim(directions) == 0:
        world = even_directions(int(directions))
    else:
        given = np.asarray(directions, dtype=np.float64)
        world = GradientTable(np.full(len(given), 1000.0), given).world_directions(scan.affine)
    bvals = np.repeat(np.asarray(bvalues, dtype=np.float64), len(world))
    world = np.tile(world, (len(bvalues), 1))
    return GradientTable.from_world(bvals, world, scan.affine, scan.gradients.b0_threshold)
