"""A diffusion run, and what belongs to it: images of opposite phase encoding, field maps, anatomy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import names

OPPOSITE = {"i": "i-", "i-": "i", "j": "j-", "j-": "j", "k": "k-", "k-": "k"}
LONGEST_READOUT_S = 0.5  # EPI takes some hundredths; longer times are milliseconds
AXES = ("i", "j", "k")


@dataclass(frozen=True)
class Partner:
    """Images with the opposite phase-encoding direction, of which the b0s are used."""

    image: Path
    direction: str  # i, i-, j, j-, k or k-
    bval: Path | None = None  # None: every volume is a b0
    bvec: Path | None = None
    declared: str = ""  # which metadata name it as this run's; empty: none does


@dataclass(frozen=True)
class FieldMap:
    """A map of the static magnetic field, and the magnitude image that was acquired with it.

    Parameters
    ----------
    kind
        `phasediff`: a difference of phase between two echoes; `phases`: the phase of each; `fieldmap`: the field.
    images
        One image, or two where the kind is `phases`.
    magnitude
        Magnitude image on the same grid.
    echo_times_s
        Of the two echoes, s; empty for a `fieldmap`.
    units
        Of a `fieldmap`: Hz, rad/s or T.
    declared
        Which metadata name it as this run's; empty: none does.
    """

    kind: str
    images: tuple[Path, ...]
    magnitude: Path
    echo_times_s: tuple[float, ...] = ()
    units: str = ""
    declared: str = ""


@dataclass(frozen=True)
class Run:
    """One diffusion run and what belongs to it."""

    entities: dict[str, str]
    image: Path
    bval: Path | None
    bvec: Path | None
    metadata: dict[str, Any] = field(default_factory=dict)
    t1w: Path | None = None
    partner: Partner | None = None
    fieldmap: FieldMap | None = None  # never with a partner: one of the two corrects the run
    spare_partner: Partner | None = None  # could correct the run, but the field map is used
    mask: Path | None = None  # for a run that is already preprocessed
    preprocessed: bool = False
    fault: str | None = None
    no_partner: str = ""  # why there is nothing to correct susceptibility distortion with
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's entities as in its file name."""
        return names.stem(self.entities)

    @property
    def phase_encoding(self) -> str | None:
        """The phase-encoding direction with its sign: i, i-, j, j-, k, k-; None where the sidecar does not say."""
        return direction_of(self.metadata)

    @property
    def phase_encoding_axis(self) -> str | None:
        """The phase-encoding axis without sign: i, j or k; None where the sidecar does not say."""
        direction = self.phase_encoding
        return direction[0] if direction else one_of(AXES, self.metadata.get("PhaseEncodingAxis"))

    @property
    def slice_axis(self) -> str:
        """The axis along which slices were acquired: i, j or k; k where the sidecar does not say."""
        direction = one_of(tuple(OPPOSITE), self.metadata.get("SliceEncodingDirection"))
        return direction[0] if direction else "k"

    @property
    def readout_s(self) -> float | None:
        """The total read-out time, s; None where the sidecar does not say."""
        return readout_s(self.metadata)


def direction_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the phase-encoding direction with its sign; None where the metadata do not say."""
    return one_of(tuple(OPPOSITE), metadata.get("PhaseEncodingDirection"))


def readout_s(metadata: Mapping[str, Any]) -> float | None:
    """Return the total read-out time in s, from echo spacing and matrix where it is not given; None if unknown.

    Longer times than that of any scanner are in another unit, and unknown.

    >>> round(readout_s({"EffectiveEchoSpacing": 0.0007, "ReconMatrixPE": 101}), 3)
    0.07
    """
    total = positive(metadata.get("TotalReadoutTime"))
    if total is not None:
        return total if total <= LONGEST_READOUT_S else None
    spacing, lines = echo_spacing_s(metadata), positive(metadata.get("ReconMatrixPE"))
    total = spacing * (lines - 1) if spacing is not None and lines is not None and lines > 1 else None
    return total if total is not None and total <= LONGEST_READOUT_S else None


def echo_spacing_s(metadata: Mapping[str, Any]) -> float | None:
    """Return the effective echo spacing in s; None where the metadata do not say."""
    return positive(metadata.get("EffectiveEchoSpacing"))


def positive(value: Any) -> float | None:
    """Return a value that is a finite number above 0, else None.

    >>> positive(2), positive("2"), positive(True), positive(-1)
    (2.0, None, None, None)
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def one_of(allowed: Sequence[str], value: Any) -> str | None:
    """Return a value if it is one of those allowed, else None."""
    return value if isinstance(value, str) and value in allowed else None


def texts_in(value: Any) -> list[str]:
    """Return the names in metadata that may be one name or a list of names; what is no name is left out.

    >>> texts_in(["a", None, ""]), texts_in("b"), texts_in(3)
    (['a'], ['b'], ['3'])
    """
    found = [v for v in as_list(value) if isinstance(v, str | int | float) and not isinstance(v, bool)]
    return [str(v) for v in found if str(v).strip()]


def as_list(value: Any) -> list[Any]:
    """Return metadata that may be one value or a list of values as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]
