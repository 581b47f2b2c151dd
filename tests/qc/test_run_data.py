"""The files of a run as arrays: what is absent is named, volumes pair by direction."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.qc.run_data import RunData, RunFiles, same_volumes

from ..conftest import tiny_gradients, tiny_series, write_run
from .runs import AFFINE, NOISE


def test_not_available_is_no_number(inputs):
    table = RunData(RunFiles(**inputs)).confounds
    assert table.shape == (14, 7)
    assert np.argwhere(np.isnan(table)).tolist() == [[0, 6]]


@pytest.mark.parametrize("kept", ["AcquiredVolumes", "InputVolumes"])  # the latter where a method generated the input
def test_residual_pairs_volumes_by_direction_and_leaves_kept_ones_out(inputs, tmp_path, kept):
    table, order = tiny_gradients(), np.r_[0, 1, np.arange(13, 1, -1)]
    data = tiny_series(table, noise=NOISE)
    stem = str(write_run(tmp_path, "made", 0.9 * data[..., order], table[order], AFFINE)).removesuffix(".nii.gz")
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"GenerativeModel": {kept: [0, 1, 2, 3]}}))
    files = {
        "generated": [f"{stem}.nii.gz"],
        "generated_bval": [f"{stem}.bval"],
        "generated_bvec": [f"{stem}.bvec"],
        "generated_record": [str(record)],
    }
    run = RunData(RunFiles(**{**inputs, **files}))
    assert np.flatnonzero(~run.generated("clean")[2]).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(run.removed("clean"), 0.1 * data[..., order[4:]], rtol=1e-3, atol=1e-3)


def test_same_volumes_match_by_direction_and_not_by_place():
    table = tiny_gradients(6, 1)
    order = np.array([0, 4, 2, 6, 1, 5, 3])
    shuffled = GradientTable(table.bvals[order], -table.bvecs[order])
    generated = np.ones(7, bool)
    generated[1] = False
    pairs = same_volumes(table, shuffled, generated)
    assert pairs == [(int(order[k]), k) for k in range(2, 7)]
    other_shell = GradientTable(table.bvals * 2, table.bvecs)
    assert same_volumes(table, other_shell, generated) == []


def test_a_direction_measured_twice_pairs_with_itself():
    bvals, bvecs = np.r_[0, 1000, 1000.0], np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0.0]])
    table = GradientTable(bvals, bvecs)
    assert same_volumes(table, table, np.ones(3, bool)) == [(1, 1), (2, 2)]
