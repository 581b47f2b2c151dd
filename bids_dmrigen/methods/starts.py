"""The series that learnt methods start from: as acquired, smoothed, and after MP-PCA and smoothing.

No simple estimate is the best on every scan. Their errors differ, and cancel in part in the mean over them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..dwi.series import Scan, ScanError
from ..dwi.smoothing import smooth_contrast
from .denoise.classical import denoise


def starts(scan: Scan) -> dict[str, Scan]:
    """Return the series by name: acquired, smooth, mppca; only the acquired one where the noise is unknown."""
    try:
        denoised = replace(scan, data=denoise(scan, "mppca")[0])
        return {"acquired": scan, "smooth": smooth_contrast(scan), "mppca": smooth_contrast(denoised)}
    except ScanError:
        return {"acquired": scan}


def mean_start(scan: Scan) -> np.ndarray:
    """Return the mean (X, Y, Z, N) float32 of the starts of a scan; missing samples stay as acquired."""
    acquired = np.asarray(scan.data, np.float32)
    found = [np.asarray(series.data, np.float32) for series in starts(scan).values()]
    mean = np.mean(found, axis=0, dtype=np.float32)
    return np.where((acquired > 0) & scan.mask[..., None], mean, acquired)
