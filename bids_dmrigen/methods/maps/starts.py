"""The series that Diff-DTI starts from; see `methods.starts`."""

from __future__ import annotations

import numpy as np

from ...dwi.series import Scan
from ..starts import starts
from .task import MOST


def few_of(scan: Scan, volumes: np.ndarray) -> Scan:
    """Return the series of the b0s and, after them, of some volumes."""
    used = np.r_[np.flatnonzero(scan.gradients.is_b0), volumes]
    return Scan(scan.data[..., used], scan.affine, scan.gradients[used], scan.mask)


def starts_of_few(scan: Scan, volumes: np.ndarray) -> dict[str, Scan]:
    """Return the series of the b0s and some directions, by name.

    It is only the acquired one for fewer than six directions: what they leave open is a larger error than their noise,
    and the starts have it in common.

    Parameters
    ----------
    scan
        The series, with its brain mask.
    volumes
        (n,) directions of one shell. They are the last n volumes of each result.
    """
    acquired = few_of(scan, volumes)
    return {"acquired": acquired} if len(volumes) < MOST else starts(acquired)
