"""What a network is told of a slice that it has to make maps of, and those maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...dwi.noise import shell_contrast_noise
from ...dwi.tensor import MIN_SIGNAL, TensorFit, design_matrix, tensor_maps
from ...nets.direction_unet import dyadic_features
from .task import CHANNELS, MOST

MD_UNIT = 3e-3  # mm²/s, of free water: MD is divided by it
DIFFUSIVITY = 1e-3  # mm²/s, unit of tensors and apparent diffusion coefficients given to the network
LEAST_DIFFUSIVITY = 1e-6  # mm²/s: smaller eigenvalues are noise
LARGEST_ADC = 5.0  # of these units
DARKEST = 0.01  # of the mean b0: signals are raised to this before the logarithm
RIDGE = 0.02  # of the tensor fitted to three to six directions, beside the unit vectors' products
COLOUR_ERROR = 0.75  # of FA's
APART = (1, 2)  # voxels, of the differences that noise is read from
IMAGES = 3 * 6 + CHANNELS + 3  # given beside the noisy maps (`small`)
NUMBERS = 4 + 21


@dataclass(frozen=True, eq=False)
class Known:
    """What the network is told of B slices, and how its output becomes their maps: maps = centre + scale * output.

    Parameters
    ----------
    images
        (B, C, H, W) beside the noisy maps.
    acquired
        (B, 1 + n, H, W) b0 and diffusion-weighted images, in units of the mean b0.
    bvecs, bvals
        (B, n, 3) unit vectors in world RAS+ and (B, n) s/mm².
    numbers
        (B, K) noise levels, b-value, number of directions, and what they tell of a tensor; K = 0 for `paper`.
    centre
        (B, 5, H, W) the maps of a ridge fit (`small`), or zero.
    scale
        (B, 5, H, W) about the error of that fit, so that little is changed where little is uncertain; or one.
    """

    images: Tensor
    acquired: Tensor
    bvecs: Tensor
    bvals: Tensor
    numbers: Tensor
    centre: Tensor
    scale: Tensor

    @property
    def with_fit(self) -> bool:
        """Whether the network is told of a tensor fit and corrects it, or (`paper`) makes the maps alone."""
        return self.numbers.shape[1] > 0


def known_of(b0: Tensor, dwis: Tensor, bvecs: Tensor, bval: Tensor, noise: Tensor, unit: Tensor, size: str) -> Known:
    """Return what the network is told of S slices.

    Parameters
    ----------
    b0
        (S, H, W, 3) mean b0 of the slice between its neighbours.
    dwis
        (S, n, H, W, 3).
    bvecs
        (S, n, 3) unit vectors in world RAS+.
    bval, unit
        (S,) b-value, and the mean b0 in the brain, by which all is divided.
    noise
        (S, 2) noise levels, see `noise_levels`.
    """
    n = dwis.shape[1]
    b0 = b0 / unit[:, None, None, None]
    dwis = dwis / unit[:, None, None, None, None]
    acquired = torch.cat([b0[:, None, ..., 1], dwis[..., 1]], dim=1)
    bvals = bval[:, None].expand(-1, n)
    if size == "paper":
        images = F.pad(acquired, (0, 0, 0, 0, 0, MOST - n))
        centre = images.new_zeros((len(images), CHANNELS, *images.shape[2:]))
        none = images.new_zeros((len(images), 0))
        return Known(images, acquired, bvecs, bvals, none, centre, torch.ones_like(centre))
    attenuation = torch.log(b0.clamp_min(DARKEST)[:, None] / dwis.clamp_min(DARKEST))
    adc = (attenuation / (DIFFUSIVITY * bval[:, None, None, None, None])).clamp(-LARGEST_ADC, LARGEST_ADC)
    gain, kernel = ridge_fit(bvecs)
    mean = adc.mean(dim=1, keepdim=True)
    tensor = torch.einsum("skn,snhwz->skhwz", gain, adc - mean)
    tensor[:, :3] += mean
    maps = maps_of(tensor[..., 1])
    noise = noise / unit[:, None]
    uncertain = noise.prod(dim=1).sqrt()[:, None, None] * dwis[..., 1].clamp_min(DARKEST).pow(-2).mean(dim=1).sqrt()
    uncertain = (uncertain / (DIFFUSIVITY * bval[:, None, None])).clamp_max(LARGEST_ADC)
    alone = torch.stack([b0[..., 1], 2 * dwis[..., 1].mean(dim=1), uncertain], dim=1)
    images = torch.cat([tensor.permute(0, 1, 4, 2, 3).flatten(1, 2), maps, alone], dim=1)
    upper = torch.triu_indices(6, 6, device=kernel.device)
    numbers = torch.stack([bval / 1000, torch.full_like(bval, n / MOST)], dim=1)
    numbers = torch.cat([noise.clamp_min(1e-3).log(), numbers, kernel[:, upper[0], upper[1]]], dim=1)
    images = images.contiguous(memory_format=torch.channels_last)
    return Known(images, acquired, bvecs, bvals, numbers, maps, fit_error(uncertain, n))


def noise_levels(dwis: Tensor, mask: Tensor) -> Tensor:
    """Return what is told of the noise (S, 2): the same reading of so few volumes in training and in use.

    What such a reading misses the network learns; that the two distances disagree tells how smooth the noise is.

    Parameters
    ----------
    dwis
        (S, n, H, W).
    mask
        (S, H, W) bool.
    """
    return torch.stack([shell_contrast_noise(dwis, mask, apart) for apart in APART], dim=1)


def fit_error(uncertain: Tensor, n: int) -> Tensor:
    """Return about how far maps of the ridge fit are from the true ones (S, 5, H, W).

    As measured on simulated subjects: what n directions leave open, and noise, which saturates where it exceeds signal.

    Parameters
    ----------
    uncertain
        (S, H, W) standard deviations of apparent diffusion coefficients, in units of `DIFFUSIVITY`.
    n
        Directions.
    """
    fa = torch.hypot(1.5 * uncertain / (1 + 3 * uncertain), uncertain.new_tensor(0.04 + 0.03 * (MOST - n)))
    md = torch.hypot(0.4 * uncertain / (1 + 2 * uncertain), uncertain.new_tensor(0.015))
    return torch.stack([fa, md, *[COLOUR_ERROR * fa] * 3], dim=1)


def ridge_fit(bvecs: Tensor) -> tuple[Tensor, Tensor]:
    """Return how a tensor follows from few apparent diffusion coefficients, and what of it they determine.

    With A the products of the unit vectors, a the coefficients and m their mean, d = m (1, 1, 1, 0, 0, 0) + K (a - m),
    K = A^T (A A^T + RIDGE)^-1: for six good directions nearly the least-squares tensor, for fewer the one nearest to a
    sphere that agrees with them.

    Parameters
    ----------
    bvecs
        (S, n, 3) unit vectors, n of 1 or more.

    Returns
    -------
    tuple
        K (S, 6, n), and K A (S, 6, 6): of what the true tensor differs from the sphere, how much is found. Tensors are
        Dxx, Dyy, Dzz, sqrt(2) Dxy, sqrt(2) Dxz, sqrt(2) Dyz.
    """
    products = dyadic_features(bvecs)
    system = products @ products.mT + RIDGE * torch.eye(bvecs.shape[1], device=bvecs.device)
    gain = torch.linalg.solve(system, products).mT
    return gain, gain @ products


def maps_of(tensor: Tensor) -> Tensor:
    """Return FA, MD and colour FA (S, 5, H, W) of tensors (S, 6, H, W) as `ridge_fit` has them.

    MD is in units of `MD_UNIT`; negative eigenvalues count as (almost) zero.
    """
    xx, yy, zz, xy, xz, yz = tensor.unbind(1)
    half = 0.5**0.5
    return _maps(torch.stack([xx, half * xy, yy, half * xz, half * yz, zz], dim=-1) * DIFFUSIVITY)


def fitted_maps(signal: Tensor, bval: Tensor, bvecs: Tensor) -> Tensor:
    """Return FA, MD and colour FA (S, 5, H, W) by ordinary least squares on the logarithm of signals.

    Parameters
    ----------
    signal
        (S, 1 + N, H, W) b0 and diffusion-weighted, b0 of about one or less.
    bval
        (S,) s/mm².
    bvecs
        (N, 3) unit vectors, the same for all slices.
    """
    directions = np.concatenate([np.zeros((1, 3)), bvecs.cpu().numpy()])
    design = design_matrix(np.r_[0.0, np.ones(len(bvecs))], directions)  # of b D
    solver = torch.as_tensor(np.linalg.pinv(design)[:6], dtype=torch.float32, device=signal.device)
    products = torch.einsum("kn,snhw->shwk", solver, signal.clamp_min(MIN_SIGNAL).log())
    return _maps(products / bval[:, None, None, None])


def _maps(tensor: Tensor) -> Tensor:
    """Return (S, 5, H, W) maps of tensors (S, H, W, 6), lower triangles in mm²/s."""
    rows = tensor.reshape(-1, 6)
    maps = tensor_maps(TensorFit(rows, rows[:, 0], LEAST_DIFFUSIVITY))
    stacked = torch.cat([maps["fa"][:, None], maps["md"][:, None] / MD_UNIT, maps["dec"]], dim=1)
    return stacked.reshape(*tensor.shape[:3], CHANNELS).permute(0, 3, 1, 2)
