"""From samples to standard errors and quantiles, against closed forms."""

import numpy as np
import pytest

from bids_dmrigen.dwi.uncertainty import Running, interval, map_errors, tissue_of

SHAPE = (24, 20, 3)
MASK = np.zeros(SHAPE, bool)
MASK[2:-2, 2:-2] = True
BEST = {"fa": np.full(SHAPE, 0.4, np.float32), "md": np.full(SHAPE, 0.7e-3, np.float32)}
BEST["md"][12:] = 2.5e-3  # half of it is fluid


def samples(std, k=8, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(k):
        yield {name: best + std[name] * rng.standard_normal(SHAPE) for name, best in BEST.items()}


def test_running_sums_are_those_of_numpy():
    values = 1e4 + np.random.default_rng(0).normal(size=(9, 4, 3))
    running = Running()
    for one in values:
        running.add(one)
    np.testing.assert_allclose(running.mean, values.mean(axis=0))
    np.testing.assert_allclose(running.std(), values.std(axis=0, ddof=1), rtol=1e-5)


def test_one_error_everywhere_is_found_free_of_the_noise_of_few_samples():
    errors = map_errors(BEST, samples({"fa": 0.05, "md": 1e-4}), MASK, {})
    assert not errors["fa"][~MASK].any()
    # The logarithms vary by little more than they must: each tissue has nearly one error.
    for part in (slice(2, 12), slice(12, 22)):
        assert errors["fa"][part, 2:-2].std() < 0.005, "eight samples alone would vary by 0.013"
        assert errors["fa"][part, 2:-2].mean() == pytest.approx(0.05, rel=0.05)
        assert errors["md"][part, 2:-2].mean() == pytest.approx(1e-4, rel=0.05)


def test_different_errors_stay_different():
    std = np.where(np.arange(SHAPE[1]) < 10, 0.01, 0.1)[:, None] * np.ones(SHAPE)
    errors = map_errors(BEST, samples({"fa": std, "md": 1e-4}), MASK, {})["fa"]
    assert errors[2:12, 3:8].mean() == pytest.approx(0.01, rel=0.2)
    assert errors[2:12, 12:17].mean() == pytest.approx(0.1, rel=0.2)


def test_logarithms_are_drawn_towards_their_mean_by_the_share_that_few_samples_explain():
    alone = np.zeros(SHAPE, bool)
    alone[2:12:2, 2:-2:2] = True  # no neighbours in the plane, one tissue
    std = np.exp(np.random.default_rng(5).normal(-3, 0.5, SHAPE))
    drawn = list(samples({"fa": std, "md": 1e-4}))
    raw = np.log(np.std([sample["fa"] for sample in drawn], axis=0, ddof=1)[alone])
    share = 1 / (2 * (8 - 1)) / raw.var()
    expected = np.exp((1 - share) * raw + share * raw.mean())
    np.testing.assert_allclose(map_errors(BEST, drawn, alone, {})["fa"][alone], expected, rtol=1e-4)
    assert 0.1 < share < 0.5


def test_factors_are_those_of_the_tissue_and_neighbours_outside_the_mask_do_not_count():
    plain, scaled = (
        map_errors(BEST, samples({"fa": 0.05, "md": 1e-4}), MASK, factors)
        for factors in ({}, {"fa": (2.0, 3.0, 5.0)})
    )  # fmt: skip
    np.testing.assert_allclose(scaled["fa"][2:12], 2 * plain["fa"][2:12], rtol=1e-5)  # FA above 0.25: white matter
    np.testing.assert_allclose(scaled["fa"][12:22], 5 * plain["fa"][12:22], rtol=1e-5)
    np.testing.assert_array_equal(scaled["md"], plain["md"])
    wild = {name: np.where(MASK, 0.05, 1e6) for name in BEST}
    quiet = {name: np.where(MASK, 0.05, 0.0) for name in BEST}
    np.testing.assert_allclose(
        map_errors(BEST, samples(wild), MASK, {})["fa"], map_errors(BEST, samples(quiet), MASK, {})["fa"], rtol=1e-5
    )


def test_quantiles_are_those_of_a_normal_distribution_within_the_range_of_the_map():
    best, error = np.array([0.05, 0.5, 0.98]), np.full(3, 0.1)
    low, high = interval("fa", best, error)
    np.testing.assert_allclose(low, [0, 0.3355, 0.8155])
    np.testing.assert_allclose(high, [0.2145, 0.6645, 1])
    assert interval("md", 1e-3 * np.ones(1), 2e-3 * np.ones(1))[1] > 4e-3, "only FA ends at one"


def test_tissues_follow_md_first():
    assert tissue_of(np.array([0.6, 0.1, 0.6]), np.array([0.7e-3, 0.7e-3, 2e-3])).tolist() == [0, 1, 2]
