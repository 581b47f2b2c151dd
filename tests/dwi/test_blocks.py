"""Scans with larger voxels: where they lie, what they hold, what cannot be done."""

import numpy as np
import pytest

from bids_dmrigen.dwi.blocks import block_affine, finer_affine, in_blocks, whole_blocks
from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan, ScanError

OBLIQUE = np.array([[-1.9, 0.2, 0.5, 30.0], [0.3, 1.9, -0.4, -12.0], [-0.5, 0.5, 1.87, 7.0], [0, 0, 0, 1.0]])


def position_scan(affine, shape=(7, 6, 5)):
    """Return a scan whose three volumes are the world coordinates of its voxels."""
    affine = affine.copy()
    affine[:3, :3] *= 2 / np.linalg.norm(affine[:3, :3], axis=0)  # cubes
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    table = GradientTable(np.zeros(3), np.zeros((3, 3)))
    return Scan(world.astype(np.float32), affine, table, np.ones(shape, bool))


@pytest.mark.parametrize("affine", [np.diag([2.0, 2, 2, 1]), OBLIQUE], ids=["straight", "oblique and flipped"])
@pytest.mark.parametrize("edge", [1, 2, 3])
def test_a_block_lies_in_the_middle_of_its_voxels(affine, edge):
    scan = whole_blocks(position_scan(affine), edge)
    blocks = in_blocks(scan, edge)
    assert blocks.mask.shape == tuple(n // edge for n in (7, 6, 5))
    expected = position_scan(np.eye(4), blocks.mask.shape)  # voxel indices, times 2
    world = expected.data / 2 @ blocks.affine[:3, :3].T + blocks.affine[:3, 3]
    np.testing.assert_allclose(blocks.data, world, atol=1e-4)
    np.testing.assert_allclose(finer_affine(blocks.affine, edge), scan.affine, atol=1e-9)
    np.testing.assert_allclose(block_affine(scan.affine, edge), blocks.affine)


def test_a_block_is_in_the_mask_where_half_of_it_is():
    scan = position_scan(np.diag([2.0, 2, 2, 1]), (4, 2, 2))
    scan.mask[:] = False
    scan.mask[0], scan.mask[2, 0, 0] = True, True
    np.testing.assert_array_equal(in_blocks(scan, 2).mask[:, 0, 0], [True, False])


def test_what_has_no_blocks_is_said():
    with pytest.raises(ScanError, match="4 x 2 x 2"):
        whole_blocks(position_scan(np.eye(4), (4, 2, 2)), 3)
    scan = position_scan(np.eye(4), (4, 4, 4))
    scan.affine[:3, 2] *= 1.5
    with pytest.raises(ScanError, match="2 x 2 x 3 mm"):
        whole_blocks(scan, 2)
