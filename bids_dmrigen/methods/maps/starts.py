"""The series that Diff-DTI starts from: as acquired, smoothed, and after MP-PCA and smoothing.

No simple estimate is the best on every scan. The errors of their maps differ, and cancel in part in the mean over them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...dwi.series import Scan, ScanError
from ...dwi.smoothing import smooth_contrast
from ..denoise.classical import denoise
from .task import MOST


def few_of(scan: Scan, volumes: np.ndarray) -> Scan:
    """Return the series of the b0s and, after them, of some volumes."""
    used = np.r_[np.flatnonzero(scan.gradients.is_b0), volumes]
    return Scan(scan.data[..., used], scan.affine, scan.gradients[used], scan.mask)


def starts(scan: Scan, volumes: np.ndarray) -> dict[str, Scan]:
    """Return the series of the b0s and some directions, by name.

    It is only the acquired one where the noise is unknown, and for fewer than six directions: what they leave open is
    a larger error than their noise, and the starts have it in common.

    Parameters
    ----------
    scan
        The series, with its brain mask.
    volumes
        (n,) directions of one shell. They are the last n volumes of each result.
    """
    acquired = few_of(scan, volumes)
    if len(volumes) < MOST:
        return {"acquired": acquired}
    try:
        denoised = replace(acquired, data=denoise(acquired, "mppca")[0])
        return {"acquired": acquired, "smooth": smooth_contrast(acquired), "mppca": smooth_contrast(denoised)}
    except ScanError:
        return {"acquired": acquired}
