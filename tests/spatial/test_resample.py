"""One interpolation: against closed forms (a smooth function sampled elsewhere) and exact identities."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.spatial.resample import resample_series, sample_volume

SHAPE = (24, 28, 20)
AFFINE = np.array([[-2.0, 0.1, 0, 25], [0.1, 2.0, 0.1, -30], [0, -0.1, 2.5, -20], [0, 0, 0, 1]])


def blob(points):
    """A smooth function of voxel coordinates (3, ...), exactly known everywhere."""
    center = (np.array(SHAPE) - 1) / 2
    scaled = [(points[a] - center[a]) / (5.0 + a) for a in range(3)]
    return (100 * np.exp(-0.5 * sum(s**2 for s in scaled))).astype(np.float32)


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    gradients = GradientTable([0, 0, *[1000] * 6], np.concatenate([np.zeros((2, 3)), even_directions(6)]))
    data = blob(np.indices(SHAPE))[..., None] * rng.uniform(0.5, 1, 8).astype(np.float32)
    return Scan(data, AFFINE, gradients, np.ones(SHAPE, bool))


def turn(degrees, shift):
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift
    return matrix


def test_nothing_moved_is_bit_identical(scan):
    same = resample_series(scan, np.tile(np.eye(4), (8, 1, 1)), np.zeros(SHAPE), axis=1)
    assert np.array_equal(same.data, scan.data)
    np.testing.assert_allclose(same.gradients.bvecs, scan.gradients.bvecs, atol=1e-12)


def test_sampling_meets_the_function_itself():
    matrix = turn(4, [0.7, -1.3, 0.4])
    field = 1.5 * np.sin(np.indices(SHAPE)[0] / 4.0)
    found = sample_volume(blob(np.indices(SHAPE)), matrix, field, axis=1)
    index = np.indices(SHAPE).astype(float)
    index[1] += field
    expected = blob(np.einsum("ij,j...->i...", matrix[:3, :3], index) + matrix[:3, 3, None, None, None])
    inside = (slice(4, -4),) * 3
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.1)  # of 100


def test_a_shift_below_half_a_voxel_keeps_the_edge():
    volume = np.full(SHAPE, 7, np.float32)
    matrix = np.eye(4)
    matrix[2, 3] = 0.4
    np.testing.assert_allclose(sample_volume(volume, matrix), 7, rtol=1e-5)
    matrix[2, 3] = 0.6
    moved = sample_volume(volume, matrix)
    assert (moved[..., -1] == 0).all()
    np.testing.assert_allclose(moved[..., :-1], 7, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_field_displaces_by_mm(scan, axis):
    field = 3 * np.cos(np.indices(SHAPE)[(axis + 1) % 3] / 4.0)  # the same along its axis: no stretch
    moved = resample_series(scan, None, field, axis)
    index = np.indices(SHAPE).astype(float)
    index[axis] += field / np.linalg.norm(AFFINE[:3, axis])
    inside = (slice(4, -4),) * 3
    found, scale = moved.data[..., 3], scan.data[0, 0, 0, 3] / blob(np.indices(SHAPE))[0, 0, 0]
    np.testing.assert_allclose(found[inside], scale * blob(index)[inside], atol=0.1)  # of 100


def test_the_signal_is_conserved_by_the_field(scan):
    y = np.arange(SHAPE[1])
    field = np.broadcast_to((4.0 * np.exp(-(((y - 14) / 4.0) ** 2)))[None, :, None], SHAPE)
    moved = resample_series(scan, None, field, axis=1)
    # Integrated along the axis, f(y + d)(1 + d') is f: a change of variable.
    before, after = scan.data[12, :, 10].sum(axis=0), moved.data[12, :, 10].sum(axis=0)
    np.testing.assert_allclose(after, before, rtol=0.01)
    assert np.abs(moved.data - scan.data).max() > 10


def test_an_eddy_stretch_scales_the_signal(scan):
    stretch = AFFINE @ np.diag([1, 1.1, 1, 1]) @ np.linalg.inv(AFFINE)
    center = AFFINE @ [*((np.array(SHAPE) - 1) / 2), 1]
    stretch[:3, 3] = center[:3] - stretch[:3, :3] @ center[:3]
    moved = resample_series(scan, np.tile(stretch, (8, 1, 1)), axis=1)
    middle = tuple(n // 2 for n in SHAPE)
    np.testing.assert_allclose(moved.data[middle], 1.1 * scan.data[middle], rtol=0.02)
    np.testing.assert_allclose(moved.gradients.bvecs, scan.gradients.bvecs, atol=1e-6)  # a stretch turns nothing


def test_directions_follow_the_content_back(scan):
    motion = turn(20, [0, 0, 0])
    moved = resample_series(scan, np.tile(motion, (8, 1, 1)))
    before, after = (s.gradients.world_directions(AFFINE)[2:] for s in (scan, moved))
    # The head lay turned by 20 degrees; seen from the reference, the gradients turn the other way.
    np.testing.assert_allclose(after, before @ motion[:3, :3], atol=1e-4)


def test_overshoots_are_clipped(scan):
    sharp = np.zeros(SHAPE, np.float32)
    sharp[8:16, 8:16, 8:16] = 100
    sharp = Scan(np.repeat(sharp[..., None], 8, axis=3), AFFINE, scan.gradients, scan.mask)
    moved = resample_series(sharp, np.tile(turn(3, [0.9, 0, 0]), (8, 1, 1)))
    assert moved.data.min() >= 0
    assert moved.data.max() > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transforms": np.eye(4)[None]}, "expected 8 transforms"),
        ({"field": np.zeros((2, 2, 2)), "axis": 1}, "displacement field"),
        ({"field": np.zeros(SHAPE)}, "displacement field"),
    ],
)
def test_arguments_that_do_not_fit_the_scan_are_refused(scan, arguments, message):
    with pytest.raises(ScanError, match=message):
        resample_series(scan, **arguments)
