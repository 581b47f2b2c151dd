"""Differences of a subject from a population's average: folds, microstructure, texture along fibres."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .atlas import Atlas, unit
from .fields import random_field, sample


@dataclass(frozen=True)
class Variation:
    """How much simulated subjects differ from the atlas and from each other; all are standard deviations.

    Parameters
    ----------
    rotation_degrees, translation_mm, scale
        Pose, per axis.
    warp_mm, warp_length_mm
        Amplitudes and correlation lengths of the octaves of the smooth deformation.
    sharpness
        Power to which tissue probabilities are raised: a population's blurred edges become a subject's.
    sulci
        Added to the log-odds of CSF: narrow sulci are lost in a population's average.
    tissue, tilt_degrees, edge_length_mm
        Local change of the tissue log-odds, which folds the cortex anew, and of the fibre directions;
        correlation lengths of their octaves.
    free_water
        Mean fraction of tissue that is replaced by CSF everywhere; its logarithm varies locally with deviation 1.
    shares
        Local change of the logarithms of the shares of the fibres in a voxel.
    mixing
        By how much the logarithm of the dispersion in white matter rises from one bundle alone to many.
    texture
        Local change of the logarithms of diffusivities, dispersion and b0 signal.
    detail_length_mm, streak_mm
        Correlation lengths of the octaves of the last four; in white matter they are averaged over this length
        along the fibres, to either side.
    """

    rotation_degrees: float = 5.0
    translation_mm: float = 3.0
    scale: float = 0.04
    warp_mm: tuple[float, ...] = (3.0, 1.2)
    warp_length_mm: tuple[float, ...] = (30.0, 10.0)
    sharpness: float = 3.0
    sulci: float = 1.6
    tissue: float = 2.5
    tilt_degrees: float = 15.0
    edge_length_mm: tuple[float, ...] = (4.5, 1.8)
    free_water: float = 0.03
    shares: float = 1.2
    mixing: float = 1.2
    texture: tuple[float, float, float] = (0.15, 0.9, 0.2)
    detail_length_mm: tuple[float, ...] = (2.0, 1.0, 0.6)
    streak_mm: float = 5.0


# Subjects registered to the template. Registration leaves errors of pose and warp of one to two mm per axis; tissue
# edges and microstructure still differ between subjects.
ALIGNED = Variation(rotation_degrees=0.5, translation_mm=0.7, scale=0.01, warp_mm=(1.0, 0.6))


def individual(atlas: Atlas, rng: np.random.Generator, variation: Variation) -> Atlas:
    """Return the atlas with a subject's own tissue edges, microstructure and direction detail."""
    device, zooms = atlas.brain.device, np.linalg.norm(atlas.affine[:3, :3], axis=0)
    edges = random_field(rng, 6, atlas.shape, *(length / zooms for length in variation.edge_length_mm), device=device)
    detail = random_field(
        rng, 7, atlas.shape, *(length / zooms for length in variation.detail_length_mm), device=device
    )
    detail = _along_fibres(detail, atlas, zooms, variation.streak_mm)

    odds = variation.sharpness * torch.log(atlas.fractions.clamp(min=1e-4)) + variation.tissue * edges[:3]
    odds[2] += variation.sulci
    fractions = torch.softmax(odds, dim=0) * (atlas.fractions > 1e-3)
    fractions = fractions / fractions.sum(dim=0).clamp(min=1e-6) * atlas.brain
    water = (variation.free_water * torch.exp(detail[6] - 0.5)).clamp(max=0.5) * atlas.brain
    fractions = (1 - water) * fractions
    fractions[2] += water

    axis = np.deg2rad(variation.tilt_degrees) * edges[3:6]  # rotation vectors
    directions = unit(atlas.directions + torch.linalg.cross(axis[None], atlas.directions, dim=1))
    loose = (1 - atlas.weights.sum(dim=0, keepdim=True)).clamp(min=0)
    shares = torch.cat([atlas.weights * torch.exp(variation.shares * detail[3:6]), loose])
    weights = shares[:3] / shares.sum(dim=0).clamp(min=1e-6)
    spread = torch.tensor(variation.texture, device=device)[:, None, None, None]
    texture = atlas.texture + spread * detail[:3] * atlas.brain
    # Fibres are parallel in voxels with one bundle, and dispersed where several bundles meet.
    texture[1] += variation.mixing * (1 - weights.amax(dim=0)) * fractions[0]
    # T1-weighted intensity follows the tissue: changes of the fractions are added with the usual contrast.
    contrast = torch.tensor([0.35, 0.0, -0.45], device=device)[:, None, None, None]
    t1w = (atlas.t1w + (contrast * (fractions - atlas.fractions)).sum(dim=0)).clamp(0, 1) * atlas.brain
    return replace(atlas, fractions=fractions, directions=directions, weights=weights, texture=texture, t1w=t1w)


def _along_fibres(fields: torch.Tensor, atlas: Atlas, zooms: np.ndarray, length_mm: float) -> torch.Tensor:
    """Return fields (C, X, Y, Z) averaged along the strongest fibre of each voxel of white matter, variance kept.

    Texture is similar along a bundle and differs between bundles, so that it forms streaks in white matter.
    """
    strongest = atlas.weights.argmax(dim=0)  # (X, Y, Z)
    coherence = atlas.weights.amax(dim=0) * atlas.fractions[0]
    direction = atlas.directions.gather(0, strongest[None, None].expand(1, 3, *atlas.shape))[0] * coherence
    linear = torch.as_tensor(np.linalg.inv(atlas.affine[:3, :3]), dtype=torch.float32, device=fields.device)
    brain = atlas.brain
    step = (linear @ direction[:, brain]) * length_mm  # voxels
    start = brain.nonzero().T.float()
    n_steps = 2 * int(np.ceil(length_mm / zooms.min())) + 1
    streaks: torch.Tensor = sum(sample(fields, start + s * step) for s in np.linspace(-1, 1, n_steps)) / n_steps  # type: ignore[assignment] # of one step at least
    coherence = coherence[brain]
    lost = streaks[:, coherence > coherence.median()].std() if n_steps > 1 else torch.ones(())
    result = torch.zeros_like(fields)
    result[:, brain] = streaks * (1 + coherence * (1 / lost - 1))
    return result
