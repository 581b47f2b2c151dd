"""Scanner artefacts against their true values."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.simulate.artefacts import Artefacts, eddy_coefficients, eddy_displacement, slice_gains
from bids_dmrigen.simulate.scanner import acquire, add_noise, protocol, scan_grid

GRID = (24, 26, 22)


@pytest.fixture(scope="module")
def scan(ball):
    """Return a function that scans a ball without noise, with these artefacts."""
    atlas = ball((0.6, 0.8, 0.0))
    affine = scan_grid(atlas, 2.5, GRID)
    gradients = protocol(affine, 6, 1, 1000)

    def make(snr=np.inf, **artefacts):
        return acquire(atlas, gradients, affine, GRID, snr, 0, bias=0, artefacts=Artefacts(**artefacts))

    return make


def test_without_artefacts_nothing_changes(scan):
    plain = scan()
    np.testing.assert_array_equal(plain.scan.data, plain.clean)
    assert not plain.truth["eddy"].any()
    assert (plain.truth["slice_gains"] == 1).all()


def test_truncated_k_space_has_only_the_acquired_part(scan):
    result = scan(acquired=0.7)
    spectrum = np.fft.fft2(result.truth["noise_free"], axes=(0, 1))
    for axis in (0, 1):
        frequency = np.abs(np.fft.fftfreq(GRID[axis]))
        spectrum *= (frequency <= 0.35).reshape([-1 if a == axis else 1 for a in range(4)])
    expected = np.abs(np.fft.ifft2(spectrum, axes=(0, 1)))
    np.testing.assert_allclose(result.scan.data, expected, atol=0.5)  # of 1000
    assert np.abs(result.scan.data - result.clean).max() > 50, "it should ring"


def test_sigma_is_the_noise_of_the_truncated_images():
    noisy = add_noise(np.full((48, 48, 10, 2), 1000, np.float32), 10.0, 0, acquired=0.6)
    assert noisy.std() == pytest.approx(10, rel=0.03)


def test_eddy_currents_move_each_volume_by_their_coefficients(scan):
    still, moved = scan(), scan(eddy_mm=4.0)
    zooms = still.scan.zooms_mm
    place = np.arange(GRID[1]) * zooms[1]
    centre = {}
    for name, result in (("still", still), ("moved", moved)):
        data = result.scan.data.astype(float)
        centre[name] = (data * place[:, None, None]).sum(axis=(0, 1, 2)) / data.sum(axis=(0, 1, 2))
    for volume, coefficients in enumerate(moved.truth["eddy"]):
        weight = still.clean[..., volume]
        expected = (eddy_displacement(coefficients, GRID, zooms) * weight).sum() / weight.sum()
        assert centre["moved"][volume] - centre["still"][volume] == pytest.approx(expected, abs=0.05)
    assert np.abs(moved.truth["eddy"][1:, 0]).max() > 0.5
    assert not moved.truth["eddy"][0].any(), "b0 volumes have no diffusion gradient"


def test_eddy_field_grows_along_the_diffusion_gradient():
    gradients = protocol(np.diag([-2.0, 2, 2, 1]), 3, 1, 1000)
    slopes = eddy_coefficients(gradients, 5.0)[1:, 1:]
    np.testing.assert_allclose(slopes, 0.05 * gradients.bvecs[1:], atol=1e-12)


def test_eddy_field_grows_with_the_strength_of_the_gradient():
    # b is in proportion to the square of the gradient's strength: a quarter of b is half of the field
    directions = [[0, 0, 0], [0.6, 0.8, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 1]]
    gradients = GradientTable([0, 1000, 4000, 1000, 4000], directions)
    coefficients = eddy_coefficients(gradients, 5.0)
    np.testing.assert_allclose(coefficients[[1, 3]], coefficients[[2, 4]] / 2)
    np.testing.assert_allclose(coefficients[2], [0.3 * 5 * 1.4 / 3**0.5, 0.05 * 0.6, 0.05 * 0.8, 0])


def test_slices_drop_out_where_the_true_gains_are_below_one(scan):
    result = scan(dropout=0.2)
    gains = result.truth["slice_gains"]
    np.testing.assert_allclose(result.scan.data, result.clean * gains, rtol=1e-6)
    assert (gains[:, 0] == 1).all(), "b0 volumes keep their signal"
    lost = slice_gains(0, result.scan.gradients, 2000, 0.2)[:, 1:] < 1
    assert lost.mean() == pytest.approx(0.2, abs=0.02)


def test_a_ghost_lies_half_a_field_of_view_away(scan):
    result = scan(ghost=0.1)
    ghost = result.scan.data - result.clean
    np.testing.assert_allclose(ghost, 0.1 * np.roll(result.clean, 13, axis=1), atol=1e-3)


def test_impossible_artefacts_are_refused():
    with pytest.raises(ValueError, match="acquired: expected a number from"):
        Artefacts(acquired=1.5)
