"""The specification of a method: help, options, input checks, plan, definitions and references.

Nothing here imports torch: the command line reads the specification of every method, and must not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..dwi.gradients import GradientTable, even_directions
from ..dwi.series import Scan, ScanError

TENSOR, RISH = "tensor", "rish"  # what can be fitted to a series: `MethodSpec.fits`

# Of the specification of a network that is asked once: no noise, no time, nothing to sample.
DIRECT: dict[str, Any] = {
    "samplers": dict.fromkeys(("fast", "paper"), "none: a single evaluation"),
    "sizes": ("small",),
    "draws": False,
}

TOO_FEW = "{name} needs at least {least} diffusion-weighted volumes, found {found}"
FEW = "{title}: {found} directions; results are less certain below {good}"


class OptionError(ValueError):
    """An invalid value of an option; the message says what was expected."""


TRAINING_STEPS = "training_steps"  # key of the option of methods that are trained on the run
MOST_DIRECTIONS = 2000  # of a shell; more take hours to spread evenly, and no scanner acquires as many


class Directions:
    """The kind of an option that takes a number of directions or a text file of b-vectors."""


@dataclass(frozen=True)
class Option:
    """An option of a method, on the command line and in the settings file.

    Parameters
    ----------
    name
        With underscores, as in the settings file; `--name-with-hyphens` on the command line.
    text
        Help text, with unit and default.
    default
        None where the option is unset by default. With a tuple the option takes several values.
    kind
        `int`, `float`, `str`, `Path`, or `Directions`.
    key
        Key in `Request.options`; the name where not given.
    choices
        Allowed values; empty for all.
    above
        Numbers must be larger than this.
    least
        Numbers must be at least this.
    metavar
        Placeholder for the value in the help.
    of_weights
        Whether weights are trained for one value. `dmrigen train` then has the option too, the weights' card keeps the
        value under its key, and weights for another value are refused.
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
        """The option as it is typed on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return isinstance(self.default, tuple)

    def checked(self, value: Any) -> Any:
        """Return the value, with numbers converted to the option's kind.

        Raises
        ------
        OptionError
            Where the value is of another kind, not among the choices, or out of range.

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
        if isinstance(value, float) and not math.isfinite(value):
            raise OptionError(f"{self.flag}: expected a finite number, found {value}")
        if self.kind is Directions and str(value).isdigit() and int(value) > MOST_DIRECTIONS:
            raise OptionError(f"{self.flag}: expected at most {MOST_DIRECTIONS} directions, found {value}")
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
    """The definition of a reported number."""

    label: str
    unit: str
    better: str | None  # "higher", "lower" or None where neither is better
    text: str

    @property
    def heading(self) -> str:
        """The heading of a table's column: label, unit, and an arrow to better values."""
        unit = "" if self.unit == "1" else f" ({self.unit})"
        return self.label + unit + {"higher": " ↑", "lower": " ↓", None: ""}[self.better]


@dataclass(frozen=True)
class ExtraMap:
    """A map in addition to the series or the tensor maps: one number per voxel of the scan's grid.

    Parameters
    ----------
    param
        Name in the file name: letters and digits.
    title
        Name in the report.
    description
        A sentence for the sidecar and below the figure.
    units
        As in BIDS; "arbitrary" for a number without a unit.
    """

    param: str
    title: str
    description: str
    units: str = "arbitrary"


@dataclass(frozen=True, eq=False)
class Header:
    """The metadata of a run, available before its voxels are read.

    Parameters
    ----------
    shape
        (X, Y, Z, N), shape of the series.
    zooms_mm
        Voxel size along each axis, mm.
    gradients
        Gradient table with N entries.
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
        Gradient table of the resulting series. Where the method chooses directions only while it runs, evenly spread
        directions take their place.
    fitted
        Volumes of that series that tensor maps are fitted to; None for all.
    fitted_b
        b-value of the one shell among `fitted`, s/mm²; None where `fitted` is None.
    edge_mm
        Voxel edge of the result, mm; None for the run's voxel size.
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
    """The description of a method. Help, checks, plan, report and references are built from it.

    Parameters
    ----------
    name
        Name on the command line and in file names: letters and digits.
    title
        Name in the report.
    line
        One line for the help.
    summary
        A sentence in the third person, without the grammatical subject, for the methods text.
    citation
        The reference to cite.
    min_directions, good_directions
        Number of diffusion-weighted volumes: with fewer than the first the method cannot run, with fewer than the
        second it gives a warning.
    needs_weights
        Whether it needs weights that were trained before.
    maps
        Names of the maps that it generates instead of a series, in the order of `Generated.maps`.
    maps_of_size
        Those of a size that generates others.
    samplers
        Names in the record for the samplers "paper" and "fast", and for "mean", where the fast sampler predicts the
        mean instead of a single sample.
    options
        Its options; several methods may share one.
    on_acquired
        Whether it runs on the series as acquired, before any denoising and before interpolation correlates the noise of
        neighbouring voxels. Its result then goes through the same preprocessing as the series.
    denoises
        Whether it can denoise the series for the other methods (`--denoise`); the gradient table stays the same.
    denoised
        Sentence of the methods text for that denoising.
    population
        Those of the population maps "adc", "tracts" and "fibres" that it uses (`Request.population`). A method with
        any works on a scan in the template's space.
    grid_mm
        Voxel edge in the template's space, mm.
    sizes
        Sizes of its network.
    draws
        Whether samples differ; False where nothing in the method is random.
    weights_from
        Another method, whose weights it uses; empty for weights under its own name.
    fits
        Models that are fitted to the acquired and to the generated series, to compare them: `TENSOR`, `RISH`.
    extra_maps
        Additional maps (`Generated.extra`), in order.
    definitions
        Definitions of its checks (`Generated.checks`), by key.
    paired
        Whether measured training data are pairs of a poor and a good scan of each subject.
    blocks
        Whether its training examples are blocks in three dimensions, of which a step has few.
    twin
        Another method, whose network this one is without diffusion: their difference is what diffusion adds.
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
    maps_of_size: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
    blocks: bool = False
    twin: str = ""

    @property
    def trains_on_run(self) -> bool:
        """Whether the method is trained on the run that it works on."""
        return any((option.key or option.name) == TRAINING_STEPS for option in self.options)

    @property
    def in_template(self) -> bool:
        """Whether the method works in the template's space."""
        return bool(self.population)

    @property
    def gives_series(self) -> bool:
        """Whether the method gives a DWI series; otherwise it gives maps."""
        return not self.maps

    def maps_of(self, size: str) -> tuple[str, ...]:
        """Return the names of the maps that a network of this size generates."""
        return self.maps_of_size.get(size, self.maps)

    def sampler_name(self, sampler: str, n_samples: int = 1, steps: int | None = None, size: str = "small") -> str:
        """Return the name of a request's sampler in the record.

        A single evaluation of a network of size `small` gives the mean of the distribution, beside which samples are
        drawn. A network of size `paper` predicts noise, and always needs several time steps.
        """
        mean = sampler == "fast" and (n_samples > 1 or steps in (None, 1)) and size == "small"
        return self.samplers["mean" if mean and "mean" in self.samplers else sampler]

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where the method cannot run on it."""
        n_directions = int((~scan.gradients.is_b0).sum())
        if n_directions < self.min_directions:
            raise ScanError(TOO_FEW.format(name=self.name, least=self.min_directions, found=n_directions))
        scan.mean_b0()
        if n_directions < self.good_directions:
            return [FEW.format(title=self.title, found=n_directions, good=self.good_directions)]
        return []

    def check_options(self, values: Mapping[str, Any], b0_threshold: float) -> None:
        """Raise `OptionError` where values of the method's options do not fit together."""

    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return what the method will do with a run; `ScanError` where the options do not fit the run.

        Parameters
        ----------
        values
            Values of the options, by name; directions are a number or b-vectors.
        header
            Header of the run.
        """
        return MethodPlan(self.options_by_key(values), header.gradients)

    def options_by_key(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the method's options by key, without those that are None."""
        return {o.key or o.name: values[o.name] for o in self.options if values.get(o.name) is not None}

    def options_of_weights(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, by key, that the weights' card must agree with (`Option.of_weights`)."""
        defaults = {o.key or o.name: o.default for o in self.options if o.of_weights}
        return {key: options.get(key, default) for key, default in defaults.items()}

    def evaluation_options(self, wanted: GradientTable) -> dict[str, Any]:
        """Return `Request.options` that request these volumes, where the method has such options."""
        return {}

    def sentences(self, values: Mapping[str, Any]) -> Sequence[str]:
        """Return sentences about the options for the methods text."""
        return ()

    def defaults(self) -> dict[str, Any]:
        """Return the default of every option, by name."""
        return {option.name: option.default for option in self.options}


def vectors_of(wanted: int | Sequence[Sequence[float]]) -> np.ndarray:
    """Return (T, 3) b-vectors: the given ones, or a given number of evenly spread ones, always the same."""
    return _even(wanted) if isinstance(wanted, int) else np.asarray(wanted, dtype=np.float64)


@cache
def _even(n: int) -> np.ndarray:
    return even_directions(n)
