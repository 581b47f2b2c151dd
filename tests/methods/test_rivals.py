"""The simple estimates: exact without noise, and each does what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import condition, fit_tensor, noise_power
from bids_dmrigen.methods import SIMPLE, load, rivals
from bids_dmrigen.methods.base import Request
from tests.conftest import tiny_gradients, tiny_series

OBLIQUE = np.array([[-2.0, 0.3, 0, 5], [0.2, 2, 0.4, -3], [0.1, -0.5, 2.4, 7], [0, 0, 0, 1]])
SHAPE = (14, 12, 10)


def table(n=6, bval=1000.0, b0=2):
    return GradientTable(np.r_[np.zeros(b0), np.full(n, bval)], np.r_[np.zeros((b0, 3)), even_directions(n)])


def scan_of(tensors, gradients, sigma=0.0, s0=100.0, seed=0):
    """Return a scan of (X, Y, Z, 3, 3) tensors, mm²/s in world axes, in Rician noise."""
    rng = np.random.default_rng(seed)
    g = gradients.world_directions(OBLIQUE)
    signal = s0 * np.exp(-gradients.bvals * np.einsum("ni,xyzij,nj->xyzn", g, tensors, g))
    noise = sigma * rng.normal(size=(2, *signal.shape))
    data = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    return Scan(data, OBLIQUE, gradients, np.ones(tensors.shape[:3], bool))


def fibres(seed=0):
    """Return smooth fields of tensors with one fibre direction each."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3) + 0.1 * np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    return 0.4e-3 * np.eye(3) + 1.2e-3 * axis[..., :, None] * axis[..., None, :]


def test_every_name_has_an_estimate_and_a_text():
    assert list(rivals.RIVALS) == list(SIMPLE)


@pytest.mark.parametrize("name", ["ols", "wls", "mppca"])
def test_without_noise_the_estimate_is_the_truth(name):
    tensors = fibres()
    scan = scan_of(tensors, table())
    maps = rivals.RIVALS[name](scan).maps()
    values, vectors = np.linalg.eigh(tensors)
    md = values.mean(axis=-1)
    fa = np.sqrt(1.5 * ((values - md[..., None]) ** 2).sum(-1) / (values**2).sum(-1))
    np.testing.assert_allclose(maps["fa"], fa, atol=2e-3)
    np.testing.assert_allclose(maps["md"], md, rtol=2e-3)
    cosine = np.abs((maps["direction"] * vectors[..., 2]).sum(-1))
    assert cosine.min() > 0.9999  # in world axes, on an oblique grid


@pytest.mark.parametrize("name", ["smooth", "shrink", "nlm"])
def test_with_noise_the_estimate_is_nearer_to_the_truth_than_least_squares(name):
    water = np.broadcast_to(1.2e-3 * np.eye(3), (*SHAPE, 3, 3))
    tensors, gradients = water if name == "shrink" else fibres(), table(n=12)
    truth = rivals.ols(scan_of(tensors, gradients)).maps()["fa"]
    scan = scan_of(tensors, gradients, sigma=6.0)
    errors = [np.square(rivals.RIVALS[k](scan).maps()["fa"] - truth).mean() for k in (name, "wls")]
    assert errors[0] < 0.8 * errors[1]


def test_the_noise_floor_no_longer_lowers_the_mean_diffusivity():
    scan = scan_of(np.broadcast_to(1.2e-3 * np.eye(3), (*SHAPE, 3, 3)), table(n=12, bval=2500.0), sigma=6.0)
    biases = [abs(rivals.RIVALS[k](scan).maps()["md"].mean() - 1.2e-3) for k in ("rician", "wls")]
    assert biases[0] < 0.5 * biases[1]


def test_the_mean_logarithm_of_a_magnitude():
    """E[ln M] = ln A + E1(A² / 2 sigma²) / 2, which `rician` relies on."""
    from scipy.special import exp1

    noise = np.random.default_rng(0).normal(size=(2, 400000))
    for a in (0.5, 1.0, 2.0):
        mean = np.log(np.hypot(a + noise[0], noise[1])).mean()
        assert mean == pytest.approx(np.log(a) + exp1(a**2 / 2) / 2, abs=5e-3)


def test_the_power_of_noise_is_that_of_many_repetitions():
    gradients = table(n=9, bval=1500.0)
    directions = gradients.world_directions(OBLIQUE)
    signal = torch.tensor(np.r_[100, 100, np.linspace(30, 60, 9)], dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    noisy = signal + 0.5 * torch.randn(40000, 11, generator=rng)
    tensor = fit_tensor(noisy, gradients.bvals, directions, "ols").tensor
    deviator = tensor - tensor[:, [0, 2, 5]].mean(1, keepdim=True) * torch.tensor([1.0, 0, 1, 0, 0, 1])
    spread = ((deviator - deviator.mean(0)).square() @ torch.tensor([1.0, 2, 1, 2, 2, 1])).mean()
    power = noise_power(signal[None], gradients.bvals, directions, 0.5)
    assert float(power[0]) == pytest.approx(float(spread), rel=0.03)
    dark = noise_power(torch.zeros(1, 11), gradients.bvals, directions, 0.5)
    assert np.isfinite(float(dark[0]))


def test_shrinking_takes_away_the_share_of_the_noise_and_keeps_the_mean_diffusivity():
    scan = scan_of(fibres(), table(n=9), sigma=8.0)
    full, before = rivals.wls(scan).fit.tensor.double(), rivals.estimate_sigma(scan).sigma
    signal = torch.from_numpy(scan.data[scan.mask])
    power = noise_power(signal, scan.gradients.bvals, scan.gradients.world_directions(OBLIQUE), before).double()
    fewer = rivals.shrunk(scan, 0.5).fit.tensor.double()
    trace, size = torch.tensor([1.0, 0, 1, 0, 0, 1]).double(), torch.tensor([1.0, 2, 1, 2, 2, 1]).double()
    np.testing.assert_allclose(fewer @ trace, full @ trace, rtol=1e-4)
    parts = [t - (t @ trace)[:, None] / 3 * trace for t in (full, fewer)]
    factor = 1 - 0.5 * power.median() / (parts[0].square() @ size).median()
    assert 0 < factor < 0.98
    np.testing.assert_allclose(parts[1], factor * parts[0], rtol=1e-2, atol=1e-7)


def test_volumes_for_other_directions_are_those_of_the_harmonic_fit():
    gradients = tiny_gradients(20)
    brain = tiny_series(gradients, noise=0)[..., 0] > 0
    scan = Scan(tiny_series(gradients), np.diag([-3.0, 3, 3, 1]), gradients, brain)
    kept = np.arange(len(gradients)) < 12
    few, wanted = Scan(scan.data[..., kept], scan.affine, gradients[kept], scan.mask), gradients[~kept]
    volumes = rivals.ols(few).volumes(wanted)
    made = load("sh").generate(None, few, Request(options={"directions": wanted.bvecs}))
    np.testing.assert_allclose(volumes[scan.mask], made.mean[scan.mask][:, ~made.acquired], rtol=1e-4, atol=1e-3)
    high = GradientTable(np.full(2, 3000.0), wanted.bvecs[:2])
    assert rivals.ols(few).volumes(high) is None


def test_directions_on_a_cone_do_not_determine_a_tensor():
    angle = np.arange(6) * np.pi / 3
    cone = np.stack([np.cos(angle), np.sin(angle), np.full(6, 2**-0.5)], axis=1) / 1.5**0.5
    assert condition(cone) > 1e6
    for n in (6, 12, 80):
        assert condition(even_directions(n)) == pytest.approx(6, abs=1)
    assert condition(even_directions(5)) == np.inf


def test_on_finer_voxels_an_estimate_that_changes_evenly_stays_what_it_was():
    """On an oblique grid, and beside the mask, where the splines see other values."""
    ramp = np.arange(SHAPE[0])[:, None, None, None, None] / SHAPE[0]
    tensors = np.broadcast_to(1e-3 * np.diag([0.4, 0.5, 0.9]), (*SHAPE, 3, 3)) * (1 + ramp)
    scan = scan_of(tensors, table())
    inside = np.zeros(SHAPE, bool)
    inside[2:12, 3:9, 2:8] = True
    finer = np.array(OBLIQUE)
    finer[:3, :3] /= 2
    finer[:3, 3] -= finer[:3, :3] @ np.full(3, 0.5)
    mask = inside.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    like = Scan(np.zeros((*mask.shape, 0), np.float32), finer, scan.gradients[np.zeros(8, bool)], mask)
    estimate = rivals.wls(replace(scan, mask=inside)).on_finer(like)
    maps = estimate.maps()
    place = (np.arange(28) + 0.5) / 2 - 0.5  # in old voxels
    expected = 1e-3 * 0.6 * (1 + place / SHAPE[0])
    np.testing.assert_allclose(maps["md"][8:20, 10, 10], expected[8:20], rtol=2e-3)
    assert (maps["md"][mask] > 0.9 * 0.6e-3).all()
    assert (maps["md"][~mask] == 0).all()
    assert estimate.series.data.shape == (*mask.shape, 8)
    b0 = estimate.series.data[8:20, 10, 10, 0]
    np.testing.assert_allclose(b0, 100, rtol=1e-3)
