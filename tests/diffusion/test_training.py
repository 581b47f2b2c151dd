"""The training loop: exact resume, budgets, early stopping, averaged weights."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bids_dmrigen.diffusion.checkpoints import best_weights, kept_weights
from bids_dmrigen.diffusion.noise import generator
from bids_dmrigen.diffusion.storage import write_tensors
from bids_dmrigen.diffusion.training import Plan, train

PLAN = Plan(steps=30, evaluate_every=5, save_every=7, warmup=3, learning_rate=0.05, patience=100)
SLOPE = torch.tensor([[1.0, -2.0, 0.5]])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(step):
    x = torch.from_numpy(generator(0, sample=step).standard_normal((16, 3), "f4"))
    return x, x @ SLOPE.T


def loss(net, examples):
    x, y = examples
    return (net(x) - y).square().mean()


@torch.no_grad()
def held_out(net):
    return float(loss(net, batch(10**6)))


class Interrupted(Exception):
    pass


def interrupt_at(step):
    def progress(done, total, seconds_left):
        if done == step:
            raise Interrupted

    return progress


def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path):
    whole, broken, path = network(), network(), tmp_path / "state.safetensors"
    expected = train(whole, batch, loss, held_out, PLAN)
    with pytest.raises(Interrupted):
        train(broken, batch, loss, held_out, PLAN, checkpoint=path, progress=interrupt_at(17))
    torch.manual_seed(5)
    fresh = network()
    for p in fresh.parameters():
        nn.init.normal_(p)  # whatever it holds, the checkpoint replaces it
    resumed = train(fresh, batch, loss, held_out, PLAN, checkpoint=path)
    for a, b in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.held_out_loss == expected.held_out_loss
    for column in ("step", "learning_rate", "loss", "held_out"):
        assert [h[column] for h in resumed.history[1:]] == [h[column] for h in expected.history[1:]]
    assert resumed.steps == expected.steps == 30


def score_that_is_best_at(step):
    """Return a score that is lowest when it is asked for the time that belongs to a step."""
    asked = iter(range(0, 1000, PLAN.evaluate_every))
    return lambda net: abs(next(asked) - step) + 1.0


def test_the_best_weights_come_back_though_they_are_older_than_the_checkpoint(tmp_path):
    whole, broken, path = network(), network(), tmp_path / "state.safetensors"
    train(whole, batch, loss, score_that_is_best_at(10), PLAN)
    with pytest.raises(Interrupted):
        train(broken, batch, loss, score_that_is_best_at(10), PLAN, checkpoint=path, progress=interrupt_at(23))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-best-10.safetensors", "state.safetensors"]
    resumed = network()
    train(resumed, batch, loss, lambda net: 50.0, PLAN, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    weights, stood = best_weights(path, network())
    assert (stood.step, stood.best_step) == (30, 10)
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())
    (tmp_path / "state-best-10.safetensors").unlink()
    with pytest.raises(ValueError, match="its best weights, state-best-10"):
        train(network(), batch, loss, held_out, PLAN, checkpoint=path)


def test_best_weights_of_another_training_are_not_used(tmp_path):
    path = tmp_path / "state.safetensors"
    nothing = {name: torch.zeros_like(value) for name, value in network().state_dict().items()}
    write_tensors(tmp_path / "state-best-10.safetensors", nothing)
    net = network()
    train(net, batch, loss, score_that_is_best_at(10), PLAN, checkpoint=path)
    assert torch.equal(best_weights(path, network())[0]["0.weight"], net[0].weight)


@pytest.mark.parametrize("best_at", [10, 30])
def test_a_checkpoint_contains_weights_average_and_optimiser_once(tmp_path, best_at):
    """Bytes of 32-bit numbers: two networks and two moments of what is trained; what is frozen once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 200), nn.Linear(200, 200), nn.BatchNorm1d(200), nn.Linear(200, 1))
    net[1].requires_grad_(False)
    learnt, frozen = (sum(p.numel() for p in net.parameters() if p.requires_grad is w) for w in (True, False))
    path = tmp_path / "state.safetensors"
    train(net, batch, loss, score_that_is_best_at(best_at), PLAN, checkpoint=path)
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    expected, header = 4 * (4 * learnt + frozen) + buffers, 8192
    assert expected <= path.stat().st_size <= expected + header
    beside = [p.stat().st_size for p in tmp_path.iterdir() if p != path]
    assert len(beside) == (best_at != 30)
    assert all(4 * learnt + buffers <= size <= 4 * learnt + buffers + header for size in beside)


def test_a_finished_training_is_not_repeated(tmp_path):
    path = tmp_path / "state.safetensors"
    first = network()
    train(first, batch, loss, held_out, PLAN, checkpoint=path)
    again = network()
    result = train(again, lambda step: pytest.fail("trained again"), loss, held_out, PLAN, checkpoint=path)
    assert result.stopped_because == "steps"
    assert torch.equal(first[0].weight, again[0].weight)


def test_it_learns_and_returns_the_best_averaged_weights():
    net = network()
    result = train(net, batch, loss, held_out, replace(PLAN, steps=300))
    assert result.held_out_loss < 0.05 * result.start_loss
    assert held_out(net) == result.held_out_loss == min(h["held_out"] for h in result.history)


def test_never_worse_than_the_start():
    net = network()
    before = net[0].weight.clone()
    result = train(net, batch, lambda n, e: -loss(n, e), held_out, replace(PLAN, steps=20))
    assert result.held_out_loss == result.start_loss
    assert torch.equal(net[0].weight, before)


def test_averaged_weights_follow_their_recursion():
    net, plan, seen = network(), replace(PLAN, steps=6, evaluate_every=1, ema=0.6), []
    raw = []

    def spy(model):
        seen.append(model[0].weight.detach().clone())
        return -float(len(seen))

    def recording(model, examples):
        raw.append(model[0].weight.detach().clone())
        return loss(model, examples)

    train(net, batch, recording, spy, plan)
    expected = seen[0]
    for step, weights in enumerate(raw[1:]):  # raw[k + 1] are the weights after step k
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(seen[step + 1], expected)


def test_the_averaged_network_has_the_buffers_of_the_trained_one():
    """Codebooks and running statistics are buffers: averaged weights beside those of the start would not fit them."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.calls += 1
            return self.layer(x)

    seen, net = [], Counting()

    def score(model):
        seen.append(float(model.calls))
        return -seen[-1]

    train(net, batch, loss, score, replace(PLAN, steps=10, evaluate_every=5))
    assert seen == [0, 5, 10]
    assert float(net.calls) == 10, "the network that is returned has them too"


def test_no_improvement_stops_it():
    result = train(network(), batch, loss, lambda net: 1.0, replace(PLAN, patience=2))
    assert result.stopped_because == "no improvement"
    assert result.steps == 10


def test_minutes_stop_it(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("bids_dmrigen.diffusion.training.time.monotonic", lambda: float(next(clock)))
    result = train(network(), batch, loss, held_out, replace(PLAN, steps=1000, minutes=0.5))
    assert result.stopped_because == "minutes"
    assert result.steps == 30  # this clock shows a second more whenever it is read, once per step
    assert result.minutes == 0.5


def test_more_minutes_continue_what_fewer_ended(monkeypatch, tmp_path):
    clock = iter(range(10_000))
    monkeypatch.setattr("bids_dmrigen.diffusion.training.time.monotonic", lambda: float(next(clock)))
    plan, path = replace(PLAN, steps=1000, minutes=0.5), tmp_path / "state.safetensors"
    train(network(), batch, loss, held_out, plan, checkpoint=path)
    again = train(network(), lambda step: pytest.fail("went on"), loss, held_out, plan, checkpoint=path)
    assert (again.steps, again.stopped_because) == (30, "minutes")
    longer = train(network(), batch, loss, held_out, replace(plan, minutes=0.75), checkpoint=path)
    assert (longer.steps, longer.stopped_because) == (45, "minutes")


def test_the_averaged_weights_are_kept_for_a_curve(tmp_path):
    path, plan = tmp_path / "state.safetensors", replace(PLAN, keep_every=10, steps=25)
    net = network()
    train(net, batch, loss, held_out, plan, checkpoint=path)
    kept = list(kept_weights(path))
    assert [progress.step for _, progress in kept] == [10, 20, 25]
    assert [progress.history[-1]["step"] for _, progress in kept] == [10, 20, 25]
    for weights, progress in kept:
        again = network()
        again.load_state_dict(weights)
        assert held_out(again) == pytest.approx(progress.history[-1]["held_out"], rel=1e-6)


@pytest.mark.parametrize("minutes", [None, 0.5])
def test_rate_rises_then_falls_along_a_cosine_of_the_budget(monkeypatch, minutes):
    clock = iter(range(10_000))
    monkeypatch.setattr("bids_dmrigen.diffusion.training.time.monotonic", lambda: float(next(clock)))
    plan = replace(PLAN, steps=30 if minutes is None else 1000, minutes=minutes, warmup=10, evaluate_every=1)
    rates = [h["learning_rate"] for h in train(network(), batch, loss, held_out, plan).history[1:]]
    assert len(rates) == 30
    for step, rate in enumerate(rates):
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * step / 30)) / 2
        assert rate == pytest.approx(0.05 * min(1, (step + 1) / 10) * cosine)


def test_without_minutes_the_clock_does_not_matter(monkeypatch):
    first, second = network(), network()
    train(first, batch, loss, held_out, PLAN)
    clock = iter(range(0, 10**9, 977))
    monkeypatch.setattr("bids_dmrigen.diffusion.training.time.monotonic", lambda: float(next(clock)))
    train(second, batch, loss, held_out, PLAN)
    assert torch.equal(first[0].weight, second[0].weight)


def test_gradient_is_clipped():
    net, plan = network(), replace(PLAN, steps=1, clip=1e-3)
    norms = []
    original = nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        parameters = list(parameters)
        original(parameters, limit)
        norms.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", spy)
        train(net, batch, loss, held_out, plan)
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)


def test_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    train(network(), batch, loss, held_out, PLAN, checkpoint=path)
    with pytest.raises(ValueError, match="its plan was"):
        train(network(), batch, loss, held_out, replace(PLAN, learning_rate=1.0), checkpoint=path)
    with pytest.raises(ValueError, match="not a checkpoint of this training"):
        train(nn.Linear(3, 1), batch, loss, held_out, PLAN, checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="delete it to start anew"):
        train(network(), batch, loss, held_out, PLAN, checkpoint=path)


def test_a_loss_that_is_not_finite_stops_with_a_message():
    with pytest.raises(FloatingPointError, match="at step 0"):
        train(network(), batch, lambda net, e: loss(net, e) * float("nan"), held_out, PLAN)


def test_log_has_a_row_per_score(tmp_path):
    log = tmp_path / "log" / "training.csv"
    train(network(), batch, loss, held_out, PLAN, log=log)
    with open(log) as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [0, 5, 10, 15, 20, 25, 30]
    assert list(rows[0]) == ["step", "seconds", "learning_rate", "loss", "held_out"]
    assert float(rows[-1]["held_out"]) < float(rows[0]["held_out"])


def test_the_log_exists_while_the_training_runs(tmp_path):
    log = tmp_path / "training.csv"
    with pytest.raises(Interrupted):
        train(network(), batch, loss, held_out, PLAN, log=log, progress=interrupt_at(12))
    assert len(log.read_text().splitlines()) == 4


def test_progress_shows_the_time_left(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("bids_dmrigen.diffusion.training.time.monotonic", lambda: float(next(clock)))
    seen = []
    train(network(), batch, loss, held_out, PLAN, progress=lambda *told: seen.append(told))
    assert seen == [(k, 30, pytest.approx(30 - k)) for k in range(1, 31)]


def test_bf16_learns_and_keeps_its_weights_in_single_precision():
    seen = set()

    def watching(net, examples):
        seen.add(net(examples[0]).dtype)
        return loss(net, examples)

    net = network()
    result = train(net, batch, watching, held_out, replace(PLAN, steps=300, precision="bf16"))
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert result.held_out_loss < 0.1 * result.start_loss
