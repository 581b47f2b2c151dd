"""The ADC of simulated subjects against tensors and free water."""

import dataclasses

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.simulate import anatomy
from bids_dmrigen.simulate.adc import mean_adc
from bids_dmrigen.simulate.anatomy import warped
from bids_dmrigen.simulate.individual import ALIGNED
from bids_dmrigen.simulate.signal import CSF_DIFFUSIVITY, Compartments, Tissue, simulate_signal
from tests.simulate.conftest import AFFINE, SHAPE
from tests.simulate.test_individual import STILL

ZEPPELIN = Compartments(0.0, 1.7e-3, 0.4e-3, 0.0, 0.8e-3, 1.0)  # no stick, no dispersion: a tensor
TENSOR = Tissue(ZEPPELIN, ZEPPELIN, 3.0)


def tensor_ball(ball, direction=(0.36, 0.48, 0.8)):
    """Return a ball of white matter, its outer third grey matter; all tissue is along one direction, without CSF."""
    atlas = ball(direction)
    white, brain = atlas.fractions[0], atlas.brain.float()
    fractions, weights = torch.stack([white, brain - white, 0 * brain]), torch.stack([brain, 0 * brain, 0 * brain])
    return dataclasses.replace(atlas, fractions=fractions, weights=weights)


def test_a_tensor_has_a_third_of_its_trace_at_every_b_value(ball):
    adc = mean_adc(tensor_ball(ball), (500, 1000, 2000), 1, variation=STILL, tissue=TENSOR)
    inside = ball().brain.numpy()
    assert adc.shape == (*SHAPE, 3)
    np.testing.assert_allclose(adc[inside], (1.7e-3 + 2 * 0.4e-3) / 3, rtol=0.01)
    assert (adc[~inside] == 0).all()


def test_more_directions_come_nearer_to_the_trace(ball):
    atlas, trace = tensor_ball(ball, (0.9, 0.1, 0.4)), 2.5e-3
    few, many = (mean_adc(atlas, [1000], 1, n, STILL, TENSOR).max() for n in (3, 60))
    assert many == pytest.approx(trace / 3, rel=2e-3)
    assert abs(many - trace / 3) <= abs(few - trace / 3)


def test_csf_has_the_adc_of_free_water_at_every_b_value_in_every_subject(ball):
    atlas = ball()
    white, brain = atlas.fractions[0], atlas.brain
    atlas = dataclasses.replace(atlas, fractions=torch.stack([white, 0 * white, brain.float() - white]))
    far = anatomy.world_grid(AFFINE, SHAPE).norm(dim=0) > 19  # the white matter ends at 15 mm
    adc = mean_adc(atlas, (1000, 3000), 2)[(brain & far).numpy()]
    assert (adc > 0).mean() > 0.8
    np.testing.assert_allclose(adc[adc > 0], CSF_DIFFUSIVITY, rtol=1e-4)


def test_the_adc_of_tissue_that_is_no_tensor_falls_with_the_b_value(ball):
    adc = mean_adc(ball(), (1000, 2000, 3000), 1, variation=STILL, tissue=Tissue())
    white = ball().fractions[0].numpy() > 0.99
    mean = adc[white].mean(axis=0)
    assert 0.5e-3 < mean[2] < mean[1] < mean[0] < 0.85e-3


def test_subjects_are_averaged_and_brain_is_where_half_of_them_have_brain(ball, monkeypatch):
    shifts = iter((0.0, 0.0, 12.0, 12.0, 12.0))

    def shifted(atlas, seed, variation):
        pose = np.eye(4)
        pose[0, 3] = next(shifts)
        return warped(atlas, pose)

    monkeypatch.setattr("bids_dmrigen.simulate.adc.deform", shifted)
    adc = mean_adc(tensor_ball(ball), [1000], 5, tissue=TENSOR)[..., 0] > 0
    pose = np.eye(4)
    pose[0, 3] = 12.0
    np.testing.assert_array_equal(adc, warped(ball(), pose).brain.numpy())


def test_aligned_subjects_differ_by_the_error_of_a_registration(ball):
    atlas, offsets = ball(), []
    world = np.moveaxis(anatomy.world_grid(AFFINE, SHAPE).numpy(), 0, -1)[atlas.brain.numpy()]
    for seed in range(8):
        pose = anatomy._random_pose(np.random.default_rng(seed), atlas, ALIGNED)
        warp = anatomy._random_warp(np.random.default_rng(seed), AFFINE, SHAPE, ALIGNED)
        moved = world + np.moveaxis(warp.numpy(), 0, -1)[atlas.brain.numpy()]
        offsets.append(moved @ pose[:3, :3].T + pose[:3, 3] - world)
    assert 1.0 < np.sqrt(np.mean(np.square(offsets))) < 2.0  # mm per axis


@pytest.mark.parametrize("bvals", [[], [2000, 1000], [0, 1000], [1000, 1000]])
def test_b_values_that_do_not_increase_are_refused(ball, bvals):
    with pytest.raises(ValueError, match="expected increasing values above 50"):
        mean_adc(ball(), bvals, 1)


def test_zero_subjects_are_refused(ball):
    with pytest.raises(ValueError, match="at least one, found 0"):
        mean_adc(ball(), [1000], 0)


def test_every_subject_has_a_different_pose_and_tissue(ball):
    atlas, directions = ball(), even_directions(12)
    table = GradientTable.from_world(np.r_[0, np.full(12, 1500.0)], np.r_[np.zeros((1, 3)), directions], AFFINE)
    each = []
    for seed in range(2):
        subject = anatomy.deform(atlas, seed, ALIGNED)
        signal = simulate_signal(subject, table, AFFINE, Tissue.random(seed)).numpy()
        with np.errstate(invalid="ignore"):  # outside the brain
            each.append(np.log(signal[..., :1] / signal[..., 1:]).mean(axis=-1) / 1500)
    both = np.isfinite(each).all(axis=0)
    expected = np.mean(each, axis=0)[both]
    np.testing.assert_allclose(mean_adc(atlas, [1500], 2)[both][:, 0], expected, rtol=1e-4)
