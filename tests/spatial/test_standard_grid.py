"""The grid over the template that is the same for every run."""

import numpy as np
import pytest

from bids_dmrigen.spatial.standard_grid import placed, standard_grid


def test_the_grid_is_whole_and_inside_the_template():
    oblique = np.array([[-1.0, 0, 0, 90.5], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
    shape, affine = standard_grid((182, 218, 182), oblique)
    low, high = affine[:3, 3], affine[:3, :3] @ (np.array(shape) - 1) + affine[:3, 3]
    np.testing.assert_allclose(low % 2, 0)
    assert low.tolist() == [-90, -126, -72]
    assert high.tolist() == [90, 90, 108]


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -2, 5), (-4, 1, 30)])
def test_placing_keeps_every_voxel_where_it_was(shift):
    volume = np.arange(1, 4 * 5 * 6 * 2 + 1, dtype=np.float32).reshape(4, 5, 6, 2)
    grid = np.diag([2.0, 2, 2, 1])
    affine = grid.copy()
    affine[:3, 3] = 2 * np.array(shift)
    out = placed(volume, affine, (8, 8, 8), grid)
    for index in np.ndindex(8, 8, 8):
        voxel = np.array(index) - shift
        inside = ((voxel >= 0) & (voxel < volume.shape[:3])).all()
        np.testing.assert_array_equal(out[index], volume[tuple(voxel)] if inside else 0)
