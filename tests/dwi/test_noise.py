"""Rician moments against simulation and closed forms, the estimated noise level against the true one."""

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi import noise as module
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.noise import estimate_sigma, rician_mean, rician_signal, shell_contrast_noise, shell_sigma
from bids_dmrigen.dwi.series import Scan, ScanError

SHAPE = (24, 24, 10)


def simulated(n_directions, b, snr, n_b0=1, seed=0):
    """Return a Rician scan of grey matter, crossing fibres and CSF in random voxels, and its sigma."""
    rng = np.random.default_rng(seed)
    bvals = np.r_[np.zeros(n_b0), np.full(n_directions, float(b))]
    directions = np.r_[np.zeros((n_b0, 3)), even_directions(n_directions)]

    def axes():
        vectors = rng.standard_normal((*SHAPE, 3))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def cylinder(axis, along, across):
        return np.exp(-bvals * (across + (along - across) * (axis @ directions.T) ** 2))

    share = rng.uniform(0.3, 0.7, (*SHAPE, 1))
    white = sum(
        part * (0.6 * cylinder(axis, 1.7e-3, 0) + 0.4 * cylinder(axis, 1.7e-3, 0.6e-3))
        for part, axis in ((share, axes()), (1 - share, axes()))
    )
    grey = cylinder(axes(), 0.95e-3, 0.75e-3)
    csf = np.broadcast_to(np.exp(-bvals * 3e-3), white.shape)
    tissue = rng.choice(3, SHAPE, p=[0.45, 0.45, 0.1])[..., None]
    clean = 1000 * np.select([tissue == 0, tissue == 1], [0.8 * white, grey], 1.8 * csf)
    sigma = 1000 / snr
    data = np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape))
    data[:4] = 0  # as many scanners leave the background
    scan = Scan(
        data.astype(np.float32),
        np.diag([2, 2, 2.5, 1.0]),
        GradientTable(bvals, directions),
        np.ones(SHAPE, dtype=bool),
    )
    return scan, sigma


def test_rician_mean_equals_its_closed_forms():
    signal = torch.tensor([0.0, 200.0, 1e5], dtype=torch.float64)
    found = rician_mean(signal, 2.0)
    assert found[0].item() == pytest.approx(2 * np.sqrt(np.pi / 2))  # Rayleigh
    assert found[1].item() == pytest.approx(200 + 4 / 400, rel=1e-7)  # A + sigma²/(2 A) + ...
    assert found[2].item() == pytest.approx(1e5, rel=1e-9)


@pytest.mark.parametrize("snr", [0.5, 1.0, 2.0, 5.0])
def test_rician_mean_equals_simulation(snr):
    draws = np.random.default_rng(0).standard_normal((2, 1_000_000)) * 3
    expected = np.hypot(draws[0] + 3 * snr, draws[1]).mean()
    assert rician_mean(torch.tensor(3 * snr), 3.0).item() == pytest.approx(expected, rel=3e-3)


def test_rician_signal_inverts_the_mean():
    signal = torch.linspace(0.5, 500, 2000, dtype=torch.float64)
    torch.testing.assert_close(rician_signal(rician_mean(signal, 2.0), 2.0), signal, rtol=1e-4, atol=2e-3)
    floor = torch.tensor([0.0, 1.0, 2.5])
    torch.testing.assert_close(rician_signal(floor, 2.0), torch.zeros(3))


@pytest.mark.parametrize("snr", [5, 15, 50])
@pytest.mark.parametrize(("n_directions", "b"), [(12, 1000), (30, 1000), (12, 2000), (30, 3000)])
def test_sigma_is_found_from_a_single_run(snr, n_directions, b):
    scan, sigma = simulated(n_directions, b, snr)
    estimate = estimate_sigma(scan)
    assert estimate.sigma == pytest.approx(sigma, rel=0.10)
    assert not estimate.spatial
    assert estimate.b0_snr == pytest.approx(np.median(scan.data[4:, ..., 0]) / sigma, rel=0.12)


def test_background_noise_and_its_absence_give_the_same():
    zeroed, sigma = simulated(12, 1000, 20)
    data = zeroed.data.copy()
    data[:4] = np.hypot(*np.random.default_rng(3).normal(0, sigma, (2, *data[:4].shape)))
    noisy = Scan(data, zeroed.affine, zeroed.gradients, zeroed.mask)
    masked = Scan(data, zeroed.affine, zeroed.gradients, zeroed.data[..., 0] > 0)
    for scan in (zeroed, noisy, masked):
        assert estimate_sigma(scan).sigma == pytest.approx(sigma, rel=0.05)


def test_sigma_scales_with_the_units():
    scan, _ = simulated(12, 1000, 20)
    larger = Scan(scan.data * 37, scan.affine, scan.gradients, scan.mask)
    assert estimate_sigma(larger).sigma == pytest.approx(37 * estimate_sigma(scan).sigma, rel=1e-4)


def test_repeated_b0s_alone_are_enough():
    scan, sigma = simulated(6, 1000, 20, n_b0=7)
    estimate = estimate_sigma(scan)
    assert estimate.sigma == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("one_slice", [False, True], ids=["thick slices", "one thin slice"])
def test_six_directions_are_read_between_neighbours(one_slice):
    directions = np.r_[np.zeros((1, 3)), even_directions(6)]
    rng = np.random.default_rng(0)
    x = np.indices(SHAPE)[0][..., None]
    clean = 1000 * (1 + 0.02 * x) * np.r_[1, np.linspace(0.3, 0.6, 6)]  # smooth anatomy
    data = np.hypot(clean + rng.normal(0, 30, clean.shape), rng.normal(0, 30, clean.shape))
    gradients = GradientTable(np.r_[0, np.full(6, 1000.0)], directions)
    thickness = 1.5 if one_slice else 5.0  # a single slice has no neighbours, however thin it is
    data = data.astype(np.float32)[:, :, : 1 if one_slice else None]
    scan = Scan(data, np.diag([2, 2, thickness, 1.0]), gradients, np.ones(data.shape[:3], dtype=bool))
    estimate = estimate_sigma(scan)
    assert estimate.spatial
    assert estimate.sigma == pytest.approx(30, rel=0.05)


def test_what_cannot_be_estimated_is_refused():
    scan, _ = simulated(12, 1000, 20)
    pair = scan.gradients[:2]
    with pytest.raises(ScanError) as error:
        estimate_sigma(Scan(scan.data[..., :2], scan.affine, pair, scan.mask))
    assert str(error.value) == module.NO_FREEDOM.format(n_b0=1, n_directions=1)
    with pytest.raises(ScanError, match="0 usable voxels"):
        estimate_sigma(Scan(0 * scan.data, scan.affine, scan.gradients, scan.mask))
    constant = np.broadcast_to(scan.data[..., :1], scan.data.shape)
    with pytest.raises(ScanError, match="volumes differ from one another"):
        estimate_sigma(Scan(constant, scan.affine, scan.gradients, scan.mask))


def test_pulsating_voxels_hardly_count():
    scan, sigma = simulated(12, 1000, 20)
    rng = np.random.default_rng(5)
    moving = rng.random(SHAPE) < 0.3
    data = scan.data.copy()
    data[moving] *= rng.normal(1, 0.3, (moving.sum(), data.shape[3]))
    disturbed = Scan(np.abs(data), scan.affine, scan.gradients, scan.mask)
    assert estimate_sigma(disturbed).sigma == pytest.approx(sigma, rel=0.12)


def test_the_level_of_a_shell_does_not_see_how_b0s_differ():
    rng = np.random.default_rng(3)
    gradients = GradientTable(np.r_[0, 0, np.full(12, 1000.0)], np.concatenate([np.zeros((2, 3)), even_directions(12)]))
    data = 100 * np.exp(-0.7e-3 * gradients.bvals) * rng.uniform(0.8, 1.2, (16, 16, 8, 1)) + rng.normal(
        0, 2, (16, 16, 8, 14)
    )
    data[..., 1] *= 1.3  # another run's receiver
    scan = Scan(data.astype(np.float32), np.eye(4), gradients, np.ones((16, 16, 8), bool))
    assert shell_sigma(scan, np.arange(2, 14)) == pytest.approx(2, rel=0.08)
    assert estimate_sigma(scan).sigma > 2.2


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_noise_of_few_volumes_is_read_slice_by_slice(n):
    """White noise of 3 over an image that all volumes share; a slice without a brain has no answer."""
    generator = torch.Generator().manual_seed(n)
    anatomy = 100 + 50 * torch.rand(3, 1, 160, 160, generator=generator)
    dwis = anatomy + 3 * torch.randn(3, n, 160, 160, generator=generator)
    mask = torch.ones(3, 160, 160, dtype=torch.bool)
    mask[2] = False
    for apart in (1, 2):
        found = shell_contrast_noise(dwis, mask, apart)
        torch.testing.assert_close(found[:2], torch.full((2,), 3.0), rtol=0.06, atol=0)
        assert found[2].isnan()
