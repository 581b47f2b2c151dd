"""The scanner's noise against closed forms, its motion and distortion against known maps."""

import numpy as np
import pytest
from scipy.special import gamma, hyp1f1

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.simulate.anatomy import rigid, warped
from bids_dmrigen.simulate.scanner import (
    acquire,
    add_noise,
    coil_bias,
    demo_like,
    protocol,
    random_poses,
    scan_grid,
    susceptibility,
)

GRID = (24, 26, 22)


@pytest.fixture(scope="module")
def atlas(ball):
    return ball((0.6, 0.8, 0.0), centre=(3.0, -2, 1))


@pytest.fixture(scope="module")
def affine(atlas):
    return scan_grid(atlas, 2.5, GRID)


def chi_mean(amplitude, sigma, coils):
    """Mean of a non-central chi variate: sigma sqrt(pi / 2) L_{1/2}^{(n - 1)}(-A² / 2 sigma²)."""
    laguerre = gamma(coils + 0.5) / (gamma(1.5) * gamma(coils))
    laguerre *= hyp1f1(-0.5, coils, -(amplitude**2) / (2 * sigma**2))
    return sigma * np.sqrt(np.pi / 2) * laguerre


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("amplitude", [0.0, 15.0, 60.0])
def test_noise_has_the_moments_of_a_non_central_chi(coils, amplitude):
    sigma, size = 20.0, (60, 60, 60, 1)
    noisy = add_noise(np.full(size, amplitude, np.float32), sigma, seed=1, coils=coils).astype(np.float64)
    mean = chi_mean(amplitude, sigma, coils)
    power = amplitude**2 + 2 * coils * sigma**2
    assert noisy.mean() == pytest.approx(mean, rel=4e-3)
    assert (noisy**2).mean() == pytest.approx(power, rel=6e-3)
    assert noisy.var() == pytest.approx(power - mean**2, rel=0.02)


def test_noise_depends_on_seed_and_volume_alone():
    flat = np.full((8, 8, 8, 4), 100, np.float32)
    whole, part = add_noise(flat, 5.0, seed=7), add_noise(flat[..., :2], 5.0, seed=7)
    np.testing.assert_array_equal(whole[..., :2], part)
    assert not np.array_equal(whole[..., 0], whole[..., 1])
    assert not np.array_equal(whole, add_noise(flat, 5.0, seed=8))


def test_same_seed_same_scan(atlas, affine):
    gradients = protocol(affine, 6, 1, 1000)
    one, same = (acquire(atlas, gradients, affine, GRID, 20, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.scan.data, same.scan.data)
    np.testing.assert_array_equal(one.clean, same.clean)


def test_snr_is_white_matter_b0_over_the_noise(atlas, affine):
    result = acquire(atlas, protocol(affine, 6, 2, 1000), affine, GRID, 25, seed=0, bias=0)
    white = result.truth["fractions"][0] > 0.8
    b0 = result.clean[white][:, :2]
    assert b0.mean() == pytest.approx(1000, rel=0.02)
    assert result.truth["sigma"] == pytest.approx(b0.mean() / 25, rel=1e-5)
    noise = (result.scan.data - result.clean)[white][:, :2]
    assert noise.std() == pytest.approx(40, rel=0.03)


def test_without_noise_the_scan_is_the_clean_one(atlas, affine):
    result = acquire(atlas, protocol(affine, 6, 1, 1000), affine, GRID, np.inf, seed=0)
    np.testing.assert_array_equal(result.scan.data, result.clean)


def test_motion_moves_the_anatomy_and_leaves_the_gradient_table(atlas, affine):
    gradients = protocol(affine, 6, 1, 1000)
    pose = rigid([2, -3, 1, 10, 20, -25], np.array([3.0, -2, 1]))
    motion = np.broadcast_to(pose, (len(gradients), 4, 4))
    moving = acquire(atlas, gradients, affine, GRID, np.inf, seed=0, motion=motion, bias=0)
    moved = warped(atlas, np.linalg.inv(pose))  # pulling by the inverse pushes by the pose
    expected = acquire(moved, gradients, affine, GRID, np.inf, seed=0, bias=0)
    core = expected.truth["fractions"][0] > 0.99
    still = acquire(atlas, gradients, affine, GRID, np.inf, seed=0, bias=0)
    error = np.abs(moving.scan.data - expected.clean)[core].mean()
    assert error < 5
    assert np.abs(still.clean - expected.clean)[core].mean() > 10 * error


def test_motion_moves_only_its_own_volumes(atlas, affine):
    gradients = protocol(affine, 6, 1, 1000)
    motion = np.tile(np.eye(4), (7, 1, 1))
    motion[3, 0, 3] = 2.5  # one voxel to the right
    result = acquire(atlas, gradients, affine, GRID, np.inf, seed=0, motion=motion, bias=0)
    others = [v for v in range(7) if v != 3]
    np.testing.assert_allclose(result.scan.data[..., others], result.clean[..., others], atol=0.05)
    np.testing.assert_allclose(result.scan.data[1:, ..., 3], result.clean[:-1, ..., 3], atol=0.05)


def test_a_single_volume_moves_too(atlas, affine):
    b0 = GradientTable(np.zeros(1), np.zeros((1, 3)))
    motion = np.eye(4)[None].copy()
    motion[0, 2, 3] = -2.5  # one voxel down
    result = acquire(atlas, b0, affine, GRID, np.inf, seed=0, motion=motion, bias=0)
    np.testing.assert_allclose(result.scan.data[:, :, :-1], result.clean[:, :, 1:], atol=0.05)


def smooth_displacement(shape, amplitude, axis=1, centre=0.0):
    """Return a Gaussian hump; the grid runs from -2 to 2 along each axis."""
    grids = list(np.meshgrid(*(np.linspace(-2, 2, n) for n in shape), indexing="ij"))
    grids[axis] = grids[axis] - centre
    return amplitude * np.exp(-sum(g**2 for g in grids))


def test_a_constant_displacement_shifts_along_the_phase_axis_only(atlas, affine):
    gradients = protocol(affine, 6, 1, 1000)
    field = np.full(GRID, 2 * 2.5)
    for axis in range(3):
        result = acquire(atlas, gradients, affine, GRID, np.inf, 0, displacement=field, phase_axis=axis, bias=0)
        np.testing.assert_allclose(result.scan.data, np.roll(result.clean, 2, axis=axis), atol=0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distortion_conserves_the_signal_of_every_line(atlas, affine, axis):
    gradients = protocol(affine, 6, 1, 1000)
    # At the edge of the ball: inside uniform tissue a line's sum is kept even without the Jacobian.
    field = smooth_displacement(GRID, 5.0, axis, centre=1.0)
    result = acquire(atlas, gradients, affine, GRID, np.inf, 0, displacement=field, phase_axis=axis, bias=0)
    before, after = result.clean.sum(axis=axis), result.scan.data.sum(axis=axis)
    strong = before > 0.3 * before.max()
    np.testing.assert_allclose(after[strong], before[strong], rtol=0.03)
    assert np.abs(result.scan.data - result.clean).max() > 200, "the field must do something"


def test_the_reverse_phase_partner_is_shifted_the_other_way(atlas, affine):
    gradients = protocol(affine, 6, 1, 1000)
    field = smooth_displacement(GRID, 4.0)
    position = np.arange(GRID[1])[None, :, None]

    def centre(volume):
        return float((volume * position).sum() / volume.sum())

    forth, back = (
        acquire(atlas, gradients, affine, GRID, np.inf, 0, displacement=sign * field, bias=0) for sign in (1, -1)
    )
    middle = centre(forth.clean[..., 0])
    assert centre(forth.scan.data[..., 0]) > middle + 0.1
    assert centre(back.scan.data[..., 0]) < middle - 0.1


def test_a_folding_displacement_is_refused(atlas, affine):
    field = 8.0 * np.indices(GRID)[1]
    with pytest.raises(ValueError, match="folds"):
        acquire(atlas, protocol(affine, 6, 1, 1000), affine, GRID, 20, 0, displacement=field)


def test_bias_is_smooth_and_has_the_requested_strength():
    bias = np.log(coil_bias(0, np.diag([3.0, 3, 3, 1]), (64, 64, 48), 0.2).numpy())
    assert bias.std() == pytest.approx(0.2, rel=1e-3)
    assert np.abs(np.diff(bias, axis=0)).max() < 0.05
    assert float(coil_bias(0, np.eye(4), (4, 4, 4), 0).std()) == 0


def test_random_poses_start_at_rest_and_are_rigid():
    motion = np.stack([rigid(pose, (0, 0, 0)) for pose in random_poses(0, 20, 1, 2)])
    np.testing.assert_allclose(motion[0], np.eye(4), atol=1e-12)
    rotations = motion[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-12)
    assert 0.1 < motion[:, :3, 3].std() < 3


def test_susceptibility_is_strongest_above_the_sinuses():
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-94, -94, -60]
    field = susceptibility(affine, (64, 64, 40), strength_mm=6)
    peak = affine @ [*np.unravel_index(np.abs(field).argmax(), field.shape), 1]
    np.testing.assert_allclose(peak[:3], [0, 46, -24], atol=5)
    assert np.abs(field).max() == pytest.approx(6, rel=0.1)


def test_demo_like_is_an_ordinary_protocol(atlas):
    result = demo_like(atlas, n_directions=8, n_b0=2, bval=700, shape=(20, 20, 18), voxel_mm=3)
    assert result.scan.data.shape == (20, 20, 18, 10)
    assert isinstance(result.scan.gradients, GradientTable)
    assert result.scan.gradients.is_b0.sum() == 2
    assert (result.scan.data[result.scan.mask] > 0).all()
    assert result.scan.data[result.scan.mask].mean() > 5 * result.scan.data[~result.scan.mask].mean()
