"""Deformation and resampling against known maps."""

import dataclasses

import numpy as np
import pytest
import torch

from bids_dmrigen.simulate.anatomy import deform, resample, rigid, warped, world_grid
from bids_dmrigen.simulate.atlas import Atlas
from bids_dmrigen.simulate.individual import Variation

SHAPE = (30, 32, 28)
AFFINE = np.array([[2.0, 0, 0, -29], [0, 2.0, 0, -31], [0, 0, 2.0, -27], [0, 0, 0, 1]])


def centre_of_mass(maps, affine):
    world = world_grid(affine, maps.shape)
    return ((world * maps).sum(dim=(1, 2, 3)) / maps.sum()).numpy()


def test_directions_turn_with_a_known_rotation(ball):
    direction = np.array([0.48, 0.6, 0.64])
    pose = rigid([0, 0, 0, 20, -30, 45], np.zeros(3))
    turned = warped(ball(direction), pose)
    expected = pose[:3, :3].T @ direction  # content moves by the inverse of the pull
    estimate = turned.directions[0][:, turned.fractions[0] > 0.9].numpy()
    np.testing.assert_allclose(np.abs(expected @ estimate), 1, atol=1e-4)


def test_content_moves_by_the_inverse_of_the_pull(ball):
    pose = rigid([4, 0, -3, 0, 0, 40], np.zeros(3))
    small = ball(centre=(8.0, 3, 2), radius=12)
    moved = warped(small, pose)
    expected = np.linalg.inv(pose) @ [8, 3, 2, 1]
    np.testing.assert_allclose(centre_of_mass(moved.fractions[0], AFFINE), expected[:3], atol=0.3)


def test_directions_follow_the_local_jacobian_of_a_shear(ball):
    world = world_grid(AFFINE, SHAPE)
    warp = torch.zeros(3, *SHAPE)
    warp[0] = 0.4 * world[1]  # x -> x + 0.4 y
    sheared = warped(ball((0.0, 1, 0)), np.eye(4), warp)
    expected = np.linalg.solve([[1, 0.4, 0], [0, 1, 0], [0, 0, 1]], [0, 1, 0])
    expected /= np.linalg.norm(expected)
    inside = (sheared.fractions[0] > 0.9).numpy()
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    np.testing.assert_allclose(np.abs(expected @ sheared.directions[0][:, inside].numpy()), 1, atol=1e-3)


def test_folding_is_refused(ball):
    warp = torch.zeros(3, *SHAPE)
    warp[0] = -1.5 * world_grid(AFFINE, SHAPE)[0]
    with pytest.raises(ValueError, match="folds"):
        warped(ball(), np.eye(4), warp)


def test_subjects_are_reproducible_different_and_valid(ball):
    atlas = ball()
    one, same, other = deform(atlas, 3), deform(atlas, 3), deform(atlas, 4)
    for field in dataclasses.fields(Atlas):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(same, field.name))
    assert (one.fractions - other.fractions).abs().max() > 0.5
    torch.testing.assert_close(one.fractions.sum(dim=0), one.brain.float())
    assert one.weights.sum(dim=0).max() <= 1
    norms = one.directions[0].norm(dim=0)[one.fractions[0] > 0.5]
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_large_deformations_stay_invertible(ball):
    strong = Variation(warp_mm=(8.0, 2.0), warp_length_mm=(24.0, 12.0))
    for seed in range(3):
        deform(ball(), seed, strong)  # raises where the map folds


def test_without_variation_only_the_sharpening_remains(ball):
    still = Variation(
        0, 0, 0, (), (), sharpness=1, sulci=0, tissue=0, tilt_degrees=0, free_water=0, shares=0, mixing=0,
        texture=(0, 0, 0),
    )  # fmt: skip
    atlas = ball()
    same = deform(atlas, 0, still)
    core = atlas.fractions[0] == 1
    torch.testing.assert_close(same.fractions[:, core], atlas.fractions[:, core], atol=1e-3, rtol=0)
    assert (same.directions[0] * atlas.directions[0]).sum(dim=0)[core].abs().min() > 0.9999


def test_resampling_on_the_same_grid_changes_nothing(ball):
    atlas = ball((0.6, 0, 0.8))
    same = resample(atlas, AFFINE, SHAPE, supersample=1)
    torch.testing.assert_close(same.fractions, atlas.fractions, atol=1e-4, rtol=0)
    torch.testing.assert_close(same.weights, atlas.weights, atol=1e-4, rtol=0)
    assert (same.directions[0] * atlas.directions[0]).sum(dim=0)[atlas.brain].abs().min() > 0.999


def oblique_left_handed(voxel=3.0, shape=(22, 24, 20)):
    turn = rigid([0, 0, 0, 15, 10, -25], np.zeros(3))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-voxel, voxel, voxel])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, shape


def test_directions_are_in_world_axes_whatever_the_grid(ball):
    affine, shape = oblique_left_handed()
    direction = np.array([0.48, 0.6, 0.64])
    resampled = resample(ball(direction), affine, shape)
    estimate = resampled.directions[0][:, resampled.fractions[0] > 0.5].numpy()
    np.testing.assert_allclose(np.abs(direction @ estimate), 1, atol=1e-4)


def test_resampling_keeps_position_volume_and_partition(ball):
    affine, shape = oblique_left_handed()
    atlas = ball(centre=(4.0, -3, 2), radius=18)
    resampled = resample(atlas, affine, shape)
    torch.testing.assert_close(resampled.fractions.sum(dim=0), resampled.brain.float())
    np.testing.assert_allclose(centre_of_mass(resampled.fractions[0], affine), [4, -3, 2], atol=0.25)
    volumes = (float(resampled.fractions[0].sum()) * 27, float(atlas.fractions[0].sum()) * 8)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.02)


def test_a_voxel_across_an_edge_has_both_tissues(ball):
    atlas = ball(radius=60)
    white = (torch.arange(SHAPE[0]) < 15).float()[:, None, None].expand(*SHAPE)
    atlas = dataclasses.replace(atlas, fractions=torch.stack([white, 1 - white, torch.zeros(SHAPE)]))
    coarse = np.diag([12.0, 4, 4, 1])  # its voxel 0 is centred on x = 0, the edge
    coarse[:3, 3] = [0, -20, -20]
    resampled = resample(atlas, coarse, (2, 10, 10), supersample=4)
    assert float(resampled.fractions[0][0].mean()) == pytest.approx(0.5, abs=0.02)
