"""The apparent diffusion coefficient against exponentials, and which subjects enter a mean."""

import numpy as np
import pytest

from bids_dmrigen.dwi.adc import FREE_WATER_MM2_PER_S, MeanOverBrains, apparent_diffusion


def test_the_adc_of_an_exponential_is_its_diffusivity():
    diffusivity, b = np.array([0.3e-3, 0.8e-3, 2.9e-3]), np.array([700.0, 1000.0, 3000.0])
    signal = 400 * np.exp(-b * diffusivity[:, None])
    np.testing.assert_allclose(apparent_diffusion(np.full(3, 400.0), signal, b), diffusivity, rtol=1e-5)


def test_directions_are_averaged_after_the_logarithm():
    signal = np.exp(-1000 * np.array([[0.2e-3, 1.8e-3]]))
    assert apparent_diffusion(np.ones(1), signal, 1000.0)[0] == pytest.approx(1.0e-3, rel=1e-5)


def test_noise_does_not_lead_beyond_free_water():
    found = apparent_diffusion(np.array([1.0, 1.0, 0.0]), np.array([[0.0], [1.2], [0.5]]), 1000.0)
    np.testing.assert_allclose(found, [FREE_WATER_MM2_PER_S, 0, 0], rtol=1e-5)


def test_a_voxel_counts_where_half_of_the_subjects_have_brain():
    common = MeanOverBrains()
    brains = np.array([[True, True, True, False], [True, True, False, False], [True, False, False, False]])
    for value, brain in zip((1.0, 2.0, 6.0), brains, strict=True):
        common.add(np.full((4, 1, 1, 2), value), brain.reshape(4, 1, 1))
    np.testing.assert_allclose(common.mean()[:, 0, 0, 1], [3.0, 1.5, 0, 0])
    np.testing.assert_array_equal(common.brain()[:, 0, 0], [True, True, False, False])
