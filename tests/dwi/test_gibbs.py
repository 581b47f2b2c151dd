"""Gibbs-ringing removal against DIPY's implementation and against what it is for."""

import numpy as np
import pytest
import torch
from dipy.denoise.gibbs import gibbs_removal

from bids_dmrigen.dwi import gibbs as module
from bids_dmrigen.dwi.gibbs import remove_gibbs

TOLERANCE = 1e-3  # of the largest value


def ringing(shape, n_volumes=1, noise=0.0, seed=0):
    """Return (X, Y, Z, N) magnitudes of two disks, ringing from truncated k-space."""
    rng, factor = np.random.default_rng(seed), 5
    fine_shape = [factor * n for n in shape[:2]]
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in fine_shape), indexing="ij")
    object_ = 100.0 * (x**2 + y**2 < 0.6) + 150.0 * ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.1)
    spectrum = np.fft.fftshift(np.fft.fft2(object_))
    centre = [f // 2 - n // 2 for f, n in zip(fine_shape, shape, strict=False)]
    kept = spectrum[centre[0] : centre[0] + shape[0], centre[1] : centre[1] + shape[1]]
    image = np.fft.ifft2(np.fft.ifftshift(kept)) / factor**2
    scale = np.linspace(1, 0.5, shape[2] * n_volumes).reshape(shape[2], n_volumes)
    volumes = image[:, :, None, None] * scale
    volumes = volumes + noise * (rng.standard_normal(volumes.shape) + 1j * rng.standard_normal(volumes.shape))
    return np.abs(volumes).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 40, 3), (38, 45, 2), (33, 27, 2)])
def test_equals_dipy(shape):
    data = ringing(shape, n_volumes=2, noise=4)
    expected = gibbs_removal(data.astype(np.float64), inplace=False)
    found = remove_gibbs(data)
    assert found.dtype == np.float32
    assert found.shape == data.shape
    assert np.abs(found - expected).max() < TOLERANCE * data.max()
    assert np.abs(found - data).max() > 20 * TOLERANCE * data.max()  # there was ringing to remove


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_axis(axis):
    data = ringing((24, 20, 9), noise=2)[..., 0]
    before = data.copy()
    expected = gibbs_removal(data.astype(np.float64), slice_axis=axis, inplace=False)
    found = remove_gibbs(data, slice_axis=axis)
    assert np.abs(found - expected).max() < TOLERANCE * data.max()
    np.testing.assert_array_equal(data, before)


def test_chunks_do_not_matter(monkeypatch):
    data = ringing((24, 26, 5), n_volumes=3, noise=2)
    whole = remove_gibbs(data)
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", 1)
    np.testing.assert_allclose(remove_gibbs(data), whole, atol=TOLERANCE * data.max())


def test_ringing_is_reduced():
    data = ringing((48, 48, 1))[..., 0, 0]
    restored = remove_gibbs(data[:, :, None])[..., 0]
    x, y = np.meshgrid(*(np.linspace(-1, 1, 48) for _ in range(2)), indexing="ij")
    flat = (x**2 + y**2 < 0.45) & ((x - 0.2) ** 2 + (y + 0.1) ** 2 > 0.2)  # inside, three voxels off all edges
    assert flat.sum() > 200
    assert np.std(restored[flat]) < 0.5 * np.std(data[flat])
    assert abs(restored[flat].mean() - 100) < 1


def test_background_stays():
    data = ringing((24, 24, 4))
    data[:, :, 1] = 0
    data[:, :, 2] = 7
    threads = torch.get_num_threads()
    found = remove_gibbs(data)
    np.testing.assert_array_equal(found[:, :, 1:3], data[:, :, 1:3])
    assert np.isfinite(found).all()
    assert torch.get_num_threads() == threads  # the limit of the workers does not change that of the caller


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="slice_axis is 3"):
        remove_gibbs(np.zeros((20, 20, 20)), slice_axis=3)
    with pytest.raises(ValueError, match="slices of 4 x 20 voxels are too small"):
        remove_gibbs(np.zeros((4, 20, 20)))
