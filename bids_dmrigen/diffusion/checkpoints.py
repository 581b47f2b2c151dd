"""What a training is at one moment, and how it is kept so that it goes on to the bit.

Nothing is kept twice. The checkpoint holds the network, the averages of the parameters that are trained, and the
optimiser. The best averaged weights lie in a file of their own beside it, and only where they are not those averages:
its name ends in the step that they are of, and it is written before the checkpoint that names it, so that the two
always belong together.
"""

from __future__ import annotations

import json
import math
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
        Of trainings that ended where this one began.
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
        """Return the start of a training that begins where this one ended."""
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
        """Write a checkpoint; `plan` is what has to agree for it to be continued."""
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

    def load(self, path: Path, plan: str) -> None:
        """Go back to where a checkpoint was written.

        Raises
        ------
        ValueError
            Where it is no checkpoint, or one of another network or plan.
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
    """Return the best averaged weights in a checkpoint of a network like this one, and where its training stood.

    Raises
    ------
    ValueError
        Where it is no checkpoint, or one of another network.
    """
    tensors, record = _read(path)
    state = _state(path, record)
    weights = _best_of(path, state, tensors)
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in net.state_dict().items()}:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason="its network is another one"))
    return weights, state


def _best_file(path: Path, step: int | str) -> Path:
    """Return where the best weights of a checkpoint lie that are those of a step."""
    return path.with_name(f"{path.stem}-best-{step}{path.suffix}")


def _best_of(path: Path, state: Progress, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the best averaged weights, buffers and what is not trained included."""
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
