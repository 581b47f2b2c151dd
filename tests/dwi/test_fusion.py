"""Fusion, against the best linear weight and Monte Carlo."""

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.fusion import bands, fuse, local_mean, noise_shares, rician_variance
from bids_dmrigen.dwi.noise import rician_mean

SHAPE = (24, 24, 12)


@pytest.mark.parametrize("ratio", [0.0, 0.7, 2.0, 6.0])
def test_rician_variance_agrees_with_monte_carlo(ratio):
    sigma, rng = 3.0, np.random.default_rng(0)
    noise = rng.normal(0, sigma, (2, 400_000))
    drawn = np.hypot(ratio * sigma + noise[0], noise[1])
    mean = rician_mean(torch.tensor([ratio * sigma], dtype=torch.float64), sigma)
    assert float(rician_variance(mean, sigma)) == pytest.approx(drawn.var(), rel=0.01)


def test_local_mean_averages_the_mask_alone():
    torch.manual_seed(0)
    values, mask = torch.rand(5, 6, 7), torch.rand(5, 6, 7) > 0.4
    found = local_mean(values, mask)
    cube = (slice(1, 4), slice(2, 5), slice(0, 2))  # around (2, 3, 0), cut by the edge
    assert float(found[2, 3, 0]) == pytest.approx(float(values[cube][mask[cube]].mean()), rel=1e-5)


@pytest.mark.parametrize("error", [0.0, 20.0, 200.0])
def test_fusion_reaches_the_best_linear_combination(error):
    # error variance e² and noise variance s² are independent: the best mean square error is e² s² / (e² + s²)
    sigma, rng = 20.0, np.random.default_rng(0)
    truth = np.full((*SHAPE, 20), 1000.0, np.float32)
    acquired = (truth + rng.normal(0, sigma, truth.shape)).astype(np.float32)
    estimate = (truth + rng.normal(0, error, truth.shape)).astype(np.float32)
    fused = fuse(acquired, estimate, np.ones(SHAPE, bool), sigma)
    best = error**2 * sigma**2 / (error**2 + sigma**2)
    assert ((fused - truth) ** 2).mean() == pytest.approx(best, rel=0.05, abs=0.1 * sigma**2 / 20)


def test_smooth_errors_of_the_estimate_are_corrected():
    # an error that varies slowly is nearly all signal in the coarse bands, where little noise is
    sigma, rng = 20.0, np.random.default_rng(0)
    truth = np.full((*SHAPE, 12), 1000.0, np.float32)
    acquired = (truth + rng.normal(0, sigma, truth.shape)).astype(np.float32)
    estimate = truth + 20 * np.sin(np.arange(SHAPE[0]) / 4, dtype=np.float32)[:, None, None, None]
    fused = fuse(acquired, estimate, np.ones(SHAPE, bool), sigma)
    inner = (slice(3, -3),) * 3
    one_weight = 20**2 / 2 * sigma**2 / (20**2 / 2 + sigma**2)
    assert ((fused - truth)[inner] ** 2).mean() < 0.4 * one_weight


def test_bands_sum_to_the_image_and_have_the_stated_shares_of_white_noise():
    torch.manual_seed(0)
    image, mask = torch.randn(40, 40, 40), torch.ones(40, 40, 40, dtype=torch.bool)
    split = bands(image, mask)
    torch.testing.assert_close(sum(split), image)
    for band, share in zip(split, noise_shares(), strict=True):
        assert float(band[8:-8, 8:-8, 8:-8].square().mean()) == pytest.approx(share, rel=0.25)
    mask[:20] = False
    torch.testing.assert_close(sum(bands(image, mask)), image * mask)


def test_the_noise_floor_stays():
    sigma, rng = 20.0, np.random.default_rng(0)
    truth = np.full((*SHAPE, 20), 25.0, np.float32)
    noise = rng.normal(0, sigma, (2, *truth.shape))
    acquired = np.hypot(truth + noise[0], noise[1]).astype(np.float32)
    mean = float(rician_mean(torch.tensor(25.0), sigma))
    assert mean > 30
    fused = fuse(acquired, np.full_like(truth, mean), np.ones(SHAPE, bool), sigma)
    assert fused.mean() == pytest.approx(mean, rel=0.01)


def test_outside_the_mask_the_acquired_stays():
    rng = np.random.default_rng(0)
    acquired = rng.uniform(10, 100, (*SHAPE, 4)).astype(np.float32)
    mask = np.zeros(SHAPE, bool)
    mask[5:15] = True
    fused = fuse(acquired, np.full_like(acquired, 50), mask, 5.0)
    np.testing.assert_array_equal(fused[~mask], acquired[~mask])
    assert not np.array_equal(fused[mask], acquired[mask])


def test_samples_differ_from_the_best_estimate_by_as_much_as_it_is_wrong():
    """An estimate that misses a fine pattern in a third of the volume, and acquired volumes with noise."""
    rng = np.random.default_rng(3)
    shape, sigma, mask = (36, 36, 18, 6), 20.0, np.ones((36, 36, 18), bool)
    pattern = 15 * rng.standard_normal(shape)
    pattern[12:] = 0
    estimate = np.full(shape, 500, np.float32)
    truth = estimate + pattern
    acquired = (truth + sigma * rng.standard_normal(shape)).astype(np.float32)
    best = fuse(acquired, estimate, mask, sigma)
    samples = [
        fuse(acquired, estimate, mask, sigma, lambda j, k=k: np.random.default_rng((k, j)).standard_normal(shape[:3]))
        for k in range(6)
    ]
    spread = np.std(samples, axis=0, ddof=1)
    missed, known = (np.sqrt((spread[part] ** 2).mean()) for part in (slice(2, 10), slice(16, 34)))
    assert missed == pytest.approx(np.sqrt(((best - truth)[2:10] ** 2).mean()), rel=0.15)
    assert known < 0.35 * missed, "where the estimate is perfect, little is possible"
    assert np.abs(np.mean(samples, axis=0) - best).mean() < 0.5 * spread.mean()
