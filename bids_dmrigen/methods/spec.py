"""What a method says of itself before it is asked for anything: help, options, input checks, promises, references.

Nothing here imports torch: the command line reads the specification of every method, and must not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..dwi.gradients import GradientTable, even_directions
from ..dwi.series import Scan, ScanError

TENSOR, RISH = "tensor", "rish"  # what can be fitted to a series: `MethodSpec.fits`

TOO_FEW = "{name} needs at least {least} diffusion-weighted volumes, found {found}"
FEW = "{title}: {found} directions; results are less certain below {good}"


class OptionError(ValueError):
    """A value of an option that makes no sense, with what was expected."""


class Directions:
    """The kind of an option that takes a number of directions, or a text file of b-vectors."""


@dataclass(frozen=True)
class Option:
    """An option of a method, on the command line and in the settings file.

    Parameters
    ----------
    name
        With underscores, as in the settings file: `--name-with-hyphens` on the command line.
    text
        Help, with unit and default.
    default
        None where nothing is asked for. A tuple: the option takes several values.
    kind
        `int`, `float`, `str`, `Path`, or `Directions`.
    key
        What the method finds it under in `Request.options`; its name where not given.
    choices
        Values that are allowed; none: all.
    above
        Numbers have to be larger than this.
    least
        Numbers have to be at least this.
    metavar
        What stands for the value in the help.
    of_weights
        Weights are trained for one value: `dmrigen train` has the option too, the weights' card keeps the value under
        its key, and weights of another value are refused.
    """

    name: str
    text: str
    default: Any = None
    kind: type = str
    key: str = ""
    choices: tuple[Any, ...] = ()
    above: float | None = None
    least: float | None = None
    metavar: str | None = None
    of_weights: bool = False

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return isinstance(self.default, tuple)

    def checked(self, value: Any) -> Any:
        """Return a value, numbers of the option's own kind.

        Raises
        ------
        OptionError
            Where it is of another kind, not among the choices, or out of range.

        Examples
        --------
        >>> edge = Option("toy_edge", "edge of a voxel, mm", kind=float, above=0)
        >>> edge.checked(2)
        2.0
        >>> edge.checked(-1)
        Traceback (most recent call last):
            ...
        bids_dmrigen.methods.spec.OptionError: --toy-edge: expected more than 0, found -1
        >>> Option("toy_shells", "b-values", default=(1000.0,), kind=float).checked((500, 700))
        (500.0, 700.0)
        """
        if value is None:
            return None
        if self.many != isinstance(value, tuple):
            raise OptionError(f"{self.flag}: expected {'a list' if self.many else 'one value'}, found {value!r}")
        values = tuple(self._checked_one(one) for one in (value if self.many else (value,)))
        return values if self.many else values[0]

    def _checked_one(self, value: Any) -> Any:
        accepted: dict[type, tuple[type, ...]] = {float: (int, float), Directions: (str, int), Path: (str, Path)}
        kinds = accepted.get(self.kind, (self.kind,))
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits:
            raise OptionError(f"{self.flag}: expected {self.kind.__name__}, found {value!r}")
        if self.choices and value not in self.choices:
            raise OptionError(f"{self.flag}: expected {', '.join(map(str, self.choices))}, found {value!r}")
        if self.above is not None and not value > self.above:
            raise OptionError(f"{self.flag}: expected more than {self.above:g}, found {value}")
        if self.least is not None and not value >= self.least:
            raise OptionError(f"{self.flag}: expected at least {self.least:g}, found {value}")
        return value if self.kind is Directions else self.kind(value)


@dataclass(frozen=True)
class Citation:
    """A reference in the report and in CITATION.bib."""

    key: str
    text: str  # as in a reference list
    bibtex: str


@dataclass(frozen=True)
class Definition:
    """What a reported number is."""

    label: str
    unit: str
    better: str | None  # "higher", "lower" or None where neither is better
    text: str

    @property
    def heading(self) -> str:
        """The label with unit and better direction, as a table's column is headed."""
        unit = "" if self.unit == "1" else f" ({self.unit})"
        return self.label + unit + {"higher": " ↑", "lower": " ↓", None: ""}[self.better]


@dataclass(frozen=True)
class ExtraMap:
    """A map that a method makes beside its series or its tensor maps: one number per voxel of the scan's grid.

    Parameters
    ----------
    param
        In the file's name: letters and digits.
    title
        What the report calls it.
    description
        A sentence for the sidecar and below the figure.
    units
        As BIDS wants them; "arbitrary" for a number without a unit.
    """

    param: str
    title: str
    description: str
    units: str = "arbitrary"


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of a run before its voxels are read.

    Parameters
    ----------
    shape
        (X, Y, Z, N).
    zooms_mm
        Voxel size along each axis, mm.
    gradients
        N entries.
    """

    shape: tuple[int, ...]
    zooms_mm: tuple[float, ...]
    gradients: GradientTable


@dataclass(frozen=True, eq=False)
class MethodPlan:
    """What a method will do with one run, decided from the run's header.

    Parameters
    ----------
    options
        For `Request.options`: JSON-serialisable.
    table
        Gradients of the series that it makes. Directions that the method spreads itself are only known when it has;
        evenly spread ones stand for them.
    fitted
        Volumes of that series that tensor maps are fitted to; None for all.
    fitted_b
        b-value, s/mm², of the one shell that these are; None where `fitted` is.
    edge_mm
        Edge of the voxels of what it makes; None for the run's own voxels.
    minutes
        Longest training on the run itself; None for no limit.
    """

    options: Mapping[str, Any]
    table: GradientTable
    fitted: list[int] | None = None
    fitted_b: float | None = None
    edge_mm: float | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class MethodSpec:
    """What a method is, needs, takes and gives; help, checks, plan, report and references are made from it.

    Parameters
    ----------
    name
        On the command line and in file names: letters and digits.
    title
        What a reader calls it.
    line
        A line for the help.
    summary
        A sentence in the third person, without its subject, for the methods text.
    citation
        What to cite.
    min_directions, good_directions
        Diffusion-weighted volumes without which it cannot run; fewer than the second get a warning.
    needs_weights
        Whether it cannot work without weights that were trained before.
    maps
        What it makes in place of a series, in order; their names are those of `Generated.maps`.
    samplers
        Names for the record of "paper", "fast", and "mean" where the fast one does not draw a single sample.
    options
        Its own options; methods may share one.
    on_acquired
        It runs on the series as acquired, before interpolation makes the noise of neighbouring voxels alike, and before
        any denoising; its result then goes through the steps that the series itself goes through.
    denoises
        It can denoise the series for the other methods (`--denoise`); it gives a series with the same table.
    denoised
        Sentence of the methods text for that.
    population
        Of "adc", "tracts" and "fibres", what it is told in `Request.population`: it knows brains by their place, and
        works on a scan in the template's space.
    grid_mm
        Edge of the voxels that it works on there, mm.
    sizes
        Of its network.
    draws
        Whether samples differ: False where nothing in it is random.
    weights_from
        The method whose weights it works with, where these are not its own.
    fits
        Models that are fitted to the acquired and to the made series, to compare them: `TENSOR`, `RISH`.
    extra_maps
        What else it makes (`Generated.extra`), in order.
    definitions
        Of its own checks (`Generated.checks`), by key.
    paired
        Whether measured training data are pairs of a poor and a good scan of each subject.
    """

    name: str
    title: str
    line: str
    summary: str
    citation: Citation
    min_directions: int
    good_directions: int
    needs_weights: bool
    maps: tuple[str, ...] = ()
    samplers: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    on_acquired: bool = False
    denoises: bool = False
    denoised: str = ""
    population: tuple[str, ...] = ()
    grid_mm: float = 2.0
    sizes: tuple[str, ...] = ("small", "paper")
    draws: bool = True
    weights_from: str = ""
    fits: tuple[str, ...] = (TENSOR,)
    extra_maps: tuple[ExtraMap, ...] = ()
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    paired: bool = False

    @property
    def in_template(self) -> bool:
        """Whether it works in the template's space."""
        return bool(self.population)

    @property
    def gives_series(self) -> bool:
        """Whether it gives a DWI series, or else maps."""
        return not self.maps

    def sampler_name(self, sampler: str, n_samples: int = 1, steps: int | None = None, size: str = "small") -> str:
        """Return what a request's sampler is called in the record.

        A network of size `small` says the mean of the distribution when it is asked once; one of size `paper` predicts
        noise, and is always walked through the times.
        """
        mean = sampler == "fast" and n_samples == 1 and steps in (None, 1) and size == "small"
        return self.samplers["mean" if mean and "mean" in self.samplers else sampler]

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where the method cannot run on it."""
        found = int((~scan.gradients.is_b0).sum())
        if found < self.min_directions:
            raise ScanError(TOO_FEW.format(name=self.name, least=self.min_directions, found=found))
        scan.mean_b0()
        if found < self.good_directions:
            return [FEW.format(title=self.title, found=found, good=self.good_directions)]
        return []

    def check_options(self, values: Mapping[str, Any], b0_threshold: float) -> None:
        """Refuse values of the method's options that do not go together; `OptionError` says what was expected."""

    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return what the method will do with a run; `ScanError` where these options cannot work on it.

        Parameters
        ----------
        values
            Of its options, by name; directions are a number or b-vectors.
        header
            Of the run.
        """
        return MethodPlan(self.own_options(values), header.gradients)

    def own_options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values of the method's options by their key; those that are None are left out."""
        return {o.key or o.name: values[o.name] for o in self.options if values.get(o.name) is not None}

    def options_of_weights(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return, of options by key, what the card of fitting weights has to say (`Option.of_weights`)."""
        own = {o.key or o.name: o.default for o in self.options if o.of_weights}
        return {key: options.get(key, default) for key, default in own.items()}

    def evaluation_options(self, wanted: GradientTable) -> dict[str, Any]:
        """Return options for `Request.options` that ask for these volumes, where the method takes such a wish."""
        return {}

    def sentences(self, values: Mapping[str, Any]) -> Sequence[str]:
        """Return what the methods text says of the options, a sentence each."""
        return ()

    def defaults(self) -> dict[str, Any]:
        """Return the default of every option, by name."""
        return {option.name: option.default for option in self.options}


def vectors_of(wanted: int | Sequence[Sequence[float]]) -> np.ndarray:
    """Return (T, 3) b-vectors: a number of them, evenly spread and the same each time, or those that are given."""
    return _even(wanted) if isinstance(wanted, int) else np.asarray(wanted, dtype=np.float64)


@cache
def _even(n: int) -> np.ndarray:
    return even_directions(n)
