"""Di-Fusion on small simulated scans: what it must keep, that it denoises, and that it is reproducible."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.processes import rev_warmup70
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.stack import slice_stack
from bids_dmrigen.methods import REGISTRY, load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.denoise import on_run
from bids_dmrigen.methods.denoise.difusion_model import DiFusion, _Extended, _Published, direction_contrast

SIGMA = 20.0
QUICK = Request(options={"training_steps": 3}, subject="01", run="dwi", precision="fp32")


def made_up(shape=(22, 18, 3), n_b0=1, shells=((1000, 12),), sigma=SIGMA, seed=0):
    """Return a scan of smooth tensors in an ellipse, isotropic in one half, and its noise-free signal."""
    rng = np.random.default_rng(seed)
    bvals = np.r_[np.zeros(n_b0), *(np.full(n, b) for b, n in shells)]
    bvecs = np.r_[np.zeros((n_b0, 3)), *(even_directions(n) for _, n in shells)]
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, s) if s > 1 else np.zeros(1) for s in shape), indexing="ij")
    angle = 2 * x + y
    fibre = np.stack([np.cos(angle), np.sin(angle), 0 * x], axis=-1)
    along = (fibre @ bvecs.T) ** 2
    truth = 1000 * np.exp(-bvals * (0.6e-3 + 1e-3 * along * (x > 0)[..., None]))
    mask = x**2 + y**2 < 0.9
    noise = rng.normal(0, sigma, (2, *truth.shape))
    data = np.hypot(truth + noise[0], noise[1]).astype(np.float32)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    return Scan(data, affine, GradientTable(bvals, bvecs), mask), truth.astype(np.float32)


@pytest.fixture(scope="module")
def scan():
    return made_up()[0]


@pytest.fixture(scope="module")
def generated(scan):
    return DiFusion().generate(None, scan, QUICK)


def test_it_is_in_the_registry():
    assert "difusion" in REGISTRY
    assert load("difusion").spec.name == "difusion"
    with pytest.raises(ValueError, match="unknown method 'nonsense'"):
        load("nonsense")


def test_what_was_acquired_stays(scan, generated):
    assert generated.mean.shape == scan.data.shape
    assert generated.mean.dtype == np.float32
    assert generated.samples is None
    assert generated.gradients is scan.gradients
    np.testing.assert_array_equal(generated.mean[~scan.mask], scan.data[~scan.mask])
    np.testing.assert_array_equal(generated.mean[..., 0], scan.data[..., 0])  # the only b0 passes through
    assert generated.acquired.tolist() == [True] + [False] * 12
    inside = generated.mean[scan.mask][:, 1:]
    assert np.isfinite(inside).all()
    assert not np.array_equal(inside, scan.data[scan.mask][:, 1:])


def test_the_record_describes_how_the_result_was_generated(generated):
    assert {"Size", "Weights", "Sampler", "Seed", "Samples", "Training", "Device", "Numerics", "Seconds"} <= set(
        generated.record
    )
    assert generated.record["Training"]["Steps"] == 3
    assert generated.record["Training"]["StoppedBecause"] == "steps"
    assert generated.record["Sampler"]["NetworkEvaluations"] in (1, 2)
    assert generated.record["NoiseLevel"] == pytest.approx(SIGMA, rel=0.15)
    assert generated.checks["difusion_held_out_loss"] > 0


def test_it_is_reproducible_to_the_bit_and_follows_the_seed(scan, generated):
    again = DiFusion().generate(DiFusion().network("small"), scan, QUICK)
    np.testing.assert_array_equal(again.mean, generated.mean)
    other = DiFusion().generate(None, scan, replace(QUICK, seed=1))
    assert not np.array_equal(other.mean, generated.mean)


def test_it_removes_much_of_the_noise_after_a_short_training():
    scan, truth = made_up(shape=(26, 26, 4), n_b0=2, shells=((1000, 20),))
    generated = DiFusion().generate(None, scan, replace(QUICK, options={"training_steps": 40}))

    def error(series):
        return np.sqrt(np.mean((series - truth)[scan.mask] ** 2))

    assert error(generated.mean) < 0.6 * error(scan.data)
    assert generated.record["Training"]["HeldOutLoss"] < generated.record["Training"]["HeldOutLossAtStart"]
    assert generated.checks["difusion_direction_contrast"] > 0.6


def test_scaled_input_gives_scaled_output(scan, generated):
    doubled = replace(scan, data=2 * scan.data)
    np.testing.assert_allclose(DiFusion().generate(None, doubled, QUICK).mean, 2 * generated.mean, rtol=1e-3, atol=0.2)


@pytest.mark.parametrize(
    "kind",
    [
        {"shape": (17, 23, 1)},  # one slice
        {"n_b0": 3, "shells": ((1000, 6), (2000, 6), (3000, 1))},  # shells, one of a single volume
        {"shape": (66, 70, 2), "n_b0": 1},  # larger than a training patch
    ],
)
def test_odd_scans(kind):
    scan, _ = made_up(**kind)
    generated = DiFusion().generate(None, scan, QUICK)
    assert np.isfinite(generated.mean).all()
    lonely = scan.gradients.neighbours(1)[:, 0] < 0
    assert (generated.acquired == lonely).all()
    np.testing.assert_array_equal(generated.mean[..., lonely], scan.data[..., lonely])


def test_a_checkpoint_is_only_used_for_the_same_training(scan, generated, tmp_path):
    request = replace(QUICK, checkpoint=tmp_path / "training")
    first = DiFusion().generate(None, scan, request)
    kept = list(tmp_path.iterdir())
    np.testing.assert_array_equal(first.mean, generated.mean)
    np.testing.assert_array_equal(DiFusion().generate(None, scan, request).mean, generated.mean)  # resumed
    assert list(tmp_path.iterdir()) == kept
    other = replace(scan, data=scan.data[::-1].copy(), mask=scan.mask[::-1].copy())
    DiFusion().generate(None, other, request)
    assert len(list(tmp_path.iterdir())) == len(kept) + 1


def test_other_hardware_starts_the_training_anew(scan, tmp_path, monkeypatch):
    request = replace(QUICK, checkpoint=tmp_path / "training", precision="auto")
    for resolved in ("fp32", "bf16"):  # what "auto" comes to on one machine and on another
        monkeypatch.setattr(on_run, "resolve_precision", lambda *_, resolved=resolved: resolved)
        assert DiFusion().generate(None, scan, request).record["Numerics"]["Precision"] == resolved
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 2
    monkeypatch.undo()
    elsewhere = on_run.checkpoint_of(scan, replace(request, device=torch.device("cuda"), precision="fp32"))
    assert elsewhere.name not in kept


def test_samples_differ_where_something_was_denoised(scan):
    generated = DiFusion().generate(None, scan, replace(QUICK, n_samples=3))
    std = np.std(list(generated.samples), axis=0)
    assert std.shape == generated.mean.shape
    assert std[scan.mask][:, 1:].mean() > 0
    outside = np.ptp(list(generated.samples), axis=0)
    assert not outside[~scan.mask].any()
    assert not outside[..., 0].any()  # the only b0
    np.testing.assert_array_equal(generated.mean, DiFusion().generate(None, scan, QUICK).mean)


@pytest.mark.parametrize("sampler", ["paper", "fast"])
def test_published_variant(scan, sampler):
    request = replace(QUICK, sampler=sampler, options={"training_steps": 2, "variant": "published"})
    generated = DiFusion().generate(None, scan, request)
    assert np.isfinite(generated.mean).all()
    np.testing.assert_array_equal(generated.mean[~scan.mask], scan.data[~scan.mask])
    # an untrained network is far from the volume, so the walk stops at once
    assert generated.record["Sampler"]["NetworkEvaluations"] < 76


def test_no_input_of_the_network_contains_the_noise_of_the_target_volume(scan):
    stack = slice_stack(scan, 4, torch.device("cpu"))
    work = _Extended(scan, stack, QUICK, SIGMA)
    j, block = np.array([5]), stack.block(1)
    given = work.given(block, j, stack.mask[1])
    other = block.clone()
    other[:, 5] += torch.randn_like(other[:, 5])
    changed = work.given(other, j, stack.mask[1])
    torch.testing.assert_close(changed.condition, given.condition)
    torch.testing.assert_close(changed.other, given.other)
    assert not torch.equal(changed.x, given.x)


def test_no_image_to_denoise_contains_the_noise_of_the_target_volume(scan):
    """The central promise: the mean of x_t and all that the network sees beside its noise is blind to volume j.

    The noise that is added is the shuffled residual of j itself, so it is left out here: a shuffled pixel says nothing
    of the pixel that is denoised.
    """
    stack = slice_stack(scan, 4, torch.device("cpu"))
    work = _Extended(scan, stack, QUICK, SIGMA)
    for j in (1, 5, 12):
        block, seen = stack.block(1), []
        again = block.clone()
        again[:, j] += 0.2 * torch.randn(again[:, j].shape, generator=torch.Generator().manual_seed(j))
        for signals in (block, again):
            given = work.given(signals, np.array([j]), stack.mask[1])
            for t in (1, 100, 300):
                time = torch.tensor([t])
                mean = work.process.add_noise(work.fused(given, time), time[:, None, None], torch.zeros_like(given.x))
                seen.append(torch.cat([work.network_input(mean, given)[0], work.base(given), mean]))
        for first, second in zip(seen[:3], seen[3:], strict=True):
            torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_published_fusion_is_equation_6(scan):
    stack = slice_stack(scan, 4, torch.device("cpu"))
    work = _Published(scan, stack, QUICK, SIGMA)
    given = work.given(stack.block(1), np.array([4]), stack.mask[1])
    nearest = scan.gradients.neighbours(1)[4, 0]
    torch.testing.assert_close(given.other[0], stack.data[1, nearest])
    process, t = rev_warmup70(), 300
    bar, before, beta = process.marginal(t)[0] ** 2, process.marginal(t - 1)[0] ** 2, process.betas[t - 1]
    first = float(beta * before.sqrt() / (1 - bar))
    second = float((1 - beta).sqrt() * (1 - before) / (1 - bar))
    torch.testing.assert_close(work.fused(given, torch.tensor([t])), first * given.x + second * given.other)
    assert first == pytest.approx(0.003, abs=5e-4)  # how little of x enters


def test_noise_is_the_shuffled_residual(scan):
    stack = slice_stack(scan, 4, torch.device("cpu"))
    work = _Published(scan, stack, QUICK, SIGMA)
    given = work.given(stack.block(1), np.array([4]), stack.mask[1])
    t = torch.tensor([300])
    alpha, sigma = (float(v) for v in work.process.marginal(300))
    x_t = work.noisy(given, t, [np.random.default_rng(0)])
    xi = ((x_t - alpha * work.fused(given, t)) / sigma)[0]
    residual = (given.x - given.other)[0][stack.mask[1]]
    expected = (residual - residual.mean()).sort().values
    torch.testing.assert_close(xi[stack.mask[1]].sort().values, expected, atol=1e-4, rtol=1e-3)
    assert xi[~stack.mask[1]].abs().max() < 1e-4


def test_direction_contrast_is_lower_for_a_smeared_series(scan):
    nearest = scan.gradients.neighbours(1)[:, 0]
    assert direction_contrast(scan, scan.data, 0.0) == pytest.approx(1.0)
    assert direction_contrast(scan, scan.data[..., nearest], 0.0) == pytest.approx(0.0, abs=1e-6)
    both = (scan.data + scan.data[..., nearest]) / 2
    assert direction_contrast(scan, both, 0.0) == pytest.approx(0.5, abs=1e-6)


def test_noise_does_not_hide_the_direction_contrast():
    scan, truth = made_up(shape=(40, 40, 6), sigma=60.0)
    assert direction_contrast(scan, truth, 60.0) > 0.93
    assert direction_contrast(scan, truth, 0.0) < 0.85
    assert direction_contrast(scan, truth[..., scan.gradients.neighbours(1)[:, 0]], 60.0) < 0.07


def test_faults_are_refused(scan):
    with pytest.raises(ScanError, match="needs at least 6"):
        DiFusion().generate(None, made_up(shells=((1000, 5),))[0], QUICK)
    with pytest.raises(ValueError, match="unknown Di-Fusion variant 'x'"):
        DiFusion().generate(None, scan, replace(QUICK, options={"variant": "x"}))
    few = made_up(shells=((1000, 8),))[0]
    assert "less certain below 12" in DiFusion().generate(None, few, QUICK).warnings[0]
