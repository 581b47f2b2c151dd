"""Leave-one-out predictors, against explicit fits without the volume, and proof that they do not see it."""

import numpy as np
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.prediction import CHANNELS, conditions, leave_one_out

TABLE = GradientTable(
    np.r_[0, 0, np.full(10, 1000.0), np.full(10, 2000.0)],
    np.r_[np.zeros((2, 3)), even_directions(10), even_directions(10)],
)
RNG = np.random.default_rng(0)


def signals(n=400):
    factors = RNG.normal(size=(n, 7))
    return torch.from_numpy(1 + 0.1 * factors @ RNG.normal(size=(7, 22)) + 0.05 * RNG.normal(size=(n, 22)))


def test_linear_prediction_is_least_squares_on_the_others():
    signal = signals()
    weights = leave_one_out(signal, TABLE).linear.double()
    for j in (0, 5, 21):
        rest = np.delete(np.arange(22), j)
        design = torch.cat([signal[:, rest], torch.ones(len(signal), 1, dtype=torch.float64)], dim=1)
        fitted = design @ torch.linalg.lstsq(design, signal[:, j]).solution
        torch.testing.assert_close(signal @ weights[j, :-1] + weights[j, -1], fitted, atol=2e-3, rtol=0)


def test_no_predictor_sees_its_own_volume():
    found = leave_one_out(signals(), TABLE)
    for weights in (found.linear[:, :-1], found.log_tensor, found.mean, found.b0):
        assert not weights.diagonal().any()
    assert not (found.nearest == np.arange(22)[:, None]).any()


def test_tensor_prediction_is_exact_for_a_tensor():
    tensor = np.diag([1.7e-3, 0.4e-3, 0.3e-3])
    decay = np.einsum("ni,ij,nj->n", TABLE.bvecs, tensor, TABLE.bvecs)
    signal = torch.from_numpy(900 * np.exp(-TABLE.bvals * decay)).float()
    predicted = (leave_one_out(signals(), TABLE).log_tensor @ signal.log()).exp()
    torch.testing.assert_close(predicted, signal, rtol=1e-4, atol=0)


def test_means_are_those_of_the_other_volumes_of_the_shell():
    found, signal = leave_one_out(signals(), TABLE), torch.arange(22.0)
    mean, b0 = found.mean @ signal, found.b0 @ signal
    assert float(mean[1]) == 0  # the other b0
    assert float(mean[2]) == np.mean(np.arange(3, 12))
    assert float(mean[21]) == np.mean(np.arange(12, 21))
    assert float(b0[0]) == 1
    assert float(b0[7]) == 0.5


def test_a_lonely_b0_has_no_mean_to_offer():
    found = leave_one_out(signals()[:, 1:12], TABLE[1:12])
    assert not found.mean[0].any()
    assert not found.b0[0].any()
    assert (found.nearest[0] == -1).all()


def test_conditions_contain_the_values_of_the_predictors():
    predictors = leave_one_out(signals(), TABLE)
    block = torch.rand(3, 22, 4, 5) + 0.5
    images, p = conditions(predictors, block, np.array([3, 20]), unit=0.5)
    assert images.shape == (2, CHANNELS, 4, 5)
    expected = torch.einsum("n,nhw->hw", predictors.linear[20, :-1], block[1]) + predictors.linear[20, -1]
    torch.testing.assert_close(p[1], expected)
    torch.testing.assert_close(images[:, 0], p)
    torch.testing.assert_close(images[0, 1], block[1, :2].mean(0))  # b0
    torch.testing.assert_close(images[0, 5], (block[1, [2, *range(4, 12)]].mean(0) - p[0]) / 0.5)  # shell
    torch.testing.assert_close(images[1, 6], (block[1, predictors.nearest[20, 0]] - p[1]) / 0.5)
