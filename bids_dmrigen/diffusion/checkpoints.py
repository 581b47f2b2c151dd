"""The state of a training, and its checkpoint: a resumed training gives the same result to the bit.

Nothing is stored twice. The checkpoint holds the network, the averages of the trained parameters, and the optimiser.
The best averaged weights are stored in a second file, and only where they differ from the current averages. Its name
ends with their step. It is written before the checkpoint that refers to it, so that the two always match.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .storage import write_tensors

NO_BEST = "its best weights, {name}, are missing or damaged"
BAD_CHECKPOINT = "{path}: not a checkpoint of this training ({reason}); delete it to start anew"


@dataclass
class Progress:
    """Where a training stands.

    Parameters
    ----------
    step, seconds
        Steps taken and time spent, over all sessions.
    running
        Training loss, averaged over about twenty steps.
    best_loss, start_loss
        Held-out loss of the best averaged weights and of the start.
    best_step
        Step after which the averaged weights were the best ones.
    stale
        Scores in a row without improvement.
    stopped
        Why it ended, or "".
    history
        A row for each score.
    steps_before, seconds_before
        Steps and time of earlier trainings whose result this training started from.
    """

    step: int = 0
    seconds: float = 0.0
    running: float = math.nan
    best_loss: float = math.inf
    start_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    steps_before: int = 0
    seconds_before: float = 0.0

    def anew(self) -> Progress:
        """Return the initial progress of a training that starts from the result of this one."""
        return Progress(steps_before=self.steps_before + self.step, seconds_before=self.seconds_before + self.seconds)


@dataclass
class Training:
    """Everything that a training changes: its networks, its optimiser and where it stands."""

    net: nn.Module
    averaged: nn.Module
    best: nn.Module
    optimiser: torch.optim.Optimizer
    state: Progress
    stored_best: int | None = None  # step of the best weights that lie beside the checkpoint

    def save(self, path: Path, plan: str) -> None:
        """Write a checkpoint; a training can continue it only with the same `plan`."""
        path = Path(path)
        learnt = {name for name, parameter in self.net.named_parameters() if parameter.requires_grad}
        fixed = {name for name, _ in self.net.named_parameters()} - learnt
        averaged = self.averaged.state_dict()  # its buffers are the network's
        tensors = _with_prefix("net", self.net.state_dict()) | _with_prefix(
            "averaged", {n: averaged[n] for n in learnt}
        )
        names = [name for name, _ in self.net.named_parameters()]
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= _with_prefix(f"optimiser.{names[index]}", moments)
        kept = None
        if self.state.best_step != self.state.step:
            kept = _best_file(path, self.state.best_step)
            if self.stored_best != self.state.best_step:
                write_tensors(
                    kept, {name: value for name, value in self.best.state_dict().items() if name not in fixed}
                )
                self.stored_best = self.state.best_step
        write_tensors(path, tensors, {"state": json.dumps(asdict(self.state)), "plan": plan})
        for old in set(path.parent.glob(_best_file(path, "*").name)) - {kept}:
            old.unlink(missing_ok=True)

    def keep(self, path: Path) -> None:
        """Write the averaged weights beside the checkpoint at a path, for `kept_weights`."""
        state = json.dumps(asdict(self.state))
        write_tensors(_kept_file(Path(path), f"{self.state.step:07d}"), self.averaged.state_dict(), {"state": state})

    def load(self, path: Path, plan: str) -> None:
        """Restore the state in a checkpoint.

        Raises
        ------
        ValueError
            Where the file is no checkpoint, or belongs to another network or plan.
        """
        tensors, record = _read(path)
        if record.get("plan") != plan:
            reason = f"its plan was {record.get('plan')}, this one is {plan}"
            raise ValueError(BAD_CHECKPOINT.format(path=path, reason=reason))
        state = _state(path, record)
        best, weights = _best_of(path, state, tensors), _under("net.", tensors)
        try:
            self.net.load_state_dict(weights)
            self.averaged.load_state_dict(weights | _under("averaged.", tensors))
            self.best.load_state_dict(best)
        except RuntimeError as error:
            raise ValueError(BAD_CHECKPOINT.format(path=path, reason=error)) from None
        saved = self.optimiser.state_dict()
        for index, (name, _) in enumerate(self.net.named_parameters()):
            if moments := _under(f"optimiser.{name}.", tensors):
                saved["state"][index] = moments
        self.optimiser.load_state_dict(saved)
        self.state = state
        self.stored_best = None if state.best_step == state.step else state.best_step


def best_weights(path: Path, net: nn.Module) -> tuple[dict[str, Tensor], Progress]:
    """Return the best averaged weights in a checkpoint of a network like this one, and its training's progress.

    Raises
    ------
    ValueError
        Where the file is no checkpoint, or belongs to another network.
    """
    tensors, record = _read(path)
    state = _state(path, record)
    weights = _best_of(path, state, tensors)
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in net.state_dict().items()}:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason="its network is another one"))
    return weights, state


def kept_weights(path: Path) -> Iterator[tuple[dict[str, Tensor], Progress]]:
    """Yield the weights that were kept beside the checkpoint at a path, and the progress then, in order of steps."""
    path = Path(path)
    for file in sorted(path.parent.glob(_kept_file(path, "*").name)):
        weights, record = _read(file)
        yield weights, _state(file, record)


def _kept_file(path: Path, step: str) -> Path:
    """Return the path of weights that are kept, of some step."""
    return path.with_name(f"{path.stem}-at-{step}{path.suffix}")


def _best_file(path: Path, step: int | str) -> Path:
    """Return the path of the best weights of a checkpoint, which are those of this step."""
    return path.with_name(f"{path.stem}-best-{step}{path.suffix}")


def _best_of(path: Path, state: Progress, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the best averaged weights, with buffers and parameters that are not trained."""
    weights = _under("net.", tensors)
    if state.best_step == state.step:
        return weights | _under("averaged.", tensors)
    kept = _best_file(Path(path), state.best_step)
    try:
        with safe_open(kept, "pt") as stored:
            return weights | {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason=NO_BEST.format(name=kept.name))) from None


def _state(path: Path, record: dict[str, str]) -> Progress:
    content = json.loads(record.get("state", "{}"))
    if "best_step" not in content:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason="an older version of this program wrote it"))
    return Progress(**content)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason=error)) from None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
