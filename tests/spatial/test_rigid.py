"""Rigid transforms: the motion in a transform with shears, and its parameters, against closed forms."""

import numpy as np
import pytest

from bids_dmrigen.spatial.rigid import motion_parameters, rigid_part

AFFINE = np.array([[-3.0, 0, 0, 60], [0, 2.9, -0.75, -50], [0, 0.75, 2.9, -40], [0, 0, 0, 1]])
CENTER = AFFINE[:3, :3] @ [20, 24, 16] + AFFINE[:3, 3]


def rotation(vector):
    """Rodrigues' formula, written out for the tests."""
    angle = np.linalg.norm(vector)
    x, y, z = np.asarray(vector) / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def rigid(vector_degrees, shift, center=CENTER):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.deg2rad(vector_degrees))
    matrix[:3, 3] = center + shift - matrix[:3, :3] @ center
    return matrix


def test_parameters_of_a_known_rotation():
    parameters = motion_parameters(np.stack([np.eye(4), rigid([0, 0, 2], [1, -2, 3])]), CENTER)
    np.testing.assert_allclose(parameters[0], 0, atol=1e-12)
    np.testing.assert_allclose(parameters[1], [1, -2, 3, 0, 0, np.deg2rad(2)], atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rigid_part_takes_the_shear_along_the_axis_away(axis):
    motion = rigid([3, -2, 4], [1, 2, 3])
    zooms = np.linalg.norm(AFFINE[:3, :3], axis=0)
    frame = AFFINE @ np.diag([*1 / zooms, 1])
    eddy = np.eye(4)
    eddy[axis] += [0.02, -0.03, 0.015, 0.7]
    full = frame @ eddy @ np.linalg.inv(frame) @ motion
    found = rigid_part(full[None], AFFINE, axis, CENTER)[0]
    np.testing.assert_allclose(found[:3, :3], motion[:3, :3], atol=1e-9)
    np.testing.assert_allclose(found @ [*CENTER, 1], full @ [*CENTER, 1], atol=1e-9)


def test_parameters_are_the_angles_of_rotations_about_x_then_y_then_z():
    angles = np.array([0.03, -0.05, 0.08])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation([0, 0, angles[2]]) @ rotation([0, angles[1], 0]) @ rotation([angles[0], 0, 0])
    np.testing.assert_allclose(motion_parameters(matrix[None], np.zeros(3))[0, 3:], angles, atol=1e-12)
