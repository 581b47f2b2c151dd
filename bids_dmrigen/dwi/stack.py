"""A run laid out for work slice by slice: cropped to the brain, padded for a network, scaled by the b0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .series import Scan, ScanError

MARGIN = 4  # voxels kept around the mask's bounding box, in-plane

EMPTY_MASK = "the brain mask is empty; there is nothing to work on"
DARK_B0 = "the median b0 signal in the brain mask is {scale:g}; expected a positive one: check mask and b0s"


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of a run as (Z, N, H, W).

    Parameters
    ----------
    data
        (Z, N, H, W) signals in units of `scale`; slices are those of the third voxel axis.
    mask
        (Z, H, W) bool.
    box
        Part of the scan that the stack covers, before padding.
    scale
        Scanner units per unit here: the median b0 in the mask.
    """

    data: Tensor
    mask: Tensor
    box: tuple[slice, slice, slice]
    scale: float

    @property
    def slices(self) -> list[int]:
        """Indices of the slices that hold brain."""
        return [int(z) for z in np.flatnonzero(self.mask.flatten(1).any(dim=1).cpu().numpy())]

    def block(self, z: int, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """Return (3, N, h, w): a patch of the slices below z, at z and above z (the first and last slice repeat)."""
        around = np.clip([z - 1, z, z + 1], 0, len(self.data) - 1)
        return self.data[around][:, :, rows, columns]

    def voxels(self) -> Tensor:
        """Return the signals (V, N) of the brain's voxels."""
        return self.data.permute(0, 2, 3, 1)[self.mask]

    def on_grid(self, estimate: np.ndarray, acquired: np.ndarray) -> np.ndarray:
        """Return an estimate (Z, J, H, W) on the scan's grid in scanner units: (X, Y, Z, J).

        Outside the box it is the `acquired` (X, Y, Z, J).
        """
        full = acquired.copy()
        x, y, _ = (s.stop - s.start for s in self.box)
        full[self.box] = self.scale * estimate[:, :, :x, :y].transpose(2, 3, 0, 1)
        return full


def slice_stack(scan: Scan, divisor: int, device: torch.device) -> Stack:
    """Return the `Stack` of a scan, height and width padded (by repetition) to multiples of `divisor`.

    Raises
    ------
    ScanError
        Where the mask is empty or the b0 dark.
    """
    inside = np.argwhere(scan.mask)
    if not len(inside):
        raise ScanError(EMPTY_MASK)
    margin = np.array([MARGIN, MARGIN, 0])
    low = np.maximum(inside.min(axis=0) - margin, 0)
    high = np.minimum(inside.max(axis=0) + 1 + margin, scan.mask.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    box = (x, y, z)
    scale = float(np.median(scan.mean_b0()[scan.mask]))
    if not scale > 0:
        raise ScanError(DARK_B0.format(scale=scale))
    data = torch.from_numpy(np.asarray(scan.data[box], dtype=np.float32).transpose(2, 3, 0, 1) / np.float32(scale))
    mask = torch.from_numpy(np.ascontiguousarray(scan.mask[box].transpose(2, 0, 1)))
    pad = (0, -mask.shape[2] % divisor, 0, -mask.shape[1] % divisor)
    data = F.pad(data, pad, mode="replicate").contiguous()
    return Stack(data.to(device), F.pad(mask, pad).to(device), box, scale)
