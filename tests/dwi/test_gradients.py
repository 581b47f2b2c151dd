"""Frames, rotations, shells, neighbours and even subsets of the gradient table."""

import numpy as np
import pytest

from bids_dmrigen.dwi import gradients as module
from bids_dmrigen.dwi.gradients import (
    GradientError,
    GradientTable,
    distinct,
    even_directions,
    even_subset,
    nearest_rotation,
    trailing_trace,
)


def rotation(axis, degrees):
    """Rodrigues' formula."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(linear):
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = [-90, 40, 7]
    return affine


OBLIQUE = rotation([1, 2, 3], 25)
AFFINES = {
    "RAS": affine_of(np.diag([2, 2, 2.5])),
    "LAS": affine_of(np.diag([-2, 2, 2.5])),
    "sagittal": affine_of(np.array([[0, 0, 3.0], [-2, 0, 0], [0, 2, 0]])),
    "oblique right-handed": affine_of(OBLIQUE @ np.diag([2, 2, 4])),
    "oblique left-handed": affine_of(OBLIQUE @ np.diag([-2, 2, 4])),
    "sheared": affine_of(OBLIQUE @ np.array([[2, 0.2, 0], [0, 2, 0.1], [0, 0, 3]])),
}


def shell(n=12, b=1000.0, n_b0=1):
    return np.r_[np.zeros(n_b0), np.full(n, b)], np.r_[np.zeros((n_b0, 3)), even_directions(n)]


@pytest.mark.parametrize("name", AFFINES)
def test_world_and_voxel_frames_round_trip(name):
    bvals, world = shell()
    table = GradientTable.from_world(bvals, world, AFFINES[name])
    np.testing.assert_allclose(table.world_directions(AFFINES[name]), world, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(table.bvecs[1:], axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in AFFINES if name != "sheared"])
def test_world_directions_follow_the_voxel_axes(name):
    """An FSL vector along voxel axis k is that axis of the affine, x reversed for a right-handed affine."""
    affine = AFFINES[name]
    table = GradientTable([1000, 1000, 1000], np.eye(3))
    expected = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T
    if np.linalg.det(affine[:3, :3]) > 0:
        expected[0] *= -1
    np.testing.assert_allclose(table.world_directions(affine), expected, atol=1e-12)


def test_fsl_convention_of_the_two_common_orientations():
    """LAS images have the x component as it is in voxels, RAS images negated: both are the world's -x."""
    table = GradientTable([1000], [[1.0, 0, 0]])
    np.testing.assert_allclose(table.world_directions(AFFINES["LAS"]), [[-1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(table.world_directions(AFFINES["RAS"]), [[-1, 0, 0]], atol=1e-12)


def test_sheared_axes_turn_by_the_nearest_rotation():
    affine = AFFINES["sheared"]
    table = GradientTable([1000, 1000, 1000], np.eye(3))
    world = table.world_directions(affine)
    np.testing.assert_allclose(world @ world.T, np.eye(3), atol=1e-12)
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert np.abs(np.einsum("ki,ik->k", world, cosines)).min() > 0.99  # nearly along the voxel axes


@pytest.mark.parametrize("name", AFFINES)
def test_turned_equals_a_known_rotation_in_the_world(name):
    bvals, world = shell()
    table = GradientTable.from_world(bvals, world, AFFINES[name])
    turn = rotation([2, -1, 1], 12)
    stretched = turn @ (np.eye(3) + 0.2 * np.outer([0.6, 0.8, 0], [0.6, 0.8, 0]))  # finite strain ignores this
    for linear in (turn, stretched):
        turned = table.turned(linear, AFFINES[name])
        np.testing.assert_allclose(turned.world_directions(AFFINES[name]), world @ turn.T, atol=1e-12)
        np.testing.assert_array_equal(turned.bvals, table.bvals)


def test_each_volume_may_turn_its_own_way():
    bvals, world = shell()
    turns = np.stack([rotation([0, 0, 1], 3 * k) for k in range(len(bvals))])
    table = GradientTable.from_world(bvals, world, AFFINES["LAS"]).turned(turns, AFFINES["LAS"])
    expected = np.stack([turn @ vector for turn, vector in zip(turns, world, strict=True)])
    np.testing.assert_allclose(table.world_directions(AFFINES["LAS"]), expected, atol=1e-12)
    assert not table.bvecs[0].any()


def test_nearest_rotation_is_a_rotation_even_for_a_reflection():
    found = nearest_rotation(np.stack([np.diag([1, 1, -1.0]), 2 * OBLIQUE]))
    np.testing.assert_allclose(np.linalg.det(found), 1)
    np.testing.assert_allclose(found[1], OBLIQUE, atol=1e-12)


def test_shells_of_real_tables():
    odd = [0, 0.001, 0.002, 0.003, 0.004, 928.289, 930.1, 925.7]
    table = GradientTable(odd, np.r_[np.zeros((5, 3)), np.eye(3)])
    assert table.is_b0.tolist() == [True] * 5 + [False] * 3
    ((b, members),) = table.shells()
    assert b == pytest.approx(928.03)
    assert members.tolist() == [5, 6, 7]

    bvals = [0, 2010, 700, 995, 1990, 710, 1005, 5]
    table = GradientTable(bvals, np.tile([1.0, 0, 0], (8, 1)))
    assert [(b, m.tolist()) for b, m in table.shells()] == [(705, [2, 5]), (1000, [3, 6]), (2000, [1, 4])]
    assert GradientTable([0, 5], np.zeros((2, 3))).shells() == []


def shells_of(bvals):
    table = GradientTable(bvals, np.tile([1.0, 0, 0], (len(bvals), 1)))
    return [table.bvals[members].tolist() for _, members in table.shells()]


@pytest.mark.parametrize("spacing", [100, 70, 30])
def test_evenly_spaced_bvalues_do_not_chain(spacing):
    """IVIM and DSI: every shell is narrower than the gap, however close the b-values follow each other."""
    bvals = np.arange(100.0, 1001, spacing)
    found = shells_of(np.random.default_rng(0).permutation(bvals))
    assert sum(len(shell) for shell in found) == len(bvals)
    assert max(max(shell) - min(shell) for shell in found) < module.SHELL_GAP_S_PER_MM2
    if spacing == 100:
        assert found == [[b] for b in bvals]


@pytest.mark.parametrize(("low", "high"), [(985, 1015), (2950, 3050), (9900, 10100)])
def test_jitter_of_scanners_stays_one_shell(low, high):
    bvals = np.linspace(low, high, 61)
    assert len(shells_of(np.r_[0, 705, bvals])) == 2
    table = GradientTable(bvals, np.tile([1.0, 0, 0], (61, 1)))
    assert table.shells()[0][0] == pytest.approx((low + high) / 2)


def test_b0_threshold():
    table = GradientTable([0, 60], [[0, 0, 0], [1, 0, 0]], b0_threshold=100)
    assert table.is_b0.all()
    assert not table.bvecs.any()
    assert table[[1]].b0_threshold == 100


def test_neighbours_are_antipodal_and_stay_on_their_shell():
    near = rotation([0, 0, 1], 5) @ [1, 0, 0]
    vectors = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], -near, [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    table = GradientTable([0, 1000, 1000, 1000, 1000, 3000, 0], vectors)
    found = table.neighbours(2)
    assert found[1].tolist()[0] == 3  # nearly opposite: nearest
    assert found[3].tolist() == [1, 2]
    assert found[5].tolist() == [-1, -1]  # alone on its shell
    assert found[0].tolist() == [6, -1]


def energy(directions):
    both = np.concatenate([directions, -directions])
    distance = np.linalg.norm(both[:, None] - both[None], axis=-1)
    return (1 / distance[np.triu_indices(len(both), 1)]).sum()


@pytest.mark.parametrize("n", [6, 12, 20])
def test_even_subset_beats_random_ones(n):
    rng = np.random.default_rng(0)
    directions = even_directions(60) * rng.choice([-1, 1], (60, 1))
    chosen = even_subset(directions, n)
    assert len(set(chosen.tolist())) == n
    others = [energy(directions[rng.choice(60, n, replace=False)]) for _ in range(300)]
    assert energy(directions[chosen]) < min(others)
    np.testing.assert_array_equal(even_subset(directions, n), chosen)


def test_even_subset_avoids_repeats_and_checks_its_size():
    directions = np.repeat(even_directions(6), 2, axis=0) * np.tile([1, -1], 6)[:, None]
    assert len({k // 2 for k in even_subset(directions, 6)}) == 6
    with pytest.raises(GradientError, match="13 even directions out of 12"):
        even_subset(directions, 13)


def test_even_directions_approach_the_icosahedron():
    """Six axes through the corners of an icosahedron are the best possible: 63.43 degrees apart."""
    cosine = np.abs(np.triu(even_directions(6) @ even_directions(6).T, 1)).max()
    assert np.degrees(np.arccos(cosine)) > 60
    directions = even_directions(40)
    rng = np.random.default_rng(0)
    random = rng.standard_normal((40, 3))
    assert energy(directions) < 0.95 * energy(random / np.linalg.norm(random, axis=1, keepdims=True))


def test_vectors_are_normalised_and_the_table_is_read_only():
    table = GradientTable([0, 1000], [[np.nan, np.nan, np.nan], [0, 0.95, 0]])
    np.testing.assert_array_equal(table.bvecs, [[0, 0, 0], [0, 1, 0]])
    with pytest.raises(ValueError, match="read-only"):
        table.bvals[0] = 3
    assert len(table[1:]) == 1


@pytest.mark.parametrize(
    ("bvals", "bvecs", "message"),
    [
        ([0, 1000], np.eye(3), module.LENGTH_MISMATCH.format(n_bvals=2, n_bvecs=(3, 3))),
        ([0, np.nan], [[0, 0, 0], [1, 0, 0]], module.NOT_FINITE.format(volumes=[1])),
        ([0, 1000], [[0, 0, 0], [np.inf, 0, 0]], module.NOT_FINITE.format(volumes=[1])),
        ([-5, 1000], [[0, 0, 0], [1, 0, 0]], module.NEGATIVE_BVAL.format(volumes=[0])),
        (
            [0, 1000],
            [[0, 0, 0], [0.5, 0, 0]],
            module.NOT_UNIT.format(volumes=[1], lengths=[0.5], threshold=50),
        ),
        ([0, 1000], np.zeros((2, 3)), module.NO_DIRECTION.format(volumes=[1], threshold=50, remedy=module.TRACE)),
    ],
)
def test_bad_tables_are_refused(bvals, bvecs, message):
    with pytest.raises(GradientError) as error:
        GradientTable(bvals, bvecs)
    assert str(error.value) == message


def test_singular_affine_is_refused():
    with pytest.raises(GradientError, match="singular or not finite"):
        GradientTable([1000], [[1, 0, 0]]).world_directions(np.diag([1, 1, 0, 1.0]))


def test_repeated_directions_and_antipodes_count_once():
    directions = even_directions(5)
    near = directions[0] + 0.03 * directions[1]  # under two degrees away
    again = np.concatenate([directions[:2], -directions[:1], near[None] / np.linalg.norm(near), directions[2:]])
    assert distinct(again).tolist() == [0, 1, 4, 5, 6]
    assert distinct(np.zeros((0, 3))).tolist() == []


def test_volumes_without_direction_are_said_with_the_remedy():
    bvals, bvecs = np.array([0, 1000, 1000, 1000.0]), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0.0]])
    with pytest.raises(GradientError, match=r"volumes \[3\] have b > 50 .* give --leave-out-trace"):
        GradientTable(bvals, bvecs)
    bvals[0] = 1000
    with pytest.raises(GradientError, match=r"volumes \[0, 3\] have b > 50 .* set their b-values to 0"):
        GradientTable(bvals, bvecs)
    assert trailing_trace(bvals, bvecs) == 1
    assert trailing_trace(bvals[:3], bvecs[:3]) == 0


def test_jitter_is_a_shell_and_a_continuum_is_none():
    directions = even_directions(12)
    jitter = GradientTable(np.tile([600.0, 610, 630], 4), directions)
    spread = GradientTable(np.linspace(375, 470, 12), directions)
    assert [jitter.is_loose(volumes) for _, volumes in jitter.shells()] == [False]
    assert [spread.is_loose(volumes) for _, volumes in spread.shells()] == [True]
