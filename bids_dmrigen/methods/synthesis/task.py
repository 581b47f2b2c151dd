"""The task: what would images of any b-value and direction look like, from the b0 alone?

Input: the mean b0 in the template's space, and maps of the population. Output: the wanted images, in addition to the
acquired series. Scored against acquired volumes, which the methods never see: the papers' tables are PSNR and SSIM of
the images by b-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...dwi.gradients import GradientTable, even_directions
from ...dwi.series import Scan
from ..spec import DIRECT, Directions, Header, MethodPlan, MethodSpec, Option, OptionError, vectors_of

GRID_MM = 2.0  # voxel edge of the slices: cubes along the axes of the template's world
DEFAULT_BVALUES, DEFAULT_DIRECTIONS = (1000.0, 2000.0, 3000.0), 30
TENSOR_B = 1000.0  # s/mm², near which the tensor describes white matter best
# Of the specification of networks that say the image at once, on the examples of Phy-Diff.
LEARNT: dict[str, Any] = DIRECT | {"population": ("adc",)}
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
    """The specification of a method that generates images from the b0."""

    def check_options(self, values: Mapping[str, Any], b0_threshold: float) -> None:
        """Raise `OptionError` where a b-value is not above the b0 threshold."""
        bvalues = values[BVALUES.name]
        if min(bvalues, default=0) <= b0_threshold:
            listed = ", ".join(f"{b:g}" for b in bvalues) or "none"
            raise OptionError(NOT_ABOVE_B0.format(flag=BVALUES.flag, threshold=b0_threshold, found=listed))

    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return the plan: the acquired volumes, then every wanted direction at every b-value.

        The user chooses the b-values, for instance 500 to 3000 s/mm². The tensor model does not hold over such a range,
        so tensor maps are fitted to one generated shell, the nearest to `TENSOR_B`.
        """
        bvalues = values[BVALUES.name]
        table = header.gradients.followed_by(bvalues, vectors_of(values[DIRECTIONS.name]))
        nearest = min(bvalues, key=lambda b: abs(b - TENSOR_B))
        generated = np.arange(len(table)) >= len(header.gradients)
        fitted = np.flatnonzero(table.is_b0 | (generated & (table.bvals == nearest))).tolist()
        options = self.options_by_key(values) | {BVALUES.key: list(bvalues)}
        return MethodPlan(options, table, fitted, nearest)


def wanted_table(
    scan: Scan, bvalues: Sequence[float] = DEFAULT_BVALUES, directions: int | np.ndarray = DEFAULT_DIRECTIONS
) -> GradientTable:
    """Return the table of every direction at every b-value, b-value by b-value.

    Parameters
    ----------
    scan
        The scan; the table is in its voxel axes.
    bvalues
        s/mm².
    directions
        A number of directions, spread evenly over the half-sphere and the same for every b-value; or (N, 3) b-vectors
        in the scan's voxel axes.
    """
    if np.ndim(directions) == 0:
        world = even_directions(int(directions))
    else:
        given = np.asarray(directions, dtype=np.float64)
        world = GradientTable(np.full(len(given), 1000.0), given).world_directions(scan.affine)
    bvals = np.repeat(np.asarray(bvalues, dtype=np.float64), len(world))
    world = np.tile(world, (len(bvalues), 1))
    return GradientTable.from_world(bvals, world, scan.affine, scan.gradients.b0_threshold)
