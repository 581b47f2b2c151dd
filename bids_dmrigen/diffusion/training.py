"""The one training loop: averaged weights, budgets, early stopping, exact resume."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

BAD_CHECKPOINT = "{path}: not a checkpoint of this training ({reason}); delete it to start anew"


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Parameters
    ----------
    steps
        Optimiser steps at most.
    minutes
        Wall-clock budget; None lets no clock enter the result.
    learning_rate, weight_decay
        Of AdamW. The rate rises over `warmup` steps and falls along a cosine to a twentieth over the
        budget.
    ema
        Decay of the averaged weights, which are what is evaluated and returned; it grows from 0, so that
        the starting weights are forgotten.
    clip
        Largest norm of the gradient.
    evaluate_every, patience
        Score the averaged weights every so many steps; stop after `patience` scores in a row that do not
        improve the best one by the relative `tolerance`.
    precision
        "fp32" or "bf16" (mixed: the weights stay float32).
    save_every
        Steps between checkpoints.
    """

    steps: int
    minutes: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 20
    ema: float = 0.99
    clip: float = 1.0
    evaluate_every: int = 50
    patience: int = 6
    tolerance: float = 1e-4
    precision: str = "fp32"
    save_every: int = 200


@dataclass(frozen=True)
class Trained:
    """How a training went; the network it was given holds the best averaged weights."""

    steps: int
    minutes: float
    stopped_because: str  # "steps" | "minutes" | "no improvement"
    held_out_loss: float
    start_loss: float
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    start_loss: float = math.inf
    stale: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Return "fp32" or "bf16": what was wanted, or for "auto" the faster one this device has in hardware."""
    if wanted not in ("auto", "fp32", "bf16"):
        raise ValueError(f"unknown precision {wanted!r}; expected auto, fp32 or bf16")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    flags = torch.backends.cpu.get_cpu_capability()
    has_bf16 = device.type == "cpu" and flags.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "fp32"


def train(
    net: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    held_out: Callable[[nn.Module], float],
    plan: Plan,
    checkpoint: Path | None = None,
    log: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train a network in place and leave the best averaged weights in it.

    Parameters
    ----------
    net
        The network, on its device.
    batch
        step -> batch. It must depend on the step alone: that is what makes a resumed training equal an
        uninterrupted one to the bit.
    loss
        (network, batch) -> scalar.
    held_out
        network -> loss on a fixed set of examples; lower is better.
    plan
        Budget and settings.
    checkpoint
        Read where it exists, written every `plan.save_every` steps and at the end; safetensors.
    log
        CSV file: step, seconds, training loss, held-out loss.
    progress
        Called with (steps done, steps planned, estimated seconds left).

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        Where the checkpoint belongs to another network or plan.
    FloatingPointError
        Where the loss is no longer finite.
    """
    averaged, best = deepcopy(net).eval(), deepcopy(net).eval()
    optimiser = torch.optim.AdamW(net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    state = _State()
    if checkpoint is not None and Path(checkpoint).exists():
        state = _load(checkpoint, plan, net, averaged, best, optimiser)
    else:
        state.start_loss = state.best_loss = held_out(averaged)
        state.history.append({"step": 0, "seconds": 0.0, "loss": math.nan, "held_out": state.start_loss})
    begun, running = time.monotonic() - state.seconds, math.nan
    while not state.stopped:
        state.seconds = time.monotonic() - begun
        state.stopped = _budget_spent(state, plan)
        if state.stopped:
            break
        _set_rate(optimiser, state, plan)
        value = _step(net, averaged, batch(state.step), loss, optimiser, plan, state.step)
        state.step += 1
        running = value if math.isnan(running) else 0.95 * running + 0.05 * value
        if state.step % plan.evaluate_every == 0 or state.step == plan.steps:
            _evaluate(state, plan, averaged, best, held_out, running, time.monotonic() - begun)
        if checkpoint is not None and (state.step % plan.save_every == 0 or state.stopped):
            state.seconds = time.monotonic() - begun
            _save(checkpoint, state, plan, net, averaged, best, optimiser)
        if progress is not None:
            progress(state.step, plan.steps, _seconds_left(state, plan, time.monotonic() - begun))
    if checkpoint is not None:
        _save(checkpoint, state, plan, net, averaged, best, optimiser)
    if log is not None:
        _write_log(log, state.history)
    net.load_state_dict(best.state_dict())
    return Trained(state.step, state.seconds / 60, state.stopped, state.best_loss, state.start_loss, state.history)


def _step(net, averaged, examples, loss, optimiser, plan: Plan, step: int) -> float:
    """Take one optimiser step, update the averaged weights, return the loss."""
    net.train()
    device = next(net.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
        value = loss(net, examples)
    if not torch.isfinite(value):
        raise FloatingPointError(f"the training loss is {value.item()} at step {step}; try --precision fp32")
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
    optimiser.step()
    decay = min(plan.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, new in zip(averaged.parameters(), net.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        for mean, new in zip(averaged.buffers(), net.buffers(), strict=True):
            mean.copy_(new)
    return value.item()


def _evaluate(state: _State, plan: Plan, averaged, best, held_out, running: float, seconds: float) -> None:
    """Score the averaged weights, keep them where they are the best yet, note when to stop."""
    score = held_out(averaged)
    state.history.append({"step": state.step, "seconds": seconds, "loss": running, "held_out": score})
    state.stale = 0 if score < state.best_loss * (1 - plan.tolerance) else state.stale + 1
    if score < state.best_loss:
        state.best_loss = score
        best.load_state_dict(averaged.state_dict())
    if state.stale >= plan.patience:
        state.stopped = "no improvement"


def _fraction(state: _State, plan: Plan) -> float:
    """Share of the budget that is spent, by whichever runs out first."""
    fraction = state.step / plan.steps
    return fraction if plan.minutes is None else max(fraction, state.seconds / (60 * plan.minutes))


def _budget_spent(state: _State, plan: Plan) -> str:
    if state.step >= plan.steps:
        return "steps"
    return "minutes" if _fraction(state, plan) >= 1 else ""


def _set_rate(optimiser, state: _State, plan: Plan) -> None:
    warm = min(1.0, (state.step + 1) / max(plan.warmup, 1))
    cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, _fraction(state, plan)))) / 2
    for group in optimiser.param_groups:
        group["lr"] = plan.learning_rate * warm * cosine


def _seconds_left(state: _State, plan: Plan, seconds: float) -> float:
    left = seconds / max(state.step, 1) * (plan.steps - state.step)
    return left if plan.minutes is None else max(0.0, min(left, 60 * plan.minutes - seconds))


def _fingerprint(plan: Plan) -> str:
    """What of a plan must agree for a checkpoint to continue it."""
    return json.dumps({k: v for k, v in asdict(plan).items() if k not in ("minutes", "save_every")})


def _tensors(net, averaged, best, optimiser) -> dict[str, Tensor]:
    """Every tensor of the training under one name each."""
    found = {}
    for prefix, module in (("net", net), ("averaged", averaged), ("best", best)):
        found |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    names = [name for name, _ in net.named_parameters()]
    for index, moments in optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{names[index]}.{key}": value for key, value in moments.items()}
    return {name: value.detach().contiguous().cpu() for name, value in found.items()}


def _save(path: Path, state: _State, plan: Plan, net, averaged, best, optimiser) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    record = {"state": json.dumps(asdict(state)), "plan": _fingerprint(plan)}
    save_file(_tensors(net, averaged, best, optimiser), part, metadata=record)
    os.replace(part, path)


def _load(path: Path, plan: Plan, net, averaged, best, optimiser) -> _State:
    try:
        with safe_open(path, "pt") as stored:
            record = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason=error)) from None
    if record.get("plan") != _fingerprint(plan):
        reason = f"its plan was {record.get('plan')}, this one is {_fingerprint(plan)}"
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason=reason))
    try:
        for prefix, module in (("net", net), ("averaged", averaged), ("best", best)):
            start = len(prefix) + 1
            module.load_state_dict({k[start:]: v for k, v in tensors.items() if k.startswith(prefix + ".")})
    except RuntimeError as error:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason=error)) from None
    saved = optimiser.state_dict()
    for index, (name, _) in enumerate(net.named_parameters()):
        start = f"optimiser.{name}."
        moments = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
        if moments:
            saved["state"][index] = moments
    optimiser.load_state_dict(saved)
    return _State(**json.loads(record["state"]))


def _write_log(path: Path, history: list[dict[str, float]]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "seconds", "loss", "held_out"])
        writer.writeheader()
        writer.writerows(history)
