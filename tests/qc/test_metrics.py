"""Metrics against a reference: scikit-image where definitions agree, and cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bids_dmrigen.qc import metrics


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 22, 18)), indexing="ij"))
    reference = 100 * (1.5 + np.sin(5 * grid[0]) * np.cos(4 * grid[1]) + 0.3 * grid[2])
    mask = (grid**2).sum(axis=0) < 0.9
    return reference + 8 * rng.standard_normal(reference.shape), reference, mask


def test_psnr_nmse_and_mae_by_hand():
    reference = np.zeros((4, 4, 4))
    reference[:2] = 10.0
    estimate = reference + 1.0
    mask = np.ones_like(reference, bool)
    # errors of 1 everywhere, range 10: 10 log10(100) = 20 dB; 64 / (32 * 100)
    assert metrics.psnr(estimate, reference, mask) == pytest.approx(20.0)
    assert metrics.nmse(estimate, reference, mask) == pytest.approx(0.02)
    assert metrics.mean_absolute_error(estimate, reference, mask) == pytest.approx(1.0)
    assert metrics.psnr(reference, reference, mask) == np.inf


def test_what_is_outside_the_mask_changes_nothing(pair):
    estimate, reference, mask = pair
    spoilt = np.where(mask, estimate, 1e6)
    assert metrics.scores(spoilt, reference, mask) == pytest.approx(metrics.scores(estimate, reference, mask))


def test_psnr_agrees_with_scikit_image(pair):
    from skimage.metrics import peak_signal_noise_ratio

    estimate, reference, _ = pair
    whole = np.ones(reference.shape, bool)
    expected = peak_signal_noise_ratio(reference, estimate, data_range=metrics.data_range(reference, whole))
    assert metrics.psnr(estimate, reference, whole) == pytest.approx(expected)


@pytest.mark.parametrize("slice_axis", [None, 2])
def test_ssim_agrees_with_scikit_image(pair, slice_axis):
    from skimage.metrics import structural_similarity

    estimate, reference, mask = pair
    top = metrics.data_range(reference, mask)
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "full": True,
        "data_range": top,
    }
    x, y = estimate * mask, reference * mask
    if slice_axis is None:
        similarity = structural_similarity(y, x, **options)[1]
    else:
        slices = [structural_similarity(y[..., k], x[..., k], **options)[1] for k in range(x.shape[2])]
        similarity = np.stack(slices, axis=2)
    found = metrics.ssim(estimate, reference, mask, slice_axis=slice_axis)
    assert found == pytest.approx(similarity[mask].mean(), rel=1e-6)


def test_ssim_of_channels_is_their_mean(pair):
    estimate, reference, mask = pair
    top = metrics.data_range(reference, mask)
    both = metrics.ssim(np.stack([estimate, reference], -1), np.stack([reference] * 2, -1), mask, top)
    assert both == pytest.approx((metrics.ssim(estimate, reference, mask, top) + 1) / 2)


def test_direction_angle_ignores_sign_and_isotropic_voxels():
    reference = np.zeros((3, 1, 1, 3))
    reference[..., 0] = 1.0
    estimate = reference.copy()
    estimate[0, 0, 0] = -reference[0, 0, 0]  # the same axis
    estimate[1, 0, 0] = [1, 1, 0]  # 45 degrees, not normalised
    estimate[2, 0, 0] = [0, 1, 0]  # 90 degrees, but where there is no direction
    fa = np.array([0.8, 0.8, 0.1]).reshape(3, 1, 1)
    mask = np.ones((3, 1, 1), bool)
    assert metrics.direction_angle(estimate, reference, fa, mask) == pytest.approx(22.5)
    assert np.isnan(metrics.direction_angle(estimate, reference, np.zeros((3, 1, 1)), mask))


def test_grids_that_differ_are_refused(pair):
    estimate, reference, mask = pair
    with pytest.raises(metrics.MetricError, match="not on one grid"):
        metrics.psnr(estimate[1:], reference, mask)
    with pytest.raises(metrics.MetricError, match="mask is empty"):
        metrics.nmse(estimate, reference, np.zeros_like(mask))


def test_every_definition_is_complete():
    assert len(metrics.DEFINITIONS) > 30
    for key, definition in metrics.DEFINITIONS.items():
        assert key.islower()
        assert definition.label
        assert definition.unit
        assert len(definition.text) > 10, key
        assert definition.better in ("higher", "lower", None)


def test_description_carries_unit_definition_and_source():
    entries = metrics.describe_all({"ndc": 0.9}, "qid2")
    assert list(entries) == ["ndc_qid2"]
    entry = entries["ndc_qid2"]
    assert (entry["value"], entry["source"], entry["metric"], entry["better"]) == (
        0.9,
        "qid2",
        "ndc",
        "higher",
    )
    assert metrics.describe("psnr", np.inf)["value"] is None
    assert "method itself" in metrics.describe("own_check", 1.0)["definition"]


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_tensors_snr_does_not_depend_on_the_noise_of_the_references(noise):
    """Half of the anisotropy has an error of a quarter of its power: 6.02 dB; mean diffusivities do not count."""
    rng, shape = np.random.default_rng(0), (40, 40, 40, 6)
    truth = rng.normal(size=shape)
    first, second = (truth + noise * rng.normal(size=shape) for _ in range(2))
    sphere = np.array([1.0, 0, 1, 0, 0, 1])
    mean = truth[..., [0, 2, 5]].mean(axis=-1, keepdims=True) * sphere
    estimate = 0.5 * (truth - mean) + 7 * sphere
    mask = np.ones(shape[:3], bool)
    assert metrics.tensor_snr(estimate, first, second, mask) == pytest.approx(20 * np.log10(2), abs=0.05)
    mask[:20] = False
    estimate[:20] = 100
    assert metrics.tensor_snr(estimate, first, second, mask) == pytest.approx(20 * np.log10(2), abs=0.1)
    assert np.isnan(metrics.tensor_snr(truth, truth, truth, mask))
