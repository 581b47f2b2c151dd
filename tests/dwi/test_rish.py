"""RISH maps: closed forms, the shell that is taken, degrees that few directions do not determine."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientError, GradientTable, even_directions
from bids_dmrigen.dwi.rish import rish_maps, rish_shell
from bids_dmrigen.dwi.series import Scan


def table(*shells):
    """One b0, then (b-value, directions) in turn."""
    bvals = np.concatenate([[0.0], *(np.full(len(v), b) for b, v in shells)])
    return GradientTable(bvals, np.concatenate([np.zeros((1, 3)), *(v for _, v in shells)]))


def scan(gradients, signal, b0=200.0):
    """Two voxels with this (N,) signal over b0, beside two that are not in the mask."""
    data = np.tile(b0 * np.r_[1.0, signal], (4, 1, 1, 1)).astype(np.float32)
    return Scan(data, np.eye(4), gradients, np.array([True, True, False, False])[:, None, None])


def test_a_constant_has_degree_0_alone():
    gradients = table((1000, even_directions(20)))
    maps = rish_maps(scan(gradients, np.full(20, 0.4)))
    assert maps.keys() == {0, 2, 4}
    np.testing.assert_allclose(maps[0].ravel(), [4 * np.pi * 0.16] * 2 + [0, 0], rtol=1e-5)
    for degree in (2, 4):
        np.testing.assert_allclose(maps[degree], 0, atol=1e-9)


def test_the_features_are_dipys():
    from dipy.reconst.shm import real_sh_descoteaux, smooth_pinv

    v = even_directions(30)
    signal = np.exp(-2 * (v @ [0.6, 0.8, 0]) ** 2)
    basis = real_sh_descoteaux(4, np.arccos(v[:, 2]), np.arctan2(v[:, 1], v[:, 0]), legacy=True)[0]
    degrees = np.repeat([0, 2, 4], [1, 5, 9])
    fit = smooth_pinv(basis, np.sqrt(0.006) * degrees * (degrees + 1))
    kept = np.diag(fit @ basis)  # of each coefficient
    maps = rish_maps(scan(table((1000, v)), signal))
    for degree in (0, 2, 4):
        of_degree = degrees == degree
        expected = (((fit @ signal)[of_degree] / kept[of_degree].mean()) ** 2).sum()
        assert maps[degree][0, 0, 0] == pytest.approx(expected, rel=1e-4)


def test_few_directions_give_the_features_of_many():
    v = {n: even_directions(n) for n in (8, 60)}
    found = {n: rish_maps(scan(table((1000, v[n])), 0.4 + 0.2 * v[n][:, 0] ** 2))[2][0, 0, 0] for n in v}
    assert found[8] == pytest.approx(found[60], rel=0.05)


def test_the_shell_nearest_to_1000_of_those_with_directions_enough():
    few, six, many = even_directions(5), even_directions(6), even_directions(15)
    shell = rish_shell(table((700, many), (1000, few), (1200, six), (3000, many)))
    assert (round(shell.bval), shell.order, [*shell.degrees]) == (1200, 2, [0, 2])
    assert shell.volumes.tolist() == [*range(21, 27)]
    assert rish_shell(table((700, many), (3000, six))).order == 4
    repeated = np.concatenate([six, -six, six])
    assert rish_shell(table((1000, repeated))).order == 2, "what is measured again determines no more"
    with pytest.raises(GradientError, match="at least 6 different directions"):
        rish_shell(table((1000, few), (2000, np.repeat(few, 3, axis=0))))


def test_voxels_without_b0_stay_finite():
    gradients = table((1000, even_directions(6)))
    given = scan(gradients, np.full(6, 0.5))
    given.data[0, ..., 0] = 0
    maps = rish_maps(given)
    assert all(np.isfinite(values).all() for values in maps.values())
    assert maps[0][1, 0, 0] == pytest.approx(np.pi, rel=1e-5)
