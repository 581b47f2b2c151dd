"""All maps of a tensor, which agree because they follow from it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dwi.tensor import TensorFit, tensor_maps
from .fields import DIFFUSIVITY
from .task import TENSOR_MAPS

LEAST_DIFFUSIVITY = 1e-6  # mm²/s: smaller eigenvalues are noise


def lower_triangles(tensor: Tensor) -> Tensor:
    """Return lower triangles (V, 6), mm²/s, as in `dwi.tensor`, of tensors (V, 6) as in `fields`."""
    xx, yy, zz, xy, xz, yz = tensor.unbind(1)
    half = 0.5**0.5
    return torch.stack([xx, half * xy, yy, half * xz, half * yz, zz], dim=1) * DIFFUSIVITY


def from_lower_triangles(rows: Tensor) -> Tensor:
    """Return tensors (V, 6) as in `fields` of lower triangles (V, 6), mm²/s; the inverse of `lower_triangles`."""
    xx, xy, yy, xz, yz, zz = rows.unbind(1)
    root = 2**0.5
    return torch.stack([xx, yy, zz, root * xy, root * xz, root * yz], dim=1) / DIFFUSIVITY


def one_after_another(tensor: Tensor) -> Tensor:
    """Return the maps of tensors (V, 6), in units of `fields.DIFFUSIVITY`, as columns (V, 13).

    They are those of `TENSOR_MAPS`, in this order: diffusivities and the lower triangle of `tensor` in mm²/s. Negative
    eigenvalues count as (almost) zero in all but the tensor itself.
    """
    rows = lower_triangles(tensor)
    maps = tensor_maps(TensorFit(rows, rows[:, 0], LEAST_DIFFUSIVITY)) | {"tensor": rows}
    return torch.cat([maps[name].reshape(len(tensor), -1) for name in TENSOR_MAPS], dim=1)
