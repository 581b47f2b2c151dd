"""Filling shells: which directions, what stays as it was, and the two classical methods against closed forms."""

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.directions.inputs import nearest_references
from bids_dmrigen.methods.directions.interp import LinearInterpolation
from bids_dmrigen.methods.directions.sh import HarmonicInterpolation
from bids_dmrigen.methods.directions.task import fill_gaps, shells_to_fill

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def scan(n=12, bvals=(1000.0,), seed=0):
    """A tensor signal with a known direction, without noise."""
    world = np.concatenate([np.zeros((1, 3)), *(even_directions(n) for _ in bvals)])
    b = np.concatenate([[0.0], *(np.full(n, v) for v in bvals)])
    table = GradientTable.from_world(b, world, AFFINE)
    rng = np.random.default_rng(seed)
    scale = 100 * rng.uniform(0.5, 2, (4, 5, 3, 1))
    data = scale * np.exp(-b * (0.4e-3 + 1.2e-3 * (world @ [0.6, 0.8, 0]) ** 2))
    return Scan(data.astype(np.float32), AFFINE, table, np.ones((4, 5, 3), bool))


def test_gaps_are_filled_evenly():
    acquired = even_directions(12)
    wanted = fill_gaps(acquired, 48)
    assert wanted.shape == (48, 3)
    both = np.concatenate([acquired, wanted])
    cosine = np.abs(both @ both.T) - np.eye(60)
    assert np.degrees(np.arccos(cosine.max())) > 8  # 60 directions can lie some 18 degrees apart
    assert fill_gaps(acquired, 0).shape == (0, 3)
    assert fill_gaps(acquired, -3).shape == (0, 3)


def test_gaps_are_filled_far_from_antipodes_of_acquired_directions():
    acquired = even_directions(12)
    for signs in (1, -1, np.resize([1, -1], (12, 1))):
        cosine = np.abs(fill_gaps(signs * acquired, 6) @ acquired.T)
        assert np.degrees(np.arccos(cosine.max())) > 18  # acquired directions are some 40 degrees apart


def test_references_are_nearest_whatever_their_sign():
    acquired = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [-0.99, 0.14, 0]], dtype=torch.float64)
    assert nearest_references(acquired, torch.tensor([[0.98, -0.2, 0.0]], dtype=torch.float64), 2).tolist() == [[2, 0]]


@pytest.mark.parametrize("name", ["interp", "sh"])
def test_acquired_volumes_stay_and_generated_ones_are_marked(name):
    given = scan(bvals=(1000.0, 2000.0))
    generated = load(name).generate(None, given, Request(options={"directions": 30}))
    assert generated.mean.shape == (4, 5, 3, 1 + 24 + 36)
    np.testing.assert_array_equal(generated.mean[..., :25], given.data)
    assert generated.acquired.tolist() == [True] * 25 + [False] * 36
    np.testing.assert_allclose(
        generated.gradients.world_directions(AFFINE)[:25], given.gradients.world_directions(AFFINE)
    )
    assert [len(v) for _, v in generated.gradients.shells()] == [30, 30]
    assert generated.samples is None


def test_directions_of_a_file_are_in_voxel_axes_and_acquired_ones_are_not_generated():
    given = scan()
    wanted = GradientTable.from_world(
        [1000, 1000], [[0.6, 0.8, 0], given.gradients.world_directions(AFFINE)[3]], AFFINE
    )
    shells, warnings = shells_to_fill(given, "test", 6, wanted.bvecs)
    np.testing.assert_allclose(shells[0].wanted, [[0.6, 0.8, 0]], atol=1e-12)
    assert warnings == ["1 of the requested directions at b = 1000 s/mm² were acquired, and were not generated"]


def test_harmonics_interpolate_a_smooth_signal():
    given = scan(30)
    generated = HarmonicInterpolation().generate(None, given, Request(options={"directions": 60}))
    world = generated.gradients.world_directions(AFFINE)[31:]
    truth = given.data[..., :1] * np.exp(-1000 * (0.4e-3 + 1.2e-3 * (world @ [0.6, 0.8, 0]) ** 2))
    assert np.abs(generated.mean[..., 31:] / truth - 1).max() < 0.06  # what the penalty costs; the nearest volume: 0.3


def test_linear_coefficients_give_the_direction_back():
    acquired, wanted = torch.from_numpy(even_directions(12)), torch.from_numpy(even_directions(7))
    weights = LinearInterpolation().weights(acquired, wanted, {}, acquired)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(7, dtype=torch.float64))
    assert ((weights != 0).sum(dim=1) <= 6).all()
    side = torch.sign(wanted @ acquired.T)
    combined = (weights * side) @ acquired
    torch.testing.assert_close(torch.nn.functional.normalize(combined, dim=1), wanted)


@pytest.mark.parametrize(("name", "most"), [("interp", 0.6), ("sh", 0.25)])
def test_left_out_volumes_are_generated_from_the_other_volumes_only(name, most):
    given = scan(12, bvals=(1000.0, 2000.0))
    asked = Request(left_out=3, options={"directions": 30})
    left = load(name).generate(None, given, asked).left_out
    b = given.gradients.bvals[left.volumes]
    assert b.tolist() == [1000.0] * 3 + [2000.0] * 3
    assert left.mean.shape == (4, 5, 3, 6)
    truth = given.data[..., left.volumes]
    # The median: which directions are hidden differs between machines, and one along a fibre is hard to interpolate.
    assert 0 < np.median(np.abs(left.mean / truth - 1)) < most
    # What is hidden cannot matter.
    changed = given.data.copy()
    changed[..., left.volumes] = 1e6
    spoiled = Scan(changed, AFFINE, given.gradients, given.mask)
    np.testing.assert_array_equal(load(name).generate(None, spoiled, asked).left_out.mean, left.mean)


def test_nothing_is_left_out_where_every_direction_is_needed_or_measured_again():
    asked = Request(left_out=3, options={"directions": 30})
    assert load("sh").generate(None, scan(6), asked).left_out is None
    assert len(load("sh").generate(None, scan(7), asked).left_out.volumes) == 1
    few = scan(8)
    order = [0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    twice = Scan(few.data[..., order], AFFINE, few.gradients[order], few.mask)
    left = load("sh").generate(None, twice, asked).left_out.volumes
    assert len(left) == 2
    assert not {1, 2, 9, 10} & set(left.tolist())


def test_too_few_different_directions_are_refused():
    few = scan(6)
    repeated = few.gradients[[0, 1, 2, 3, 4, 5, 1]]
    antipode = GradientTable(repeated.bvals, repeated.bvecs * np.r_[[1] * 6, -1][:, None])
    twice = Scan(few.data[..., [0, 1, 2, 3, 4, 5, 1]], AFFINE, antipode, few.mask)
    with pytest.raises(ScanError, match="at least 6 different directions on a shell, found 5 at b = 1000"):
        shells_to_fill(twice, "QID²", 6, 60)
    # A small shell beside a large one, as many protocols have it, does not keep the large one from being filled.
    table = GradientTable(
        np.r_[0, [500.0] * 3, [1000.0] * 12], np.r_[np.zeros((1, 3)), even_directions(3), even_directions(12)]
    )
    mixed = Scan(np.ones((2, 2, 2, 16), np.float32), AFFINE, table, np.ones((2, 2, 2), bool))
    shells, warnings = shells_to_fill(mixed, "QID²", 6, 60)
    assert [(shell.bval, len(shell.wanted)) for shell in shells] == [(1000.0, 48)]
    assert warnings == [
        "QID² needs at least 6 different directions on a shell, found 3 at b = 500 s/mm²: the shell was not changed"
    ]
    with pytest.raises(ScanError, match="already has the requested directions"):
        shells_to_fill(scan(12), "QID²", 6, 12)
