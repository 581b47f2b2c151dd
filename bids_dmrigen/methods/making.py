"""One call of a learnt method: its network, the number of evaluations, the precision, and the record."""

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
    """The first and last steps of `generate`, which all learnt methods share.

    Parameters
    ----------
    method
        The method that the network belongs to.
    net
        The network given to `generate`; None for one with the request's weights, METHOD-SIZE by default.
    request
        The settings.
    steps
        Default numbers of evaluations: of the paper's sampler, of the fast sampler for a single sample, and of the
        fast sampler for several.
    precision
        Replaces the request's, where the method works in one precision only.

    Attributes
    ----------
    net
        The network, on the request's device, in evaluation mode.
    steps, precision
        Number of evaluations, and "fp32" or "bf16".
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
        network, self.weights = with_weights(method, net, request)
        self.net = cast("Net", network.to(request.device).eval())
        self._steps = steps
        self.steps = request.steps or self._default(request)
        self.precision = precision or numerics.resolve_precision(request.precision, request.device)

    def again(self, request: Request) -> Making[Net]:
        """Return a copy for another request: same network, with `steps` and the clock set anew."""
        other = copy(self)
        other.begun, other.request = time.monotonic(), request
        other.steps = request.steps or other._default(request)
        return other

    def _default(self, request: Request) -> int:
        paper, mean, drawn = self._steps
        if request.sampler == "paper":
            return paper
        # A network of size `paper` predicts noise: a single evaluation at the last time step gives no usable image.
        return mean if request.n_samples == 1 and request.size == "small" else drawn

    def record(self, evaluations: int | None = None, **more: Any) -> dict[str, Any]:
        """Return how the result was drawn, for `Generated.record`; `more` are entries of the method.

        `evaluations` is the number of network evaluations, where it is not one per step.
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
    """Return the network and the record's entry on its weights; without `net`, one with stored weights.

    Raises
    ------
    WeightsError
        Where the weights are missing, damaged, or of another method or size.
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
    """Return `Generated.record` of a method without a network; `begun` is `time.monotonic()` at its start."""
    return {
        **more,
        "Sampler": {"Name": spec.samplers["fast"], "Steps": 0, "NetworkEvaluations": 0},
        "Seconds": round(time.monotonic() - begun, 1),
    }


def denoiser(ask: Callable[[Tensor, Tensor], Tensor], process: Process, kind: str, precision: str) -> Denoise:
    """Return the function that a sampler needs: (x_t, t) -> estimate of x_0, from a network's prediction.

    Parameters
    ----------
    ask
        (x_t (B, ...), times (B,) float) -> the network's prediction.
    process
        The forward process.
    kind
        What the network predicts; see `Process.to_x0`.
    precision
        "fp32" or "bf16", for the network only.
    """

    def denoise(x: Tensor, t: int) -> Tensor:
        times = torch.full((len(x),), float(t), device=x.device)
        with autocast(x.device, precision):
            prediction = ask(x, times)
        return process.to_x0(x, t, prediction.float(), kind)

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
    """Generate a volume in groups of slices; return its mean and (of several samples) spread (X, Y, Z, N).

    Parameters
    ----------
    volume
        (X, Y, Z, N), shape of the result.
    box
        Rows and columns that are generated; 0 elsewhere.
    parts
        Groups of slice numbers that are generated together.
    request
        Number of samples, and the progress callback.
    at
        (S,) slices -> number of the sample -> that sample (h, w, S, N).
    what
        Label for the progress callback.
    """
    mean = np.zeros(volume, np.float32)
    std = np.zeros_like(mean) if request.n_samples > 1 else None
    done, total = 0, sum(map(len, parts))
    for part in parts:
        sample = at(part)
        average, spread = mean_and_spread(torch.stack([sample(k) for k in range(request.n_samples)]))
        mean[box][:, :, part] = average.numpy()
        if std is not None and spread is not None:
            std[box][:, :, part] = spread.numpy()
        done += len(part)
        if request.progress is not None:
            request.progress(what, done, total)
    return mean, std
