"""Which field map corrects the susceptibility distortion of a run, and what its values mean.

A field map is a difference of phase between two echoes (`phasediff`), the phase of each (`phase1`, `phase2`), or the
field itself (`fieldmap`), each with a magnitude image. It is linked to a run as images of opposite phase encoding are
(see `partners`). Where a run has both, what is declared goes first: by `B0FieldSource`, then by `IntendedFor`, then
what nothing declares; of two that are linked in the same way, the image of opposite phase encoding is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .images import fault_of
from .partners import (
    DECLARED,
    Candidate,
    in_common,
    is_meant_for,
    is_of_session,
    sources_of,
)
from .run import FieldMap, Run, positive
from .texts import name_parts

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

SUFFIXES = ("phasediff", "phase1", "phase2", "fieldmap", "magnitude1", "magnitude2", "magnitude")
IMAGES = {"phasediff": ("phasediff",), "phases": ("phase1", "phase2"), "fieldmap": ("fieldmap",)}  # best kind first
MAGNITUDES = {
    "phasediff": ("magnitude1", "magnitude2"),
    "phases": ("magnitude1", "magnitude2"),
    "fieldmap": ("magnitude", "magnitude1"),
}
HZ_PER_T = 42.577478518e6  # of protons
UNITS_IN_HZ = {"Hz": 1.0, "rad/s": 1 / (2 * math.pi), "T": HZ_PER_T}
LONGEST_ECHO_S = 0.5  # longer echo times are milliseconds
SHORTEST_STEP_S = 2e-4  # between the echoes: a whole turn is then 5000 Hz
GRID_TOLERANCE_MM = 1.0
# Lowest and highest value of scanners' phase images, the value that stands for 0, and the length of a whole turn.
SCALES = (
    (0, 4095, 2048, 4096),
    (-2048, 2047, 0, 4096),
    (-3142, 3142, 0, 2000 * math.pi),
    (-4096, 4095, 0, 8192),
)
STRONGEST_HZ = 20_000.0  # at 7 T the field leaves resonance by some thousands
FILLED = 0.9  # of its scale: noise outside the head takes every phase
SLACK = 0.01  # rounding, relative

NO_SECOND = "{name} has no {other} beside it; not used: add the phase of the other echo"
NO_MAGNITUDE = "{name} has no magnitude image beside it; not used: add {expected}"
NO_ECHO_TIMES = "{name}: {keys} not known ({found}); not used: add {keys} to the sidecar, in s"
ODD_ECHO_TIMES = (
    "{name}: {first:g} and {second:g} are no echo times in s, the earlier one first, {step:g} s or more apart; not "
    "used: correct the sidecar"
)
NO_UNITS = "{name}: Units {units!r} of the sidecar are none of {known}; not used: correct the sidecar"
MISSING_UNITS = "{name}: Units are missing from the sidecar; not used: add them ({known})"
OTHER_GRID = "{name} is not on the grid of {other}; not used"
NO_PHASE = (
    "{name} has values from {lowest:g} to {highest:g}, which are no phase that is known (radians, 0..4095, "
    "-2048..2047, -4096..4095); not used: convert it to radians"
)
NO_FIELD = (
    "{name} has values up to {strongest:g} Hz, which are no field of a head; not used: correct the Units ({units}) in "
    "the sidecar, or the image"
)
NO_READOUT = (
    "{name} is there, but the read-out time of the run is not known; not used: add TotalReadoutTime, or "
    "EffectiveEchoSpacing and ReconMatrixPE, to the sidecar of the run"
)
ODD_READOUT = (
    "{name} is there, but TotalReadoutTime {total:g} of the run is no read-out time in s; not used: correct the "
    "sidecar of the run"
)
OTHER_PURPOSE = (
    "{name} is a field map, but its {key} ({value}) does not name this run; not used: correct it if the field map "
    "belongs to this run"
)


@dataclass(frozen=True)
class Group:
    """Images that make one field map.

    Parameters
    ----------
    kind
        As of `FieldMap`.
    images
        Phase images or field.
    magnitudes
        Those beside them, the best one first.
    """

    kind: str
    images: tuple[Candidate, ...]
    magnitudes: tuple[Candidate, ...]

    @property
    def name(self) -> str:
        """File name of the first image."""
        return self.images[0].image.name

    @property
    def identifiers(self) -> set[str]:
        """The names of fields that the images are used to estimate."""
        return set().union(*(c.identifiers for c in (*self.images, *self.magnitudes)))

    @property
    def intended_for(self) -> list[str]:
        """The images that they are declared for."""
        return [target for c in (*self.images, *self.magnitudes) for target in c.intended_for]


def turn_of(lowest: float, highest: float) -> tuple[float, float] | None:
    """Return the value of a phase image that stands for 0, and the length of a whole turn; None where unknown.

    Radians are known by their range, and so are the integers of scanners, which fill their range.

    >>> turn_of(0, 4095), turn_of(-4096, 4092), turn_of(100, 700)
    ((2048, 4096), (0, 8192), None)

    Parameters
    ----------
    lowest, highest
        Of all values of the image.
    """
    if -math.pi * (1 + SLACK) <= lowest < highest <= 2 * math.pi * (1 + SLACK):
        return 0.0, 2 * math.pi
    for low, high, zero, length in SCALES:
        slack = SLACK * (high - low)
        if low - slack <= lowest and highest <= high + slack:
            return (zero, length) if highest - lowest >= FILLED * (high - low) else None
    return None


def groups_of(candidates: Sequence[Candidate]) -> list[Group]:
    """Return the field maps among the images of a subject's fmap/ folders, each with what is beside it."""
    by_suffix = {suffix: [c for c in candidates if c.suffix == suffix] for suffix in SUFFIXES}
    groups = []
    for kind, (first, *rest) in IMAGES.items():
        for candidate in by_suffix[first]:
            others = [c for suffix in rest for c in by_suffix[suffix] if _is_beside(c, candidate)]
            magnitudes = [c for suffix in MAGNITUDES[kind] for c in by_suffix[suffix] if _is_beside(c, candidate)]
            groups.append(Group(kind, (candidate, *others), tuple(magnitudes)))
    alone = (c for c in by_suffix["phase2"] if not any(_is_beside(c, first) for first in by_suffix["phase1"]))
    return groups + [Group("phases", (candidate,), ()) for candidate in alone]


def with_fieldmap(run: Run, groups: Sequence[Group]) -> Run:
    """Return the run with a field map in place of its partner, where one goes before it; else as it was.

    Parameters
    ----------
    run
        From `partners.with_partner`.
    groups
        Field maps of the subject, all sessions, from `groups_of`.
    """
    if run.fault or run.phase_encoding is None:  # the reason is said already
        return run
    levels = [*DECLARED, ""]
    level = levels.index(run.partner.declared) if run.partner else len(levels)
    reasons: list[str] = []
    for declared, group in _in_order(run, groups):
        if levels.index(declared) >= level:
            return run
        reason = _no_readout(run, group)
        reason = reason or _missing(group) or _unknown(group)
        magnitude, faults = (None, [reason]) if reason else _magnitude(group)
        if magnitude is not None:
            images = tuple(c.image for c in group.images)
            found = FieldMap(group.kind, images, magnitude, _echo_times(group), _units(group), declared)
            return replace(run, partner=None, spare_partner=run.partner, fieldmap=found, no_partner="")
        reasons += faults
    if run.partner:
        return run
    reasons += _undeclared(run, groups)
    return replace(run, no_partner="; ".join(dict.fromkeys([run.no_partner, *reasons])))


def _no_readout(run: Run, group: Group) -> str | None:
    """Return that the read-out time of a run is not known; None where it is."""
    if run.readout_s is not None:
        return None
    total = positive(run.metadata.get("TotalReadoutTime"))
    if total is not None:
        return ODD_READOUT.format(name=group.name, total=total)
    return NO_READOUT.format(name=group.name)


def _is_beside(candidate: Candidate, other: Candidate) -> bool:
    """Return whether two images are of one field map: their names differ in the suffix only."""
    same_folder = candidate.image.parent == other.image.parent
    return same_folder and name_parts(candidate.image)[0] == name_parts(other.image)[0]


def _in_order(run: Run, groups: Sequence[Group]) -> Iterator[tuple[str, Group]]:
    """Yield field maps for a run, the best one first, with the metadata that declare them; "" for none."""
    sources = sources_of(run)
    named = [group for group in groups if group.identifiers & sources]
    meant = [group for group in groups if group not in named and is_meant_for(group.intended_for, run)]
    yield from (("B0FieldSource", group) for group in named)
    yield from (("IntendedFor", group) for group in meant)
    rest = [g for g in groups if is_of_session(g.images[0], run) and not (g.identifiers or g.intended_for)]
    for group in sorted(rest, key=lambda g: (-in_common(g.images[0], run), [*IMAGES].index(g.kind), g.name)):
        yield "", group


def _undeclared(run: Run, groups: Sequence[Group]) -> list[str]:
    """Return why field maps of the session were not considered: they are declared for something else."""
    reasons = []
    for group in groups:
        of_session = group.images[0].entities.get("session") == run.entities.get("session")
        if not of_session or group.identifiers & sources_of(run) or is_meant_for(group.intended_for, run):
            continue
        for key, value in (("IntendedFor", group.intended_for), ("B0FieldIdentifier", sorted(group.identifiers))):
            if value:
                reasons.append(OTHER_PURPOSE.format(name=group.name, key=key, value=", ".join(value)))
                break
    return reasons


def _missing(group: Group) -> str | None:
    """Return which image of a field map is missing, or has a sidecar that cannot be read; None if none."""
    for candidate in group.images:
        if candidate.fault:
            return candidate.fault
    wanted = IMAGES[group.kind]
    if len(group.images) < len(wanted):
        other = next(suffix for suffix in wanted if suffix != group.images[0].suffix)
        return NO_SECOND.format(name=group.name, other=other)
    if not group.magnitudes:
        return NO_MAGNITUDE.format(name=group.name, expected=f"its {MAGNITUDES[group.kind][0]} image")
    return None


def _unknown(group: Group) -> str | None:
    """Return what the sidecars of a field map do not say, or its values do not; None if all is known."""
    metadata = group.images[0].metadata
    if group.kind == "fieldmap":
        units, known = metadata.get("Units"), ", ".join(UNITS_IN_HZ)
        if units is None:
            return MISSING_UNITS.format(name=group.name, known=known)
        if not _units(group):
            return NO_UNITS.format(name=group.name, units=units, known=known)
        return _unreadable(group.images[0].image) or _too_strong(group)
    times = _echo_times(group)
    if len(times) < 2:
        return NO_ECHO_TIMES.format(name=group.name, **_said_of_echoes(group))
    if not times[0] + SHORTEST_STEP_S <= times[1] <= LONGEST_ECHO_S:
        return ODD_ECHO_TIMES.format(name=group.name, first=times[0], second=times[1], step=SHORTEST_STEP_S)
    return next((reason for c in group.images if (reason := _unreadable(c.image, phase=True))), None)


def _echo_times(group: Group) -> tuple[float, ...]:
    """Return the echo times of two echoes, s; empty where one is not known."""
    found = [positive(value) for value in _echo_entries(group).values()]
    return tuple(time for time in found if time) if all(found) else ()


def _echo_entries(group: Group) -> dict[str, Any]:
    """Return where the echo times should stand -> what stands there."""
    if group.kind == "phasediff":
        return {key: group.images[0].metadata.get(key) for key in ("EchoTime1", "EchoTime2")}
    if group.kind == "phases":
        return {f"EchoTime of {c.suffix}": c.metadata.get("EchoTime") for c in group.images}
    return {}


def _said_of_echoes(group: Group) -> dict[str, str]:
    entries = {key: value for key, value in _echo_entries(group).items() if positive(value) is None}
    found = ", ".join("missing" if value is None else repr(value) for value in entries.values())
    return {"keys": " and ".join(entries), "found": found}


def _units(group: Group) -> str:
    units = group.images[0].metadata.get("Units")
    return units if group.kind == "fieldmap" and isinstance(units, str) and units in UNITS_IN_HZ else ""


def _magnitude(group: Group) -> tuple[Path | None, list[str]]:
    """Return the first magnitude image that can be used, or why none can."""
    reasons = []
    for candidate in group.magnitudes:
        image = candidate.image
        reason = candidate.fault or _unreadable(image)
        if reason is None:
            strange = [c.image for c in group.images if not _same_grid(c.image, image)]
            if not strange:
                return image, []
            reason = OTHER_GRID.format(name=strange[0].name, other=image.name)
        reasons.append(reason)
    return None, reasons


def _unreadable(image: Path, phase: bool = False) -> str | None:
    """Return why an image cannot be used: not there, damaged, several volumes, or not the phase it should be."""
    import nibabel as nib
    import numpy as np

    reason = fault_of(image)
    if reason or not phase:
        return reason
    values = np.asarray(cast("SpatialImage", nib.load(image)).dataobj, np.float32)
    values = values[np.isfinite(values)]
    lowest, highest = float(values.min()), float(values.max())
    return (
        NO_PHASE.format(name=image.name, lowest=lowest, highest=highest) if turn_of(lowest, highest) is None else None
    )


def _too_strong(group: Group) -> str | None:
    """Return that the values of a field are none in its units; None where they may be. Single voxels may be odd."""
    import nibabel as nib
    import numpy as np

    image, units = group.images[0].image, _units(group)
    hz = np.abs(np.asarray(cast("SpatialImage", nib.load(image)).dataobj, np.float64)) * UNITS_IN_HZ[units]
    strongest = float(np.nanpercentile(hz, 99))
    if strongest <= STRONGEST_HZ:
        return None
    return NO_FIELD.format(name=image.name, strongest=strongest, units=units)


def _same_grid(one: Path, other: Path) -> bool:
    import nibabel as nib
    import numpy as np

    first, second = (cast("SpatialImage", nib.load(path)) for path in (one, other))
    same_shape = first.shape[:3] == second.shape[:3]
    return same_shape and bool(np.allclose(first.affine, second.affine, atol=GRID_TOLERANCE_MM))
