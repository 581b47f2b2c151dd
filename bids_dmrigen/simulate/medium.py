"""What the numbers at a point of tissue mean: the signal that they give, and what a lesion changes in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dwi.adc import FREE_WATER_MM2_PER_S
from ..nets.direction_unet import dyadic_features
from .signal import mixture_signal

FREE_WATER = 1e3 * FREE_WATER_MM2_PER_S  # 1e-3 mm²/s
WATER_BRIGHTNESS = 3.0  # of free water without diffusion weighting, over tissue
WATER_MD = (1.2, 2.2)  # 1e-3 mm²/s: a tensor below the first is tissue, above the second free water
WHITE_ANISOTROPY = 0.3  # 1e-3 mm²/s, norm of the anisotropic part of a tensor from which it counts as white matter


class Medium(NamedTuple):
    """A kind of points (B, C, P)."""

    signal: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # points, tissue, bvals (B, N), directions -> (B, N, P)
    white: Callable[[Tensor], Tensor]  # points -> (B, P), how much white matter there is
    fibres: Callable[[Tensor], Tensor]  # points -> (B, P, 3) unit vectors of the strongest fibre, or zero
    with_lesion: Callable[[Tensor, Tensor, Tensor], Tensor]  # points, amounts (B, P), effects (B, 4) -> points


def tensor_signal(points: Tensor, kurtosis: Tensor, bvals: Tensor, directions: Tensor) -> Tensor:
    """Return the noise-free signals (B, N, P) of points with a tensor and an isotropic kurtosis.

    S = S0 exp(-x + K x² / 6), x = b g'Dg, where x is at most that of the lowest signal, 3 / K.

    Parameters
    ----------
    points
        (B, 10, P): brain, 0, 0, b0, and the tensor Dxx, Dyy, Dzz, √2 Dxy, √2 Dxz, √2 Dyz in world axes, 1e-3 mm²/s.
    kurtosis
        (B, 1) K of tissue; that of free water is 0.
    bvals, directions
        (B, N) s/mm² and (B, N, 3) unit vectors in world axes, or zero.
    """
    s0, tensor = points[:, 3:4], points[:, 4:]
    k = (kurtosis[:, :, None] * _tissue_share(tensor)).clamp_min(1e-3)
    x = torch.einsum("bnk,bkp->bnp", dyadic_features(directions) * bvals[..., None] / 1000, tensor).clamp_min(0)
    x = torch.minimum(x, 3 / k)
    return s0 * torch.exp(-x + k * x.square() / 6)


def _tissue_share(tensor: Tensor) -> Tensor:
    """Return (B, 1, P) how much of a voxel is tissue and not free water, from the mean diffusivity."""
    low, high = WATER_MD
    return ((high - tensor[:, :3].mean(dim=1, keepdim=True)) / (high - low)).clamp(0, 1)


def _tensor_white(points: Tensor) -> Tensor:
    tensor = points[:, 4:]
    anisotropic = tensor - F.pad(tensor[:, :3].mean(dim=1, keepdim=True).expand(-1, 3, -1), (0, 0, 0, 3))
    return (anisotropic.norm(dim=1) > WHITE_ANISOTROPY) * _tissue_share(tensor)[:, 0]


def _tensor_fibres(points: Tensor) -> Tensor:
    units = torch.tensor([1.0, 1, 1, 2, 2, 2], device=points.device).sqrt()[:, None]
    xx, yy, zz, xy, xz, yz = (points[:, 4:] / units).unbind(dim=1)
    matrices = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.eigh(matrices).eigenvectors[..., 2]


def _tensor_lesion(points: Tensor, amounts: Tensor, effects: Tensor) -> Tensor:
    """Return points with a lesion; free water is added to the tensor, as a tensor fit at b = 1000 s/mm² sees it."""
    water, lost, diffusivity, brightness = effects[:, :, None, None].unbind(dim=1)  # (B, 1, 1)
    s0, tensor = points[:, 3:4], points[:, 4:]
    amount = amounts[:, None] * _tissue_share(tensor)
    tensor = tensor * diffusivity**amount
    mean = F.pad(tensor[:, :3].mean(dim=1, keepdim=True).expand(-1, 3, -1), (0, 0, 0, 3))
    tensor = mean + (tensor - mean) * (1 - amount * lost)
    free = FREE_WATER * torch.tensor([1.0, 1, 1, 0, 0, 0], device=points.device)[:, None]
    tensor = tensor + amount * water * (free - tensor)
    s0 = s0 * brightness**amount * (1 + amount * water * (WATER_BRIGHTNESS - 1))
    return torch.cat([points[:, :3], s0, torch.where(points[:, :1] > 0, tensor, 0)], dim=1)


def _mixture_fibres(points: Tensor) -> Tensor:
    weights, directions = points[:, 3:6], points[:, 6:15].unflatten(1, (3, 3))
    strongest = weights.argmax(dim=1)[:, None, None].expand(-1, 1, 3, -1)
    return directions.gather(1, strongest)[:, 0].transpose(1, 2)


def _mixture_lesion(points: Tensor, amounts: Tensor, effects: Tensor) -> Tensor:
    """Return points with a lesion; what is free water already stays."""
    water, lost, diffusivity, brightness = effects[:, :, None, None].unbind(dim=1)  # (B, 1, 1)
    fractions, weights, directions, texture = points.split([3, 3, 9, 3], dim=1)
    solid = fractions[:, :2].sum(dim=1, keepdim=True)
    amount = amounts[:, None] * solid
    added = amount * water
    fractions = torch.cat([fractions[:, :2] * (1 - added), fractions[:, 2:] + added * solid], dim=1)
    change = torch.cat([diffusivity.log(), torch.zeros_like(diffusivity), brightness.log()], dim=1)
    return torch.cat([fractions, weights * (1 - amount * lost), directions, texture + amount * change], dim=1)


MIXTURE = Medium(mixture_signal, lambda points: points[:, 0], _mixture_fibres, _mixture_lesion)
TENSORS = Medium(tensor_signal, _tensor_white, _tensor_fibres, _tensor_lesion)
