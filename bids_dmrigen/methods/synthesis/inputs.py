"""What a network is told of a slice in the template's space, and the image that it makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.processes import PhysicsGuided, VariancePreserving, linear, relative_attenuation
from ..base import Population

COORDINATE_MM = 100.0  # unit of the place that the network is told
LOWEST_MM, HIGHEST_MM = -80.0, 100.0  # slices' heights at position 0 and 1
FREE_WATER = 3e-3  # mm²/s, assumed where the atlas knows no brain: what a subject has there is mostly fluid
LEAST_SCALE, RELATIVE_SCALE = 0.03, 0.25  # of the image's difference from the isotropic prediction: mean b0s, share
IMAGES = 3 + 1 + 3  # given beside the noisy image (`small`)

PROCESS = linear()


@dataclass(frozen=True, eq=False)
class Known:
    """What the network is told of B images, and how its output becomes them: image = centre + scale * output.

    Parameters
    ----------
    images
        (B, C, H, W) beside the noisy image.
    bvecs, bvals, position
        (B, 3) unit vectors in the template's world RAS+, (B,) s/mm², (B,) height of the slice, about 0 to 1.
    centre, scale
        (B, 1, H, W), in units of the mean b0.
    attenuation
        (B, 1, H, W) of the physics-guided process, in [0, 1].
    places
        (B, 3, H, W) of the voxels in the template's world, mm.
    tracts
        (B, 42, H, W), or None.
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
        """Return the noising process of these images; without physics the paper's ablation."""
        return PhysicsGuided(PROCESS.betas, self.attenuation) if physics else PROCESS

    def part(self, chosen: Tensor | slice) -> Known:
        """Return what is known of some of the images."""
        own = {name: value[chosen] for name, value in vars(self).items() if value is not None}
        return replace(self, **own)


def known_of(
    b0: Tensor, adc: Tensor, bvecs: Tensor, bvals: Tensor, places: Tensor, size: str, tracts: Tensor | None = None
) -> Known:
    """Return what the network is told of B images.

    `small` makes the difference from what isotropic diffusion by the atlas predicts, b0 exp(-b D); `paper` makes the
    image, brought to about -1 ... 1.

    Parameters
    ----------
    b0
        (B, H, W, 3) of the slice between its neighbours, in units of the mean b0 in the brain.
    adc
        (B, 1, H, W) mean apparent diffusion coefficient at the images' b-values, mm²/s.
    bvecs, bvals
        (B, 3) unit vectors in the template's world RAS+ and (B,) s/mm².
    places
        (B, 3, H, W) of the voxels in the template's world, mm.
    size
        Of the network.
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
        return Known(middle / 1.5 - 1, bvecs, bvals, position, one, one, attenuation, places, tracts)
    images = torch.cat([b0.permute(0, 3, 1, 2), isotropic, places / COORDINATE_MM], dim=1)
    centre = middle * isotropic
    scale = LEAST_SCALE + RELATIVE_SCALE * centre
    return Known(images, bvecs, bvals, position, centre, scale, attenuation, places, tracts)


@dataclass(frozen=True, eq=False)
class PopulationMaps:
    """A population's maps on a grid of the template, to be read at any place.

    Parameters
    ----------
    adc
        (K, X, Y, Z) mm²/s.
    bvals
        (K,) s/mm², rising.
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
        """Return a population's maps, which lie on the grid of this affine."""

        def first(maps: np.ndarray) -> Tensor:  # (X, Y, Z, C) -> (C, X, Y, Z)
            return torch.from_numpy(maps).permute(3, 0, 1, 2).contiguous().to(device)

        assert population.adc is not None  # `phydiff` refuses to go on without
        tracts = None if population.tracts is None else first(population.tracts)
        bvals = torch.as_tensor(population.bvals, dtype=torch.float32, device=device)
        return cls(first(population.adc), bvals, affine, tracts)

    def adc_at(self, places: Tensor, bvals: Tensor) -> Tensor:
        """Return (B, 1, H, W) the ADC at places (B, 3, H, W), mm, for b-values (B,): linear in between, both ways."""
        return adc_for(read_at(self.adc, self.affine, places), self.bvals, bvals)

    def tracts_at(self, places: Tensor) -> Tensor | None:
        """Return (B, 42, H, W) at places (B, 3, H, W), mm."""
        return None if self.tracts is None else read_at(self.tracts, self.affine, places)


def adc_for(adc: Tensor, known: Tensor, bvals: Tensor) -> Tensor:
    """Return (B, 1, H, W) of maps (B, K, H, W) at b-values `known` (K,): linear between them, the nearest beyond."""
    known = known.to(adc)
    place = torch.bucketize(bvals.to(adc), known).clamp(1, max(len(known) - 1, 1))
    if len(known) == 1:
        return adc
    low, high = known[place - 1], known[place]
    share = ((bvals.to(adc) - low) / (high - low)).clamp(0, 1)[:, None, None, None]
    each = torch.arange(len(adc), device=adc.device)
    return (1 - share) * adc[each, place - 1][:, None] + share * adc[each, place][:, None]


def read_at(maps: Tensor, affine: np.ndarray, places: Tensor) -> Tensor:
    """Return maps (C, X, Y, Z) at world points (B, 3, H, W), mm, by linear interpolation: (B, C, H, W); 0 outside."""
    inverse = torch.as_tensor(np.linalg.inv(affine), dtype=places.dtype, device=places.device)
    index = torch.einsum("ij,bjhw->bihw", inverse[:3, :3], places) + inverse[:3, 3, None, None]
    size = torch.tensor(maps.shape[1:], device=places.device)[:, None, None]
    # grid_sample counts from -1 to 1 and takes the axes the other way round.
    grid = (2 * index / (size - 1) - 1).flip(1).permute(0, 2, 3, 1)[None].flatten(0, 1)[None]  # (1, B, H, W, 3)
    return F.grid_sample(maps[None], grid, mode="bilinear", align_corners=True)[0].transpose(0, 1)
