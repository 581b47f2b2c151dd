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
from .base import Request, Samples, Trainable
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
        Default numbers of evaluations: of the paper's sampler, of the fast sampler for the mean, and of the fast
        sampler for a sample.
    precision
        Replaces the request's, where the method works in one precision only.

    Attributes
    ----------
    net
        The network, on the request's device, in evaluation mode.
    steps, sample_steps, precision
        Number of evaluations for the result and for each sample, and "fp32" or "bf16".
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
        self.steps, self.sample_steps = self._evaluations(request)
        self.precision = precision or numerics.resolve_precision(request.precision, request.device)

    def again(self, request: Request) -> Making[Net]:
        """Return a copy for another request: same network, with its numbers of steps and the clock set anew."""
        other = copy(self)
        other.begun, other.request = time.monotonic(), request
        other.steps, other.sample_steps = other._evaluations(request)
        return other

    def _evaluations(self, request: Request) -> tuple[int, int]:
        paper, mean, drawn = self._steps
        of_sample = request.steps or (paper if request.sampler == "paper" else drawn)
        return (mean if asked_for_mean(request) else of_sample), of_sample

    def result(self, make: Callable[[int | None], np.ndarray]) -> tuple[np.ndarray, Samples | None]:
        """Return the best estimate and, where the request is for several, the samples.

        Parameters
        ----------
        make
            Number of a sample -> that sample; None -> the mean of the distribution, which the network says at once.
            Without such a mean, that of the samples is the estimate.
        """
        n = self.request.n_samples
        if asked_for_mean(self.request):
            return make(None), Samples(n, make) if n > 1 else None
        drawn = [make(k) for k in range(n)]
        if n == 1:
            return drawn[0], None
        return np.mean(drawn, axis=0), Samples(n, drawn.__getitem__)

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
            **sampled(self.spec, request, self.sample_steps),
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


def asked_for_mean(request: Request) -> bool:
    """Return whether the result is the mean of the distribution, from a single evaluation, and not a sample.

    A network of size `paper` predicts noise: a single evaluation at the last time step gives no usable image.
    """
    once = request.n_samples > 1 or request.steps in (None, 1)
    return once and request.sampler == "fast" and request.size == "small"


def sampled(spec: MethodSpec, request: Request, steps: int) -> dict[str, Any]:
    """Return the entries of the record on the samples that are drawn beside the result."""
    if request.n_samples == 1 or not spec.draws:
        return {"Samples": 1}
    return {"Samples": request.n_samples, "SampledBy": {"Name": spec.samplers[request.sampler], "Steps": steps}}


def denoiser(
    ask: Callable[[Tensor, Tensor], Tensor], process: Process, kind: str, precision: str, mean: Tensor | None = None
) -> Denoise:
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
    mean
        The estimate at the last time, where it is known already: there it does not depend on x_t.
    """

    def denoise(x: Tensor, t: int) -> Tensor:
        if mean is not None and t == process.steps:
            return mean.to(x)
        times = torch.full((len(x),), float(t), device=x.device)
        with autocast(x.device, precision):
            prediction = ask(x, times)
        return process.to_x0(x, t, prediction.float(), kind)

    return denoise


def label(what: str, sample: int | None) -> str:
    """Return the label of the progress of a sample, or (None) of the mean."""
    return what if sample is None else f"sample {sample + 1}, {what}"


def slice_by_slice(
    volume: tuple[int, int, int, int],
    box: tuple[slice, slice],
    parts: Sequence[np.ndarray],
    request: Request,
    at: Callable[[np.ndarray], Tensor],
    what: str = "slices",
) -> np.ndarray:
    """Generate a volume (X, Y, Z, N) in groups of slices.

    Parameters
    ----------
    volume
        (X, Y, Z, N), shape of the result.
    box
        Rows and columns that are generated; 0 elsewhere.
    parts
        Groups of slice numbers that are generated together.
    request
        Holds the progress callback.
    at
        (S,) slices -> their values (h, w, S, N).
    what
        Label for the progress callback.
    """
    made = np.zeros(volume, np.float32)
    done, total = 0, sum(map(len, parts))
    for part in parts:
        made[box][:, :, part] = at(part).numpy()
        done += len(part)
        if request.progress is not None:
            request.progress(what, done, total)
    return made


class Means:
    """What the network said as the mean, by part of the volume: samples start from it. Half precision is enough."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def keep(self, part: Any, mean: Tensor) -> None:
        """Keep a mean, on the CPU."""
        self._kept[part] = mean.half().cpu()

    def of(self, part: Any) -> Tensor | None:
        """Return the mean of a part; None where none was kept."""
        return self._kept.get(part)
