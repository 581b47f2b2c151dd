"""Spherical harmonics: the basis is DIPY's, fits are exact where they can be, prediction is what DIPY's fit gives."""

import warnings

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import even_directions
from bids_dmrigen.dwi.harmonics import (
    fit_weights,
    harmonics,
    n_harmonics,
    order_for,
    prediction_weights,
    rish,
    scaled,
    undamped_weights,
)


def directions(n, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("order", [0, 2, 4, 8])
def test_the_basis_is_dipys(order):
    from dipy.reconst.shm import real_sh_descoteaux

    v = directions(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = real_sh_descoteaux(order, np.arccos(v[:, 2]), np.arctan2(v[:, 1], v[:, 0]), legacy=True)[0]
    found = harmonics(torch.from_numpy(v), order)
    assert found.shape == (40, n_harmonics(order))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_direction_and_its_antipode_are_the_same():
    v = torch.from_numpy(directions(20))
    torch.testing.assert_close(harmonics(v, 6), harmonics(-v, 6))


def test_prediction_without_smoothing_is_exact_for_a_signal_of_that_order():
    acquired, wanted = torch.from_numpy(even_directions(30)), torch.from_numpy(directions(10, 3))
    coefficients = torch.from_numpy(np.random.default_rng(1).normal(size=15))
    weights = prediction_weights(acquired, wanted, 4, smoothing=0.0)
    torch.testing.assert_close(weights @ harmonics(acquired, 4) @ coefficients, harmonics(wanted, 4) @ coefficients)


def test_prediction_is_dipys_regularised_fit():
    from dipy.reconst.shm import smooth_pinv

    acquired, wanted = even_directions(20), directions(5, 4)
    basis = harmonics(torch.from_numpy(acquired), 4).numpy()
    degrees = np.repeat([0, 2, 4], [1, 5, 9])
    fit = smooth_pinv(basis, np.sqrt(0.006) * degrees * (degrees + 1))
    expected = harmonics(torch.from_numpy(wanted), 4).numpy() @ fit
    found = prediction_weights(torch.from_numpy(acquired)[None], torch.from_numpy(wanted)[None], 4)[0]
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_rish_features_do_not_change_when_the_head_turns():
    acquired, turn = (
        torch.from_numpy(even_directions(60)),
        np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0],
    )
    tensor = np.array([[1.7, 0.2, 0.1], [0.2, 0.5, 0.0], [0.1, 0.0, 0.3]])
    fit = fit_weights(acquired, 8, smoothing=0.0)
    found = []
    for d in (tensor, turn @ tensor @ turn.T):
        signal = torch.exp(-torch.einsum("ni,ij,nj->n", acquired, torch.from_numpy(d), acquired))
        found.append(rish(fit @ signal, 8))
    assert found[0].shape == (5,)
    torch.testing.assert_close(found[0][:3], found[1][:3], rtol=1e-4, atol=0)
    assert found[0][1] > 1e-2


def test_the_features_of_a_constant_and_of_one_harmonic():
    fit = fit_weights(torch.from_numpy(even_directions(30)), 4, smoothing=0.0)
    constant = rish(fit @ torch.full((30,), 0.7, dtype=torch.float64), 4)
    torch.testing.assert_close(constant, torch.tensor([4 * np.pi * 0.49, 0, 0], dtype=torch.float64))
    one = rish(fit @ harmonics(torch.from_numpy(even_directions(30)), 4)[:, 3], 4)
    torch.testing.assert_close(one, torch.tensor([0.0, 1, 0], dtype=torch.float64))


def test_the_shrinkage_of_a_degree_by_the_penalty_is_undone():
    acquired = torch.from_numpy(np.stack([even_directions(20), directions(20)]))
    basis, sizes = harmonics(acquired, 4), [1, 5, 9]
    for weights, close in ((fit_weights(acquired, 4), False), (undamped_weights(acquired, 4), True)):
        kept = torch.diagonal(weights @ basis, dim1=1, dim2=2).split(sizes, dim=1)
        means = torch.stack([k.mean(dim=1) for k in kept])
        assert torch.allclose(means, torch.ones_like(means)) == close


def test_scaling_degrees_scales_their_features_by_the_square():
    coefficients, scale = torch.randn(2, 15, 4), torch.rand(2, 3, 4)
    found = rish(scaled(coefficients, scale, 4, dim=1), 4, dim=1)
    torch.testing.assert_close(found, scale.square() * rish(coefficients, 4, dim=1))


def test_order_follows_the_number_of_directions():
    assert [order_for(n) for n in (6, 12, 14, 15, 30, 90)] == [2, 2, 2, 4, 4, 4]
    assert order_for(90, highest=8) == 8
    with pytest.raises(ValueError, match="even"):
        n_harmonics(3)
