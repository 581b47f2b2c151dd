"""From an anatomy to the noise-free diffusion signal: sticks, zeppelins, balls, orientation dispersion."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from functools import cache

import numpy as np
import torch

from ..dwi.adc import FREE_WATER_MM2_PER_S
from ..dwi.gradients import GradientTable
from .atlas import Atlas
from .fields import stream

CSF_DIFFUSIVITY = FREE_WATER_MM2_PER_S
ORDER = 10  # of the Legendre series in the angle between gradient and fibre
QUADRATURE_POINTS = 24
TEXTURE_RANGE, TEXTURE_NODES = 0.9, 9  # for interpolation in the local logarithm of diffusivity
CHUNK_POINTS = 1 << 13  # on a CPU, points that are computed at a time: they stay in its cache
B_ROUNDING = 1.0  # s/mm²: volumes whose b-values agree to this share one response


@dataclass(frozen=True)
class Compartments:
    """One tissue: sticks inside axons, zeppelins around them, and a part without direction.

    Parameters
    ----------
    stick
        Share of the signal that is restricted to the fibre axis.
    axial, radial
        Diffusivities along fibres (sticks and zeppelins) and across them (zeppelins), mm²/s.
    dispersion
        Variance of the fibre directions about their mean, rad² per axis.
    isotropic
        Diffusivity of the share that follows no fibre, mm²/s.
    b0
        Signal without diffusion weighting, relative to white matter.
    """

    stick: float
    axial: float
    radial: float
    dispersion: float
    isotropic: float
    b0: float


@dataclass(frozen=True)
class Tissue:
    """Microstructure and b0 contrast of the three tissues, typical of 3 T spin-echo EPI with TE 60-90 ms."""

    white: Compartments = field(default_factory=lambda: Compartments(0.45, 1.80e-3, 0.46e-3, 0.07, 0.63e-3, 1.0))
    grey: Compartments = field(default_factory=lambda: Compartments(0.26, 1.42e-3, 0.63e-3, 0.18, 0.73e-3, 1.35))
    csf_b0: float = 3.0

    @classmethod
    def random(cls, seed: int) -> Tissue:
        """Return tissue of a random subject and protocol, spread about the default as in real scans."""
        rng = stream(seed, 10)

        def vary(c: Compartments) -> Compartments:
            spread = np.exp(rng.normal(0, [0.10, 0.06, 0.10, 0.30, 0.06, 0.12]))
            values = np.array([c.stick, c.axial, c.radial, c.dispersion, c.isotropic, c.b0]) * spread
            return Compartments(*values.tolist())

        return cls(vary(cls().white), vary(cls().grey), float(cls().csf_b0 * np.exp(rng.normal(0, 0.2))))

    def numbers(self) -> np.ndarray:
        """Return (13,) float32: the fields of white, of grey, and csf_b0, as `mixture_signal` takes them."""
        return np.array([*astuple(self.white), *astuple(self.grey), self.csf_b0], np.float32)


def simulate_signal(
    atlas: Atlas,
    gradients: GradientTable,
    affine: np.ndarray,
    tissue: Tissue | None = None,
    turns: np.ndarray | None = None,
    s0: float = 1.0,
) -> torch.Tensor:
    """Return the noise-free signal of every voxel and volume.

    With white and grey fractions f_t, fibre shares w_k along n_k and the rest w_0 = 1 - sum w_k::

        S(b, g) = s0 { sum_t f_t S0_t [sum_k w_k E_t(b, g . n_k) + w_0 exp(-b D_t)]
                       + f_csf S0_csf exp(-b 3e-3) }

    E_t is stick plus zeppelin, spread over directions by a heat kernel on the sphere of variance s per axis:
    its Legendre coefficients are multiplied by exp(-l (l + 1) s / 2). Summed over compartments this is one
    even polynomial per fibre, voxel and b-value, so no exponential is needed per direction.

    Parameters
    ----------
    atlas
        Anatomy on its own grid, which is also that of the result.
    gradients
        N volumes, in the voxel axes of an image with `affine`: the scanner's, not the atlas's.
    affine
        (4, 4) of the image that `gradients` belong to.
    tissue
        Microstructure; None for the default.
    turns
        (N, 3, 3) world rotations of the head at each volume; the anatomy is rotated, the gradients stay.
    s0
        Signal of white matter without diffusion weighting.

    Returns
    -------
    torch.Tensor
        (X, Y, Z, N) float32 on the atlas's device, zero outside the brain.
    """
    tissue = tissue or Tissue()
    device, brain = atlas.brain.device, atlas.brain
    world = gradients.world_directions(affine)
    if turns is not None:  # turning the head by R is turning the gradient by R transposed
        world = np.einsum("nji,nj->ni", turns, world)
    bvals = np.where(gradients.is_b0, gradients.bvals, np.round(gradients.bvals / B_ROUNDING) * B_ROUNDING)
    b, directions = (torch.as_tensor(a, dtype=torch.float32, device=device)[None] for a in (bvals, world))
    numbers = torch.as_tensor(tissue.numbers(), device=device)[None]
    points = torch.cat([m.flatten(0, -4)[:, brain] for m in anatomy_maps(atlas)])[None]  # (1, C, V)
    signal = torch.zeros((*brain.shape, len(gradients)), device=device)
    signal[brain] = s0 * mixture_signal(points, numbers, b, directions)[0].T
    return signal


def anatomy_maps(atlas: Atlas) -> list[torch.Tensor]:
    """Return fractions (3, ...), weights (3, ...), directions (3, 3, ...), texture (3, ...): all a signal needs."""
    return [atlas.fractions, atlas.weights, atlas.directions, atlas.texture]


def mixture_signal(
    points: torch.Tensor, tissue: torch.Tensor, bvals: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """Return the noise-free signals of points of tissue, by the equation of `simulate_signal`.

    Parameters
    ----------
    points
        (B, 18, P): 3 fractions, 3 weights, 3 x 3 directions (world), 3 textures; all zero is air.
    tissue
        (B, 13) `Tissue.numbers` of every example.
    bvals
        (B, N) in s/mm². Volumes that share their b-value in every example are computed together.
    directions
        (B, N, 3) in world axes.

    Returns
    -------
    torch.Tensor
        (B, N, P) float32.
    """
    if not points.is_cuda and len(points) > 1:  # one at a time stays in the processor's cache
        each = zip(points, tissue, bvals, directions, strict=True)
        return torch.cat([mixture_signal(*(part[None] for part in example)) for example in each])
    columns, shell = torch.unique(bvals, dim=1, return_inverse=True)
    out = torch.empty((*bvals.shape, points.shape[2]), device=points.device)
    step = points.shape[2] if points.is_cuda else CHUNK_POINTS
    for s, b in enumerate(columns.unbind(dim=1)):
        volumes = (shell == s).nonzero()[:, 0]
        polynomials = [_texture_polynomial(b, kind) for kind in (tissue[:, :6], tissue[:, 6:12])]
        for start in range(0, points.shape[2], step):
            piece = points[:, :, start : start + step]
            out[:, volumes, start : start + step] = _shell_signal(piece, tissue, b, polynomials, directions[:, volumes])
    return out


def _shell_signal(points, tissue, b, polynomials, directions) -> torch.Tensor:
    """Return (B, n, P) signals of one shell: b (B,), directions (B, n, 3)."""
    fractions, weights, fibres, texture = points.split([3, 3, 9, 3], dim=1)
    log_diffusivity, log_dispersion, log_s0 = texture.unbind(dim=1)  # (B, P)
    local_b, spread, s0 = b[:, None] * log_diffusivity.exp(), log_dispersion.exp(), log_s0.exp()
    if not b.any():  # the signal without diffusion weighting does not depend on directions
        contrast = torch.stack([tissue[:, 5], tissue[:, 11], tissue[:, 12]], dim=1)  # (B, 3)
        total = (fractions * contrast[..., None]).sum(dim=1) * s0
        return total[:, None].expand(-1, directions.shape[1], -1)
    loose = 1 - weights.sum(dim=1)
    total = fractions[:, 2] * (tissue[:, 12] * torch.exp(-b * CSF_DIFFUSIVITY))[:, None]
    legendre = 0
    for t, polynomial in enumerate(polynomials):
        kind = tissue[:, 6 * t : 6 * t + 6, None]
        amount = fractions[:, t] * kind[:, 5]
        total = total + amount * loose * torch.exp(-local_b * kind[:, 4])
        coefficients = _horner(polynomial.unbind(dim=1), log_diffusivity.clamp(-TEXTURE_RANGE, TEXTURE_RANGE)[:, None])
        legendre = legendre + _dispersed(coefficients, kind[:, 3] * spread) * amount[:, None]
    response = s0[:, None] * (_powers(b.device) @ legendre)  # (B, J, P)
    total = ((s0 * total) + (weights.sum(dim=1) * response[:, 0]))[:, None].repeat(1, directions.shape[1], 1)
    for k in range(3):
        x = (directions @ fibres[:, 3 * k : 3 * k + 3]).square_()  # (B, n, P)
        terms = (response * weights[:, k, None]).unbind(dim=1)
        total.addcmul_(_horner([c[:, None] for c in terms[1:]], x), x)
    return total


def _legendre_response(b: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """Return Legendre coefficients (B, L, V) of undispersed fibres; b (B, V), kind (B, 6)."""
    project, square = _quadrature(b.device)
    stick, axial, radial = (kind[:, i, None, None] for i in range(3))
    kernel = stick * torch.exp(-b[:, None] * axial * square)  # (B, Q, V)
    kernel += (1 - stick) * torch.exp(-b[:, None] * (radial + (axial - radial) * square))
    return project @ kernel


@cache
def _quadrature(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the projection (L, Q) of values at the nodes onto Legendre polynomials, and the squared nodes (Q, 1)."""
    nodes, gauss = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    nodes, gauss = (nodes + 1) / 2, gauss / 2  # on [0, 1]
    orders = np.arange(0, ORDER + 1, 2)
    legendre: np.ndarray = np.stack([np.polynomial.legendre.Legendre.basis(n)(nodes) for n in orders])  # (L, Q)
    project = (2.0 * orders[:, None] + 1) * legendre * gauss
    return _float32(project, device), _float32(nodes[:, None] ** 2, device)


def _texture_polynomial(b: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """Return (B, T, L, 1): Legendre coefficients as polynomials in the local logarithm of diffusivity.

    They are smooth in it, so that a few exact values serve every voxel; b (B,), kind (B, 6).
    """
    factors, fit = _texture_nodes(b.device)
    values = _legendre_response(b[:, None] * factors, kind)  # (B, L, T)
    return torch.einsum("tq,blq->btl", fit, values)[..., None]


@cache
def _texture_nodes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors (T,) on the diffusivity and the matrix (T, T) from values there to polynomials of their log."""
    nodes = TEXTURE_RANGE * np.cos(np.pi * (np.arange(TEXTURE_NODES) + 0.5) / TEXTURE_NODES)  # Chebyshev's
    fit = np.linalg.inv(np.vander(nodes, increasing=True))
    return _float32(np.exp(nodes), device), _float32(fit, device)


def _float32(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device)


def _dispersed(legendre: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return Legendre coefficients (B, L, V) after a heat kernel of variance (B, V) rad² per axis."""
    orders = torch.arange(0, ORDER + 1, 2, device=legendre.device, dtype=torch.float32)
    return legendre * torch.exp(-0.5 * (orders * (orders + 1))[:, None] * variance[:, None])


@cache
def _powers(device: torch.device) -> torch.Tensor:
    """Return the matrix (J, L) from Legendre coefficients to those of powers of x²."""
    n = ORDER // 2 + 1
    powers = np.zeros((n, n))
    for row in range(n):
        powers[: row + 1, row] = np.polynomial.legendre.leg2poly(np.eye(ORDER + 1)[2 * row])[::2][: row + 1]
    return torch.as_tensor(powers, dtype=torch.float32, device=device)


def _horner(coefficients, x: torch.Tensor) -> torch.Tensor:
    """Return sum_j c_j x^j for coefficients, lowest first, that broadcast with x."""
    *rest, lower, highest = coefficients
    total = torch.addcmul(lower, highest, x)
    for c in reversed(rest):
        torch.addcmul(c, total, x, out=total)
    return total
