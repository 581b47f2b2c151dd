"""Which image of opposite phase encoding corrects the susceptibility distortion of a run.

What the metadata declare goes first: `B0FieldSource` of the run with `B0FieldIdentifier` of an image, then
`IntendedFor` of an image in fmap/, both across runs, acquisitions and sessions. Where nothing usable is declared, any
b0s of the session with the opposite direction will do: series, single-band references, and EPI images that are
declared for nothing; those with most entities in common with the run go first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..diffusion.storage import TextError
from . import names
from .images import NO_PLACE, NOT_FETCHED, UNREADABLE, fault_of
from .run import (
    AXES,
    OPPOSITE,
    Partner,
    Run,
    direction_of,
    echo_spacing_s,
    one_of,
    readout_s,
    texts_in,
)
from .texts import Texts

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

GEOMETRY_TOLERANCE_MM = 1.0
READOUT_TOLERANCE = 0.02  # relative: distortion is proportional to the total readout time
MOST_TABLELESS_B0 = 6  # largest number of volumes of a series without b-values; 7 could be a tensor series
KINDS = ("dwi", "sbref", "epi")  # suffixes of images that may be partners, the best contrast first
IN_DWI = ("dwi", "sbref")  # suffixes of images that need no declaration to belong to a run of the session
DECLARED = ("B0FieldSource", "IntendedFor")
OTHER_GRID = "{name} has another grid; not used"
ONE_TABLE = "{name} has a .bval or a .bvec file, but not both; not used: add the one that is missing"
NO_TABLE = (
    "{name} has no b-values and {n} volumes, too many to assume that all are b0s; not used: "
    "add its .bval and .bvec, with zeros if all are b0s"
)
BAD_TABLE = "{name} has {n} volumes, and {bval} has {found} b-values; not used: correct the table"
NO_B0 = "{name} has no b0 (lowest b = {lowest:g} s/mm²); not used"
OTHER_READOUT = "{name} has another {what} ({other:g} s, this run {own:g} s); not used"
OTHER_PURPOSE = (
    "{name} has the opposite direction, but its {key} ({value}) does not name this run; not used: correct it if the "
    "image belongs to this run"
)
NO_IDENTIFIER = "B0FieldSource {sources} of the run is the B0FieldIdentifier of no image of the subject"
SAME_NAME = "{name} is one of {n} images with the same entities, nobody knows which is meant; not used: keep one"
OTHER_DIRECTION = "{name} has phase encoding {found}, and this run needs {wanted}; not used"
NONE_THERE = "no image with phase encoding {direction} belongs to this run"


@dataclass(frozen=True)
class Candidate:
    """An image of the subject that may be a partner."""

    image: Path
    suffix: str
    entities: Mapping[str, str]
    metadata: Mapping[str, Any]
    bval: Path | None
    bvec: Path | None
    fault: str = ""  # why it cannot be used by any run

    @property
    def identifiers(self) -> set[str]:
        """The names of fields that the image is used to estimate."""
        return set(texts_in(self.metadata.get("B0FieldIdentifier")))

    @property
    def intended_for(self) -> list[str]:
        """The images that it is declared for."""
        return texts_in(self.metadata.get("IntendedFor"))


def candidates_of(images: Sequence[Any], texts: Texts) -> list[Candidate]:
    """Return images of a subject as candidates.

    Parameters
    ----------
    images
        pybids images: series and single-band references in dwi/ (magnitudes only), images in fmap/.
    texts
        Text files of the dataset.
    """
    candidates = []
    for image in images:
        path, suffix = Path(image.path), str(image.entities["suffix"])
        entities = names.entities_of(image.entities)
        bval, bvec = (texts.table(path, extension) for extension in (".bval", ".bvec"))
        try:
            metadata, fault = texts.metadata(path), ""
        except TextError as error:
            metadata, fault = {}, f"{error}; {path.name} is not used"
        candidates.append(Candidate(path, suffix, entities, metadata, bval, bvec, fault))
    # Of several images with one name (echoes, for instance) nobody knows which belongs to a run.
    same_name = Counter(_name_of(c) for c in candidates)
    return [
        replace(c, fault=c.fault or SAME_NAME.format(name=c.image.name, n=same_name[_name_of(c)]))
        if c.suffix != "epi" and same_name[_name_of(c)] > 1
        else c
        for c in candidates
    ]


def _name_of(candidate: Candidate) -> tuple[str, str]:
    return candidate.suffix, names.stem(candidate.entities)


def with_partner(
    run: Run, candidates: Sequence[Candidate], b0_threshold: float, identifiers: Collection[str] = ()
) -> Run:
    """Return the run with its partner, or with the reason why it has none.

    Parameters
    ----------
    run
        A run without a partner.
    candidates
        Images of the subject, all sessions.
    b0_threshold
        Volumes with a b-value at or below this are b0s, s/mm².
    identifiers
        `B0FieldIdentifier` of other images of the subject: of its field maps.
    """
    if run.fault:
        return run
    if run.phase_encoding is None:
        return replace(run, no_partner=_unknown_direction(run.metadata))
    wanted, reasons = OPPOSITE[run.phase_encoding], []
    for declared, candidate in _in_order(run, candidates):
        direction = direction_of(candidate.metadata)
        if candidate.fault:
            reasons.append(candidate.fault)
        elif direction is None:
            reasons.append(f"{candidate.image.name}: {_unknown_direction(candidate.metadata)}; not used")
        elif direction == wanted:
            reason = _obstacle(run, candidate, b0_threshold)
            if reason is None:
                tables = candidate.bval, candidate.bvec
                return replace(run, partner=Partner(candidate.image, wanted, *tables, declared))
            reasons.append(reason)
        elif declared:
            reasons.append(OTHER_DIRECTION.format(name=candidate.image.name, found=direction, wanted=wanted))
    reasons += _undeclared(run, candidates, wanted, identifiers)
    return replace(run, no_partner="; ".join(dict.fromkeys(reasons)) or NONE_THERE.format(direction=wanted))


def _in_order(run: Run, candidates: Sequence[Candidate]) -> Iterator[tuple[str, Candidate]]:
    """Yield candidates for a run, the best one first, with the metadata that declare them; "" for none."""
    others = [candidate for candidate in candidates if candidate.image != run.image]
    sources = sources_of(run)
    declared = {
        "B0FieldSource": [c for c in others if c.identifiers & sources],
        "IntendedFor": [c for c in others if c.suffix == "epi" and is_meant_for(c.intended_for, run)],
    }
    for key in DECLARED:
        yield from ((key, candidate) for candidate in declared[key])
    rest = [c for c in others if is_of_session(c, run) and not any(c in chosen for chosen in declared.values())]
    for candidate in sorted(rest, key=lambda c: (-in_common(c, run), KINDS.index(c.suffix), c.image.name)):
        yield "", candidate


def sources_of(run: Run) -> set[str]:
    """Return the names of fields that a run is to be corrected with."""
    return set(texts_in(run.metadata.get("B0FieldSource")))


def is_meant_for(targets: Sequence[str], run: Run) -> bool:
    """Return whether `IntendedFor` names the run: by its file name, which holds subject, session and run.

    A folder of another subject before the name is a mistake: which of the two is meant, nobody knows.
    """
    own = f"sub-{run.entities['subject']}"
    for target in targets:
        *folders, name = re.split(r"[/\\:]", target)
        if name == run.image.name and all(part == own for part in folders if part.startswith("sub-")):
            return True
    return False


def is_of_session(candidate: Candidate, run: Run) -> bool:
    """Return whether an image that is not declared for a run may serve it: same session and part of the body.

    A damaged sidecar may have declared the image for this run; it is taken in to be named.
    """
    if any(candidate.entities.get(e) != run.entities.get(e) for e in ("session", "chunk")):
        return False
    return candidate.suffix in IN_DWI or not (candidate.intended_for or candidate.identifiers)


def in_common(candidate: Candidate, run: Run) -> int:
    """Return a number that is higher, the more entities of its file name a candidate shares with a run."""
    same = sum(candidate.entities.get(name) == label for name, label in run.entities.items())
    return 2 * same - len(candidate.entities)  # of two with the same labels in common, the one with fewer others


def _undeclared(run: Run, candidates: Sequence[Candidate], wanted: str, identifiers: Collection[str]) -> list[str]:
    """Return why images of opposite direction were not considered: they are declared for something else."""
    reasons = []
    sources = sources_of(run)
    of_images = (c.identifiers for c in candidates if c.image != run.image)
    if sources and not sources & set(identifiers).union(*of_images):
        reasons.append(NO_IDENTIFIER.format(sources=sorted(sources)))
    for c in candidates:
        of_session = c.entities.get("session") == run.entities.get("session")
        if c.suffix != "epi" or not of_session or direction_of(c.metadata) != wanted:
            continue
        if is_meant_for(c.intended_for, run):
            continue
        if c.intended_for:
            reasons.append(OTHER_PURPOSE.format(name=c.image.name, key="IntendedFor", value=", ".join(c.intended_for)))
        elif c.identifiers and not c.identifiers & sources:
            value = ", ".join(sorted(c.identifiers))
            reasons.append(OTHER_PURPOSE.format(name=c.image.name, key="B0FieldIdentifier", value=value))
    return reasons


def _unknown_direction(metadata: Mapping[str, Any]) -> str:
    """Return a sentence about what is unknown of the phase encoding, and why."""
    direction, axis = metadata.get("PhaseEncodingDirection"), metadata.get("PhaseEncodingAxis")
    if direction is None:
        what = "PhaseEncodingDirection is missing from the sidecar"
    else:
        what = f"PhaseEncodingDirection {direction!r} of the sidecar is none of {', '.join(OPPOSITE)}"
    if axis is None:
        return f"{what}; the phase encoding is unknown"
    if one_of(AXES, axis):
        return f"{what}; only the axis ({axis}) is known"
    return f"{what}; PhaseEncodingAxis {axis!r} is none of {', '.join(AXES)}"


def _obstacle(run: Run, candidate: Candidate, b0_threshold: float) -> str | None:
    """Return why an image of opposite phase encoding cannot be used to correct the run; None if it can."""
    import nibabel as nib
    import numpy as np

    image, name = candidate.image, candidate.image.name
    if not image.exists():
        return NOT_FETCHED.format(name=name, path=image)
    try:
        other = cast("SpatialImage", nib.load(image))
    except Exception as error:  # nibabel raises many kinds
        return UNREADABLE.format(name=name, error=error)
    try:
        own = cast("SpatialImage", nib.load(run.image))
    except Exception:  # the checks of the run report it
        return None
    if not np.isfinite(other.affine).all():
        return NO_PLACE.format(name=name)
    if own.shape[:3] != other.shape[:3] or not np.allclose(own.affine, other.affine, atol=GEOMETRY_TOLERANCE_MM):
        return OTHER_GRID.format(name=name)
    n = int(np.prod(other.shape[3:]))
    reason = _no_b0(candidate, n, b0_threshold) or _other_readout(run, candidate)
    return reason or fault_of(image, _first_b0(candidate, n, b0_threshold))


def _first_b0(candidate: Candidate, n: int, b0_threshold: float) -> int | None:
    """Return the first b0 among the n volumes of a usable image; None where there is one volume."""
    from .tables import read_bvals

    if n == 1:
        return None
    return 0 if candidate.bval is None else int((read_bvals(candidate.bval) <= b0_threshold).argmax())


def _no_b0(candidate: Candidate, n: int, b0_threshold: float) -> str | None:
    """Return why no b0 can be taken from an image of n volumes; None if one can."""
    from .tables import read_b0_table

    name, bval = candidate.image.name, candidate.bval
    if candidate.suffix == "dwi" and (bval is None) != (candidate.bvec is None):
        return ONE_TABLE.format(name=name)
    if bval is None:
        too_many = candidate.suffix == "dwi" and n > MOST_TABLELESS_B0
        return NO_TABLE.format(name=name, n=n) if too_many else None
    try:
        bvals = read_b0_table(bval, candidate.bvec)
    except ValueError as error:
        return f"{error}; {name} is not used"
    if len(bvals) != n:
        return BAD_TABLE.format(name=name, n=n, bval=bval.name, found=len(bvals))
    return None if (bvals <= b0_threshold).any() else NO_B0.format(name=name, lowest=bvals.min())


def _other_readout(run: Run, candidate: Candidate) -> str | None:
    """Return that an image was read out faster or slower than the run; None where they agree or it is unknown."""
    for what, of in (("read-out time", readout_s), ("echo spacing", echo_spacing_s)):
        own, other = of(run.metadata), of(candidate.metadata)
        if own and other:
            if abs(own - other) <= READOUT_TOLERANCE * max(own, other):
                return None
            return OTHER_READOUT.format(name=candidate.image.name, what=what, other=other, own=own)
    return None
