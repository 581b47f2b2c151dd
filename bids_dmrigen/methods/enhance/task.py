"""The task: what would a better scanner have shown?

Input: the series of a poor scan. Output: the series as a good scan would show it, on the scan's voxels or on finer
ones. Scored against a good scan of the same subject, simulated or measured: the papers' tables are NMSE and SSIM of FA
and of the rotation-invariant features of each degree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...dwi.gradients import LEAST_DIRECTIONS, distinct
from ...dwi.series import Scan, ScanError
from ..spec import Header, MethodPlan, MethodSpec, Option

GOOD = 15  # different directions of a shell that determine harmonics of degree 4
BVALS = (600.0, 3200.0)  # s/mm², of training examples
SAME_MM = 1e-3  # voxels whose edges differ by less have the same size

BAD_SIZE = "{flag} {wanted:g}: expected at most the scan's own voxel size, {zooms} mm, found a larger one"
ONLY_FINER = "{title}: there is nothing to do on the scan's own voxels, {zooms} mm; request smaller ones with {flag}"
VOXELS = "Its voxels were cubes of {edge:g} mm."
TOO_FEW = "b = {bval:.0f} s/mm² has {found} different directions, RISH features need {least}: the shell was not changed"
NOTHING = "{title} needs a shell with at least {least} different directions, found at most {found}"
UNTRAINED_B = "b = {bval:.0f} s/mm² lies outside what the weights were trained on, {low:.0f} to {high:.0f}"

VOXEL_SIZE = Option(
    "rishldm_voxel_size",
    "edge of the result's voxels, mm, at most the smallest of the run's own (default: the run's own voxels)",
    None,
    float,
    key="voxel_mm",
    above=0,
    metavar="MM",
)


@dataclass(frozen=True)
class EnhanceSpec(MethodSpec):
    """The specification of a method whose result may have finer voxels.

    Parameters
    ----------
    only_finer
        Whether the method has nothing to do on the scan's own voxels.
    """

    only_finer: bool = False

    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return the plan: the acquired table, on the requested grid."""
        edge = self.edge_mm(header.zooms_mm, values[VOXEL_SIZE.name])
        options = self.options_by_key(values) | {VOXEL_SIZE.key: edge}
        if edge is None:
            del options[VOXEL_SIZE.key]
        return MethodPlan(options, header.gradients, edge_mm=edge)

    def sentences(self, values: Mapping[str, Any]) -> Sequence[str]:
        """Return a sentence about the voxels for the methods text."""
        edge = values[VOXEL_SIZE.name]
        return () if edge is None else (VOXELS.format(edge=edge),)

    def edge_mm(self, zooms_mm: Sequence[float] | np.ndarray, wanted: float | None) -> float | None:
        """Return the voxel edge of the result, mm; None for the scan's own voxels.

        Parameters
        ----------
        zooms_mm
            (3,) voxel size of the scan, mm.
        wanted
            Requested edge, mm; None for the scan's own voxels.

        Raises
        ------
        ScanError
            Where the grid would be coarser, or where there is nothing to do on the scan's own voxels.
        """
        zooms = " x ".join(f"{z:g}" for z in zooms_mm)
        if wanted is None or np.allclose(zooms_mm, wanted, atol=SAME_MM):
            if self.only_finer:
                raise ScanError(ONLY_FINER.format(title=self.title, zooms=zooms, flag=VOXEL_SIZE.flag))
            return None
        if not 0 < wanted <= np.min(zooms_mm) + SAME_MM:
            raise ScanError(BAD_SIZE.format(wanted=wanted, zooms=zooms, flag=VOXEL_SIZE.flag))
        return float(wanted)


class RishSpec(EnhanceSpec):
    """The specification of a method that changes the RISH features of shells."""

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where no shell has enough different directions."""
        warnings = super().check(scan)
        least = LEAST_DIRECTIONS
        shells = [(bval, len(distinct(scan.gradients.bvecs[volumes]))) for bval, volumes in scan.gradients.shells()]
        if all(n_directions < least for _, n_directions in shells):
            n_directions = max((n_directions for _, n_directions in shells), default=0)
            raise ScanError(NOTHING.format(title=self.title, least=least, found=n_directions))
        for bval, n_directions in shells:
            if n_directions < least:
                warnings.append(TOO_FEW.format(bval=bval, found=n_directions, least=least))
            elif not BVALS[0] <= bval <= BVALS[1]:
                warnings.append(UNTRAINED_B.format(bval=bval, low=BVALS[0], high=BVALS[1]))
        return warnings
