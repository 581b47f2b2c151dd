"""Metrics without a reference, on series with known true values."""

from __future__ import annotations

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.qc import iqm

SIGMA = 10.0


def _table(n_directions: int, n_b0: int = 1, bval: float = 1000.0) -> GradientTable:
    bvals = np.r_[np.zeros(n_b0), np.full(n_directions, bval)]
    return GradientTable(bvals, np.r_[np.zeros((n_b0, 3)), even_directions(n_directions)])


def _tensor_series(table: GradientTable, shape=(14, 14, 12), seed: int = 0, anisotropic=1.2e-3):
    """Return the noise-free signal of random prolate tensors, b0 500."""
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal((*shape, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    diffusivity = 0.4e-3 + anisotropic * (axis @ table.bvecs.T) ** 2
    return 500 * np.exp(-table.bvals * diffusivity)


def _prediction(data, table, mask):
    """Return the signal of DIPY's weighted tensor fit."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    model = TensorModel(gradient_table(table.bvals, bvecs=table.bvecs, b0_threshold=50), return_S0_hat=True)
    fit = model.fit(np.maximum(data, 1e-3), mask=mask)
    return fit.predict(model.gtab, S0=fit.S0_hat), fit.S0_hat


def test_signal_to_noise_by_hand():
    table = _table(6, n_b0=2)
    data = np.full((4, 4, 4, 8), 50.0)
    data[..., table.is_b0] = 200.0
    mask = np.ones((4, 4, 4), bool)
    assert iqm.signal_to_noise(data, table, mask, SIGMA) == pytest.approx({"b0_snr": 20.0, "dwi_snr": 5.0})
    sigma_map = np.full((4, 4, 4), SIGMA)
    sigma_map[0] = 0.0  # not estimated there
    assert iqm.signal_to_noise(data, table, mask, sigma_map)["b0_snr"] == pytest.approx(20.0)


def test_dwi_snr_is_of_the_highest_shell():
    bvals = np.r_[0, np.tile([3000.0, 1000.0], 6)]
    table = GradientTable(bvals, np.r_[np.zeros((1, 3)), even_directions(12)])
    data = np.broadcast_to(np.select([bvals == 0, bvals == 1000], [200.0, 50.0], 20.0), (4, 4, 4, 13))
    values = iqm.signal_to_noise(data, table, np.ones((4, 4, 4), bool), SIGMA)
    assert values == pytest.approx({"b0_snr": 20.0, "dwi_snr": 2.0})


def test_direction_contrast_is_the_same_with_and_without_noise():
    table = _table(15)  # few volumes: the fit takes up much of the noise
    clean = _tensor_series(table, anisotropic=0.4e-3)
    mask = np.ones(clean.shape[:3], bool)
    true = clean[..., 1:].std(axis=3, ddof=1)
    expected = np.sqrt((true**2).mean()) / np.sqrt((clean[..., 1:].mean(axis=3) ** 2).mean())
    noisy = clean + 3 * SIGMA * np.random.default_rng(1).standard_normal(clean.shape)
    for data in (clean, noisy):
        varying, mean = iqm.direction_signal(data, _prediction(data, table, mask)[0], table, mask)
        assert varying / mean == pytest.approx(expected, rel=0.08)
    averaged = np.broadcast_to(noisy[..., 1:].mean(axis=3, keepdims=True), noisy.shape).copy()
    averaged[..., 0] = noisy[..., 0]
    varying, mean = iqm.direction_signal(averaged, _prediction(averaged, table, mask)[0], table, mask)
    assert varying / mean < 0.1 * expected  # directions averaged away


def test_direction_contrast_needs_more_volumes_than_parameters():
    table = _table(6)
    data = _tensor_series(table)
    assert np.isnan(iqm.direction_signal(data, data, table, np.ones(data.shape[:3], bool))).all()


def test_neighbour_correlation_pairs_antipodes():
    # Directions 0 and 1 are nearly opposite, hence neighbours; 2 and 3 likewise, about another axis.
    directions = np.array([[1, 0, 0], [-0.99, 0.14, 0], [0, 0, 1], [0, 0.1, -0.99]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    table = GradientTable(np.r_[0, np.full(4, 1000.0)], np.r_[np.zeros((1, 3)), directions])
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 6, 6))
    mask = np.ones((6, 6, 6), bool)
    data = np.stack([rng.standard_normal((6, 6, 6)), a, 2 * a + 3, b, b], axis=3)
    assert iqm.neighbour_correlation(data, table, mask) == pytest.approx(1.0)
    swapped = np.stack([data[..., 0], a, b, a, b], axis=3)
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert iqm.neighbour_correlation(swapped, table, mask) == pytest.approx(expected)


@pytest.mark.parametrize(("degrees", "pairs"), [(20, "of one shell"), (90, "of one direction")])
def test_neighbours_are_nearest_in_q_space(degrees, pairs):
    # sqrt(b) of the shells differs by 23; directions are 11 and 19 apart at 20 degrees, 45 and 77 at 90 degrees
    angle = np.radians(degrees)
    directions = np.array([[0, 0, 0], *[[1, 0, 0], [np.cos(angle), np.sin(angle), 0]] * 2])
    table = GradientTable([0, 1000, 1000, 3000, 3000], directions)
    other, a, b = np.random.default_rng(0).standard_normal((3, 6, 6, 6))
    volumes = [a, 2 * a + 3, b, b] if pairs == "of one shell" else [a, b, 2 * a + 3, b]
    data = np.stack([other, *volumes], axis=3)
    assert iqm.neighbour_correlation(data, table, np.ones((6, 6, 6), bool)) == pytest.approx(1.0)


def test_dropouts_are_found_and_anatomy_is_not():
    table = _table(20)
    data = _tensor_series(table, shape=(20, 20, 24))
    # Directions matter more in the upper slices, smoothly, as they do where tracts run upwards.
    weight = np.linspace(0, 0.5, 24)[:, None] * (table.bvecs[:, 2] ** 2)[None]
    data = data * np.exp(-weight)[None, None] + np.random.default_rng(0).normal(0, 3, data.shape)
    mask = np.ones(data.shape[:3], bool)
    mask[:, :, 0] = False
    scores, dropouts = iqm.slice_scores(data, table, mask)
    assert not dropouts.any()
    assert np.isnan(scores[0]).all()  # no brain there
    assert np.isnan(scores[:, 0]).all()  # a single b0 compares with nothing
    data[:, :, 7, 5] *= 0.6
    data[:, :, 15, 11] *= 0.7
    scores, dropouts = iqm.slice_scores(data, table, mask)
    assert np.argwhere(dropouts).tolist() == [[7, 5], [15, 11]]
    assert iqm.dropout_fraction(scores, dropouts) == pytest.approx(100 * 2 / (23 * 20))


def test_tensor_residual_recovers_the_noise_level():
    table = _table(30)
    clean = _tensor_series(table)
    mask = np.ones(clean.shape[:3], bool)
    noisy = clean + SIGMA * np.random.default_rng(0).standard_normal(clean.shape)
    predicted, s0 = _prediction(noisy, table, mask)
    assert iqm.tensor_residual(noisy, predicted, s0, mask) == pytest.approx(100 * SIGMA / 500, rel=0.08)
    assert np.isnan(iqm.tensor_residual(noisy[..., :7], predicted[..., :7], s0, mask))


def test_residual_of_noise_looks_like_noise_and_residual_of_smoothing_does_not():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 24, 20)), indexing="ij"))
    b0 = 500.0 * ((grid**2).sum(axis=0) < 0.5) + 200
    mask = np.ones(b0.shape, bool)
    noise = SIGMA * rng.standard_normal((*b0.shape, 6))
    checks = iqm.residual_checks(noise, b0, mask, SIGMA)
    assert abs(checks["residual_edge_correlation"]) < 0.05
    assert abs(checks["residual_autocorrelation"]) < 0.02
    assert checks["residual_std"] == pytest.approx(1.0, rel=0.02)
    noisy = b0[..., None] + noise
    checks = iqm.residual_checks(noisy - gaussian_filter(noisy, (1, 1, 1, 0)), b0, mask, SIGMA)
    assert checks["residual_edge_correlation"] > 0.6
    assert iqm.residual_checks(np.zeros_like(noise), b0, mask, SIGMA) == {}


def test_acquisition_counts_and_volumes():
    table, affine = _table(12, n_b0=2), np.diag([2.0, 2, 3, 1])
    counts = iqm.acquisition(table, affine)
    assert (counts["n_volumes"], counts["n_b0"], counts["n_shells"], counts["n_directions"]) == (14, 2, 1, 12)
    assert counts["voxel_volume"] == pytest.approx(12.0)
    assert iqm.mask_volume(np.ones((10, 10, 10)), affine) == pytest.approx(12.0)
