"""The size of anisotropy: what six directions show of it, less what noise alone would show.

Tensors that are means over what is possible have too little anisotropy. The network says how much they should have. How
much a scan has can also be read from it: with D the anisotropic part of a tensor fitted to six directions,
E|D|² = |D_true|² + 5 v, v the variance of its five numbers. Each of the two is wrong where the other may be right.
"""

from __future__ import annotations

import numpy as np
import torch

from ...dwi.noise import sigma_of_few
from ...dwi.series import Scan, ScanError
from .fields import DARKEST, DIFFUSIVITY, NOISE, amplification, tensors
from .outputs import from_lower_triangles, one_after_another
from .task import MOST

TISSUE_MD = (0.3, 1.5)  # in units of `fields.DIFFUSIVITY`: voxels that count
LIMITS = (0.8, 1.25)  # of the factor: beyond them, the noise level is wrong


def anisotropy_factor(scan: Scan, bval: float, volumes: np.ndarray, tensor: np.ndarray) -> float:
    """Return the factor that brings the size of tensors half-way to that of the scan, in the mean over its brain.

    With r² = sum w (|D|² - 5 v) / sum w p, p the |D|² of the given tensors, and w the inverse of 5 v plus its median,
    it is the root of r: the geometric mean of what the tensors have and of what the scan shows. 1 for fewer than six
    directions, which do not determine D, and where the noise is unknown.

    Parameters
    ----------
    scan
        The acquired series, with its brain mask.
    bval, volumes
        b-value of the shell, s/mm², and its (n,) directions that are used.
    tensor
        (X, Y, Z, 6) tensors as in `fields`.
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
    _, given = parted(torch.from_numpy(tensor[scan.mask]))
    shown = ((anisotropic.square().sum(dim=1) - power) * weight).sum()
    factor = (shown.clamp_min(0) / (given.square().sum(dim=1) * weight).sum().clamp_min(1e-12)).sqrt()
    return float(factor.clamp(*LIMITS).sqrt())


def parted(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean diffusivities (V,) and anisotropic parts (V, 6) of tensors (V, 6)."""
    mean = tensor[:, :3].mean(dim=1)
    return mean, torch.cat([tensor[:, :3] - mean[:, None], tensor[:, 3:]], dim=1)


def tensor_in(maps: np.ndarray) -> np.ndarray:
    """Return the tensors (X, Y, Z, 6), as in `fields`, that maps (X, Y, Z, 13) as in `one_after_another` end with."""
    rows = torch.from_numpy(np.ascontiguousarray(maps[..., -6:])).reshape(-1, 6)
    return from_lower_triangles(rows).reshape(*maps.shape[:3], 6).numpy()


def with_length(tensor: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return tensors (X, Y, Z, 6) with anisotropic parts of some length (X, Y, Z), but not shorter than they are.

    A mean of tensors has a shorter anisotropic part than they have.
    """
    rows = torch.from_numpy(np.ascontiguousarray(tensor)).reshape(-1, 6)
    mean, anisotropic = parted(rows)
    own = anisotropic.norm(dim=1)
    anisotropic *= (torch.from_numpy(length.ravel()) / own.clamp_min(1e-6)).clamp_min(1)[:, None]
    anisotropic[:, :3] += mean[:, None]
    return anisotropic.reshape(tensor.shape).numpy()


def sized(tensor: np.ndarray, factor: float) -> np.ndarray:
    """Return the maps (X, Y, Z, 13) of tensors (X, Y, Z, 6) whose anisotropic part is multiplied by a factor."""
    inside = tensor.any(axis=3)
    mean, anisotropic = parted(torch.from_numpy(tensor[inside]))
    anisotropic = factor * anisotropic
    anisotropic[:, :3] += mean[:, None]
    columns = one_after_another(anisotropic).numpy()
    maps = np.zeros((*tensor.shape[:3], columns.shape[1]), np.float32)
    maps[inside] = columns
    return maps
