"""The condition of the network for a slice in the template's space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.processes import PhysicsGuided, VariancePreserving, linear, relative_attenuation
from ..base import Population

COORDINATE_MM = 100.0  # unit of the places among the network's inputs
LOWEST_MM, HIGHEST_MM = -80.0, 100.0  # heights of slices at position 0 and 1
FREE_WATER = 3e-3  # mm²/s, assumed where the atlas has no brain: a subject has mostly fluid there
LEAST_SCALE, RELATIVE_SCALE = 0.03, 0.25  # of the difference from the isotropic prediction: mean b0s, share
IMAGES = 3 + 1 + 3  # channels in addition to the noisy image (`small`)

PROCESS = linear()


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of B images, and the conversion of the network's output: image = centre + scale * output.

    Parameters
    ----------
    images
        (B, C, H, W) channels in addition to the noisy image.
    bvecs, bvals, position
        (B, 3) unit vectors in the template's world RAS+, (B,) s/mm², (B,) height of the slice, about 0 to 1.
    centre, scale
        (B, 1, H, W), in units of the mean b0.
    attenuation
        (B, 1, H, W) in [0, 1], for the physics-guided process.
    places
        (B, 3, H, W) places of the voxels in the template's world, mm.
    tracts
        (B, 42, H, W) in [0, 1], or None.
    """

    images: Tensor
    bvecs: Tensor
    bvals: Tensor
    position: Tensor
    centre: Tensor
    scale: Tensor
    attenuation: Tensor
    places: Tensor
    tracts: Tensor | None = None

    def process(self, physics: bool = True) -> PhysicsGuided | VariancePreserving:
        """Return the noising process of these images; without `physics` that of the paper's ablation."""
        return PhysicsGuided(PROCESS.betas, self.attenuation) if physics else PROCESS

    def part(self, chosen: Tensor | slice) -> Condition:
        """Return the condition of some of the images."""
        selected = {name: value[chosen] for name, value in vars(self).items() if value is not None}
        return replace(self, **selected)


def condition_of(
    b0: Tensor, adc: Tensor, bvecs: Tensor, bvals: Tensor, places: Tensor, size: str, tracts: Tensor | None = None
) -> Condition:
    """Return the condition of B images.

    `small` predicts the difference from isotropic diffusion with the atlas's ADC, b0 exp(-b D). `paper` predicts the
    image, scaled to about -1 ... 1.

    Parameters
    ----------
    b0
        (B, H, W, 3) the slice and its two neighbours, in units of the mean b0 in the brain.
    adc
        (B, 1, H, W) mean apparent diffusion coefficient at the images' b-values, mm²/s.
    bvecs, bvals
        (B, 3) unit vectors in the template's world RAS+ and (B,) s/mm².
    places
        (B, 3, H, W) places of the voxels in the template's world, mm.
    size
        Size of the network.
    tracts
        (B, 42, H, W) in [0, 1], or None.
    """
    adc = torch.where(adc > 0, adc, FREE_WATER)
    height = places[:, 2].mean(dim=(1, 2))
    position = (height - LOWEST_MM) / (HIGHEST_MM - LOWEST_MM)
    attenuation = relative_attenuation(bvals, adc)
    isotropic = torch.exp(-bvals[:, None, None, None] * adc)
    middle = b0[..., 1][:, None]
    if size == "paper":
        one = torch.ones_like(middle)
        return Condition(middle / 1.5 - 1, bvecs, bvals, position, one, one, attenuation, places, tracts)
    images = torch.cat([b0.permute(0, 3, 1, 2), isotropic, places / COORDINATE_MM], dim=1)
    centre = middle * isotropic
    scale = LEAST_SCALE + RELATIVE_SCALE * centre
    return Condition(images, bvecs, bvals, position, centre, scale, attenuation, places, tracts)


@dataclass(frozen=True, eq=False)
class PopulationMaps:
    """A population's maps on a grid of the template, which can be read at any place.

    Parameters
    ----------
    adc
        (K, X, Y, Z) mm²/s.
    bvals
        (K,) s/mm², increasing.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    tracts
        (42, X, Y, Z) in [0, 1] on the same grid, or None.
    """

    adc: Tensor
    bvals: Tensor
    affine: np.ndarray
    tracts: Tensor | None = None

    @classmethod
    def of(cls, population: Population, affine: np.ndarray, device: str | torch.device) -> PopulationMaps:
        """Return a population's maps; their grid has this affine."""

        def first(maps: np.ndarray) -> Tensor:  # (X, Y, Z, C) -> (C, X, Y, Z)
            return torch.from_numpy(maps).permute(3, 0, 1, 2).contiguous().to(device)

        assert population.adc is not None  # `phydiff` has checked it
        tracts = None if population.tracts is None else first(population.tracts)
        bvals = torch.as_tensor(population.bvals, dtype=torch.float32, device=device)
        return cls(first(population.adc), bvals, affine, tracts)

    def adc_at(self, places: Tensor, bvals: Tensor) -> Tensor:
        """Return the ADC (B, 1, H, W) at places (B, 3, H, W), mm, for b-values (B,), interpolated linearly."""
        return adc_for(read_at(self.adc, self.affine, places), self.bvals, bvals)

    def tracts_at(self, places: Tensor) -> Tensor | None:
        """Return the tracts (B, 42, H, W) at places (B, 3, H, W), mm; None where there are none."""
        return None if self.tracts is None else read_at(self.tracts, self.affine, places)


def adc_for(adc: Tensor, map_bvals: Tensor, bvals: Tensor) -> Tensor:
    """Return the ADC (B, 1, H, W) for `bvals` (B,), from maps (B, K, H, W) at b-values `map_bvals` (K,).

    Linear between the b-values of the maps; the nearest map outside their range.
    """
    map_bvals = map_bvals.to(adc)
    place = torch.bucketize(bvals.to(adc), map_bvals).clamp(1, max(len(map_bvals) - 1, 1))
    if len(map_bvals) == 1:
        return adc
    low, high = map_bvals[place - 1], map_bvals[place]
    share = ((bvals.to(adc) - low) / (high - low)).clamp(0, 1)[:, None, None, None]
    each = torch.arange(len(adc), device=adc.device)
    return (1 - share) * adc[each, place - 1][:, None] + share * adc[each, place][:, None]


def read_at(maps: Tensor, affine: np.ndarray, places: Tensor) -> Tensor:
    """Return maps (C, X, Y, Z) at world points (B, 3, H, W), mm, by linear interpolation: (B, C, H, W); 0 outside."""
    inverse = torch.as_tensor(np.linalg.inv(affine), dtype=places.dtype, device=places.device)
    index = torch.einsum("ij,bjhw->bihw", inverse[:3, :3], places) + inverse[:3, 3, None, None]
    size = torch.tensor(maps.shape[1:], device=places.device)[:, None, None]
    # grid_sample's indices run from -1 to 1, with the axes in reverse order.
    grid = (2 * index / (size - 1) - 1).flip(1).permute(0, 2, 3, 1)[None].flatten(0, 1)[None]  # (1, B, H, W, 3)
    return F.grid_sample(maps[None], grid, mode="bilinear", align_corners=True)[0].transpose(0, 1)
