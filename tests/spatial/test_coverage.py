"""Which zeros of a series are missing data, and which are dark voxels."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.spatial.coverage import complete_voxels, within_coverage

SHAPE = (9, 8, 7)


def series():
    return np.random.default_rng(0).uniform(1, 2, (*SHAPE, 4))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [1, 3])
def test_what_moved_out_of_the_field_of_view_is_missing(axis, thickness):
    data = series()
    out = [slice(None)] * 3
    out[axis] = slice(0, thickness)
    data[(*out, 2)] = 0
    expected = np.ones(SHAPE, bool)
    expected[tuple(out)] = False
    np.testing.assert_array_equal(complete_voxels(data, np.ones(SHAPE, bool)), expected)


def test_dark_voxels_are_signal():
    data = series()
    data[3, 4, 2:5, 1] = 0  # a row of zeros
    data[5:7, 1:3, 3, 0] = 0  # four in a slice
    assert complete_voxels(data, np.ones(SHAPE, bool)).all()


def test_missing_voxels_outside_the_mask_do_not_matter():
    data = series()
    data[:, :, 0] = 0
    mask = np.ones(SHAPE, bool)
    mask[:, :, 0] = False
    np.testing.assert_array_equal(complete_voxels(data, mask), mask)


def test_a_scan_without_a_complete_voxel_keeps_its_mask():
    table = GradientTable(np.array([0, 1000, 1000, 1000.0]), np.r_[np.zeros((1, 3)), np.eye(3)])
    data = series()
    data[..., 1] = 0
    scan = Scan(data, np.eye(4), table, np.ones(SHAPE, bool))
    assert within_coverage(scan) is scan
    data[:5, :, :, 1] = 1
    np.testing.assert_array_equal(
        within_coverage(Scan(data, np.eye(4), table, scan.mask)).mask[:, 0, 0], np.arange(9) < 5
    )
