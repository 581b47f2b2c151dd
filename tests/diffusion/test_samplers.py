"""Samplers on Gaussian data, where the denoiser, the walk, the flow and the distribution have closed forms."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.noise import NoiseSource, noise
from bids_dmrigen.diffusion.processes import PhysicsGuided, Process, VarianceExploding, linear, rev_warmup70
from bids_dmrigen.diffusion.samplers import (
    ancestral,
    ddim,
    ddim_inverse,
    dpm_solver_pp_2m,
    even_times,
    heun,
    karras_times,
    predictor_corrector,
    run_walk,
    run_walk_times,
)

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


def test_posterior_means_agree_with_the_closed_form():
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


def test_stopped_samples_keep_their_estimate_and_the_others_continue():
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


@dataclass(frozen=True)
class ByVoxel(Process):
    """Three voxels with different speeds of noising: alpha_t to the power of the speed of each voxel."""

    steps: int = 1000
    speed: tuple[float, ...] = (0.5, 1.0, 1.6)

    def marginal(self, t):
        alpha = linear().marginal(t)[0][..., None] ** torch.tensor(self.speed, dtype=torch.float64)
        return alpha, (1 - alpha**2).sqrt()


PROCESSES = {
    "vp": linear(),
    "warmup": rev_warmup70(),
    "ve": VarianceExploding(0.01, 50.0),
    "voxel": ByVoxel(),
    "physics": PhysicsGuided(linear().betas, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)),
}
CENTRE = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.2]], dtype=torch.float64)
DETERMINISTIC = {"ddim": (ddim, 1), "2m": (dpm_solver_pp_2m, 2), "heun": (heun, 2)}  # and their order


def marginal_at(process, t, covariance=COVARIANCE):
    """Return A m, A C A + S² and A of x_t ~ N(A m, A C A + S²) over the three voxels."""
    alpha, sigma = (torch.diag(v.expand(3)) for v in process.marginal(t))
    return alpha @ CENTRE, alpha @ covariance @ alpha + sigma**2, alpha


def best_denoiser(process, covariance=COVARIANCE):
    """E[x0 | x_t] = m + C A (A C A + S²)^-1 (x_t - A m)."""

    def denoise(x, t):
        mean, total, alpha = marginal_at(process, t, covariance)
        return CENTRE + (x - mean) @ torch.linalg.solve(total, alpha @ covariance)

    return denoise


def draws(n, seed=0):
    """Return noise for one image of n times three voxels: `draw` -> (1, n, 3)."""
    return lambda draw: torch.from_numpy(noise(seed, "", "", "test", draw, 0, 0, (1, n, 3))).double()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("sampler", "n_times"),
    [
        (ancestral, 250),
        (partial(ddim, eta=1.0), 250),
        (partial(ddim, eta=0.5), 250),
        (ddim, 120),
        (dpm_solver_pp_2m, 30),
        (heun, 30),
        (partial(predictor_corrector, snr=0.1), 250),
    ],
    ids=["ancestral", "ddim eta 1", "ddim eta 0.5", "ddim", "2m", "heun", "predictor-corrector"],
)
def test_samples_have_the_distribution_of_the_data(sampler, n_times, name):
    process, n = PROCESSES[name], 8_000
    source = draws(n)
    mean, total, _ = marginal_at(process, 1000)
    start = mean + source(0) @ torch.linalg.cholesky(total).T
    x = sampler(best_denoiser(process), process, start, karras_times(process, 1000, n_times), source).x0[0]
    # five standard errors of a mean and of a covariance, and 2 % for the finite steps
    sd = COVARIANCE.diag().sqrt()
    assert ((x.mean(0) - CENTRE).abs() / sd).max() < 5 / n**0.5 + 0.02
    error = (torch.cov(x.T) - COVARIANCE) / (sd[:, None] * sd)
    assert error.abs().max() < 5 * (2 / n) ** 0.5 + 0.02


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samplers_solve_the_flow_with_their_order(sampler, name):
    # independent voxels: the flow keeps the standard score (x - alpha m) / sqrt(alpha² c + sigma²) of each
    process, covariance = PROCESSES[name], torch.diag(COVARIANCE.diag())
    run, order = DETERMINISTIC[sampler]
    z = torch.tensor([[-1.5, 0.3, 0.8], [0.4, 1.0, -2.0]], dtype=torch.float64)
    denoise = best_denoiser(process, covariance)
    at = {t: marginal_at(process, t, covariance) for t in (1000, 1)}
    start, end = (at[t][0] + z * at[t][1].diag().sqrt() for t in (1000, 1))
    errors = []
    for n in (25, 50, 100):
        x = run(denoise, process, start, karras_times(process, 1000, n)).x0
        errors.append(float((x - denoise(end, 1)).abs().max()))
    assert errors[2] < 0.04
    # times are whole numbers, which blurs the order; half the step should give 2^-order of the error
    assert errors[2] < errors[0] * 4**-order * 2


def test_ddim_with_eta_1_is_ancestral_sampling():
    for process in PROCESSES.values():
        start, times, denoise = 2 * draws(4, seed=1)(0), even_times(1000, 20), best_denoiser(process)
        a = ancestral(denoise, process, start, times, draws(4)).x0
        b = ddim(denoise, process, start, times, draws(4), eta=1.0).x0
        torch.testing.assert_close(a, b)


def test_a_process_that_varies_by_voxel_equals_separate_processes():
    # independent voxels, each with another process: the samplers must treat them as three separate runs
    whole, covariance = ByVoxel(), torch.diag(COVARIANCE.diag())
    start, times = draws(5)(0), even_times(1000, 12)
    for sampler in (ancestral, partial(ddim, eta=0.7), dpm_solver_pp_2m, heun):
        together = sampler(best_denoiser(whole, covariance), whole, start, times, draws(5)).x0
        for voxel, speed in enumerate(whole.speed):
            alone = ByVoxel(speed=(speed,) * 3)
            single = sampler(best_denoiser(alone, covariance), alone, start, times, draws(5)).x0
            torch.testing.assert_close(together[..., voxel], single[..., voxel])


def test_evaluations_are_counted():
    asked = []

    def denoise(x, t):
        asked.append(t)
        return 0.9 * x

    counts = {}
    for sampler in (ancestral, ddim, dpm_solver_pp_2m, heun, predictor_corrector):
        asked.clear()
        sampled = sampler(denoise, linear(), draws(2)(0), [900, 500, 1], draws(2))
        assert sampled.evaluations.tolist() == [len(asked)]
        counts[sampler.__name__] = len(asked)
    assert counts == {"ancestral": 3, "ddim": 3, "dpm_solver_pp_2m": 3, "heun": 5, "predictor_corrector": 6}


def test_no_image_of_a_batch_depends_on_the_others():
    # in particular, the step size of the corrector must be computed for each image separately
    process, denoise, times = linear(), best_denoiser(linear()), even_times(1000, 10)
    address = [(v, 0, 0) for v in range(4)]
    for sampler in (ancestral, ddim, dpm_solver_pp_2m, heun, predictor_corrector):
        source = NoiseSource(0, "", "", "", address, (3,))
        together = sampler(denoise, process, 3 * source(0).double(), times, source).x0
        for k in range(4):
            source = NoiseSource(0, "", "", "", address[k : k + 1], (3,))
            alone = sampler(denoise, process, 3 * source(0).double(), times, source).x0
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-12, atol=1e-12)


def test_single_precision_stays_single():
    process = ByVoxel()
    source = NoiseSource(0, "", "", "", [(0, 0, 0)], (3,))
    for sampler in (ancestral, ddim, dpm_solver_pp_2m, heun, predictor_corrector):
        assert sampler(lambda x, t: 0.5 * x, process, source(0), [900, 300, 1], source).x0.dtype == torch.float32


def test_times():
    assert even_times(1001, 5) == [1001, 751, 501, 251, 1]
    assert even_times(3, 9) == [3, 2, 1]
    process = VarianceExploding(0.002, 80.0, 10_000)
    sigma = torch.stack([process.marginal(t)[1] for t in karras_times(process, 10_000, 10)])
    ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 10, dtype=torch.float64)
    torch.testing.assert_close(sigma, ramp**7, rtol=1e-3, atol=0)  # Karras et al. 2022, Eq. 5


@pytest.mark.parametrize("times", [[], [10, 20], [1001, 5], [5, 0]])
def test_wrong_times_are_refused(times):
    with pytest.raises(ValueError, match="must fall from at most 1000 to at least 1"):
        ddim(lambda x, t: x, linear(), torch.zeros(1, 1), times)


def test_missing_noise_is_refused():
    for sampler in (ancestral, partial(ddim, eta=0.5), predictor_corrector):
        with pytest.raises(ValueError, match="needs a source of noise"):
            sampler(lambda x, t: x, linear(), torch.zeros(1, 1), [5, 1], noise=None)


def test_inverted_ddim_adds_the_noise_predicted_at_the_time_that_each_step_leaves():
    # In x / alpha and r = sigma / alpha, a step adds the predicted noise times the growth of r.
    process, times = linear(), [30, 200, 600]
    image = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    noised = ddim_inverse(lambda x, t: torch.full_like(x, t / 100), process, image, times).x0
    alpha, sigma = process.marginal(torch.tensor([0, *times]))
    noise_left = torch.tensor([1, 30, 200], dtype=torch.float64) / 100  # time 0 is asked for as 1
    torch.testing.assert_close(noised, alpha[-1] * (image + (noise_left * (sigma / alpha).diff()).sum()))


def test_inverted_ddim_gives_the_noise_from_which_ddim_samples_the_image():
    process, images = linear(), torch.tensor([1.0, 1.5, 2.0, 3.0], dtype=torch.float64)
    denoise = gaussian_denoiser(process)

    def predicted(x, t):
        alpha, sigma = process.marginal(t)
        return (x - alpha * denoise(x, t)) / sigma

    alpha, sigma = (float(v) for v in process.marginal(600))
    # The flow keeps how many standard deviations from the mean an image lies.
    flow = alpha * MEAN + (alpha**2 * VARIANCE + sigma**2) ** 0.5 * (images - MEAN) / VARIANCE**0.5
    errors = []
    for steps in (50, 300):
        times = [round(600 * k / steps) for k in range(1, steps + 1)]
        noised = ddim_inverse(predicted, process, images, times)
        assert (noised.evaluations == steps).all()
        back = ddim(denoise, process, noised.x0, times[::-1]).x0
        errors.append((float((noised.x0 - flow).abs().max()), float((back - images).abs().max())))
    assert max(errors[1]) < 0.02
    assert all(fine < 0.4 * coarse for fine, coarse in zip(*errors[::-1], strict=True))
    with pytest.raises(ValueError, match="must fall"):
        ddim_inverse(predicted, process, images, [5, 3])
