"""Lesions of known shape and microstructure, to plant in the tissue of anatomies and in the signals of scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

DIAMETER_MM = (2.0, 30.0)
MOST = 4  # lesions in an example
ROUGHNESS = 0.25  # of a lesion's surface, in radii
WAVES = 4  # of the surface
LONGEST_WAVE = 3.0  # radians per radius


class Effect(NamedTuple):
    """What a lesion does to tissue where there is nothing but lesion."""

    water: float  # share of the tissue that free water replaces, 0 to 1
    lost: float  # share of the fibres that lose their direction, 0 to 1
    diffusivity: float  # factor on the diffusivities of the tissue
    brightness: float  # factor on the signal of the tissue without diffusion weighting


class Kind(NamedTuple):
    """A kind of lesion: the weakest and the strongest effect, how soft its edge is, and what its shape is."""

    weakest: Effect
    strongest: Effect
    edge_mm: float
    along_fibres: bool = False  # a thin rod along the fibres, otherwise an irregular ellipsoid


# Ranges of published mean diffusivities, FA and T2: in vasogenic oedema free water parts the fibres; chronic lesions of
# multiple sclerosis have a moderately higher MD and lower FA; the ADC of an acute infarct is half of normal; tumour
# cores have hardly any fibres; a tract may degenerate while its neighbours are healthy.
KINDS = {
    "oedema": Kind(Effect(0.15, 0.0, 1.0, 1.0), Effect(0.40, 0.2, 1.15, 1.2), 2.0),
    "demyelination": Kind(Effect(0.02, 0.1, 1.05, 1.05), Effect(0.15, 0.4, 1.35, 1.4), 0.8),
    "infarct": Kind(Effect(0.0, 0.0, 0.45, 1.05), Effect(0.0, 0.2, 0.70, 1.3), 0.8),
    "tumour": Kind(Effect(0.0, 0.6, 1.2, 1.1), Effect(0.20, 0.95, 1.9, 1.5), 1.2),
    "tract": Kind(Effect(0.0, 0.4, 1.05, 1.0), Effect(0.05, 0.9, 1.3, 1.1), 0.5, along_fibres=True),
}
ROD_MM = (1.0, 2.0)  # radius of a rod


@dataclass(frozen=True)
class Lesions:
    """L lesions in each of B examples, as ellipsoids with an uneven surface.

    Parameters
    ----------
    centres
        (B, L, 3) world RAS+, mm.
    frames
        (B, L, 3, 3) rows are the axes of the ellipsoid over their half-lengths, 1/mm.
    waves, phases
        (B, L, `WAVES`, 3) and (B, L, `WAVES`) of the surface, in the ellipsoid's own coordinates.
    edges
        (B, L) width of the edge, in radii.
    effects
        (B, L, 4) numbers of `Effect`.
    present
        (B, L) bool: the others are not there.
    """

    centres: Tensor
    frames: Tensor
    waves: Tensor
    phases: Tensor
    edges: Tensor
    effects: Tensor
    present: Tensor

    def amounts(self, places: Tensor) -> Tensor:
        """Return the share (B, L, P) of lesion, 0 to 1, at places (B, P, 3), mm."""
        local = torch.einsum("blij,blpj->blpi", self.frames, places[:, None] - self.centres[:, :, None])
        surface = torch.cos(torch.einsum("blpi,blwi->blpw", local, self.waves) + self.phases[:, :, None]).mean(dim=3)
        depth = 1 + 2 * ROUGHNESS * surface - local.norm(dim=3)
        return torch.sigmoid(4 * depth / self.edges[:, :, None]) * self.present[:, :, None]


def random_lesions(centres: Tensor, fibres: Tensor, share: float, generator: torch.Generator) -> Lesions:
    """Return random lesions at given places.

    Parameters
    ----------
    centres
        (B, L, 3) world RAS+, mm.
    fibres
        (B, L, 3) unit vectors of the strongest fibre there; zero where there is none.
    share
        Share of the examples that have any; these have one to L.
    generator
        The only source of random numbers.
    """
    batch, most = centres.shape[:2]
    device = centres.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand((batch, most, *shape), generator=generator, device=device)

    kinds = list(KINDS.values())
    kind = (uniform() * len(kinds)).long()
    low, high = (
        torch.tensor([getattr(k, end) for k in kinds], device=device)[kind] for end in ("weakest", "strongest")
    )
    rod = torch.tensor([k.along_fibres for k in kinds], device=device)[kind]
    edge_mm = torch.tensor([k.edge_mm for k in kinds], device=device)[kind]
    radius = (DIAMETER_MM[0] + (DIAMETER_MM[1] - DIAMETER_MM[0]) * uniform()) / 2
    thin = ROD_MM[0] + (ROD_MM[1] - ROD_MM[0]) * uniform()
    halves = radius[..., None] * torch.exp(0.25 * torch.randn((batch, most, 3), generator=generator, device=device))
    across = torch.minimum(thin, halves[..., 0])[..., None].expand(-1, -1, 2)
    halves = torch.where(rod[..., None], torch.cat([halves[..., :1], across], dim=2), halves)
    frames = _frames(fibres, torch.randn((batch, most, 3, 3), generator=generator, device=device))
    waves = LONGEST_WAVE * torch.randn((batch, most, WAVES, 3), generator=generator, device=device)
    count = 1 + (uniform()[:, :1] * most).long()
    lesioned = uniform()[:, :1] < share
    return Lesions(
        centres, frames / halves[..., None], waves, 2 * torch.pi * uniform(WAVES), edge_mm / halves.amin(dim=2),
        low + (high - low) * uniform(4), lesioned & (torch.arange(most, device=device) < count),
    )  # fmt: skip


def _frames(fibres: Tensor, noise: Tensor) -> Tensor:
    """Return (B, L, 3, 3) orthonormal rows; the first is the fibre, or random where there is none."""
    first = torch.where(fibres.norm(dim=-1, keepdim=True) > 0.5, fibres, noise[..., 0, :])
    first = F.normalize(first, dim=-1)
    second = F.normalize(torch.linalg.cross(first, noise[..., 1, :]), dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)
