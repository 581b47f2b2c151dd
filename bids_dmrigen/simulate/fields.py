"""Maps on grids: random numbers by address, random fields, and sampling between voxels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

CHUNK_POINTS = 1 << 15


def stream(seed: int, *address: int) -> np.random.Generator:
    """Return the random generator of an address; it is counter-based, so that earlier draws have no influence."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *address])))


def random_field(rng: np.random.Generator, n: int, shape, *lengths_voxels, device="cpu") -> torch.Tensor:
    """Return (n, X, Y, Z) independent Gaussian fields of unit variance.

    White noise is given the power spectrum of a Gaussian autocorrelation, or, for several lengths, of a sum of
    as many fields of equal variance; the fields are periodic over the grid.

    Parameters
    ----------
    lengths_voxels
        One or more (3,) widths, per axis, of the Gaussians that white noise would be smoothed by.
    """
    noise = torch.as_tensor(rng.standard_normal((n, *shape), dtype=np.float32)).to(device)
    frequencies = [torch.fft.fftfreq(s, device=device) for s in shape[:2]]
    frequencies.append(torch.fft.rfftfreq(shape[2], device=device))
    power = torch.zeros((), device=device)
    for lengths in lengths_voxels:
        windows = [torch.exp(-4 * (np.pi * f * float(w)) ** 2) for f, w in zip(frequencies, lengths, strict=True)]
        octave = windows[0][:, None, None] * windows[1][:, None] * windows[2]
        power = power + octave / octave.mean()
    field = torch.fft.irfftn(torch.fft.rfftn(noise, dim=(1, 2, 3)) * power.sqrt(), s=tuple(shape), dim=(1, 2, 3))
    field -= field.mean(dim=(1, 2, 3), keepdim=True)
    return field / field.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)


def sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return (C, V) trilinear samples of a few (C, X, Y, Z) maps at voxels (3, V); zero outside."""
    size = torch.tensor(maps.shape[1:], dtype=torch.float32, device=points.device)[:, None]
    grid = (2 * points / (size - 1).clamp(min=1) - 1).flip(0).T[None, None, None]  # grid_sample wants z, y, x
    values = F.grid_sample(maps[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return values[0, :, 0, 0]


def sample_mean(table: torch.Tensor, shape, points: torch.Tensor) -> torch.Tensor:
    """Return (V, C) averages over K points of trilinear samples of many maps; zero outside.

    All maps of a voxel lie side by side, so that its neighbourhood is one weighted sum of rows: for tens of
    maps ten times faster than `sample`.

    Parameters
    ----------
    table
        (X * Y * Z, C) maps, voxels in C order.
    shape
        (X, Y, Z) of their grid.
    points
        (K, 3, V) voxel coordinates.
    """
    limits = torch.tensor(shape, device=points.device)[:, None]
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=points.device)[:, None]
    out = torch.empty((points.shape[2], table.shape[1]), device=table.device)
    for start in range(0, points.shape[2], CHUNK_POINTS):
        piece = points[:, :, start : start + CHUNK_POINTS]
        low = piece.floor()
        along, rows, amounts = piece - low, [], []
        for corner in range(8):
            step = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=points.device)[:, None]
            index = low.long() + step
            amount = torch.where(step == 1, along, 1 - along).prod(dim=1)
            amounts.append(amount * ((index >= 0) & (index < limits)).all(dim=1))
            rows.append((index.clamp(min=0).minimum(limits - 1) * strides).sum(dim=1))
        total = F.embedding_bag(
            torch.cat(rows).T.contiguous(),
            table,
            per_sample_weights=torch.cat(amounts).T.contiguous(),
            mode="sum",
        )
        out[start : start + CHUNK_POINTS] = total / len(points)
    return out
