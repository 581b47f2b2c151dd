"""The condition of the network for a slice, and tensor maps as torch tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...dwi.noise import shell_contrast_noise
from ...dwi.tensor import TensorFit, design_matrix, tensor_maps
from ...nets.direction_unet import dyadic_features
from .fields import DARKEST, DIFFUSIVITY, LARGEST_ADC, ridge_fit
from .outputs import LEAST_DIFFUSIVITY, lower_triangles
from .task import CHANNELS, MOST, SAID, TENSOR

MD_UNIT = 3e-3  # mm²/s, about that of free water: the unit of MD
MIN_SIGNAL = 1e-4  # of signals whose b0 is about one, before the logarithm
COLOUR_ERROR = 0.75  # share of the error of FA
APART = (1, 2)  # voxels, distances of the differences that noise is estimated from
IMAGES = 3 * 6 + CHANNELS + 3 + TENSOR - 1  # channels in addition to the noisy tensor (`small`)
NUMBERS = 4 + 21
# Rows: the mean diffusivity, and five numbers of the anisotropic part, from Dxx, Dyy, Dzz, √2 Dxy, √2 Dxz, √2 Dyz.
BASIS = torch.zeros(TENSOR, TENSOR)
BASIS[0, :3] = 1 / 3
BASIS[1, :2] = torch.tensor([1.0, -1.0]) / 2**0.5
BASIS[2, :3] = torch.tensor([-1.0, -1.0, 2.0]) / 6**0.5
BASIS[[3, 4, 5], [3, 4, 5]] = 1
SURE, SURE_UNIT = 15.0, 3.0  # anisotropy over its error: the largest that the network sees, and its unit
LEAST_MEAN = 0.3  # in units of `DIFFUSIVITY`: lower mean diffusivities are noise


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of B slices, and the conversion of the network's output: result = centre + scale * output.

    The result is C = 7 numbers of a tensor (`small`), see `numbers_of`, or C = 5 maps (`paper`).

    Parameters
    ----------
    images
        (B, K, H, W) channels in addition to the noisy result.
    acquired
        (B, 1 + n, H, W) b0 and diffusion-weighted images, in units of the mean b0.
    bvecs, bvals
        (B, n, 3) unit vectors in world RAS+ and (B, n) s/mm².
    numbers
        (B, K) noise levels, b-value, number of directions, and K A of `ridge_fit`; K = 0 for `paper`.
    centre
        (B, C, H, W) the tensor of a ridge fit (`small`), or zero.
    scale
        (B, C, H, W) the approximate error of that fit, so that changes are small where the fit is good; or one.
    weight
        (B, H, W) inverse square of the mean diffusivity and its noise (`small`), or one: errors of tensors count
        relative to them.
    """

    images: Tensor
    acquired: Tensor
    bvecs: Tensor
    bvals: Tensor
    numbers: Tensor
    centre: Tensor
    scale: Tensor
    weight: Tensor

    @property
    def with_fit(self) -> bool:
        """Whether the network sees a tensor fit and corrects it; with `paper` it does not."""
        return self.numbers.shape[1] > 0


def condition_of(
    b0: Tensor, dwis: Tensor, bvecs: Tensor, bval: Tensor, noise: Tensor, unit: Tensor, size: str
) -> Condition:
    """Return the condition of S slices.

    Parameters
    ----------
    b0
        (S, H, W, 3) mean b0 of the slice and its two neighbours.
    dwis
        (S, n, H, W, 3) diffusion-weighted images.
    bvecs
        (S, n, 3) unit vectors in world RAS+.
    bval, unit
        (S,) b-value, and the mean b0 in the brain, the unit of all images.
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
        one = torch.ones_like(centre)
        return Condition(images, acquired, bvecs, bvals, none, centre, one, one[:, 0])
    attenuation = torch.log(b0.clamp_min(DARKEST)[:, None] / dwis.clamp_min(DARKEST))
    adc = (attenuation / (DIFFUSIVITY * bval[:, None, None, None, None])).clamp(-LARGEST_ADC, LARGEST_ADC)
    gain, kernel = ridge_fit(bvecs)
    mean = adc.mean(dim=1, keepdim=True)
    tensor = torch.einsum("skn,snhwz->skhwz", gain, adc - mean)
    tensor[:, :3] += mean
    fit = tensor[..., 1]
    noise = noise / unit[:, None]
    uncertain = noise.prod(dim=1).sqrt()[:, None, None] * dwis[..., 1].clamp_min(DARKEST).pow(-2).mean(dim=1).sqrt()
    uncertain = (uncertain / (DIFFUSIVITY * bval[:, None, None])).clamp_max(LARGEST_ADC)
    alone = torch.stack([b0[..., 1], 2 * dwis[..., 1].mean(dim=1), uncertain], dim=1)
    upper = torch.triu_indices(6, 6, device=kernel.device)
    numbers = torch.stack([bval / 1000, torch.full_like(bval, n / MOST)], dim=1)
    numbers = torch.cat([noise.clamp_min(1e-3).log(), numbers, kernel[:, upper[0], upper[1]]], dim=1)
    centre, scale = numbers_of(fit), fit_error(uncertain, n)
    sure = (centre[:, 1:TENSOR] / scale[:, 1:TENSOR]).clamp(-SURE, SURE) / SURE_UNIT
    images = torch.cat([tensor.permute(0, 1, 4, 2, 3).flatten(1, 2), maps_of(fit), alone, sure], dim=1)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = 1 / (centre[:, 0].clamp_min(LEAST_MEAN).square() + uncertain.square())
    return Condition(images, acquired, bvecs, bvals, numbers, centre, scale, weight)


def numbers_of(tensor: Tensor) -> Tensor:
    """Return the numbers (S, 7, H, W) that the network works with, of tensors as in `fields`.

    They are the mean diffusivity, five orthonormal numbers of the anisotropic part, and their norm, all in units of
    `DIFFUSIVITY`. In a mean over what is possible, the norm is larger than that of the five mean numbers.
    """
    numbers = torch.einsum("ck,skhw->schw", BASIS.to(tensor), tensor)
    return torch.cat([numbers, numbers[:, 1:].norm(dim=1, keepdim=True)], dim=1)


def tensor_of(numbers: Tensor) -> Tensor:
    """Return tensors (S, 6, H, W) as in `fields` of the first six numbers; the inverse of `numbers_of`."""
    back = torch.linalg.inv(BASIS).to(numbers)
    return torch.einsum("kc,schw->skhw", back, numbers[:, :TENSOR])


def lengthened(numbers: Tensor) -> Tensor:
    """Return numbers (S, 7, H, W) whose anisotropic part is as long as the seventh says, and never shorter than it was.

    So FA is that of what is possible, not that of the mean tensor, which is too low.
    """
    own = numbers[:, 1:TENSOR].norm(dim=1, keepdim=True)
    length = torch.maximum(numbers[:, TENSOR:], own)
    return torch.cat([numbers[:, :1], numbers[:, 1:TENSOR] * (length / own.clamp_min(1e-6)), length], dim=1)


def along(numbers: Tensor, bvecs: Tensor) -> Tensor:
    """Return the diffusivities (S, N, H, W) that tensors, as `numbers_of`, have along unit vectors (N, 3)."""
    return torch.einsum("nk,skhw->snhw", dyadic_features(bvecs), tensor_of(numbers))


def noise_levels(dwis: Tensor, mask: Tensor) -> Tensor:
    """Return noise levels (S, 2), estimated from differences over the two distances `APART`.

    The estimate is the same in training and in use, so that the network learns its errors. The difference between the
    two levels shows how smooth the noise is.

    Parameters
    ----------
    dwis
        (S, n, H, W) diffusion-weighted images.
    mask
        (S, H, W) bool.
    """
    return torch.stack([shell_contrast_noise(dwis, mask, apart) for apart in APART], dim=1)


def fit_error(uncertain: Tensor, n: int) -> Tensor:
    """Return the approximate error (S, 7, H, W) of the numbers of the ridge fit.

    It is that of noise, which the limits of diffusivities make saturate, and that of directions which are not there.

    Parameters
    ----------
    uncertain
        (S, H, W) standard deviations of apparent diffusion coefficients, in units of `DIFFUSIVITY`.
    n
        Number of directions.
    """
    mean = torch.hypot(uncertain / (1 + uncertain), uncertain.new_tensor(0.01 + 0.03 * (MOST - n)))
    rest = torch.hypot(1.2 * uncertain / (1 + uncertain), uncertain.new_tensor(0.015 + 0.03 * (MOST - n)))
    return torch.stack([mean, *[rest] * (SAID - 1)], dim=1)


def maps_of(tensor: Tensor) -> Tensor:
    """Return FA, MD and colour FA (S, 5, H, W) of tensors (S, 6, H, W) in the order of `ridge_fit`.

    MD is in units of `MD_UNIT`; negative eigenvalues count as (almost) zero.
    """
    rows = lower_triangles(tensor.movedim(1, 3).reshape(-1, 6))
    return _maps(rows.reshape(len(tensor), *tensor.shape[2:], 6))


def fitted_maps(signal: Tensor, bval: Tensor, bvecs: Tensor) -> Tensor:
    """Return FA, MD and colour FA (S, 5, H, W) by ordinary least squares on the logarithm of signals.

    Parameters
    ----------
    signal
        (S, 1 + N, H, W) b0 and diffusion-weighted images, b0 of about one or less.
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
