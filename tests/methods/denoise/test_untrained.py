"""Denoisers of DIPY: the same as when called directly, within the mask, wherever there is a result."""

import numpy as np
import pytest
from dipy.denoise.nlmeans import nlmeans

from bids_dmrigen.dwi.noise import estimate_sigma
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.denoise.classical import denoise
from bids_dmrigen.methods.denoise.untrained import UntrainedDenoiser
from tests.conftest import tiny_gradients

AFFINE = np.diag([-2.0, 2, 2, 1])


@pytest.fixture(scope="module")
def scans():
    """A noisy scan and the same without noise: one tensor, slowly varying brightness."""
    gradients, rng = tiny_gradients(20), np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (18, 16, 12)), indexing="ij")
    attenuation = np.exp(-gradients.bvals * 1e-3 * (0.5 + gradients.bvecs[:, 0] ** 2))
    clean = (500 * (1.5 + 0.5 * np.sin(3 * x + 2 * y) * np.cos(2 * z))[..., None] * attenuation).astype(np.float32)
    noisy = np.hypot(clean + rng.normal(0, 20, clean.shape), rng.normal(0, 20, clean.shape)).astype(np.float32)
    mask = x**2 + y**2 + z**2 < 1
    return [Scan(data, AFFINE, gradients, mask) for data in (noisy, clean)]


@pytest.mark.parametrize("name", ["mppca", "patch2self", "nlm", "ascm"])
def test_the_error_falls_and_nothing_else_changes(scans, name):
    noisy, clean = scans
    generated = load(name).generate(None, noisy, Request())
    assert generated.gradients is noisy.gradients
    np.testing.assert_array_equal(generated.mean[~noisy.mask], noisy.data[~noisy.mask])
    before, after = (np.square((data - clean.data)[noisy.mask]).mean() for data in (noisy.data, generated.mean))
    assert after != before
    if name != "patch2self":  # so few voxels are not enough for its sketches of the series
        assert after < 0.8 * before
    assert not generated.acquired.all()
    again = load(name).generate(None, noisy, Request())
    np.testing.assert_array_equal(again.mean, generated.mean)


@pytest.mark.parametrize("name", ["mppca", "nlm", "ascm"])
@pytest.mark.parametrize("slices", [1, 3])
def test_a_scan_of_few_slices_is_denoised_too(scans, name, slices):
    part = np.s_[:, :, 5 : 5 + slices]
    noisy, clean = (Scan(s.data[part], s.affine, s.gradients, s.mask[part]) for s in scans)
    generated = load(name).generate(None, noisy, Request())
    before, after = (np.square((data - clean.data)[noisy.mask]).mean() for data in (noisy.data, generated.mean))
    assert after < 0.8 * before


def first(scan, volumes):
    return Scan(scan.data[..., :volumes], AFFINE, scan.gradients[np.arange(volumes)], scan.mask)


@pytest.mark.parametrize("volumes", [13, 14, 19])
def test_series_whose_volumes_the_library_exchanges_are_refused(scans, volumes):
    with pytest.raises(ScanError, match=f"exchanges volumes of a series of {volumes}.*use mppca"):
        load("patch2self").generate(None, first(scans[0], volumes), Request())
    data, message = denoise(first(scans[0], volumes), "patch2self")
    np.testing.assert_array_equal(data, scans[0].data[..., :volumes])
    assert "not denoised" in message


@pytest.mark.parametrize("volumes", [12, 15, 18, 20, 22])
def test_patch2self_gives_every_volume_its_own_signal(scans, volumes):
    scan = first(scans[0], volumes)
    found = load("patch2self").generate(None, scan, Request()).mean[scan.mask]
    for k in range(volumes):
        assert np.corrcoef(found[:, k], scan.data[scan.mask, k])[0, 1] > 0.8, k


def test_non_local_means_are_those_of_dipy(scans):
    noisy, _ = scans
    found = load("nlm").generate(None, noisy, Request()).mean
    sigma = estimate_sigma(noisy).sigma
    expected = nlmeans(noisy.data, sigma, mask=noisy.mask, patch_radius=1, block_radius=2, rician=True, num_threads=1)
    np.testing.assert_allclose(found[noisy.mask], expected[noisy.mask], rtol=1e-5)


def test_where_there_is_no_result_the_acquired_signal_stays(scans):
    noisy, _ = scans
    x, y, z = np.argwhere(noisy.mask)[0]

    def broken(scan):
        out = np.full_like(scan.data, 7.0)
        out[x, y, z] = np.nan
        out[..., 3] = scan.data[..., 3]
        return out

    generated = UntrainedDenoiser(load("nlm").spec, broken).generate(None, noisy, Request())
    np.testing.assert_array_equal(generated.mean[x, y, z], noisy.data[x, y, z])
    assert (generated.mean[noisy.mask][1:, 2] == 7).all()
    assert np.flatnonzero(generated.acquired).tolist() == [3]
