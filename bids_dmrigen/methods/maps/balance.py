"""The size of anisotropy: what six directions show of it, less what noise alone would show.

Maps that are means over what is possible have too little anisotropy. How much a scan has can be read from it: with D
the anisotropic part of a tensor fitted to six directions, E|D|² = |D_true|² + 5 v, v the variance of its five numbers.
"""

from __future__ import annotations

import numpy as np
import torch

from ...dwi.noise import sigma_of_few
from ...dwi.series import Scan, ScanError
from .fields import DARKEST, DIFFUSIVITY, NOISE, amplification, tensors
from .task import MOST

TISSUE_MD = (0.3, 1.5)  # in units of `fields.DIFFUSIVITY`: voxels that count
LIMITS = (0.8, 1.25)  # of the factor: beyond them, the noise level is wrong
HIGHEST_FA = 0.98


def anisotropy_factor(scan: Scan, bval: float, volumes: np.ndarray, fa: np.ndarray, md: np.ndarray) -> float:
    """Return the factor of FA with which maps have as much anisotropy as the scan, in the mean over its brain.

    It is the root of sum w (|D|² - 5 v) / sum w p, with p = 3 MD² FA² / (3/2 - FA²) the |D|² of the maps, and w the
    inverse of 5 v plus its median. 1 for fewer than six directions, which do not determine D, and where the noise is
    unknown.

    Parameters
    ----------
    scan
        The acquired series, with its brain mask.
    bval, volumes
        b-value of the shell, s/mm², and its (n,) directions that are used.
    fa, md
        (X, Y, Z) maps; MD in mm²/s.
    """
    if len(volumes) < MOST:
        return 1.0
    try:
        sigma = sigma_of_few(scan, volumes)
    except ScanError:
        return 1.0
    b0 = torch.from_numpy(scan.mean_b0()[scan.mask].astype(np.float32))
    unit = float(b0.mean())
    dwis = torch.from_numpy(np.asarray(scan.data[scan.mask][:, volumes], dtype=np.float32)) / unit
    bvecs = torch.as_tensor(scan.gradients.world_directions(scan.affine)[volumes], dtype=torch.float32)
    mean, anisotropic = tensors(b0 / unit, dwis, bvecs, bval)
    noise = sigma / unit / (dwis.mean(dim=1).clamp_min(DARKEST) * DIFFUSIVITY * bval) * amplification(bvecs)
    power = 5 * noise.clamp(*NOISE).square()
    weight = (mean > TISSUE_MD[0]) & (mean < TISSUE_MD[1])
    weight = weight / (power + power.median())
    share = torch.from_numpy(np.minimum(fa[scan.mask], HIGHEST_FA).astype(np.float32)).square()
    of_maps = 3 * torch.from_numpy((md[scan.mask] / DIFFUSIVITY).astype(np.float32)).square() * share / (1.5 - share)
    shown = ((anisotropic.square().sum(dim=1) - power) * weight).sum()
    factor = (shown.clamp_min(0) / (of_maps * weight).sum().clamp_min(1e-12)).sqrt()
    return float(factor.clamp(*LIMITS))


def scaled(maps: np.ndarray, std: np.ndarray | None, factor: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Return maps and their spread (X, Y, Z, 5) with FA and colour FA multiplied by a factor; FA stays at most 1."""
    fa = maps[..., :1]
    ratio = np.minimum(factor, 1 / np.maximum(fa, 1e-6))
    sized = np.ones((*fa.shape[:3], maps.shape[3]), np.float32)
    sized[..., [0, 2, 3, 4]] = ratio
    return maps * sized, None if std is None else std * sized
