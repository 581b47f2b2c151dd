"""The one training loop: averaged weights, budgets, early stopping, exact resume, one device or several."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoints import Progress, Training
from .numerics import autocast, policy
from .parallel import of_first, rank, world_size
from .storage import write_text

Loss = Callable[[nn.Module, Any], Tensor]  # (network, batch) -> scalar
Score = Callable[[nn.Module], float]

UNIMPORTANT = ("minutes", "save_every", "keep_every")  # settings that may change when a training goes on
COLUMNS = ["step", "seconds", "learning_rate", "loss", "held_out"]


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Parameters
    ----------
    steps
        Optimiser steps at most.
    minutes
        Wall-clock budget; None for a result that does not depend on time.
    learning_rate, betas, weight_decay
        Parameters of AdamW. The rate rises over `warmup` steps, then falls along a cosine to a twentieth over the
        budget: steps or minutes, whichever is nearer its end.
    ema
        Decay of the averaged weights, which are evaluated and returned; it grows from 0, so that the initial weights
        are soon forgotten.
    clip
        Largest norm of the gradient.
    evaluate_every, patience
        Score the averaged weights every so many steps; stop after `patience` scores in a row that do not
        improve the best one by the relative `tolerance`.
    precision
        "fp32" or "bf16" (mixed: the weights stay float32).
    save_every, keep_every
        Steps between checkpoints, and between averaged weights that are kept beside it, for a curve of what they are
        worth; 0 for none.
    """

    steps: int
    minutes: float | None = None
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 20
    ema: float = 0.99
    clip: float = 1.0
    evaluate_every: int = 50
    patience: int = 6
    tolerance: float = 1e-4
    precision: str = "fp32"
    save_every: int = 200
    keep_every: int = 0


@dataclass(frozen=True)
class Trained:
    """The result of a training; the network holds the best averaged weights."""

    steps: int
    minutes: float
    stopped_because: str  # "steps" | "minutes" | "no improvement"
    held_out_loss: float
    start_loss: float
    history: list[dict[str, float]] = field(default_factory=list)


@policy(deterministic=True, strict=True)
def train(
    net: nn.Module,
    examples: Callable[[int], Any],
    loss: Loss,
    held_out: Score,
    plan: Plan,
    checkpoint: Path | None = None,
    log: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    before: Progress | None = None,
) -> Trained:
    """Train a network in place and leave the best averaged weights in it.

    Inside `parallel.process_group` the processes that torchrun started train together: their gradients are averaged,
    so that N processes with batches of B take the steps of one with batches of N B. The first one scores, writes
    and reports. All of it is computed by deterministic algorithms (`numerics.policy`).

    Parameters
    ----------
    net
        The network, on its device.
    examples
        index -> batch, endless, on the network's device. It must depend on the index alone: that is what makes
        a resumed training equal an uninterrupted one to the bit. Step k of N processes takes the batches
        N k ... N k + N - 1, one each.
    loss
        (network, batch) -> scalar. Where processes train together, the network is `net` in a wrapper, which can
        be called but has not its attributes, and every parameter has to take part in every loss.
    held_out
        network -> loss on a fixed set of examples, computed in the plan's precision; lower is better.
    plan
        Budget and settings.
    checkpoint
        Read where it exists, written every `plan.save_every` steps and at the end; safetensors.
    log
        CSV file, written anew at each score: step, seconds, learning rate, training loss, held-out loss.
    progress
        Called with (steps done, steps planned, estimated seconds left).
    before
        Progress of an earlier training whose weights this one starts from. Its steps and time are included in the
        result, but not in the plan's budget. The checkpoint is then written, but not read.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        Where the checkpoint belongs to another network or plan.
    FloatingPointError
        Where the loss is no longer finite.
    RuntimeError
        Where the device has no deterministic algorithm for an operation.
    """
    run, wrapped = _begin(net, held_out, plan, checkpoint, before)
    device = next(net.parameters()).device
    begun = time.monotonic() - run.state.seconds
    while not run.state.stopped:
        state = run.state
        _step(run, wrapped, examples(state.step * world_size() + rank()), loss, plan)
        state.seconds = time.monotonic() - begun
        if plan.minutes is not None:
            state.seconds = of_first(state.seconds, device)
        state.stopped = _budget_spent(state, plan)
        if scored := bool(state.stopped) or state.step % plan.evaluate_every == 0:
            _evaluate(run, plan, held_out)
        if rank() == 0:
            _keep(run, plan, checkpoint, log if scored else None)
            if progress is not None:
                progress(state.step, plan.steps, _seconds_left(state, plan))
    state = run.state
    net.load_state_dict(run.best.state_dict())
    steps, seconds = state.steps_before + state.step, state.seconds_before + state.seconds
    return Trained(steps, seconds / 60, state.stopped, state.best_loss, state.start_loss, state.history)


def fixed_score(make: Callable[[int], Any], loss: Loss, batches: int = 8) -> Score:
    """Return network -> mean loss on the same few batches, which are kept in memory.

    Parameters
    ----------
    make
        Index -> batch.
    loss
        (network, batch) -> scalar tensor.
    """
    fixed = [make(index) for index in range(batches)]

    @torch.no_grad()
    def score(net: nn.Module) -> float:
        return float(torch.stack([loss(net, batch) for batch in fixed]).mean())

    return score


def _begin(
    net: nn.Module, held_out: Score, plan: Plan, checkpoint: Path | None, before: Progress | None
) -> tuple[Training, nn.Module]:
    """Return the training at its start or where its checkpoint left it, and the network that takes the steps."""
    # Wrapping gives all processes the weights of the first, so it comes before they are copied.
    wrapped = DistributedDataParallel(net) if world_size() > 1 else net
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay
    )
    run = Training(net, deepcopy(net).eval(), deepcopy(net).eval(), optimiser, before.anew() if before else Progress())
    if before is None and checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint, _fingerprint(plan))
    else:
        score = run.state.start_loss = run.state.best_loss = _score(run.averaged, held_out, plan)
        run.state.history.append(dict(zip(COLUMNS, (0, 0.0, 0.0, math.nan, score), strict=True)))
    if run.state.stopped != "no improvement":  # the budget may have grown since
        run.state.stopped = _budget_spent(run.state, plan)
    return run, wrapped


def _step(run: Training, wrapped: nn.Module, batch: Any, loss: Loss, plan: Plan) -> None:
    """Take one optimiser step and update the averaged weights and the running loss."""
    state, optimiser = run.state, run.optimiser
    for group in optimiser.param_groups:
        group["lr"] = _rate(state, plan)
    wrapped.train()
    device = next(run.net.parameters()).device
    with autocast(device, plan.precision):
        value = loss(wrapped, batch)
    if not torch.isfinite(value):
        raise FloatingPointError(f"the training loss is {value.item()} at step {state.step}; try --precision fp32")
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), plan.clip)
    optimiser.step()
    decay = min(plan.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, new in zip(run.averaged.parameters(), run.net.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        for kept, current in zip(run.averaged.buffers(), run.net.buffers(), strict=True):
            kept.copy_(current)
    state.step += 1
    state.running = value.item() if math.isnan(state.running) else 0.95 * state.running + 0.05 * value.item()


def _evaluate(run: Training, plan: Plan, held_out: Score) -> None:
    """Score the averaged weights, keep them if they are the best so far, and decide whether to stop."""
    state = run.state
    score = _score(run.averaged, held_out, plan)
    row = (state.step, state.seconds, run.optimiser.param_groups[0]["lr"], state.running, score)
    state.history.append(dict(zip(COLUMNS, row, strict=True)))
    state.stale = 0 if score < state.best_loss * (1 - plan.tolerance) else state.stale + 1
    if score < state.best_loss:
        state.best_loss, state.best_step = score, state.step
        run.best.load_state_dict(run.averaged.state_dict())
    if state.stale >= plan.patience:
        state.stopped = "no improvement"


def _keep(run: Training, plan: Plan, checkpoint: Path | None, log: Path | None) -> None:
    """Write the log, a checkpoint every `plan.save_every` steps and at the end, and the weights that are kept."""
    step = run.state.step
    if log is not None:
        _write_log(log, run.state.history)
    if checkpoint is not None and (run.state.stopped or step % plan.save_every == 0):
        run.save(checkpoint, _fingerprint(plan))
    if checkpoint is not None and plan.keep_every and (run.state.stopped or step % plan.keep_every == 0):
        run.keep(checkpoint)


def _score(net: nn.Module, held_out: Score, plan: Plan) -> float:
    """Return the first process's score on all processes, so that they all take the same decisions."""
    device = next(net.parameters()).device
    with autocast(device, plan.precision):  # the arithmetic that the weights are made for
        score = held_out(net) if rank() == 0 else math.nan
    return of_first(score, device)


def _fraction(state: Progress, plan: Plan) -> float:
    """Return the spent share of the budget: the larger of the shares of steps and minutes."""
    fraction = state.step / plan.steps
    return fraction if plan.minutes is None else max(fraction, state.seconds / (60 * plan.minutes))


def _budget_spent(state: Progress, plan: Plan) -> str:
    if state.step >= plan.steps:
        return "steps"
    return "minutes" if _fraction(state, plan) >= 1 else ""


def _rate(state: Progress, plan: Plan) -> float:
    warm = min(1.0, (state.step + 1) / max(plan.warmup, 1))
    cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, _fraction(state, plan)))) / 2
    return plan.learning_rate * warm * cosine


def _seconds_left(state: Progress, plan: Plan) -> float:
    left = state.seconds / state.step * (plan.steps - state.step)
    return left if plan.minutes is None else max(0.0, min(left, 60 * plan.minutes - state.seconds))


def _fingerprint(plan: Plan) -> str:
    """Return the settings of a plan that must be the same to continue a checkpoint."""
    settings = {name: value for name, value in asdict(plan).items() if name not in UNIMPORTANT}
    return json.dumps(settings | {"processes": world_size()})


def _write_log(path: Path, history: list[dict[str, float]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
