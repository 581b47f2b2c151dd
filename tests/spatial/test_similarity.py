"""Similarity of images and masks: cases computed by hand."""

import numpy as np
import pytest

from bids_dmrigen.spatial.similarity import dice, mutual_information, pearson


def test_dice_by_hand():
    one, other = np.zeros((4, 4, 1), bool), np.zeros((4, 4, 1), bool)
    one[:2], other[1:] = True, True
    assert dice(one, other) == pytest.approx(2 * 4 / (8 + 12))
    assert np.isnan(dice(np.zeros(3), np.zeros(3)))


def test_mutual_information_of_equal_and_of_unrelated_volumes():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 30, 30, 30))
    mask = np.ones(one.shape, bool)
    assert mutual_information(one, 3 - 2 * one, mask) == pytest.approx(1.0, abs=0.02)
    assert mutual_information(one, other, mask) < 0.02


def test_correlation_is_numpys_in_the_mask_and_nan_for_a_constant():
    one, other = np.random.default_rng(0).normal(size=(2, 6, 5, 4))
    mask = np.zeros((6, 5, 4), bool)
    mask[1:5] = True
    assert pearson(one, other + one, mask) == pytest.approx(np.corrcoef(one[mask], (other + one)[mask])[0, 1])
    assert np.isnan(pearson(one, np.ones_like(one), mask))
