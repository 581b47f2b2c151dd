"""Samplers against the schedulers of diffusers: a second implementation, on a prediction that is not linear."""

import pytest
import torch

from bids_dmrigen.diffusion.noise import NoiseSource
from bids_dmrigen.diffusion.processes import VarianceExploding, linear
from bids_dmrigen.diffusion.samplers import ancestral, ddim, dpm_solver_pp_2m, heun, predictor_corrector

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[test])")

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
TIMES = list(range(951, 0, -50))  # theirs count from 0: 950, 900 ... 0
SOURCE = NoiseSource(3, "", "", "", [(0, 0, 0), (1, 0, 0)], (1, 4, 5))
SINGLE = {"rtol": 2e-4, "atol": 2e-4}  # diffusers computes its coefficients in single precision


def noise_predictor(x, t):
    return torch.tanh(1.3 * x + 0.2 * (x.roll(1, -1) - 1)) * (0.4 + t / 2000)


def denoiser(process, predictor=noise_predictor, kind="noise"):
    return lambda x, t: process.to_x0(x, t, predictor(x, t), kind)


def theirs(scheduler, start, **step):
    """Run a scheduler of diffusers over its own times; their time t is ours less one."""
    x = start
    for t in scheduler.timesteps:
        prediction = noise_predictor(scheduler.scale_model_input(x, t), int(t) + 1)
        x = scheduler.step(prediction, t, x, **step).prev_sample
    return x


class _Handed:
    """Stands in for diffusers' random numbers and hands out those of the source in turn."""

    def __init__(self, source, first=1):
        self.source, self.draw = source, first - 1

    def __call__(self, shape, **_):
        self.draw += 1
        return self.source(self.draw)


def test_ddim():
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    assert [int(t) + 1 for t in scheduler.timesteps] == TIMES
    mine = ddim(denoiser(linear()), linear(), SOURCE(0), TIMES).x0
    torch.testing.assert_close(mine, theirs(scheduler, SOURCE(0)), **SINGLE)


def test_ddim_with_noise():
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    x = SOURCE(0)
    for draw, t in enumerate(scheduler.timesteps, 1):
        prediction = noise_predictor(x, int(t) + 1)
        # the last step's noise has no variance to multiply
        x = scheduler.step(prediction, t, x, eta=0.7, variance_noise=SOURCE(draw)).prev_sample
    mine = ddim(denoiser(linear()), linear(), SOURCE(0), TIMES, SOURCE, eta=0.7).x0
    torch.testing.assert_close(mine, x, **SINGLE)


def test_ancestral(monkeypatch):
    scheduler = diffusers.DDPMScheduler(**SCHEDULE, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(timesteps=[t - 1 for t in TIMES])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", _Handed(SOURCE))
    mine = ancestral(denoiser(linear()), linear(), SOURCE(0), TIMES, SOURCE).x0
    torch.testing.assert_close(mine, theirs(scheduler, SOURCE(0)), **SINGLE)


def test_dpm_solver_pp_2m():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(timesteps=[t - 1 for t in TIMES])
    mine = dpm_solver_pp_2m(denoiser(linear()), linear(), SOURCE(0), TIMES).x0
    torch.testing.assert_close(mine, theirs(scheduler, SOURCE(0)), **SINGLE)


def test_heun():
    scheduler = diffusers.HeunDiscreteScheduler(**SCHEDULE, timestep_spacing="linspace")
    scheduler.set_timesteps(28)  # every 37th time, all whole numbers
    times = [int(t) + 1 for t in dict.fromkeys(scheduler.timesteps.tolist())]
    assert times == list(range(1000, 0, -37))
    start = SOURCE(0)
    process = linear()
    mine = heun(denoiser(process), process, start, times).x0
    alpha = float(process.marginal(1000)[0])
    # theirs walks in x / alpha
    torch.testing.assert_close(mine, theirs(scheduler, start / alpha), rtol=1e-3, atol=1e-3)


def test_predictor_corrector(monkeypatch):
    # one image: theirs takes the mean step size of a batch
    process, source = VarianceExploding(0.01, 50.0, 40), NoiseSource(3, "", "", "", [(0, 0, 0)], (1, 4, 5))
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=40, snr=0.16, sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(40)
    scheduler.set_sigmas(40)
    handed = _Handed(source)
    monkeypatch.setattr("diffusers.schedulers.scheduling_sde_ve.randn_tensor", handed)

    def score(x, t):
        sigma = process.marginal(t)[1].float()
        return (torch.tanh(x) - x) / (sigma**2 + 0.3)

    x = 50 * source(0)
    for index, time in enumerate(scheduler.timesteps):
        t = 40 - index
        x = scheduler.step_correct(score(x, t), x).prev_sample
        step = scheduler.step_pred(score(x, t), time, x)
        x = step.prev_sample
    mine = predictor_corrector(
        denoiser(process, score, "score"), process, 50 * source(0), list(range(40, 0, -1)), source, snr=0.16
    ).x0
    torch.testing.assert_close(mine, step.prev_sample_mean, **SINGLE)
