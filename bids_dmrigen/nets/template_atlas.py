"""Learnt maps of spherical harmonics in the template's space: how the signal depends on direction at each place."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dwi.harmonics import harmonics, n_harmonics

LOW_MM, HIGH_MM = (
    (-81.0, -114.0, -78.0),
    (81.0, 84.0, 90.0),
)  # corners of a box in the template's world that holds any brain
SPACING_MM = 3.0
ORDER = 4
SCALE = 8.0  # factor on the stored numbers: makes the optimiser's steps large enough for maps that start as 0
IMAGES = 2


class TemplateAtlas(nn.Module):
    """Learnt coefficients c_lm(x) of spherical harmonics, whose weight grows with the b-value; all 0 at first.

    A(x, g, b) = sum_lm w_l(b) c_lm(x) Y_lm(g), l = 2, 4, with w_l(b) = u_l b + v_l b², learnt too.
    """

    def __init__(self) -> None:
        super().__init__()
        shape = [round((high - low) / SPACING_MM) + 1 for low, high in zip(LOW_MM, HIGH_MM, strict=True)]
        self.maps = nn.Parameter(torch.zeros(n_harmonics(ORDER) - 1, *shape))
        self.growth = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 0.3]]))  # (u, v) of l = 2 and 4, b in 1000 s/mm²

    def forward(self, places: Tensor, bvecs: Tensor, bvals: Tensor) -> Tensor:
        """Return (B, 2, H, W): A, and the root of the sum of the squares of its weighted coefficients.

        Parameters
        ----------
        places
            (B, 3, H, W) world points in the template, mm.
        bvecs, bvals
            (B, 3) unit vectors in its world RAS+ and (B,) s/mm².
        """
        low, high = places.new_tensor(LOW_MM), places.new_tensor(HIGH_MM)
        # grid_sample counts from -1 to 1 and takes the axes the other way round.
        grid = (2 * (places - low[:, None, None]) / (high - low)[:, None, None] - 1).flip(1).permute(0, 2, 3, 1)
        maps, grid = SCALE * self.maps, grid.flatten(0, 1)
        # On a CPU torch's own backward pass sums in the same order every time, and is faster.
        on_cpu = maps.device.type == "cpu"
        read = _read(maps, grid) if on_cpu else _ReadInOrder.apply(maps, grid)  # type: ignore[no-untyped-call] # torch's
        read = read.unflatten(1, (len(places), -1)).transpose(0, 1)  # (B, C, H, W)
        b = bvals / 1000
        weights = torch.stack([b, b.square()], dim=1) @ self.growth.T  # (B, 2)
        weights = weights.repeat_interleave(weights.new_tensor([5, 9]).long(), dim=1)
        read = read * weights[:, :, None, None]
        image = torch.einsum("bchw,bc->bhw", read, harmonics(bvecs.float(), ORDER)[:, 1:])
        return torch.stack([image, (read.square().sum(dim=1) + 1e-6).sqrt()], dim=1)


def _read(maps: Tensor, grid: Tensor) -> Tensor:
    """Return (C, N, W) of maps (C, X, Y, Z) at points (N, W, 3) as `grid_sample` counts; 0 outside."""
    return F.grid_sample(maps[None], grid[None, None], align_corners=True)[0, :, 0]


class _ReadInOrder(torch.autograd.Function):
    """`_read` with a gradient of the maps that is the same to the bit every time; torch's own is not on a GPU."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = maps.shape
        return _read(maps, grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,), (channels, *shape) = ctx.saved_tensors, ctx.shape
        size = grid.new_tensor(shape)
        at = (grid.flatten(0, 1).flip(1) + 1) / 2 * (size - 1)  # (P, 3) voxel indices
        first, rows = at.floor(), gradient.flatten(1).T  # (P, C)
        total = rows.new_zeros(math.prod(shape), channels)
        for corner in product((0, 1), repeat=3):
            voxel = first + grid.new_tensor(corner)
            weight = (1 - (voxel - at).abs()).prod(dim=1) * ((voxel >= 0) & (voxel < size)).all(dim=1)
            x, y, z = voxel.clamp(min=torch.zeros_like(size), max=size - 1).long().unbind(1)
            total.index_add_(0, (x * shape[1] + y) * shape[2] + z, weight[:, None] * rows)
        return total.T.reshape(channels, *shape), None
