"""A scan in the template's space and back: known transforms."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.spatial.template_space import TemplateSpace, _inverted, series_in_template

ants = pytest.importorskip("ants")

AFFINE = np.array([[-2.6, 0.3, 0, 40], [0.3, 2.5, 0.2, -45], [0, -0.2, 2.9, -30], [0, 0, 0, 1.0]])
SHAPE = (34, 38, 24)
TEMPLATE = np.diag([3.0, 3, 3, 1])
TEMPLATE[:3, 3] = [-66, -80, -60]


def turn(degrees_z, degrees_x):
    z, x = np.radians([degrees_z, degrees_x])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return about_z @ about_x


MOTION = np.eye(4)  # from the scan's world to the template's
MOTION[:3, :3] = turn(12.0, -8.0) @ np.diag([1.06, 0.95, 1.02])
MOTION[:3, 3] = [6.0, -4.0, 9.0]


def ball(shape, affine, radius):
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3] @ [*((np.array(shape) - 1) / 2), 1]
    return np.linalg.norm(points - middle, axis=-1) < radius, points


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    from bids_dmrigen.spatial.ants_tools import write_matrix

    folder = tmp_path_factory.mktemp("space")
    # A file that resamples the scan onto the template maps the template's points to the scan's.
    onto = write_matrix(folder / "to.mat", np.linalg.inv(MOTION))
    back = write_matrix(folder / "from.mat", MOTION)
    mask, _ = ball(SHAPE, AFFINE, 32.0)
    brain, _ = ball((44, 52, 40), TEMPLATE, 34.0)
    return TemplateSpace.of(mask, AFFINE, brain, TEMPLATE, [onto], [back])


def test_points_move_as_the_transform_describes(space):
    points = np.moveaxis(np.indices(SHAPE), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    in_template = points @ MOTION[:3, :3].T + MOTION[:3, 3]
    np.testing.assert_allclose(space.to_template, in_template, atol=1e-3)
    grid = np.moveaxis(np.indices(space.shape), 0, -1) @ space.affine[:3, :3].T + space.affine[:3, 3]
    home = (grid - MOTION[:3, 3]) @ np.linalg.inv(MOTION[:3, :3]).T
    found = np.isfinite(space.to_scan).all(axis=-1)
    np.testing.assert_allclose(space.to_scan[found], home[found], atol=1e-3)


def test_the_transform_to_the_scan_is_the_inverse_of_the_transform_to_the_template():
    """A strong warp, whose inverse is known to a few tenths of a millimetre only."""
    affine = np.diag([2.0, 2, 2, 1])
    grid = np.moveaxis(np.indices((40, 40, 40)), 0, -1) * 2.0

    def warp(points):
        return points @ MOTION[:3, :3].T + 3 * np.sin(points[..., [1, 2, 0]] / 9)

    scan_affine = np.diag([3.0, 3, 3, 1])
    scan_affine[:3, 3] = warp(np.full(3, 39.0)) - 18
    wanted = np.moveaxis(np.indices((12, 12, 12)), 0, -1) * 3.0 + scan_affine[:3, 3]
    start = np.full(wanted.shape, 39.0)
    for _ in range(200):  # slowly, by steps that are sure to lead there
        start = start - 0.2 * (warp(start) - wanted) @ np.linalg.inv(MOTION[:3, :3]).T
    near = start + np.random.default_rng(0).normal(0, 0.3, start.shape)
    linear = np.linalg.inv(MOTION[:3, :3])
    found = _inverted(warp(grid).astype(np.float32), affine, near, scan_affine, linear)
    assert np.median(np.linalg.norm(near - start, axis=-1)) > 0.3
    back = np.linalg.norm(found - start, axis=-1)  # the warp is read linearly between voxels 2 mm apart
    assert np.median(back) < 0.05
    assert back.max() < 0.3


def test_the_grid_contains_both_brains_and_is_finer_than_the_scan(space):
    assert np.allclose(np.diag(space.affine)[:3], 1.5), "three fifths of 2.5 mm, in halves of a millimetre"
    inside = space.to_template[space.mask]
    high = space.affine[:3, 3] + 1.5 * (np.array(space.shape) - 1)
    assert (inside > space.affine[:3, 3]).all()
    assert (inside < high).all()


def test_the_round_trip_changes_a_smooth_scan_by_less_than_a_percent(space):
    _, points = ball(SHAPE, AFFINE, 1.0)
    image = 100 + 30 * np.sin(points / 5.0).prod(axis=-1)
    series = np.stack([image, image[::-1]], axis=-1).astype(np.float32)
    again = space.onto_scan(space.onto_template(series))
    from scipy import ndimage

    inner = ndimage.binary_erosion(space.mask, iterations=2)
    rms = np.sqrt(((again - series)[inner] ** 2).mean()) / np.sqrt((series[inner] ** 2).mean())
    assert rms < 0.01


def test_directions_turn_with_the_head_and_come_back(space):
    np.testing.assert_allclose(space.rotation @ space.rotation.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(space.rotation, turn(12.0, -8.0), atol=1e-5)  # the stretch came first
    world = np.concatenate([np.zeros((1, 3)), even_directions(12)])
    gradients = GradientTable.from_world(np.r_[0.0, np.full(12, 1000.0)], world, AFFINE)
    in_template = space.table_on_template(gradients)
    turned = in_template.world_directions(space.affine)[1:]
    np.testing.assert_allclose(turned, world[1:] @ turn(12.0, -8.0).T, atol=1e-5)
    back = space.table_on_scan(in_template)
    np.testing.assert_allclose(back.bvecs, gradients.bvecs, atol=1e-6)


def test_in_the_template_a_brain_has_the_volume_of_its_transform(space):
    mask = space.onto_template(space.mask, order=1) > 0.5
    litres = mask.sum() * 1.5**3, space.mask.sum() * abs(np.linalg.det(AFFINE[:3, :3]))
    assert litres[0] == pytest.approx(litres[1] * np.linalg.det(MOTION[:3, :3]), rel=0.03)


def test_a_whole_series_comes_onto_a_grid_of_the_template_with_its_directions(space, tmp_path):
    from bids_dmrigen.spatial.ants_tools import write_matrix

    onto = write_matrix(tmp_path / "to.mat", np.linalg.inv(MOTION))
    points = np.moveaxis(np.indices(SHAPE), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    world = np.concatenate([np.zeros((1, 3)), even_directions(6)])
    table = GradientTable.from_world(np.r_[0.0, np.full(6, 1000.0)], world, AFFINE)
    data = 500 + points @ np.random.default_rng(0).normal(size=(3, 7))  # linear, so that interpolation is exact
    scan = Scan(data.astype(np.float32), AFFINE, table, space.mask)
    found = series_in_template(scan, onto, space.shape, space.affine)
    np.testing.assert_allclose(found.gradients.bvecs, space.table_on_template(table).bvecs, atol=1e-5)
    np.testing.assert_array_equal(found.mask, space.onto_template(space.mask, order=1) > 0.5)
    np.testing.assert_allclose(found.data[found.mask], space.onto_template(scan.data)[found.mask], rtol=1e-5)
    assert not found.data[~found.mask].any()
    far = np.array(space.affine)
    far[0, 3] += 500
    with pytest.raises(ScanError, match="no brain"):
        series_in_template(scan, onto, space.shape, far)
