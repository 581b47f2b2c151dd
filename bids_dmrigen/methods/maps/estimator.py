"""The expected tensor of every voxel, and how much of it remains unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...dwi.mppca import box_radii
from ...nets.attention_fit import ROUNDS, Fields
from .fields import MOST_B0, REACH, Block, fields_of

SLAB_VOXELS = 400_000  # that are estimated at a time
LENGTH = 4 / 5  # share of the unknown power in the expected length of a tensor's anisotropic part


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the network says about V voxels.

    Parameters
    ----------
    fields
        What it was told.
    mean
        (V, 6) expected anisotropic part of the tensor, in units of `fields.DIFFUSIVITY`.
    power
        (V,) expected squared size of the difference from it.
    """

    fields: Fields
    mean: Tensor
    power: Tensor

    def lengthened(self) -> Tensor:
        """Return the tensors (V, 6) with anisotropic parts as long as is expected.

        The mean of vectors is shorter than they are on average. Of a normal distribution in five dimensions, with mean
        m and power v, the expected length is about sqrt(|m|² + 4/5 v), exact for small v.
        """
        size = self.mean.square().sum(dim=1).clamp_min(1e-12)
        # Where nothing is known of the direction, it must not become a large tensor of a random direction.
        longer = (1 + LENGTH * self.power / size).sqrt()
        # MP-PCA takes noise from the mean diffusivity on most scans, and detail on some.
        return _with_trace(self.mean * longer[:, None], (self.fields.md + self.fields.md_raw) / 2)


def estimate(net: nn.Module, fields: Fields) -> Estimate:
    """Return what a network says about voxels."""
    mean, power = net(fields)
    return Estimate(fields, mean, power)


@torch.no_grad()
def estimate_scan(net: nn.Module, block: Block) -> tuple[Tensor, Tensor]:
    """Return what a network says about a whole scan (B = 1), slab by slab.

    Returns
    -------
    tuple
        (6, X, Y, Z) tensors that are as long as is expected (`Estimate.lengthened`), in units of `fields.DIFFUSIVITY`,
        and (X, Y, Z) the root of the unknown power; 0 outside the mask.
    """
    height, width, depth = block.mask.shape[1:]
    radii = box_radii(len(block.bvecs) + min(block.b0s.shape[1], MOST_B0), (height, width, depth))
    margin = ROUNDS * REACH + 2 * radii[2]  # slices on which a slice depends
    at_once = max(SLAB_VOXELS // (height * width), 1)
    slabs = [(first, min(first + at_once, depth)) for first in range(0, depth, at_once)]
    # The width is that of the slab with most brain, so that there are no seams.
    counts = block.mask.sum(dim=(0, 1, 2))
    slabs.sort(key=lambda slab: -int(counts[slab[0] : slab[1]].sum()))
    out, gaussian = block.dwis.new_zeros((7, height, width, depth)), None
    for first, last in slabs:
        low, high = max(first - margin, 0), min(last + margin, depth)
        b0s, dwis, mask = (volumes[..., low:high] for volumes in (block.b0s, block.dwis, block.mask))
        if not mask.any():
            continue
        fields = fields_of(replace(block, b0s=b0s, dwis=dwis, mask=mask), radii)
        gaussian = gaussian or fields.width
        said = estimate(net, replace(fields, width=gaussian))
        values = torch.cat([said.lengthened(), said.power.sqrt()[:, None]], dim=1)
        out[..., first:last] = said.fields.volume(values)[0, ..., first - low : last - low]
    return out[:6], out[6]


def _with_trace(anisotropic: Tensor, md: Tensor) -> Tensor:
    return torch.cat([anisotropic[:, :3] + md[:, None], anisotropic[:, 3:]], dim=1)
