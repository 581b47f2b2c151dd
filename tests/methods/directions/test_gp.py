"""The Gaussian process on the sphere: against its own draws, a second solution, and what it must not change."""

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import even_directions
from bids_dmrigen.methods.directions.gp import GaussianProcess, most_likely, spherical

DIRECTIONS = even_directions(24)
WANTED = even_directions(7)


def drawn(reach, noise, voxels=4000, seed=0):
    """Signals (V, 24 + 7) of voxels with a spherical covariance, the first 24 with noise."""
    rng, axes = np.random.default_rng(seed), np.concatenate([DIRECTIONS, WANTED])
    values, vectors = np.linalg.eigh(spherical(axes, axes, reach))
    signal = rng.normal(size=(voxels, len(axes))) @ (vectors * np.sqrt(values.clip(0))).T
    signal[:, :24] += noise**0.5 * rng.normal(size=(voxels, 24))
    return 10 + 3 * signal


@pytest.mark.parametrize(("degrees", "noise"), [(60, 0.1), (90, 0.5), (120, 0.02)])
def test_reach_and_noise_are_those_that_the_signals_were_drawn_with(degrees, noise):
    reach, found = most_likely(DIRECTIONS, drawn(np.deg2rad(degrees), noise)[:, :24])
    assert np.rad2deg(reach) == pytest.approx(degrees, abs=10)
    assert found == pytest.approx(noise, rel=0.5)


def test_it_predicts_better_than_the_mean_and_as_well_as_is_possible():
    signal = drawn(np.deg2rad(100), 0.2)
    seen, target = signal[:, :24], signal[:, 24:]
    weights = GaussianProcess().weights(
        torch.from_numpy(DIRECTIONS), torch.from_numpy(WANTED), {}, torch.from_numpy(seen)
    )
    weights = weights.numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-9)
    error = ((seen @ weights.T - target) ** 2).mean()
    best = np.linalg.lstsq(seen - 10, target - 10, rcond=None)[0]  # linear regression on the truth itself
    assert error < 1.05 * (((seen - 10) @ best + 10 - target) ** 2).mean()
    assert error < 0.7 * ((seen.mean(axis=1, keepdims=True) - target) ** 2).mean()


def test_opposite_directions_are_one():
    flipped = DIRECTIONS * np.where(np.arange(24) % 2, -1, 1)[:, None]
    np.testing.assert_allclose(spherical(DIRECTIONS, WANTED, 1.5), spherical(flipped, -WANTED, 1.5), atol=1e-12)
    assert spherical(np.eye(3), np.eye(3), np.pi / 3) == pytest.approx(np.eye(3))
