"""The slice stack: what goes in comes out on the scan's grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.stack import MARGIN, slice_stack

CPU = torch.device("cpu")


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    table = GradientTable(np.r_[0, np.full(6, 1000.0)], np.r_[np.zeros((1, 3)), even_directions(6)])
    data = rng.uniform(50, 100, (31, 27, 6, 7)).astype(np.float32)
    mask = np.zeros(data.shape[:3], bool)
    mask[10:21, 2:20, 1:5] = True
    mask[:, :, 3] = False
    return Scan(data, np.diag([2.0, 2, 2, 1]), table, mask)


def test_a_stack_covers_the_brain_with_a_margin_and_is_divisible(scan):
    stack = slice_stack(scan, 8, CPU)
    assert stack.box == (slice(10 - MARGIN, 21 + MARGIN), slice(0, 20 + MARGIN), slice(1, 5))
    assert stack.data.shape == (4, 7, 24, 24)
    assert stack.slices == [0, 1, 3]
    assert stack.voxels().shape == (scan.mask.sum(), 7)
    assert float(stack.data.median()) < 1.5
    np.testing.assert_allclose(np.median(stack.voxels()[:, 0]), 1.0, rtol=1e-5)


def test_a_stack_returns_to_the_same_voxels_of_the_grid(scan):
    stack = slice_stack(scan, 8, CPU)
    acquired = scan.data[..., 2:5]
    back = stack.on_grid(2 * stack.data[:, 2:5].numpy(), acquired)
    np.testing.assert_allclose(back[stack.box], 2 * acquired[stack.box], rtol=1e-5)
    outside = np.ones(scan.mask.shape, bool)
    outside[stack.box] = False
    np.testing.assert_array_equal(back[outside], acquired[outside])


def test_a_block_contains_the_neighbouring_slices_and_repeats_the_edge(scan):
    stack = slice_stack(scan, 8, CPU)
    torch.testing.assert_close(stack.block(2), stack.data[1:4])
    torch.testing.assert_close(stack.block(0), stack.data[[0, 0, 1]])
    torch.testing.assert_close(stack.block(3, slice(2, 5), slice(0, 4)), stack.data[[2, 3, 3]][:, :, 2:5, :4])


def test_faults_are_refused(scan):
    with pytest.raises(ScanError, match="mask is empty"):
        slice_stack(replace(scan, mask=np.zeros_like(scan.mask)), 8, CPU)
    with pytest.raises(ScanError, match="median b0 signal in the brain mask is 0"):
        slice_stack(replace(scan, data=np.zeros_like(scan.data)), 8, CPU)
