"""The series: the window around its mask."""

import numpy as np

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan


def test_the_window_contains_the_mask_and_ends_with_the_image():
    mask = np.zeros((10, 12, 5), bool)
    mask[1:4, 6:9, 2:4] = True
    scan = Scan(np.zeros((10, 12, 5, 1), np.float32), np.eye(4), GradientTable([0.0], np.zeros((1, 3))), mask)
    (rows, columns), slices = scan.brain_window(2)
    assert (rows, columns) == (slice(0, 6), slice(4, 11))
    assert slices.tolist() == [2, 3]
    assert scan.brain_window(5)[0] == (slice(0, 9), slice(1, 12))
