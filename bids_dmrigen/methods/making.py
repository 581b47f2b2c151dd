"""One call of a method: the network that is asked, how often, in which arithmetic, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..diffusion import numerics
from ..diffusion.numerics import autocast
from ..diffusion.processes import Process
from ..diffusion.samplers import Denoise
from ..diffusion.weights import default_name, load_weights
from .base import Request, Trainable
from .spec import MethodSpec

Net = TypeVar("Net", bound=nn.Module)


class Making(Generic[Net]):
    """What every `generate` of a learnt method begins and ends with.

    Parameters
    ----------
    method
        Whose network it is.
    net
        As given to `generate`: None for one with the weights that the request names, METHOD-SIZE by default.
    request
        What is asked for.
    steps
        Evaluations where the request does not say: of the paper's sampler, of the fast one for a single sample, and
        of the fast one for several.
    precision
        In place of the request's, where the method can work in one alone.

    Attributes
    ----------
    net
        On the request's device, in evaluation mode.
    steps, precision
        Evaluations, and "fp32" or "bf16".
    """

    def __init__(
        self,
        method: Trainable,
        net: nn.Module | None,
        request: Request,
        steps: tuple[int, int, int],
        precision: str | None = None,
    ):
        self.begun = time.monotonic()
        self.spec, self.request = method.spec, request
        asked, self.weights = with_weights(method, net, request)
        self.net = cast("Net", asked.to(request.device).eval())
        self._steps = steps
        self.steps = request.steps or self._default(request)
        self.precision = precision or numerics.resolve_precision(request.precision, request.device)

    def again(self, request: Request) -> Making[Net]:
        """Return the same network asked for something else: `steps` and the clock start anew."""
        other = copy(self)
        other.begun, other.request = time.monotonic(), request
        other.steps = request.steps or other._default(request)
        return other

    def _default(self, request: Request) -> int:
        paper, mean, drawn = self._steps
        if request.sampler == "paper":
            return paper
        # A network of size `paper` predicts noise: to ask it once, at the last time, would be no answer.
        return mean if request.n_samples == 1 and request.size == "small" else drawn

    def record(self, evaluations: int | None = None, **more: Any) -> dict[str, Any]:
        """Return how the result was drawn, for `Generated.record`; `more` is the method's own.

        `evaluations` is how often the network was asked, where that is not once a step.
        """
        request = self.request
        name = self.spec.sampler_name(request.sampler, request.n_samples, request.steps, request.size)
        return {
            "Size": request.size,
            "Weights": self.weights,
            "Sampler": {"Name": name, "Steps": self.steps, "NetworkEvaluations": evaluations or self.steps},
            "Seed": request.seed,
            "Samples": request.n_samples,
            **more,
            "Device": str(request.device),
            "Numerics": numerics.record(request.device, self.precision),
            "Seconds": round(time.monotonic() - self.begun, 1),
        }


def with_weights(method: Trainable, net: nn.Module | None, request: Request) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network, with stored weights where none is given, and what the record says of them.

    Raises
    ------
    WeightsError
        Where the weights are missing, damaged or of something else.
    ValueError
        Where the method has no network.
    """
    if net is not None:
        return net, {"Name": "given"}
    spec, options = method.spec, request.options
    net = method.configured(options).network(request.size)
    if net is None:
        raise ValueError(f"{spec.name} has no network")
    name = request.weights or default_name(spec.name, request.size)
    trained_for = spec.options_of_weights(options)
    _, card = load_weights(net, name, spec.name, request.size, request.weights_dir, trained_for)
    return net, card.record()


def classical_record(spec: MethodSpec, begun: float, **more: Any) -> dict[str, Any]:
    """Return `Generated.record` of a method that asks no network; `begun` is what `time.monotonic` said then."""
    return {
        **more,
        "Sampler": {"Name": spec.samplers["fast"], "Steps": 0, "NetworkEvaluations": 0},
        "Seconds": round(time.monotonic() - begun, 1),
    }


def denoiser(ask: Callable[[Tensor, Tensor], Tensor], process: Process, kind: str, precision: str) -> Denoise:
    """Return what a sampler asks for: (x_t, t) -> estimate of x_0, from a network's prediction.

    Parameters
    ----------
    ask
        (x_t (B, ...), times (B,) float) -> the network's prediction.
    process
        The forward process.
    kind
        Of the prediction; see `Process.to_x0`.
    precision
        "fp32" or "bf16", of the network alone.
    """

    def denoise(x: Tensor, t: int) -> Tensor:
        times = torch.full((len(x),), float(t), device=x.device)
        with autocast(x.device, precision):
            found = ask(x, times)
        return process.to_x0(x, t, found.float(), kind)

    return denoise


def mean_and_spread(samples: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return mean and standard deviation over the first axis; None for a single sample."""
    return samples.mean(dim=0), samples.std(dim=0) if len(samples) > 1 else None


def slice_by_slice(
    volume: tuple[int, int, int, int],
    box: tuple[slice, slice],
    parts: Sequence[np.ndarray],
    request: Request,
    at: Callable[[np.ndarray], Callable[[int], Tensor]],
    what: str = "slices",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean and (of several samples) spread (X, Y, Z, N) of what is made of some slices at a time.

    Parameters
    ----------
    volume
        (X, Y, Z, N).
    box
        Rows and columns that are made; 0 elsewhere.
    parts
        Numbers of the slices that are made together.
    request
        How many samples, and whom to tell.
    at
        (S,) slices -> number of the sample -> that sample (h, w, S, N).
    what
        Is told to be done, slice after slice.
    """
    mean = np.zeros(volume, np.float32)
    std = np.zeros_like(mean) if request.n_samples > 1 else None
    done, total = 0, sum(map(len, parts))
    for part in parts:
        sample = at(part)
        found, spread = mean_and_spread(torch.stack([sample(k) for k in range(request.n_samples)]))
        mean[box][:, :, part] = found.numpy()
        if std is not None and spread is not None:
            std[box][:, :, part] = spread.numpy()
        done += len(part)
        if request.progress is not None:
            request.progress(what, done, total)
    return mean, std
