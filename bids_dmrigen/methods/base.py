"""What every method offers the workflow: its specification, the request it gets, the result it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..diffusion import numerics
from ..diffusion.training import Plan
from ..diffusion.weights import default_name, load_weights
from ..dwi.gradients import GradientTable
from ..dwi.series import Scan, ScanError
from ..dwi.spline import points_of_size, resampled
from ..simulate.atlas import Atlas
from ..simulate.examples import People

MAP_WIDTHS = {"dec": 3}  # volumes of maps that have more than one
SAME_MM = 1e-3  # voxels whose edges differ by less are of one size

BAD_SIZE = "--rishldm-voxel-size {wanted:g}: expected at most the scan's own voxel size, {zooms} mm, found a larger one"
ONLY_FINER = (
    "{title}: there is nothing to do on the scan's own voxels, {zooms} mm; ask for smaller ones with "
    "--rishldm-voxel-size"
)


@dataclass(frozen=True)
class Citation:
    """A reference in the report and in CITATION.bib."""

    key: str
    text: str  # as in a reference list
    bibtex: str


@dataclass(frozen=True)
class MethodSpec:
    """What a method is, needs and gives: help, input checks, report text and citations are made from this."""

    name: str  # on the command line and in file names: letters and digits only
    title: str
    summary: str  # one sentence, third person, used in the methods text of the report
    citation: Citation
    min_directions: int  # diffusion-weighted volumes without which it cannot run
    good_directions: int  # fewer than this gets a warning
    needs_weights: bool
    maps: tuple[str, ...] = ()  # what it gives in place of a series, in order
    # Names for the record: "paper", "fast", and "mean" where the fast one does not draw a single sample.
    samplers: dict[str, str] = field(default_factory=dict)
    # True: runs on the series as acquired, before interpolation makes the noise of neighbouring voxels alike; its
    # result then goes through the steps that the series itself goes through.
    on_acquired: bool = False
    # Of "adc", "tracts" and "fibres", what it is told in `Request.population`: it knows brains by their place, and
    # works on a scan in the template's space.
    population: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("small", "paper")
    draws: bool = True  # False: nothing in it is random, and there is no spread of samples
    finer: str = ""  # "may" or "must" make its series on a finer grid, of voxels of `Request.options["voxel_mm"]`
    weights_from: str = ""  # the method whose weights it works with, where these are not its own

    @property
    def in_template(self) -> bool:
        """Whether it works in the template's space."""
        return bool(self.population)

    @property
    def gives_series(self) -> bool:
        """Whether it gives a DWI series, or else maps."""
        return not self.maps

    def sampler_name(self, sampler: str, n_samples: int = 1, steps: int | None = None) -> str:
        """Return what a request's sampler is called in the record."""
        mean = sampler == "fast" and n_samples == 1 and steps in (None, 1)
        return self.samplers["mean" if mean and "mean" in self.samplers else sampler]

    def edge_mm(self, zooms_mm: np.ndarray, wanted: float | None) -> float | None:
        """Return the edge of the voxels of its result, mm; None where they are to be the scan's own.

        Parameters
        ----------
        zooms_mm
            (3,) of the scan.
        wanted
            `Request.options["voxel_mm"]`; None for the scan's own.

        Raises
        ------
        ScanError
            Where it would be a coarser grid, or there is nothing to do on the scan's own.
        """
        if not self.finer:
            return None
        zooms = " x ".join(f"{z:g}" for z in zooms_mm)
        if wanted is None or np.allclose(zooms_mm, wanted, atol=SAME_MM):
            if self.finer == "must":
                raise ScanError(ONLY_FINER.format(title=self.title, zooms=zooms))
            return None
        if not 0 < wanted <= np.min(zooms_mm) + SAME_MM:
            raise ScanError(BAD_SIZE.format(wanted=wanted, zooms=zooms))
        return float(wanted)

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about this scan; raise `ScanError` where the method cannot run on it."""
        n = int((~scan.gradients.is_b0).sum())
        if n < self.min_directions:
            raise ScanError(f"{self.name} needs at least {self.min_directions} diffusion-weighted volumes, found {n}")
        scan.mean_b0()
        if n < self.good_directions:
            return [f"{self.title}: {n} directions; results are less certain below {self.good_directions}"]
        return []


@dataclass(frozen=True, eq=False)
class Population:
    """What is known of people in general, on the grid of a scan in the template's space; None where it is not told.

    Parameters
    ----------
    adc
        (X, Y, Z, K) mean apparent diffusion coefficient at each of the b-values, mm²/s; 0 where there is no brain.
    bvals
        (K,) s/mm², rising.
    tracts
        (X, Y, Z, 42) share of people in whom a voxel belongs to each of XTRACT's tracts, 0 to 1.
    anatomy
        Mean tissue and fibre directions, on a grid of their own in the template's world.
    """

    adc: np.ndarray | None = None
    bvals: np.ndarray | None = None
    tracts: np.ndarray | None = None
    anatomy: Atlas | None = None


@dataclass(frozen=True)
class Request:
    """What a run of a method is asked for."""

    size: str = "small"
    sampler: str = "fast"
    steps: int | None = None  # sampler steps; None = the sampler's own default
    n_samples: int = 1
    seed: int = 0
    subject: str = ""  # with `run`, addresses the noise
    run: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "auto"  # auto | fp32 | bf16
    minutes: float | None = None  # training budget; None = by steps alone, so that no clock enters the result
    weights: str | None = None  # name or path; None = the method's own default
    weights_dir: Path | None = None  # looked in before the package
    checkpoint: Path | None = None  # file that training resumes from and writes to
    progress: Callable[[str, int, int], None] | None = None  # (what, done, total)
    population: Population | None = None  # for methods that work in the template's space
    options: dict[str, Any] = field(default_factory=dict)  # method's own flags


@dataclass(frozen=True)
class InTemplate:
    """A series where it was made, in the template's space.

    Parameters
    ----------
    mean
        (U, V, W, N) float32, the b0 first, in the scan's own units.
    gradients
        Of it.
    affine
        (4, 4) voxel indices to world RAS+ of the template, mm.
    """

    mean: np.ndarray
    gradients: GradientTable
    affine: np.ndarray


@dataclass(frozen=True)
class Grid:
    """The grid of a series that has another than the scan that it was made from.

    Parameters
    ----------
    affine
        (4, 4) voxel indices to world RAS+, mm; its axes are parallel to the scan's.
    mask
        (X, Y, Z) bool, True in the brain.
    """

    affine: np.ndarray
    mask: np.ndarray


def finer_grid(mask: np.ndarray, affine: np.ndarray, edge_mm: float) -> tuple[list[np.ndarray], Grid]:
    """Return a grid of cubes over the extent of another: its points, in that one's voxel indices, and the grid.

    Parameters
    ----------
    mask, affine
        (X, Y, Z) bool and (4, 4) of the other.
    edge_mm
        Of the cubes, no larger than its voxels.
    """
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    points = [points_of_size(n, edge_mm / zoom) for n, zoom in zip(mask.shape, zooms, strict=True)]
    finer = np.array(affine, dtype=np.float64)
    finer[:3, 3] += finer[:3, :3] @ [p[0] for p in points]
    finer[:3, :3] *= edge_mm / zooms
    inside = resampled(torch.from_numpy(mask.astype(np.float32)), points).numpy() > 0.5
    return points, Grid(finer, inside)


@dataclass(frozen=True)
class LeftOut:
    """Acquired volumes beside what a method made of their directions without them.

    Parameters
    ----------
    volumes
        (K,) indices in the acquired series.
    mean
        (X, Y, Z, K) float32 what was made, in the scan's own units.
    """

    volumes: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Generated:
    """What a method made.

    Parameters
    ----------
    mean
        (X, Y, Z, N) float32: the series in the scan's own units, or the maps one after another: a volume for each,
        three for `dec`. Diffusivities are in mm²/s.
    std
        Same shape: voxel-wise standard deviation of the samples, or None for a single sample.
    gradients
        Of the series; None for maps.
    maps
        Names of the maps, in order; empty for a series.
    acquired
        (N,) bool: True where the volume is an acquired one, unchanged; for maps False throughout.
    record
        How it was made, JSON-serialisable: Size, Weights, Sampler {Name, Steps, NetworkEvaluations}, Seed,
        Samples, Training, Device, Numerics, Seconds.
    checks
        Numbers for the quality table, name to value; definitions in `qc.metrics`.
    warnings
        Sentences for the report.
    left_out
        A check against acquired volumes, where one was asked for and possible.
    in_template
        The series there, of a method that works in the template's space.
    grid
        Of `mean` and `std`, where it is not the scan's.
    """

    mean: np.ndarray
    std: np.ndarray | None
    gradients: GradientTable | None
    maps: tuple[str, ...]
    acquired: np.ndarray
    record: dict[str, Any]
    checks: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    left_out: LeftOut | None = None
    in_template: InTemplate | None = None
    grid: Grid | None = None

    def named_maps(self, values: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the maps by name, (X, Y, Z) or for `dec` (X, Y, Z, 3): of `mean`, or of `values` of that shape."""
        values, named, first = self.mean if values is None else values, {}, 0
        for name in self.maps:
            width = MAP_WIDTHS.get(name, 1)
            named[name] = values[..., first : first + width] if width > 1 else values[..., first]
            first += width
        return named


def with_weights(method: Trainable, net: torch.nn.Module | None, request: Request):
    """Return a network, with stored weights where none is given, and what the record says of them.

    Parameters
    ----------
    method
        Whose network it is.
    net
        As given to `generate`.
    request
        Names size and weights; None for those named METHOD-SIZE.
    """
    if net is not None:
        return net, {"Name": "given"}
    net = method.network(request.size)
    name = request.weights or default_name(method.spec.name, request.size)
    _, card = load_weights(net, name, method.spec.name, request.size, request.weights_dir)
    return net, card.record()


def sampling_record(
    spec: MethodSpec, request: Request, weights: dict[str, Any], steps: int, precision: str, seconds: float, **more: Any
) -> dict[str, Any]:
    """Return how a result was drawn, for `Generated.record`; `more` is the method's own.

    `evaluations` among it is how often the network was asked, where that is not once a step.
    """
    evaluations = more.pop("evaluations", steps)
    name = spec.sampler_name(request.sampler, request.n_samples, request.steps)
    return {
        "Size": request.size,
        "Weights": weights,
        "Sampler": {"Name": name, "Steps": steps, "NetworkEvaluations": evaluations},
        "Seed": request.seed,
        "Samples": request.n_samples,
        **more,
        "Device": str(request.device),
        "Numerics": numerics.record(request.device, precision),
        "Seconds": round(seconds, 1),
    }


class Method(Protocol):
    """One generative method."""

    spec: MethodSpec

    def network(self, size: str) -> torch.nn.Module:
        """Return an untrained network of this size."""

    def generate(self, net: torch.nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Run the method on a scan."""


class Trainable(Method, Protocol):
    """A method whose network is trained before it is used."""

    def plan(self, size: str) -> Plan:
        """Return the default budget and settings of a training."""

    def examples(self, source: People, size: str, batch: int, seed: int) -> Callable[[int], Any]:
        """Return index -> batch of examples, on the source's device; the same index, the same batch."""

    def loss(self, net: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the training loss of a batch."""

    def held_out(self, source: People, size: str, seed: int) -> Callable[[torch.nn.Module], float]:
        """Return network -> score on fixed examples; lower is better."""

    # A method that is trained in parts has `stages(net)` in place of these: objects with these functions but
    # `configuration`, a `name`, their `share` of the time, and `begin(source, batch, seed)`, called before each.
    # A method may also have `people(atlas, n, held_out, device)`, people of its own kind in the place of
    # `People.from_atlas`; `freeze(net, source)`, to keep parts of the network as they are; and
    # `calibrate(net, source, size, seed)`, called after the training.

    def configuration(self, size: str) -> dict[str, Any]:
        """Return what the network is built from and trained within, JSON-serialisable."""
