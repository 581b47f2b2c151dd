"""The run-walk sampler on Gaussian data, where the denoiser and the walk have closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.noise import noise
from bids_dmrigen.diffusion.processes import rev_warmup70
from bids_dmrigen.diffusion.samplers import run_walk, run_walk_times

MEAN, VARIANCE = 2.0, 0.25


def gaussian_denoiser(process):
    """E[x0 | x_t] for x0 ~ N(MEAN, VARIANCE)."""

    def denoise(x_t, t):
        alpha, sigma = (float(v) for v in process.marginal(t))
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    return denoise


def test_run_walk_has_the_papers_76_evaluations():
    times = run_walk_times()
    assert len(times) == 76
    assert times[:3] == [300, 290, 280]
    assert times[25:27] == [50, 49]
    assert times[-1] == 0


def test_sampling_fine_steps_gives_the_data_distribution():
    process, n = rev_warmup70(), 40_000
    alpha, sigma = process.marginal(1000)
    start = alpha * MEAN + (alpha**2 * VARIANCE + sigma**2).sqrt() * torch.from_numpy(
        noise(0, "", "", "test", 0, 0, 0, (n,))
    )
    sampled = run_walk(
        gaussian_denoiser(process),
        process,
        start,
        list(range(1000, -1, -2)),
        noise=lambda step: torch.from_numpy(noise(1, "", "", "test", 0, step, 0, (n,))),
        eta=1.0,
    )
    assert float(sampled.x0.mean()) == pytest.approx(MEAN, abs=4 * (VARIANCE / n) ** 0.5)
    assert float(sampled.x0.var()) == pytest.approx(VARIANCE, rel=0.04)
    assert (sampled.evaluations == 501).all()


def test_posterior_means_shrink_as_the_closed_form_says():
    # every step is affine in x_t, so the deviation from alpha_t MEAN is multiplied by a known factor
    process, times = rev_warmup70(), run_walk_times()
    start = torch.linspace(-1, 5, 7, dtype=torch.float64)
    deviation = start - float(process.marginal(300)[0]) * MEAN
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = ([float(v) for v in process.marginal(u)] for u in (t, s))
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        step = alpha / alpha_s
        added = sigma**2 - step**2 * sigma_s**2
        deviation = deviation * (step * sigma_s**2 + alpha_s * added * gain) / sigma**2
    sampled = run_walk(gaussian_denoiser(process), process, start, times)
    torch.testing.assert_close(sampled.x0, MEAN + deviation)


def test_stopped_samples_keep_their_estimate_and_the_others_go_on():
    process = rev_warmup70()
    start = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    stop = lambda x0, step: (x0[:, 0] < 5) & (step >= 1)  # noqa: E731
    eroding = lambda x_t, t: 0.9 * x_t + 0.01 * t  # noqa: E731
    sampled = run_walk(eroding, process, start, [300, 200, 100, 0], stop=stop)
    alone = run_walk(eroding, process, start, [300, 200])
    full = run_walk(eroding, process, start, [300, 200, 100, 0])
    assert sampled.evaluations.tolist() == [2, 4]
    torch.testing.assert_close(sampled.x0[0], alone.x0[0])
    torch.testing.assert_close(sampled.x0[1], full.x0[1])
    assert not np.isclose(float(full.x0[0]), float(alone.x0[0]))


def test_faults_are_refused():
    process, x = rev_warmup70(), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="must fall"):
        run_walk(lambda x, t: x, process, x, [10, 20])
    with pytest.raises(ValueError, match="source of noise"):
        run_walk(lambda x, t: x, process, x, [10, 0], eta=0.5)
