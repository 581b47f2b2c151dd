"""A Gaussian process on the sphere, with which QID² is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec import Citation
from .task import DIRECTIONS, DirectionsSpec
from .weighted_sum import WeightedSum

if TYPE_CHECKING:
    from torch import Tensor

VOXELS = 2000  # that the reach and the noise are learnt from
REACHES = np.deg2rad(np.arange(30.0, 181.0, 10.0))  # angles at which nothing is in common any more
NOISES = np.geomspace(1e-3, 10.0, 25)  # variance of the noise over that of the signal

SPEC = DirectionsSpec(
    name="gp",
    title="Gaussian process",
    line="more directions by a Gaussian process on the sphere (learnt from the run itself)",
    summary=(
        "adds directions by a Gaussian process on the sphere, whose reach and noise are the most likely ones for each "
        "shell"
    ),
    citation=Citation(
        key="andersson2015",
        text=(
            "Andersson JLR, Sotiropoulos SN (2015). Non-parametric representation and prediction of single- and "
            "multi-shell diffusion-weighted MRI data using Gaussian processes. NeuroImage 122:166-176. "
            "doi:10.1016/j.neuroimage.2015.07.067"
        ),
        bibtex=(
            "@article{andersson2015,\n"
            "  title = {Non-parametric representation and prediction of single- and multi-shell diffusion-weighted "
            "{MRI} data using {G}aussian processes},\n  author = {Andersson, Jesper L R and Sotiropoulos, Stamatios "
            "N},\n  journal = {NeuroImage},\n  year = {2015},\n  volume = {122},\n  pages = {166--176},\n"
            "  doi = {10.1016/j.neuroimage.2015.07.067}\n}"
        ),
    ),
    min_directions=6,
    good_directions=12,
    needs_weights=False,
    samplers={"fast": "none: a weighted sum", "paper": "none: a weighted sum"},
    options=(DIRECTIONS,),
    sizes=("small",),
    draws=False,
)


class GaussianProcess(WeightedSum):
    """A Gaussian process on each shell, with the spherical covariance of Andersson and Sotiropoulos (2015)."""

    spec = SPEC

    def weights(self, acquired: Tensor, wanted: Tensor, options: Mapping[str, Any], signal: Tensor) -> Tensor:
        """Return the weights of the expected signal, m + k^T (K + noise)^-1 (signal - m), m the most likely mean."""
        import torch

        one, other = acquired.double().numpy(), wanted.double().numpy()
        reach, noise = most_likely(one, signal.double().numpy())
        covariance = spherical(one, one, reach) + noise * np.eye(len(one))
        weights = np.linalg.solve(covariance, spherical(one, other, reach)).T  # (T, N)
        of_mean = np.linalg.solve(covariance, np.ones(len(one)))
        return torch.from_numpy(weights + (1 - weights.sum(axis=1, keepdims=True)) * of_mean / of_mean.sum())


def spherical(first: np.ndarray, second: np.ndarray, reach: float) -> np.ndarray:
    """Return 1 - 3 t / 2 + t³ / 2 of the angles t between axes (N, 3) and (M, 3), in units of `reach`; 0 above 1."""
    angle = np.arccos(np.abs(first @ second.T).clip(0, 1)) / reach
    return np.where(angle < 1, 1 - 1.5 * angle + 0.5 * angle**3, 0.0)


def most_likely(directions: np.ndarray, signal: np.ndarray) -> tuple[float, float]:
    """Return the reach, radians, and the noise, relative to the variance of the signal, with the largest likelihood.

    Parameters
    ----------
    directions
        (N, 3) unit vectors.
    signal
        (V, N) of voxels with a common covariance. Their means differ, and are not part of the likelihood.
    """
    chosen = signal[np.linspace(0, len(signal) - 1, min(len(signal), VOXELS)).astype(int)]
    contrasts = np.linalg.svd(np.ones((1, len(directions))))[2][1:]  # (N - 1, N), orthonormal, without the mean
    free = chosen @ contrasts.T
    scatter, count, best = free.T @ free, free.size, (np.inf, REACHES[-1], NOISES[0])
    for reach in REACHES:
        values, vectors = np.linalg.eigh(contrasts @ spherical(directions, directions, reach) @ contrasts.T)
        power = np.einsum("ik,ij,jk->k", vectors, scatter, vectors)
        for noise in NOISES:
            spread = np.maximum(values + noise, 1e-9)
            # Twice the negative logarithm, with the variance of the signal at its most likely value.
            cost = count * np.log(max((power / spread).sum() / count, 1e-30)) + len(chosen) * np.log(spread).sum()
            if cost < best[0]:
                best = (cost, float(reach), float(noise))
    return best[1], best[2]


def build() -> GaussianProcess:
    """Return the method."""
    return GaussianProcess()
