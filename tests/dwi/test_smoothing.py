"""Smoothing of the directional contrast: against scipy, and what it must leave alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_dmrigen.dwi import smoothing
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from tests.conftest import tiny_gradients, tiny_series

AFFINE = np.diag([-2.0, 2, 4, 1])


def noisy_scan(n=8, noise=8.0, affine=AFFINE):
    gradients = tiny_gradients(n)
    data = tiny_series(gradients, noise=noise)
    return Scan(data, affine, gradients, tiny_series(gradients, noise=0)[..., 0] > 0)


def test_a_weighted_mean_is_scipys_gaussian_of_the_masked_volume_over_that_of_the_mask():
    rng = np.random.default_rng(0)
    volume, mask = rng.normal(size=(2, 9, 11, 7)).astype(np.float32), rng.random((9, 11, 7)) > 0.3
    widths = (0.8, 0.4, 0.0)
    ours = smoothing.smooth(torch.from_numpy(volume * mask), torch.from_numpy(mask)[None], widths)
    radius = [int(np.ceil(smoothing.REACH * w)) for w in widths]

    def scipys(v):
        for axis, (width, r) in enumerate(zip(widths, radius, strict=True)):
            if width:
                v = ndimage.gaussian_filter1d(v, width, axis=axis, mode="constant", radius=r)
        return v

    for k in range(2):
        wanted = scipys(np.float64(volume[k] * mask)) / scipys(np.float64(mask)) * mask
        np.testing.assert_allclose(ours[k], wanted, atol=1e-6)


def test_the_mean_over_directions_the_b0_and_what_is_outside_the_mask_stay():
    scan = noisy_scan()
    smooth = smoothing.smooth_contrast(scan, 0.6)
    b0, (_, volumes) = scan.gradients.is_b0, scan.gradients.shells()[0]
    np.testing.assert_array_equal(smooth.data[..., b0], scan.data[..., b0])
    np.testing.assert_array_equal(smooth.data[~scan.mask], scan.data[~scan.mask])
    lit = scan.mask & (scan.data > 0).all(axis=3)
    before, after = (np.log(s.data[lit][:, volumes]) for s in (scan, smooth))
    np.testing.assert_allclose(after.mean(axis=1), before.mean(axis=1), atol=1e-5)
    assert np.abs(after - before).mean() > 0.01
    np.testing.assert_allclose(smoothing.smooth_contrast(scan, 0.0).data, scan.data, rtol=1e-5)


def test_coarse_axes_are_smoothed_less():
    """In voxels of 2 x 2 x 4 mm the width along the third axis is half of that along the others."""
    gradients = tiny_gradients(8)
    mask = np.ones((15, 15, 15), bool)
    data = np.full((*mask.shape, len(gradients)), 100.0, np.float32)
    volumes = gradients.shells()[0][1]
    data += np.random.default_rng(1).normal(size=data.shape)
    data[7, 7, 7, volumes[0]] = 300
    smooth = smoothing.smooth_contrast(Scan(data, AFFINE, gradients, mask), 0.8).data[..., volumes[0]]
    mean = np.log(data[..., volumes]).mean(axis=3)  # it is not smoothed
    contrast = np.log(smooth) - mean
    beside, above = contrast[8, 7, 7] / contrast[7, 7, 7], contrast[7, 7, 8] / contrast[7, 7, 7]
    assert beside == pytest.approx(np.exp(-0.5 / 0.8**2), abs=0.05)
    assert above == pytest.approx(np.exp(-0.5 / 0.4**2), abs=0.05)


def test_missing_samples_stay_missing_and_have_no_effect():
    scan = noisy_scan()
    volume = scan.gradients.shells()[0][1][0]
    place = tuple(np.argwhere(scan.mask)[scan.mask.sum() // 2])
    data = scan.data.copy()
    data[*place, volume] = 0
    smooth = smoothing.smooth_contrast(Scan(data, AFFINE, scan.gradients, scan.mask), 0.5).data
    assert smooth[*place, volume] == 0
    whole = smoothing.smooth_contrast(scan, 0.5).data
    near = np.abs(smooth / np.maximum(whole, 1e-6) - 1)[scan.mask & (whole > 0).all(axis=3)][:, volume]
    assert np.sort(near)[-2] < 0.3  # a zero that counted as signal would change its neighbours many times over


def test_the_result_does_not_depend_on_units_or_on_flips_of_the_grid():
    scan = noisy_scan()
    smooth = smoothing.smooth_contrast(scan)
    scaled = smoothing.smooth_contrast(Scan(scan.data * 1e-6, AFFINE, scan.gradients, scan.mask))
    np.testing.assert_allclose(scaled.data, smooth.data * 1e-6, rtol=1e-3)
    affine = AFFINE @ np.diag([-1, 1, 1, 1])
    turned = Scan(scan.data[::-1].copy(), affine, scan.gradients, scan.mask[::-1])
    back = smoothing.smooth_contrast(turned, 0.5).data[::-1]
    np.testing.assert_allclose(back, smoothing.smooth_contrast(scan, 0.5).data, rtol=1e-4)


def test_noisier_shells_are_smoothed_more():
    v = even_directions(9)
    gradients = GradientTable(np.r_[0, np.full(9, 1000), np.full(9, 2000)], np.r_[np.zeros((1, 3)), v, v])
    mask = np.ones((6, 6, 6), bool)
    data = np.full((6, 6, 6, 19), 100.0, np.float32)
    data[..., 10:] = 50
    scan = Scan(data, AFFINE, gradients, mask)
    (b, low), (c, high) = gradients.shells()
    assert smoothing.shell_noise(scan, b, low, 3.0) == pytest.approx(3 / 100 / 1.0 / 3)
    assert smoothing.shell_noise(scan, c, high, 3.0) == pytest.approx(3 / 50 / 2.0 / 3)
    widths = [smoothing.width_of(noise) for noise in (1e-9, 0.03, 0.1, 0.3, 1e9)]
    assert widths == sorted(widths)
    assert widths[0] == 0
    assert widths[1] < widths[3]
    assert widths[4] == smoothing.WIDEST


def test_a_scan_whose_noise_cannot_be_estimated_is_refused():
    scan = noisy_scan()
    with pytest.raises(ScanError, match="noise cannot be estimated"):
        smoothing.smooth_contrast(Scan(np.ones_like(scan.data), AFFINE, scan.gradients, scan.mask))
