"""Standard errors of the maps of a series: what generated volumes add, and the noise of acquired ones."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import design_matrix
from bids_dmrigen.methods.base import Generated, Request, Samples
from bids_dmrigen.methods.uncertainty import maps_of, standard_errors

AFFINE = np.diag([-2.0, 2, 3, 1])
SHAPE, SIGMA, S0, MD = (40, 40, 4), 5.0, 1000.0, 0.8e-3
TABLE = GradientTable(np.r_[np.zeros(3), np.full(20, 1000.0)], np.r_[np.zeros((3, 3)), even_directions(20)])
MASK = np.ones(SHAPE, bool)


def series(noise, seed=0):
    """Isotropic diffusion, in which only noise has a direction."""
    rng = np.random.default_rng(seed)
    clean = S0 * np.exp(-TABLE.bvals * MD) * np.ones((*SHAPE, 1))
    return (clean + noise * rng.standard_normal(clean.shape)).astype(np.float32)


def made(acquired, drawn):
    """A result whose first volumes are acquired."""
    given = series(SIGMA)
    return (
        Scan(given, AFFINE, TABLE, MASK),
        Generated(given, Samples(8, drawn), TABLE, (), np.arange(len(TABLE)) < acquired, {}),
    )


def expected_md_error(which):
    """The standard error of MD where these volumes have noise of SIGMA, from the design of the fit."""
    design = design_matrix(TABLE.bvals, TABLE.bvecs).astype(np.float64)
    signal = S0 * np.exp(-TABLE.bvals * MD)
    inverse = np.linalg.inv(design.T @ (design * signal[:, None] ** 2)) @ (design.T * signal**2)
    trace = inverse[[0, 2, 5]].mean(axis=0)
    return np.sqrt(((trace * SIGMA / signal)[which] ** 2).sum())


@pytest.mark.parametrize("acquired", [3, 13, 23])
def test_the_noise_of_acquired_volumes_counts_though_they_are_the_same_in_all_samples(acquired):
    scan, generated = made(acquired, lambda k: series(SIGMA))
    errors = standard_errors(generated, scan, Request())
    wanted = expected_md_error(np.arange(len(TABLE)) < acquired)
    assert errors["md"].mean() == pytest.approx(wanted, rel=0.1)


def test_what_samples_differ_by_counts():
    scan, generated = made(0, lambda k: series(SIGMA, seed=1 + k))
    errors = standard_errors(generated, scan, Request())
    assert errors["md"].mean() == pytest.approx(expected_md_error(np.ones(len(TABLE), bool)), rel=0.05)
    assert (errors["fa"] > 0).all()


def test_samples_are_seen_without_that_noise_and_only_fitted_volumes_matter():
    scan, generated = made(23, lambda k: series(SIGMA))
    seen = []
    standard_errors(generated, scan, Request(), seen=lambda k, sample: seen.append((k, sample)))
    assert [k for k, _ in seen] == list(range(8))
    np.testing.assert_array_equal(seen[3][1], scan.data)
    fitted = [0, *range(3, 23)]
    few = maps_of(generated, generated.mean, scan, fitted)
    other = generated.mean.copy()
    other[..., 1:3] = 0
    for name, values in maps_of(generated, other, scan, fitted).items():
        np.testing.assert_array_equal(values, few[name])
