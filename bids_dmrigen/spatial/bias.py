"""The bias field of the receive coil."""

from __future__ import annotations

import numpy as np

from ..dwi.series import Scan
from .ants_tools import to_ants
from .brain_mask import brain_of

BIAS_MM = 8.0  # voxels of the grid that N4 works on; the coil's gain varies far more slowly


def bias_field(b0: np.ndarray, affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Estimate the receive coil's smooth gain (N4; Tustison et al. 2010).

    Parameters
    ----------
    b0
        (X, Y, Z) mean b0.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    mask
        (X, Y, Z) bool, voxels whose signal is used.

    Returns
    -------
    (X, Y, Z) positive factor with geometric mean 1 in the mask: corrected = signal / factor.
    """
    import ants

    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    shrink = max(1, round(BIAS_MM / zooms.max()))
    field = ants.n4_bias_field_correction(
        to_ants(np.maximum(b0, 0), affine),
        mask=to_ants(mask, affine),
        shrink_factor=shrink,
        convergence={"iters": [40, 30, 20], "tol": 1e-6},
        spline_param=200,
        return_bias_field=True,
    ).numpy()
    log_field = np.log(np.clip(field, 1e-3, None))
    return np.exp(log_field - log_field[mask].mean()).astype(np.float32)


def without_bias(scan: Scan, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return a series (X, Y, Z, N) divided by the bias field of its mean b0, and that field (X, Y, Z).

    Parameters
    ----------
    scan
        The series.
    mask
        (X, Y, Z) bool, the brain; None: it is estimated.

    Raises
    ------
    ScanError
        Where no mask is given and no brain is found.
    """
    field = bias_field(scan.mean_b0(), scan.affine, brain_of(scan) if mask is None else mask)
    return scan.data / field[..., None], field
