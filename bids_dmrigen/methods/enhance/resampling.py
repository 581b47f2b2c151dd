"""Shared by the classical methods of enhancement: resampling to the requested grid, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...dwi.series import Scan
from ...dwi.spline import resampled
from ..base import Generated, Grid, Request
from ..making import classical_record
from .grid import finer_grid
from .task import VOXEL_SIZE, EnhanceSpec


def upsampled(spec: EnhanceSpec, scan: Scan, request: Request) -> tuple[Tensor, Grid | None]:
    """Return a copy of the series (N, P, Q, R) on the requested grid, and that grid; None for the scan's own."""
    series = torch.from_numpy(np.array(scan.data, dtype=np.float32)).permute(3, 0, 1, 2)
    edge = spec.edge_mm(scan.zooms_mm, request.options.get(VOXEL_SIZE.key))
    if edge is None:
        return series, None
    points, grid = finer_grid(scan.mask, scan.affine, edge)
    return resampled(series, points).clamp_min_(0), grid


def generated(
    spec: EnhanceSpec, scan: Scan, series: Tensor, grid: Grid | None, changed: np.ndarray, begun: float,
    warnings: Sequence[str], **record: Any,
) -> Generated:  # fmt: skip
    """Return a series (N, P, Q, R) as the result of a method; on finer voxels no volume is an acquired one.

    `changed` (N,) bool marks volumes that differ from the acquired ones; `record` has more entries of the record.
    """
    mean, kept = series.permute(1, 2, 3, 0).contiguous().numpy(), ~changed & (grid is None)
    full_record = classical_record(spec, begun, **record)
    return Generated(mean, None, scan.gradients, (), kept, full_record, warnings=tuple(warnings), grid=grid)
