"""What a training is at one moment, and how it is kept so that it goes on to the bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .storage import write_tensors

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

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {"net": self.net, "averaged": self.averaged, "best": self.best}

    def save(self, path: Path, plan: str) -> None:
        """Write a checkpoint; `plan` is what has to agree for it to be continued."""
        tensors: dict[str, Tensor] = {}
        for prefix, module in self._networks.items():
            tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
        names = [name for name, _ in self.net.named_parameters()]
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{names[index]}.{key}": value for key, value in moments.items()}
        write_tensors(path, tensors, {"state": json.dumps(asdict(self.state)), "plan": plan})

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
        try:
            for prefix, module in self._networks.items():
                module.load_state_dict(_under(f"{prefix}.", tensors))
        except RuntimeError as error:
            raise ValueError(BAD_CHECKPOINT.format(path=path, reason=error)) from None
        saved = self.optimiser.state_dict()
        for index, (name, _) in enumerate(self.net.named_parameters()):
            if moments := _under(f"optimiser.{name}.", tensors):
                saved["state"][index] = moments
        self.optimiser.load_state_dict(saved)
        self.state = Progress(**json.loads(record["state"]))


def best_weights(path: Path, net: nn.Module) -> tuple[dict[str, Tensor], Progress]:
    """Return the best averaged weights in a checkpoint of a network like this one, and where its training stood.

    Raises
    ------
    ValueError
        Where it is no checkpoint, or one of another network.
    """
    tensors, record = _read(path)
    weights = _under("best.", tensors)
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in net.state_dict().items()}:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason="its network is another one"))
    return weights, Progress(**json.loads(record["state"]))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(BAD_CHECKPOINT.format(path=path, reason=error)) from None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
