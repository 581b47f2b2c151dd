"""Real symmetric spherical harmonics: the basis, the regularised fit of a shell, prediction of other directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMOOTHING = 0.006  # weight of the Laplace-Beltrami penalty (Descoteaux et al. 2007)
ODD_ORDER = "the order of symmetric harmonics is even and at least 0, found {order}"


def n_harmonics(order: int) -> int:
    """Return how many symmetric harmonics there are up to this even order; `ValueError` for another.

    >>> n_harmonics(4)
    15
    """
    if order < 0 or order % 2:
        raise ValueError(ODD_ORDER.format(order=order))
    return (order + 1) * (order + 2) // 2


def harmonics(directions: Tensor, order: int) -> Tensor:
    """Return the real symmetric spherical harmonics of directions, in Descoteaux's basis.

    Y_j for l = 0, 2 ... order and m = -l ... l: sqrt(2) Re Y_l^|m| for m < 0, Y_l^0, sqrt(2) Im Y_l^m for m > 0
    (Descoteaux et al. 2007; DIPY's `descoteaux07`, legacy).

    Parameters
    ----------
    directions
        (..., 3) unit vectors.
    order
        Even.

    Returns
    -------
    Tensor
        (..., K), K = (order + 1)(order + 2) / 2.
    """
    n_harmonics(order)
    x, y, z = directions.unbind(-1)
    columns: dict[tuple[int, int], Tensor] = {}
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)  # of (x + iy)^m
    diagonal = torch.ones_like(x)  # P_m^m / sin^m, Condon-Shortley phase included
    for m in range(order + 1):
        before, current = torch.zeros_like(x), diagonal
        for degree in range(m, order + 1):
            if degree % 2 == 0:
                norm = math.sqrt(
                    (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m)
                )
                if m == 0:
                    columns[degree, 0] = norm * current
                else:
                    columns[degree, -m] = math.sqrt(2) * norm * current * real
                    columns[degree, m] = math.sqrt(2) * norm * current * imaginary
            following = ((2 * degree + 1) * z * current - (degree + m) * before) / (degree - m + 1)
            before, current = current, following
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
        diagonal = -(2 * m + 1) * diagonal
    return torch.stack(
        [columns[degree, m] for degree in range(0, order + 1, 2) for m in range(-degree, degree + 1)], -1
    )


def order_for(n_directions: int, highest: int = 4) -> int:
    """Return the highest even order that this number of directions determines, at least 2."""
    order = highest
    while order > 2 and n_harmonics(order) > n_directions:
        order -= 2
    return order


def prediction_weights(acquired: Tensor, wanted: Tensor, order: int, smoothing: float = SMOOTHING) -> Tensor:
    """Return the weights with which a shell's signals predict its signal along other directions.

    S(wanted) = B(wanted) (B^T B + smoothing L)^-1 B^T S(acquired), B the harmonics of the acquired directions, L
    diagonal with l²(l + 1)² (Descoteaux et al. 2007).

    Parameters
    ----------
    acquired
        (..., N, 3) unit vectors.
    wanted
        (..., T, 3) unit vectors.

    Returns
    -------
    Tensor
        (..., T, N).
    """
    return harmonics(wanted, order) @ fit_weights(acquired, order, smoothing)


def fit_weights(acquired: Tensor, order: int, smoothing: float = SMOOTHING) -> Tensor:
    """Return the weights (..., K, N) that turn the signals of a shell along (..., N, 3) into its coefficients.

    C = (B^T B + smoothing L)^-1 B^T S; see `prediction_weights`.
    """
    basis = harmonics(acquired, order)
    penalty = torch.tensor([(d * (d + 1)) ** 2 for d in degrees(order)], dtype=basis.dtype, device=basis.device)
    weights: Tensor = torch.linalg.solve(basis.mT @ basis + torch.diag(smoothing * penalty), basis.mT)
    return weights


def undamped_weights(acquired: Tensor, order: int, smoothing: float = SMOOTHING, highest: int | None = None) -> Tensor:
    """Return `fit_weights` (..., K, N) corrected for the average shrinkage of each degree by the penalty.

    Without this the features of few directions would be smaller than those of many. Degrees above `highest` stay as
    they are.
    """
    weights = fit_weights(acquired, order, smoothing)
    kept = torch.einsum("...kn,...nk->...k", weights, harmonics(acquired, order))
    parts = kept.split(degree_sizes(order), dim=-1)
    mean = torch.cat([k.mean(dim=-1, keepdim=True).expand_as(k) for k in parts], dim=-1)
    if highest is not None:
        mean[..., n_harmonics(highest) :] = 1
    return weights / mean[..., None]


def degree_sizes(order: int) -> list[int]:
    """Return how many symmetric harmonics there are of each degree up to this even order: 1, 5, 9 ..."""
    return [2 * degree + 1 for degree in range(0, order + 1, 2)]


def degrees(order: int) -> list[int]:
    """Return the degree of each symmetric harmonic up to this even order: 0, 2, 2, 2, 2, 2, 4 ..."""
    return [degree for degree in range(0, order + 1, 2) for _ in range(2 * degree + 1)]


def rish(coefficients: Tensor, order: int, dim: int = -1) -> Tensor:
    """Return the rotation-invariant features |C_l|² = sum_m C_lm² of l = 0, 2 ... order (Mirzaalian et al. 2016).

    Parameters
    ----------
    coefficients
        (..., K, ...): the K coefficients of this order lie along `dim`.
    order
        Even.
    dim
        Axis of the coefficients; in the result its length is order / 2 + 1.
    """
    parts = coefficients.square().split(degree_sizes(order), dim)
    return torch.stack([part.sum(dim) for part in parts], dim)


def scaled(coefficients: Tensor, scale: Tensor, order: int, dim: int = -1) -> Tensor:
    """Return lambda_l C_lm: coefficients (..., K, ...) with each degree scaled by (..., order / 2 + 1, ...)."""
    repeats = torch.tensor(degree_sizes(order), device=scale.device)
    return coefficients * scale.repeat_interleave(repeats, dim)
