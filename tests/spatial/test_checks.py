"""Which values are refused, and which are repaired and reported."""

import numpy as np
import pytest

from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.spatial.checks import check_values


def test_empty_volumes_are_named():
    data = np.ones((3, 3, 3, 5), np.float32)
    data[..., 2] = 0
    with pytest.raises(ScanError, match=r"volumes \[2\] .*nothing but zeros"):
        check_values(data, "x.nii")
    data[..., 2], data[..., 4] = 1, np.nan
    with pytest.raises(ScanError, match=r"volumes \[4\] .*NaN"):
        check_values(data, "x.nii")


def test_single_voxels_are_repaired_and_reported():
    data = np.ones((3, 3, 3, 2), np.float32)
    data[0, 0, 0], data[1, 1, 1, 0] = np.nan, np.inf
    repaired, warnings = check_values(data, "x.nii")
    assert repaired[0, 0, 0].tolist() == [0, 0]
    assert repaired[1, 1, 1].tolist() == [0, 1]
    assert "3 voxel values" in warnings[0]
