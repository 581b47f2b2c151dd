"""What few directions say about every voxel of a block: tensors as acquired and denoised, and how noisy they are.

Tensors are (.., 6): Dxx, Dyy, Dzz, √2 Dxy, √2 Dxz, √2 Dyz in world RAS+ axes, so that inner products are those of
matrices. They are in units of `DIFFUSIVITY`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...dwi.mppca import mppca
from ...dwi.smoothing import width_of
from ...nets.attention_fit import Fields
from ...nets.direction_unet import dyadic_features
from .task import MOST

DIFFUSIVITY = 1e-3  # mm²/s, unit of tensors and apparent diffusion coefficients
DARKEST = 0.01  # share of the unit: the lowest signal in logarithms
LARGEST_ADC = 5.0  # in units of `DIFFUSIVITY`
NOISE = (0.01, 3.0)  # in units of `DIFFUSIVITY`: range of the noise of a diffusivity
LEAST_NOISE = 0.3  # of the scan's noise: the lowest that MP-PCA may find around a voxel
RIDGE = 0.02  # regularisation of the tensor fit to three to six directions; see `ridge_fit`
MOST_B0 = 16  # b0s that are denoised together with the directions
NARROWEST = 0.2  # edges: narrower Gaussians change nothing
REACH = 1  # voxels along each axis to the furthest neighbour


@dataclass(frozen=True, eq=False)
class Block:
    """Blocks of one scan or of several, with the same directions.

    Parameters
    ----------
    b0s
        (B, k, X, Y, Z) images without diffusion weighting, in units of the brain's mean b0.
    dwis
        (B, n, X, Y, Z) in the same units.
    bvecs
        (n, 3) unit vectors in world RAS+.
    bval
        s/mm².
    mask
        (B, X, Y, Z) bool: voxels of the brain in which no sample is missing.
    edges
        (B, 3) edges of the voxels along the axes, mm.
    sigma
        (B,) standard deviations of the noise, in the same units.
    """

    b0s: Tensor
    dwis: Tensor
    bvecs: Tensor
    bval: float
    mask: Tensor
    edges: Tensor
    sigma: Tensor


def fields_of(block: Block, radii: tuple[int, int, int] | None = None) -> Fields:
    """Return the fields of blocks; see `Fields`.

    The noise of a diffusivity is sigma / (S b), where S is the voxel's mean diffusion-weighted signal. That of the
    tensor also depends on how well the directions determine it. The width is that of the best simple estimate,
    `dwi.smoothing.width_of`. `radii` are those of the patches of MP-PCA; None for the
    smallest that suffice.
    """
    n, mask = len(block.bvecs), block.mask
    denoised, variance = mppca(torch.cat([block.b0s[:, :MOST_B0], block.dwis], dim=1), mask, radii)
    dwis, clean = _list(block.dwis, mask), _list(denoised, mask)
    b0 = _list(block.b0s, mask).mean(dim=1)
    raw_mean, raw = tensors(b0, dwis, block.bvecs, block.bval)
    clean_mean, clean = tensors(clean[:, :-n].mean(dim=1), clean[:, -n:], block.bvecs, block.bval)
    signal = dwis.mean(dim=1).clamp_min(DARKEST)
    # Two estimates of the noise that err in different ways: the scan's, and that of MP-PCA around the voxel.
    level = block.sigma[mask.nonzero()[:, 0]]
    sigma = (level * torch.maximum(variance[mask].sqrt(), LEAST_NOISE * level)).sqrt()
    noise = sigma / (signal * DIFFUSIVITY * block.bval)
    width = max(width_of(float(noise.median()) / n**0.5), NARROWEST)
    noise = (noise * amplification(block.bvecs)).clamp(*NOISE)
    places, distances = neighbours_of(mask, block.edges)
    log_b0 = b0.clamp_min(DARKEST).log()
    return Fields(mask, raw, clean, raw_mean, clean_mean, log_b0, noise, n / MOST, places, distances, width)


def tensors(b0: Tensor, dwis: Tensor, bvecs: Tensor, bval: float) -> tuple[Tensor, Tensor]:
    """Return mean diffusivities (V,) and anisotropic parts (V, 6) of tensors fitted to b0 (V,) and dwis (V, n)."""
    adc = diffusivities(b0, dwis, bval)
    gain, _ = ridge_fit(bvecs)
    mean = adc.mean(dim=1)
    tensor = (adc - mean[:, None]) @ gain.T
    trace = tensor[:, :3].mean(dim=1)
    tensor[:, :3] -= trace[:, None]
    return mean + trace, tensor


def diffusivities(b0: Tensor, dwis: Tensor, bval: float) -> Tensor:
    """Return apparent diffusion coefficients (V, n) of b0 (V,) and dwis (V, n), in units of `DIFFUSIVITY`."""
    attenuation = torch.log(b0.clamp_min(DARKEST)[:, None] / dwis.clamp_min(DARKEST))
    return (attenuation / (DIFFUSIVITY * bval)).clamp(-LARGEST_ADC, LARGEST_ADC)


def ridge_fit(bvecs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fit of a tensor to few apparent diffusion coefficients, and the part of it that they determine.

    With A the products of the unit vectors, a the coefficients and m their mean, d = m (1, 1, 1, 0, 0, 0) + K (a - m),
    K = A^T (A A^T + RIDGE)^-1. For six good directions this is nearly the least-squares tensor. For fewer it is the
    tensor nearest to a sphere that agrees with the coefficients.

    Parameters
    ----------
    bvecs
        (..., n, 3) unit vectors, n >= 1.

    Returns
    -------
    tuple
        K (..., 6, n), and K A (..., 6, 6), the share of a tensor's difference from a sphere that the fit finds.
    """
    products = dyadic_features(bvecs)
    system = products @ products.mT + RIDGE * torch.eye(bvecs.shape[-2], device=bvecs.device)
    gain = torch.linalg.solve(system, products).mT
    return gain, gain @ products


def amplification(bvecs: Tensor) -> float:
    """Return the noise of each of the five numbers of an anisotropic part, in units of that of a diffusivity."""
    gain, _ = ridge_fit(bvecs)
    gain = gain - gain.mean(dim=1, keepdim=True)  # the diffusivities' mean is taken away before the fit
    gain = torch.cat([gain[:3] - gain[:3].mean(dim=0), gain[3:]])
    return float((gain.square().sum() / 5).sqrt())


def neighbours_of(mask: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the neighbours (V, J) of the voxels of a mask (B, X, Y, Z), and their distances; see `Fields`."""
    count = int(mask.sum())
    places = torch.full([n + 2 * REACH * (k > 0) for k, n in enumerate(mask.shape)], count, device=mask.device)
    inner = (slice(None), *(slice(REACH, n + REACH) for n in mask.shape[1:]))
    places[inner][mask] = torch.arange(count, device=mask.device)
    relative = edges / edges.min(dim=1, keepdim=True).values
    block = mask.nonzero()[:, 0]
    found, distances = [], []
    steps = torch.arange(-REACH, REACH + 1)
    for offset in torch.cartesian_prod(steps, steps, steps).tolist():
        moved = (slice(None), *(slice(REACH + o, REACH + o + n) for o, n in zip(offset, mask.shape[1:], strict=True)))
        found.append(places[moved][mask])
        distances.append((relative * relative.new_tensor(offset)).norm(dim=1)[block])
    return torch.stack(found, dim=1), torch.stack(distances, dim=1)


def _list(volumes: Tensor, mask: Tensor) -> Tensor:
    """Return (V, C) the voxels of a mask (B, X, Y, Z) of volumes (B, C, X, Y, Z)."""
    return volumes.movedim(1, 4)[mask]
