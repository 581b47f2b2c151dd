"""Classical denoising: noise goes down, what cannot be denoised is kept, and the messages say which."""

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods.denoise import classical
from bids_dmrigen.methods.denoise.classical import denoise, patch_radius

SHAPE, SIGMA = (14, 13, 9), 25.0
AFFINE = np.array([[-2.1, 0.2, 0, 30], [0.2, 2, 0.1, -20], [0, -0.1, 2.5, 5], [0, 0, 0, 1.0]])


def simulated(n_directions=12, seed=0):
    """Return a scan of smooth anatomy in Rician noise, and its truth."""
    rng = np.random.default_rng(seed)
    bvals = np.r_[0, np.full(n_directions, 1000.0)]
    directions = np.r_[np.zeros((1, 3)), even_directions(n_directions)]
    x, y, z = (axis / n for axis, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    fibre = np.stack([np.cos(3 * x + y), np.sin(3 * x + y), 0.5 * z], axis=-1)
    fibre /= np.linalg.norm(fibre, axis=-1, keepdims=True)
    adc = 0.4e-3 + 1.2e-3 * (0.3 + 0.7 * y[..., None]) * (fibre @ directions.T) ** 2
    clean = (700 + 300 * z[..., None]) * np.exp(-bvals * adc)
    noise = rng.normal(0, SIGMA, (2, *clean.shape))
    data = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    data[:2] = 0
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:, 1:] = True
    return Scan(data, AFFINE, GradientTable(bvals, directions), mask), clean


@pytest.mark.parametrize("n_directions", [6, 12, 30])
def test_mppca_lowers_the_error_of_short_series(n_directions):
    scan, clean = simulated(n_directions)
    found, message = denoise(scan, "mppca")

    def error(data):
        return np.sqrt(((data - clean)[scan.mask] ** 2).mean())

    assert error(found) < 0.8 * error(scan.data)
    assert ("5 x 5 x 5" if n_directions == 30 else "3 x 3 x 3") in message


def test_without_a_mask_everything_is_denoised_but_zeroed_background():
    scan, _ = simulated()
    everywhere = Scan(scan.data, scan.affine, scan.gradients, np.ones(SHAPE, dtype=bool))
    found, _ = denoise(everywhere, "mppca")
    assert np.isfinite(found).all()
    assert not found[:2].any()
    assert (found[2:] != scan.data[2:]).any(axis=3).all()


def test_too_few_volumes_come_back_as_acquired():
    scan, _ = simulated(3)
    for method in ("mppca", "patch2self"):
        found, message = denoise(scan, method)
        np.testing.assert_array_equal(found, scan.data)
        expected = classical.TOO_FEW_VOLUMES.format(method=method, needed=0, found=4)
        assert message.lower().split("least")[0] == expected.split("least")[0]
        assert "found 4" in message


def test_patch2self_warns_below_thirty_volumes():
    for n_directions, warned in ((11, True), (31, False)):
        _, message = denoise(simulated(n_directions)[0], "patch2self")
        assert ("lost direction contrast" in message) == warned


def test_bad_values_never_come_back():
    scan, _ = simulated()
    scan.data[5, 5, 5, 3], scan.data[6, 6, 6, 2] = np.nan, np.inf
    for method in classical.METHODS:
        assert np.isfinite(denoise(scan, method)[0]).all()


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown denoising method 'nlm'"):
        denoise(simulated()[0], "nlm")


def test_noise_that_cannot_be_estimated_is_nan_with_the_reason():
    scan, _ = simulated()
    sigma, message = classical.noise_level(Scan(0 * scan.data, scan.affine, scan.gradients, scan.mask))
    assert np.isnan(sigma)
    assert "usable voxels" in message


@pytest.mark.parametrize(
    ("shape", "radius"),
    [
        ((80, 80, 40, 13), [1, 1, 1]),
        ((80, 80, 40, 26), [1, 1, 1]),
        ((80, 80, 40, 27), [2, 2, 2]),
        ((80, 80, 40, 130), [3, 3, 3]),
        ((80, 80, 1, 13), [2, 2, 0]),
        ((80, 80, 3, 100), [3, 3, 1]),
        ((3, 3, 3, 100), [1, 1, 1]),
    ],
)
def test_patches_have_more_voxels_than_volumes(shape, radius):
    assert patch_radius(shape).tolist() == radius


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with classical.limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
