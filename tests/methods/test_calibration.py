"""Samples that are too near to the best estimate, and left-out volumes that say so."""

from dataclasses import replace

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.uncertainty import covered, signal_factors
from bids_dmrigen.methods.base import Generated, LeftOut, Samples
from bids_dmrigen.methods.calibration import calibrated

SIGMA, SHAPE = 4.0, (40, 40, 8)
MASK = np.ones(SHAPE, bool)
BEST = {"fa": np.full(SHAPE, 0.6), "md": np.full(SHAPE, 0.7e-3)}
BEST["fa"][20:] = 0.1  # half is grey matter


def test_the_factor_holds_nine_of_ten_whatever_the_noise():
    rng = np.random.default_rng(0)
    tissue = np.repeat([0, 1], 20_000)
    std = rng.uniform(1, 3, (40_000, 2))
    wanted = np.array([2.5, 0.8])[tissue][:, None]
    error = wanted * std * rng.standard_normal(std.shape) + SIGMA * rng.standard_normal(std.shape)
    factors = signal_factors(error, std, SIGMA, tissue)
    np.testing.assert_allclose(factors[:2], [2.5, 0.8], rtol=0.1)
    assert covered(error, std, SIGMA, factors[tissue]) == pytest.approx(0.9, abs=1e-3)
    assert covered(error, std, SIGMA, np.ones(len(std))) < 0.85
    few = signal_factors(error, std, SIGMA, np.where(np.arange(40_000) < 100, 2, tissue))
    assert few[2] == pytest.approx(signal_factors(error, std, SIGMA, np.zeros(40_000, int))[0]), "too few of their own"


def test_noise_alone_needs_no_spread():
    rng = np.random.default_rng(0)
    error = 0.8 * SIGMA * rng.standard_normal((20_000, 1))
    assert signal_factors(error, np.ones_like(error), SIGMA, np.zeros(20_000, int)) == pytest.approx([0, 0, 0])


def made(stretch):
    """Two shells of twelve directions, three of each left out, whose errors are `stretch` times what samples say."""
    directions = even_directions(24)
    bvals = np.r_[0.0, np.full(12, 1000.0), np.full(12, 2500.0)]
    table = GradientTable(bvals, np.r_[np.zeros((1, 3)), directions])
    rng = np.random.default_rng(1)
    clean = 1000 * np.exp(-bvals * 0.7e-3) * np.ones((*SHAPE, 1))
    data = (clean + SIGMA * rng.standard_normal(clean.shape)).astype(np.float32)
    scan = Scan(data, np.diag([2.0, 2, 2, 1]), table, MASK)
    hidden = np.array([2, 5, 9, 14, 17, 21])
    error = np.where(bvals[hidden] < 2000, stretch[0], stretch[1]) * 10 * rng.standard_normal((*SHAPE, 6))
    left = LeftOut(hidden, (clean[..., hidden] + error).astype(np.float32), np.full((*SHAPE, 6), 10, np.float32))
    new = GradientTable(np.r_[bvals, 1000.0, 2400.0], np.r_[table.bvecs, directions[:2]])
    mean = np.concatenate([data, np.full((*SHAPE, 2), 300, np.float32)], axis=3)
    shift = np.where(np.arange(27) < 25, 0, 10).astype(np.float32)
    samples = Samples(2, lambda k: mean + (2 * k - 1) * shift)
    return scan, Generated(mean, samples, new, (), np.arange(27) < 25, {}, left_out=left)


def test_samples_are_spread_by_the_factors_of_their_shell_and_acquired_volumes_stay():
    scan, generated = made((3.0, 0.5))
    result = calibrated(generated, scan, BEST)
    factors = result.record["SampleFactors"]
    assert factors.keys() == {"b=1000", "b=2500"}
    for shell, wanted in (("b=1000", 3.0), ("b=2500", 0.5)):
        assert factors[shell]["white matter"] == pytest.approx(wanted, rel=0.15)
        assert factors[shell]["grey matter"] == pytest.approx(wanted, rel=0.15)
    drawn = result.samples.draw(1)
    np.testing.assert_array_equal(drawn[..., :25], scan.data)
    assert (drawn[..., 25] - 300).mean() == pytest.approx(30, rel=0.15)
    assert (drawn[..., 26] - 300).mean() == pytest.approx(5, rel=0.15)
    assert result.checks["coverage_after"] == pytest.approx(0.9, abs=0.02)
    assert result.checks["coverage_before"] < 0.8
    np.testing.assert_array_equal(result.mean, generated.mean)


def test_maps_are_spread_by_the_factors_of_their_shell_instead_of_learnt_ones():
    scan, generated = made((3.0, 0.5))
    few = generated.left_out.volumes < 13
    left = LeftOut(
        generated.left_out.volumes[few], *(v[..., few] for v in (generated.left_out.mean, generated.left_out.std))
    )
    best = np.stack([BEST["fa"], BEST["md"]], axis=3).astype(np.float32)
    samples = Samples(2, lambda k: best * (1 + 0.1 * k), {"fa": (7.0, 7.0, 7.0)})
    maps = Generated(best, samples, None, ("fa", "md"), np.zeros(2, bool), {}, left_out=left)
    result = calibrated(maps, scan, BEST)
    assert result.samples.factors == {}
    np.testing.assert_allclose(result.samples.draw(1) / best, 1.3, rtol=0.1)


def test_without_left_out_volumes_or_samples_nothing_changes():
    scan, generated = made((3.0, 0.5))
    for other in (
        replace(generated, left_out=None),
        replace(generated, samples=None),
        replace(generated, left_out=replace(generated.left_out, std=None)),
    ):
        assert calibrated(other, scan, BEST) is other
