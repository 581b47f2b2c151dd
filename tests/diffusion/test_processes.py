"""The processes, checked against their definitions step by step."""

import math

import pytest
import torch

from bids_dmrigen.diffusion.processes import (
    PhysicsGuided,
    Process,
    VariancePreserving,
    linear,
    relative_attenuation,
    rev_warmup70,
)


def test_rev_warmup70_has_the_published_noise_level():
    process = rev_warmup70()
    alpha, sigma = process.marginal(300)
    assert process.steps == 1000
    assert round(float(alpha), 4) == 0.9925
    assert float(alpha) == pytest.approx((1 - 5e-5) ** 150, rel=1e-12)
    assert float(alpha**2 + sigma**2) == pytest.approx(1, rel=1e-12)
    assert float(process.betas[299]) == 5e-5
    assert float(process.betas[-1]) == pytest.approx(1e-2)
    assert process.marginal(0) == (1.0, 0.0)


def test_noising_step_by_step_has_the_marginal():
    process = VariancePreserving(torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64))
    keep, variance = 1.0, 0.0
    for t in range(1, 4):
        beta = float(process.betas[t - 1])
        keep, variance = keep * math.sqrt(1 - beta), variance * (1 - beta) + beta
        alpha, sigma = process.marginal(t)
        assert float(alpha) == pytest.approx(keep)
        assert float(sigma) ** 2 == pytest.approx(variance)


@pytest.mark.parametrize("kind", ["x0", "noise", "v", "score"])
def test_every_kind_of_prediction_gives_the_clean_image(kind):
    process = rev_warmup70()
    x0, noise = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([1, 300, 1000])[:, None, None, None]
    x_t = process.add_noise(x0, t, noise)
    alpha, sigma = process.marginal(t)
    score = -(x_t - alpha * x0) / sigma**2  # the gradient of ln N(x_t; alpha x0, sigma²)
    prediction = {"x0": x0, "noise": noise, "v": alpha * noise - sigma * x0, "score": score}[kind]
    torch.testing.assert_close(process.to_x0(x_t, t, prediction, kind), x0)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'eps'; expected one of"):
        rev_warmup70().to_x0(torch.zeros(1), 3, torch.zeros(1), "eps")


def test_single_step_posterior_is_the_fusion_of_the_paper():
    process, t = rev_warmup70(), 700
    beta = process.betas[t - 1]
    bar, before = process.marginal(t)[0] ** 2, process.marginal(t - 1)[0] ** 2
    x, other = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    first = beta * before.sqrt() / (1 - bar)
    second = (1 - beta).sqrt() * (1 - before) / (1 - bar)
    mean, std = process.posterior(x, other, t, t - 1)
    torch.testing.assert_close(mean, first * x + second * other)
    torch.testing.assert_close(std, (beta * (1 - before) / (1 - bar)).sqrt())


def test_long_posterior_agrees_with_gaussian_conditioning():
    # x_s = a_s x0 + s_s e1 and x_t = a x_s + b e2 are jointly Gaussian: condition by the covariance formula
    process, t, s = rev_warmup70(), 300, 290
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.marginal(t), process.marginal(s)
    x0, x_t = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    covariance = alpha_t / alpha_s * sigma_s**2
    mean, std = process.posterior(x0, x_t, t, s)
    assert float(mean) == pytest.approx(float(alpha_s * x0 + covariance / sigma_t**2 * (x_t - alpha_t * x0)))
    assert float(std**2) == pytest.approx(float(sigma_s**2 - covariance**2 / sigma_t**2))


class _ByVoxel(Process):
    """A process whose noise differs from voxel to voxel, as Phy-Diff's does."""

    steps = 10

    def marginal(self, t):
        share = torch.as_tensor(t) / 10 * torch.tensor([[0.1, 0.5], [0.9, 1.0]], dtype=torch.float64)
        return (1 - share).sqrt(), share.sqrt()


def test_alpha_and_sigma_may_vary_by_voxel():
    process = _ByVoxel()
    x0, noise = (
        torch.ones(3, 1, 2, 2, dtype=torch.float64),
        torch.full((3, 1, 2, 2), 2.0, dtype=torch.float64),
    )
    x_t = process.add_noise(x0, 5, noise)
    assert float(x_t[2, 0, 1, 1]) == pytest.approx(math.sqrt(0.5) + 2 * math.sqrt(0.5))
    mean, std = process.posterior(x0, x_t, 5, 4)
    alone = VariancePreserving(torch.tensor([0.4, 1 - 0.5 / 0.6], dtype=torch.float64))  # that voxel's own
    expected = alone.posterior(x0[2, 0, 1, 1], x_t[2, 0, 1, 1], 2, 1)
    assert float(mean[2, 0, 1, 1]) == pytest.approx(float(expected[0]))
    assert float(std[1, 1]) == pytest.approx(float(expected[1]))


@pytest.mark.parametrize("strength", [1e-3, 1e-2])
def test_physics_guided_noise_is_the_product_of_its_steps(strength):
    """Step by step, as the authors' code has it: alpha_t = (1 - beta_t) - g (1 - u)."""
    plain, u = linear(), torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    process = PhysicsGuided(plain.betas, u, strength)
    keep = torch.ones(2, 1, 3, 4, dtype=torch.float64)
    for t in range(1, 1001):
        keep = keep * (1 - plain.betas[t - 1] - strength * (1 - u.double()))
        if t in (1, 300, 800, 1000):
            alpha, sigma = process.marginal(t)
            torch.testing.assert_close(alpha**2, keep, rtol=1e-7, atol=0)
            torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(keep))
    assert process.marginal(0)[0].eq(1).all()
    assert process.marginal(0)[1].eq(0).all()
    times = torch.tensor([300, 800]).reshape(2, 1, 1, 1)
    each = process.marginal(times)[0]
    torch.testing.assert_close(each[0], process.marginal(300)[0][0])
    torch.testing.assert_close(each[1], process.marginal(800)[0][1])


def test_where_nothing_is_attenuated_there_is_no_physics():
    plain = linear()
    guided = PhysicsGuided(plain.betas, torch.ones(1))
    for t in (1, 500, 1000):
        torch.testing.assert_close(guided.marginal(t)[1], plain.marginal(t)[1].reshape(1))


def test_relative_attenuation_spans_each_image():
    adc = torch.tensor([[0.5e-3, 1e-3], [3e-3, 2e-3]])[None, None].repeat(2, 1, 1, 1)
    adc[1] = 1e-3
    u = relative_attenuation(torch.tensor([1000.0, 2000.0]), adc)
    expected = (math.exp(-2) - math.exp(-6)) / (math.exp(-1) - math.exp(-6))
    torch.testing.assert_close(
        u[0, 0], torch.tensor([[1, expected], [0, (math.exp(-4) - math.exp(-6)) / (math.exp(-1) - math.exp(-6))]])
    )
    assert u[1].eq(1).all(), "an image that is alike everywhere has no physics to tell"


@pytest.mark.parametrize(("u", "strength"), [(1.5, 1e-3), (-0.1, 1e-3), (0.5, 0.1)])
def test_physics_out_of_range_is_refused(u, strength):
    with pytest.raises(ValueError, match="expected relative attenuations in"):
        PhysicsGuided(linear().betas, torch.tensor([u]), strength)
