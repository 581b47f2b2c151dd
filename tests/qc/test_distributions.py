"""Scores of distributions, against closed forms and simulations."""

import numpy as np
import pytest

from bids_dmrigen.qc.distributions import Colours, distribution_scores
from bids_dmrigen.qc.metrics import crps, energy_score

RNG = np.random.default_rng(0)
N = 40_000


def test_crps_of_a_certain_estimate_is_its_error():
    best, found = RNG.normal(size=N), RNG.normal(size=N)
    assert crps(best, np.zeros(N), found) == pytest.approx(np.abs(best - found).mean(), rel=1e-5)


def test_crps_is_that_of_its_integral():
    """The integral over x of (F(x) - 1[x >= y])²."""
    from scipy.stats import norm

    x = np.linspace(-12, 12, 400_001)
    expected = np.trapezoid((norm.cdf(x, 0.3, 1.7) - (x >= 1.1)) ** 2, x)
    assert crps(np.array([0.3]), np.array([1.7]), np.array([1.1])) == pytest.approx(expected, rel=1e-4)


def test_the_right_error_has_the_best_crps():
    found = 0.3 * RNG.normal(size=N)
    scores = {error: crps(np.zeros(N), np.full(N, error), found) for error in (0.2, 0.3, 0.45)}
    assert min(scores, key=scores.get) == 0.3
    assert scores[0.3] == pytest.approx(0.3 / np.sqrt(np.pi), rel=0.02)


def test_energy_score_of_one_dimension_is_crps():
    samples, found = RNG.normal(size=(200, 2000, 1)), RNG.normal(size=(2000, 1))
    expected = crps(np.zeros(2000), np.ones(2000), found[:, 0])
    assert energy_score(samples, found) == pytest.approx(expected, rel=0.01)


def maps(fa, md=0.7e-3):
    shape = fa.shape
    return {"fa": fa, "md": np.broadcast_to(md, shape), "dec": fa[..., None] * np.array([0.0, 0.6, 0.8])}


SHAPE, MASK = (60, 50, 10), np.ones((60, 50, 10), bool)


def test_errors_that_say_where_they_are_beat_one_error_everywhere_and_cover_nine_of_ten():
    error = np.where(np.arange(60) < 30, 0.02, 0.1)[:, None, None] * np.ones(SHAPE)
    best, truth = np.full(SHAPE, 0.5), 0.5 + error * RNG.normal(size=SHAPE)
    known = distribution_scores(maps(best), maps(truth), MASK, error)
    one = distribution_scores(maps(best), maps(truth), MASK)
    assert known["fa_coverage"] == pytest.approx(0.9, abs=0.01)
    assert known["fa_crps"] == pytest.approx(error.mean() / np.sqrt(np.pi), rel=0.03)
    assert one["fa_crps"] > 1.05 * known["fa_crps"]
    assert known["fa_width"] == pytest.approx(2 * 1.645 * error.mean())
    assert "dec_energy" not in known, "it needs samples"
    assert known["fa_coverage_white"] == pytest.approx(0.9, abs=0.02), "a few voxels count as grey matter"
    assert "fa_coverage_fluid" not in known


def test_coverage_is_told_by_tissue_of_the_reference():
    error, best = np.full(SHAPE, 0.05), np.full(SHAPE, 0.3)
    md = np.where(np.arange(60) < 20, 2.5e-3, 0.7e-3)[:, None, None] * np.ones(SHAPE)
    truth = np.where(np.arange(60) < 40, 0.2, 0.3)[:, None, None] * np.ones(SHAPE)
    found = distribution_scores(maps(best), maps(truth, md), MASK, error)
    assert (found["fa_coverage_fluid"], found["fa_coverage_grey"], found["fa_coverage_white"]) == (0, 0, 1)


def test_samples_of_colour_are_taken_around_the_best_estimate_and_as_far_as_the_errors_say():
    colours = Colours(MASK)
    for k in range(8):
        shift = 0.01 * np.random.default_rng(k).normal(size=SHAPE)
        colours({"fa": 0.5 + shift, "dec": maps(0.5 + shift)["dec"] + 0.2})
    best = maps(np.full(SHAPE, 0.4))["dec"][MASK]
    drawn = colours.around(best, np.full(MASK.sum(), 0.05))
    np.testing.assert_allclose(drawn.mean(axis=0), best, atol=1e-6)
    assert np.linalg.norm(drawn.std(axis=0, ddof=1), axis=1) == pytest.approx(0.05)
