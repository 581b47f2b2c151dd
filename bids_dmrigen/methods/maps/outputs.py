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


def maps_of_tensors(tensor: Tensor) -> dict[str, Tensor]:
    """Return the maps of tensors (V, 6), in units of `fields.DIFFUSIVITY`.

    Negative eigenvalues count as (almost) zero in all maps but the tensor itself.

    Returns
    -------
    dict
        `TENSOR_MAPS`: diffusivities and `tensor` in mm²/s, `dec` (V, 3), `tensor` (V, 6) lower triangles.
    """
    rows = lower_triangles(tensor)
    maps = tensor_maps(TensorFit(rows, rows[:, 0], LEAST_DIFFUSIVITY)) | {"tensor": rows}
    return {name: maps[name] for name in TENSOR_MAPS}


def one_after_another(tensor: Tensor) -> Tensor:
    """Return the maps of tensors (V, 6) as columns (V, 13), in the order of `TENSOR_MAPS`."""
    return torch.cat([values.reshape(len(tensor), -1) for values in maps_of_tensors(tensor).values()], dim=1)
