"""Means in regions: bias against the reference, small regions, and the summary."""

import numpy as np
import pytest

from bids_dmrigen.qc.evaluation import SCORES, Evaluation, Outcome
from bids_dmrigen.qc.regions import region_scores, summary

SHAPE = (6, 6, 4)


def outcome(arm, selection, fa, fault=""):
    maps = {"fa": np.full(SHAPE, fa), "md": np.full(SHAPE, 1e-3 * fa)}
    return Outcome(arm, 6, selection, dict.fromkeys(SCORES, np.nan), {} if fault else maps, fault=fault)


@pytest.fixture
def result():
    reference = {"fa": np.full(SHAPE, 0.4), "md": np.full(SHAPE, 4e-4)}
    reference["fa"][3:] = 0.6
    outcomes = (outcome("a", 0, 0.4), outcome("a", 1, 0.5), outcome("b", 0, 0.7), outcome("c", 0, 0, "cannot"))
    return Evaluation(outcomes, reference, np.ones(SHAPE, bool))


def test_a_bias_is_the_mean_over_the_region_less_that_of_the_reference(result):
    left, right, small = np.zeros((3, *SHAPE), bool)
    left[:3], right[3:], small[0, 0] = True, True, True
    rows = region_scores(result, {"left": left, "right": right, "small": small})
    found = {(row["method"], row["region"]): row for row in rows}
    assert set(found) == {(arm, region) for arm in "ab" for region in ("left", "right")}
    assert found["a", "left"]["fa_mean"] == pytest.approx(0.45)
    assert found["a", "left"]["fa_bias"] == pytest.approx(0.05)
    assert found["a", "right"]["fa_bias"] == pytest.approx(-0.15)
    assert found["b", "left"]["md_bias"] == pytest.approx(3e-4)
    assert found["b", "left"]["voxels"] == left.sum()
    header, a, b = summary(rows, 6)
    assert header[0] == "method"
    assert a == ["a", "2", "0.1000", "-0.150 (right)", "50.0"]
    assert b[:4] == ["b", "2", "0.2000", "+0.300 (left)"]


def test_voxels_that_are_not_scored_do_not_count(result):
    mask = np.zeros(SHAPE, bool)
    mask[:2] = True
    scored = Evaluation(result.outcomes, result.reference, mask)
    (row, *_) = region_scores(scored, {"all": np.ones(SHAPE, bool)})
    assert row["voxels"] == mask.sum()
    assert row["fa_bias"] == pytest.approx(0.05)
