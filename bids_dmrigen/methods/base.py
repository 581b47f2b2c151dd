"""The interface between methods and the workflow: the request, the result, and the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dwi.gradients import GradientTable
from ..dwi.series import Scan
from ..dwi.uncertainty import Running
from .spec import MethodSpec

if TYPE_CHECKING:  # they load torch, which the command line must not wait for
    import torch

    from ..diffusion.arrays import Prepared
    from ..diffusion.training import Plan
    from ..simulate.atlas import Atlas

MAP_WIDTHS = {"dec": 3, "tensor": 6}  # number of volumes, for maps that have more than one


@dataclass(frozen=True, eq=False)
class Population:
    """Maps of the population on the grid of a scan in the template's space; None where a map is not given.

    Parameters
    ----------
    adc
        (X, Y, Z, K) mean apparent diffusion coefficient at each of the b-values, mm²/s; 0 where there is no brain.
    bvals
        (K,) s/mm², increasing.
    tracts
        (X, Y, Z, 42) share of subjects in whom a voxel belongs to each of XTRACT's tracts, 0 to 1.
    anatomy
        Mean tissue and fibre directions, on another grid in the template's world.
    """

    adc: np.ndarray | None = None
    bvals: np.ndarray | None = None
    tracts: np.ndarray | None = None
    anatomy: Atlas | None = None


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True)
class Request:
    """The settings of one run of a method."""

    size: str = "small"
    sampler: str = "fast"
    steps: int | None = None  # sampler steps; None = the sampler's default
    n_samples: int = 1  # drawn beside the best estimate where more than one
    seed: int = 0
    subject: str = ""  # with `run`, selects the random numbers
    run: str = ""
    device: torch.device = field(default_factory=_cpu)
    precision: str = "auto"  # auto | fp32 | bf16
    minutes: float | None = None  # training budget; None = steps only, so that the result does not depend on a clock
    weights: str | None = None  # name or path; None = the method's default
    weights_dir: Path | None = None  # searched before the package
    checkpoint: Path | None = None  # file that training resumes from and writes to
    progress: Callable[[str, int, int], None] | None = None  # (what, done, total)
    left_out: int = 0  # acquired directions of each shell to hide and generate, as a check
    population: Population | None = None  # for methods that work in the template's space
    options: dict[str, Any] = field(default_factory=dict)  # the method's options, by `Option.key`


@dataclass(frozen=True)
class InTemplate:
    """A series in the template's space, where the method generated it.

    Parameters
    ----------
    mean
        (U, V, W, N) float32, the b0 first, in the scan's units.
    gradients
        Gradient table of the series.
    affine
        (4, 4) voxel indices to world RAS+ of the template, mm.
    """

    mean: np.ndarray
    gradients: GradientTable
    affine: np.ndarray


@dataclass(frozen=True)
class Grid:
    """The grid of a generated series, where it is not the grid of the scan.

    Parameters
    ----------
    affine
        (4, 4) voxel indices to world RAS+, mm; its axes are parallel to the scan's.
    mask
        (X, Y, Z) bool, True in the brain.
    """

    affine: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Samples:
    """Samples of a result. Each is drawn when it is asked for: all together would need much memory.

    Parameters
    ----------
    count
        How many there are.
    draw
        Number of the sample, from 0 -> sample of the shape of `Generated.mean`, always the same.
    factors
        By name of a map: what the standard deviation of the samples is multiplied by in white matter, grey matter and
        fluid (`dwi.uncertainty.TISSUES`); 1 for maps that are not in it.
    """

    count: int
    draw: Callable[[int], np.ndarray]
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.draw(k) for k in range(self.count))

    def std(self) -> np.ndarray:
        """Return the standard deviation of the samples, float32."""
        running = Running()
        for sample in self:
            running.add(sample)
        return running.std()

    def after(self, change: Callable[[np.ndarray], np.ndarray]) -> Samples:
        """Return the samples after a change, such as resampling, that the result went through."""
        return replace(self, draw=lambda k: change(self.draw(k)))


@dataclass(frozen=True)
class LeftOut:
    """Volumes that a method generated for acquired directions that were hidden from it.

    Parameters
    ----------
    volumes
        (K,) indices in the acquired series.
    mean
        (X, Y, Z, K) float32, the generated volumes, in the scan's units.
    std
        The same shape: standard deviation of their samples; None where there are none.
    """

    volumes: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None = None


@dataclass(frozen=True)
class Generated:
    """The result of a method.

    Parameters
    ----------
    mean
        (X, Y, Z, N) float32, the best estimate: the series in the scan's units, or the maps one after another. Each map
        is one volume, `dec` is three. Diffusivities are in mm²/s.
    samples
        Samples of it; None where only the estimate was asked for, or nothing is random in the method.
    gradients
        Gradient table of the series; None for maps.
    maps
        Names of the maps, in order; empty for a series.
    acquired
        (N,) bool: True where the volume is an acquired one, unchanged; always False for maps.
    record
        How the result was made, JSON-serialisable: Size, Weights, Sampler {Name, Steps, NetworkEvaluations}, Seed,
        Samples, Training, Device, Precision, Seconds.
    checks
        Numbers for the quality table, name -> value; definitions in `qc.metrics`.
    warnings
        Sentences for the report.
    left_out
        A check against acquired volumes, where it was requested and possible.
    in_template
        The series in the template's space, for a method that works there.
    grid
        Grid of `mean`, where it is not the scan's.
    extra
        The specification's `extra_maps`, by `param`: (X, Y, Z) float32 each, on the scan's grid.
    """

    mean: np.ndarray
    samples: Samples | None
    gradients: GradientTable | None
    maps: tuple[str, ...]
    acquired: np.ndarray
    record: dict[str, Any]
    checks: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    left_out: LeftOut | None = None
    in_template: InTemplate | None = None
    grid: Grid | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def averaged(self) -> Generated:
        """Return the result with the mean of its samples instead of the best estimate; the same without samples."""
        if self.samples is None:
            return self
        mean = sum(sample / self.samples.count for sample in self.samples)
        return replace(self, mean=np.asarray(mean, np.float32), samples=None)

    def named_maps(self, values: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the maps in `mean` (or `values`, of the same shape) by name: (X, Y, Z), `dec` (X, Y, Z, 3)."""
        values, named, first = self.mean if values is None else values, {}, 0
        for name in self.maps:
            width = MAP_WIDTHS.get(name, 1)
            named[name] = values[..., first : first + width] if width > 1 else values[..., first]
            first += width
        return named


class Method(ABC):
    """One method: it generates a series or maps from a scan."""

    spec: MethodSpec

    def configured(self, options: Mapping[str, Any]) -> Method:
        """Return the method set up for those options, by key, that its weights depend on (`Option.of_weights`)."""
        return self

    def network(self, size: str) -> torch.nn.Module | None:
        """Return an untrained network of this size, always the same; None where there is nothing to learn."""
        return None

    @abstractmethod
    def generate(self, net: torch.nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Return the series or maps that the method generates from a scan.

        Parameters
        ----------
        net
            The network; None for one with the weights that the request names.
        scan
            The acquired series; where `spec.in_template`, the b0 in the template's space.
        request
            The settings.

        Raises
        ------
        ScanError
            Where the method cannot work on the scan.
        WeightsError
            Where weights are missing or damaged.
        """


class Training(ABC):
    """What a training needs: examples, a loss, a score, a budget."""

    name = ""  # of the part of the network that is trained; empty = the whole network
    constants: tuple[str, ...] = ()  # buffers of the network that `begin` sets

    @abstractmethod
    def training_plan(self, size: str) -> Plan:
        """Return the default budget and settings for a network of this size."""

    def share(self, size: str) -> float:
        """Return the share of a budget in minutes that this training takes."""
        return 1.0

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return how many fixed batches the network is scored on, and how many examples each has."""
        return 8, 32

    @abstractmethod
    def examples(self, source: Any, size: str, batch: int, seed: int) -> Callable[[int], Any]:
        """Return index -> batch of examples, on the source's device; one index always gives the same batch."""

    @abstractmethod
    def loss(self, net: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the loss of a batch; `net` may be wrapped."""

    def held_out(self, source: Any, size: str, seed: int) -> Callable[[torch.nn.Module], float]:
        """Return network -> mean loss on fixed examples that are never trained on."""
        from ..diffusion.training import fixed_score

        batches, batch = self.scored_on(size)
        return fixed_score(self.examples(source, size, batch, seed), self.loss, batches)

    def begin(self, source: Any, batch: int, seed: int) -> None:  # noqa: B027 - most have nothing to prepare
        """Prepare the network for this training; earlier trainings have already changed it."""


class Trainable(Method):
    """A method whose network is trained before it is used."""

    @abstractmethod
    def network(self, size: str) -> torch.nn.Module:
        """Return an untrained network of this size, always the same."""

    @abstractmethod
    def trainings(self, net: torch.nn.Module) -> Sequence[Training]:
        """Return the trainings of a network, in order; each continues from the network of the one before."""

    def batch(self, size: str) -> int:
        """Return the default number of examples in a training step."""
        return 32

    @abstractmethod
    def configuration(self, size: str) -> dict[str, Any]:
        """Return the network's architecture and the range of its training data, JSON-serialisable."""

    def subjects(
        self,
        atlas: Atlas,
        n: int,
        held_out: bool = False,
        device: str | torch.device = "cpu",
        population: Population | None = None,
    ) -> Any:
        """Return simulated subjects to train on; with `held_out`, other subjects.

        `population` is on the atlas's grid, for methods that are conditioned on it.
        """
        from ..simulate.examples import SimulatedSubjects

        return SimulatedSubjects.from_atlas(atlas, n, held_out=held_out, device=device)

    def measured(self, scans: Prepared, good: Prepared | None = None) -> Any:
        """Return prepared scans to train on; `good` are scans from a better scanner, for methods trained on pairs."""
        return scans

    def placed(self, scans: Prepared, atlas: Atlas, population: Population | None = None) -> Any:
        """Return prepared scans in the template's space to train on, for methods that work there; see `subjects`."""
        return scans

    def freeze(self, net: torch.nn.Module, source: Any) -> None:
        """Freeze the parts of the network that this source cannot train."""

    def calibrate(self, net: torch.nn.Module, sources: Sequence[Any], size: str, seed: int) -> None:
        """Set constants of a trained network from sources of subjects that it was not trained on."""


class TrainedAtOnce(Trainable, Training):
    """A method whose network is trained as a whole."""

    def trainings(self, net: torch.nn.Module) -> Sequence[Training]:
        """Return the one training of the network."""
        return [self]
