"""Rigid transforms: the head motion in a linear transform, its six parameters, and their coordinate frames."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..dwi.gradients import nearest_rotation


def index_frame(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the map (4, 4) from index mm (voxel index times voxel size) to world, and from index to index mm.

    In index mm the phase-encoding axis is a coordinate axis, however oblique the slices are.
    """
    affine = np.asarray(affine, dtype=np.float64)
    grid = np.diag([*np.linalg.norm(affine[:3, :3], axis=0), 1.0])
    return affine @ np.linalg.inv(grid), grid


def rigid_part(
    transforms: np.ndarray, affine: np.ndarray, axis: int | None = None, center_mm=(0.0, 0.0, 0.0)
) -> np.ndarray:
    """Return the head motion (N, 4, 4) in transforms that may also hold eddy-current shears along one voxel axis.

    A volume's transform is the head motion followed by the eddy-current map, which changes only the coordinate along
    the phase axis: the other two rows are those of the rotation. Without an axis, the nearest rotation is taken. The
    whole transform and its rigid part map the world point `center_mm` (3,) to the same point.
    """
    transforms = np.asarray(transforms, dtype=np.float64)
    frame, _ = index_frame(affine)
    local = np.linalg.inv(frame) @ transforms @ frame
    rotation = local[:, :3, :3]
    if axis is not None:
        rows = rotation[:, [a for a in range(3) if a != axis]]
        rotation = rotation.copy()
        # The missing row completes a proper rotation; cross() is cyclic, hence the sign for the middle axis.
        rotation[:, axis] = np.cross(rows[:, 0], rows[:, 1]) * (-1.0 if axis == 1 else 1.0)
    center = np.linalg.inv(frame) @ [*center_mm, 1.0]
    rigid = np.tile(np.eye(4), (len(local), 1, 1))
    rigid[:, :3, :3] = nearest_rotation(rotation)
    rigid[:, :3, 3] = (local @ center)[:, :3] - rigid[:, :3, :3] @ center[:3]
    return frame @ rigid @ np.linalg.inv(frame)


def field_of_view_center(affine: np.ndarray, shape) -> np.ndarray:
    """Return the world point (3,), mm, in the middle of the field of view."""
    return np.asarray(affine)[:3] @ [*((np.array(shape[:3]) - 1) / 2), 1]


def motion_parameters(rigid: np.ndarray, center_mm: np.ndarray) -> np.ndarray:
    """Return (N, 6): three translations (mm) and three rotations (rad) about a world point (3,), R = Rz Ry Rx."""
    rigid = np.asarray(rigid, dtype=np.float64)
    rotation = rigid[:, :3, :3]
    shift = rigid[:, :3, 3] + (rotation - np.eye(3)) @ np.asarray(center_mm, dtype=np.float64)
    return np.concatenate([shift, Rotation.from_matrix(rotation).as_euler("xyz")], axis=1)
