"""From an anatomy to the noise-free diffusion signal: sticks, zeppelins, balls, orientation dispersion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..dwi.gradients import GradientTable
from .anatomy import stream
from .atlas import Atlas

CSF_DIFFUSIVITY = 3.0e-3  # mm²/s, free water at 37 °C
ORDER = 10  # of the Legendre series in the angle between gradient and fibre
QUADRATURE_POINTS = 24
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

    white: Compartments = field(default_factory=lambda: Compartments(0.45, 1.75e-3, 0.55e-3, 0.07, 0.72e-3, 1.0))
    grey: Compartments = field(default_factory=lambda: Compartments(0.20, 1.35e-3, 0.74e-3, 0.25, 0.80e-3, 1.35))
    csf_b0: float = 3.0

    @classmethod
    def random(cls, seed: int) -> Tissue:
        """Return tissue of a random person and protocol, spread about the default as real scans are."""
        rng = stream(seed, 10)

        def vary(c: Compartments) -> Compartments:
            spread = np.exp(rng.normal(0, [0.10, 0.06, 0.10, 0.30, 0.06, 0.12]))
            values = np.array([c.stick, c.axial, c.radial, c.dispersion, c.isotropic, c.b0]) * spread
            return Compartments(*values.tolist())

        return cls(vary(cls().white), vary(cls().grey), float(cls().csf_b0 * np.exp(rng.normal(0, 0.2))))


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
    directions = torch.as_tensor(world, dtype=torch.float32, device=device)
    fractions, weights = atlas.fractions[:, brain], atlas.weights[:, brain]  # (3, V)
    fibres = atlas.directions[:, :, brain]  # (3, 3, V)
    log_diffusivity, log_dispersion, log_s0 = atlas.texture[:, brain]
    scale = s0 * log_s0.exp()

    signal = torch.zeros((*brain.shape, len(gradients)), device=device)
    values = torch.empty((fractions.shape[1], len(gradients)), device=device)
    bvals = np.where(gradients.is_b0, gradients.bvals, np.round(gradients.bvals / B_ROUNDING) * B_ROUNDING)
    for b in np.unique(bvals):
        local_b = float(b) * log_diffusivity.exp()
        response = torch.zeros((ORDER // 2 + 1, fractions.shape[1]), device=device)
        flat = fractions[2] * tissue.csf_b0 * float(np.exp(-b * CSF_DIFFUSIVITY))
        for share, kind in zip(fractions[:2], (tissue.white, tissue.grey), strict=True):
            amount = share * kind.b0
            response += amount * fibre_response(local_b, kind, log_dispersion.exp())
            flat = flat + amount * (1 - weights.sum(dim=0)) * torch.exp(-local_b * kind.isotropic)
        for volume in np.flatnonzero(bvals == b):
            total = flat.clone()
            for k in range(3):
                total += weights[k] * _polynomial(response, (directions[volume] @ fibres[k]) ** 2)
            values[:, volume] = scale * total
    signal[brain] = values
    return signal


def fibre_response(b: torch.Tensor, kind: Compartments, dispersion_factor: torch.Tensor) -> torch.Tensor:
    """Return the response of one fibre as coefficients of powers of cos² between gradient and fibre.

    Parameters
    ----------
    b
        (V,) b-values in s/mm².
    kind
        The tissue.
    dispersion_factor
        (V,) factors on its dispersion.

    Returns
    -------
    torch.Tensor
        (ORDER / 2 + 1, V): E(x) = sum_j c_j x^(2 j), with E = 1 at b = 0.
    """
    nodes, gauss = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    nodes, gauss = (nodes + 1) / 2, gauss / 2  # on [0, 1]
    orders = np.arange(0, ORDER + 1, 2)
    legendre = np.stack([np.polynomial.legendre.Legendre.basis(n)(nodes) for n in orders])  # (L, Q)
    project = torch.as_tensor((2 * orders[:, None] + 1) * legendre * gauss, dtype=torch.float32, device=b.device)
    square = torch.as_tensor(nodes**2, dtype=torch.float32, device=b.device)[:, None]
    kernel = kind.stick * torch.exp(-b * kind.axial * square)
    kernel += (1 - kind.stick) * torch.exp(-b * (kind.radial + (kind.axial - kind.radial) * square))
    variance = kind.dispersion * dispersion_factor  # (V,)
    coefficients = project @ kernel  # (L, V) of Legendre polynomials
    for row, order in enumerate(orders):
        coefficients[row] *= torch.exp(-0.5 * order * (order + 1) * variance)
    powers = np.zeros((len(orders), len(orders)))  # of x², in each Legendre polynomial
    for row, order in enumerate(orders):
        powers[row, : row + 1] = np.polynomial.legendre.leg2poly(np.eye(ORDER + 1)[order])[::2][: row + 1]
    return torch.as_tensor(powers.T, dtype=torch.float32, device=b.device) @ coefficients


def _polynomial(coefficients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return sum_j c_j x^j by Horner's rule; coefficients (J, V), x (V,)."""
    total = coefficients[-1]
    for c in coefficients.flip(0)[1:]:
        total = total * x + c
    return total
