"""What a BIDS dataset holds: the diffusion runs, their reverse-phase partners and T1w images.

A run that cannot be used is still returned, with its `fault`: the others go on and the report names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import names

IMAGE = [".nii", ".nii.gz"]
OPPOSITE = {"i": "i-", "i-": "i", "j": "j-", "j-": "j", "k": "k-", "k-": "k"}
GEOMETRY_TOLERANCE_MM = 1.0


class DatasetError(ValueError):
    """A dataset that cannot be used at all."""


class SelectionError(ValueError):
    """A label or filter that selects nothing."""


@dataclass(frozen=True)
class Partner:
    """An acquisition with the opposite phase-encoding direction."""

    image: Path
    direction: str  # i, i-, j, j-, k or k-
    bval: Path | None = None  # None: every volume is a b0
    bvec: Path | None = None


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
    mask: Path | None = None  # of a run that is preprocessed already
    preprocessed: bool = False
    fault: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's entities as in its file name."""
        return names.stem(self.entities)

    @property
    def phase_encoding(self) -> str | None:
        """The phase-encoding direction with its sign (BIDS letters), where the sidecar knows it."""
        return self.metadata.get("PhaseEncodingDirection")


def open_layout(bids_dir: Path, database: Path | None = None, derivative: bool = False):
    """Return the pybids layout of a dataset.

    Raises
    ------
    DatasetError
        Where the folder is not a readable BIDS dataset.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer

    if not bids_dir.is_dir():
        raise DatasetError(f"{bids_dir}: no such folder; give the root of a BIDS dataset")
    description = bids_dir / "dataset_description.json"
    if not description.is_file():
        raise DatasetError(
            f"{bids_dir}: no dataset_description.json; give the root of a BIDS dataset, "
            'or write that file, at least {"Name": "...", "BIDSVersion": "1.10.0"}'
        )
    try:
        json.loads(description.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{description}: not valid JSON ({error})") from None
    skip = ["sourcedata", "code", "models", "stimuli", ".git", "work"] + ([] if derivative else ["derivatives"])
    return BIDSLayout(
        bids_dir,
        validate=False,
        is_derivative=derivative,
        config=["bids", "derivatives"] if derivative else ["bids"],
        database_path=database,
        indexer=BIDSLayoutIndexer(validate=False, ignore=skip, index_metadata=True),
    )


def find_runs(
    layout,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    run_labels: Sequence[str] = (),
    filters: dict[str, dict] | None = None,
) -> list[Run]:
    """Return every diffusion run of a raw dataset, in order, faults included.

    Parameters
    ----------
    layout
        From `open_layout`.
    participants, sessions, run_labels
        Labels without their prefix; empty means all.
    filters
        pybids filters under the keys `dwi` and `t1w`, as in fMRIPrep's filter file.

    Raises
    ------
    SelectionError
        Where a label does not exist or the filters match nothing.
    DatasetError
        Where the dataset has no diffusion run.
    """
    filters = filters or {}
    unknown_keys = set(filters) - {"dwi", "t1w"}
    if unknown_keys:
        raise SelectionError(f"filter file: unknown keys {sorted(unknown_keys)}; expected dwi and t1w")
    _check_labels(layout, "subject", participants)
    _check_labels(layout, "session", sessions)
    query = {"datatype": "dwi", "suffix": "dwi", "extension": IMAGE, **filters.get("dwi", {})}
    if participants:
        query["subject"] = list(participants)
    if sessions:
        query["session"] = list(sessions)
    images = layout.get(invalid_filters="allow", **query)
    if run_labels:
        wanted = {str(label).lstrip("0") or "0" for label in run_labels}
        images = [i for i in images if str(i.entities.get("run", "")).lstrip("0") in wanted]
    if not images:
        if filters.get("dwi") or run_labels or participants or sessions:
            raise SelectionError(
                f"no diffusion run matches {_describe(participants, sessions, run_labels, filters)} "
                f"in {layout.root}; loosen the selection, or see what there is with --dry-run and no filter"
            )
        raise DatasetError(f"{layout.root}: no diffusion run (sub-*/[ses-*/]dwi/*_dwi.nii[.gz]) was found")
    runs = [_raw_run(layout, image) for image in sorted(images, key=lambda i: i.path)]
    runs = [replace(run, t1w=_find_t1w(layout, run, filters.get("t1w", {}))) for run in runs]
    return [_with_partner(layout, run, runs) for run in runs]


def find_preprocessed(layout, raw: Sequence[Run], participants: Sequence[str] = ()) -> list[Run]:
    """Return the preprocessed runs of a derivative dataset (QSIPrep's, or this app's own).

    T1w images are taken from the raw runs of the same subject and session.
    """
    query = {"suffix": "dwi", "desc": "preproc", "extension": IMAGE}
    if participants:
        query["subject"] = list(participants)
    images = layout.get(invalid_filters="allow", **query)
    if not images:
        raise DatasetError(f"{layout.root}: no preprocessed run (*_desc-preproc_dwi.nii[.gz]) was found")
    runs = []
    for image in sorted(images, key=lambda i: i.path):
        run = _raw_run(layout, image)
        stem = Path(image.path).name.split("_desc-preproc")[0]
        masks = [Path(image.path).with_name(f"{stem}_desc-brain_mask{e}") for e in (".nii.gz", ".nii")]
        mask = next((m for m in masks if m.exists()), None)
        t1w = next((r.t1w for r in raw if names.folder(r.entities) == names.folder(run.entities)), None)
        runs.append(replace(run, mask=mask, t1w=t1w, preprocessed=True))
    return runs


def _raw_run(layout, image) -> Run:
    path = Path(image.path)
    entities = {name: str(image.entities[name]) for name in names.ENTITIES if name in image.entities}
    bval, bvec = (_companion(layout, image, extension) for extension in (".bval", ".bvec"))
    missing = [e for e, found in ((".bval", bval), (".bvec", bvec)) if found is None]
    fault = None
    if missing:
        fault = f"{path}: its {' and '.join(missing)} file is missing; a diffusion series needs both beside the image"
    metadata = image.get_metadata()
    return Run(entities, path, bval, bvec, metadata, fault=fault)


def _companion(layout, image, extension: str) -> Path | None:
    """The text file that belongs to an image, inherited ones included, never that of another run."""
    found = layout.get_nearest(image.path, extension=extension, suffix="dwi", strict=False)
    if found is None:
        return None
    # The inheritance principle: every entity in the file's name must be one of the image's.
    own = {k: v for k, v in layout.get_file(found).entities.items() if k not in ("extension", "datatype")}
    return Path(found) if all(image.entities.get(k) == v for k, v in own.items()) else None


def _find_t1w(layout, run: Run, extra: dict) -> Path | None:
    """The T1w of the same session, else of the same subject; the first in order where there are several."""
    query = {"suffix": "T1w", "extension": IMAGE, "subject": run.entities["subject"], **extra}
    images = layout.get(invalid_filters="allow", **query)
    same = [i for i in images if i.entities.get("session") == run.entities.get("session")]
    candidates = sorted((same or images), key=lambda i: i.path)
    return Path(candidates[0].path) if candidates else None


def _with_partner(layout, run: Run, runs: Sequence[Run]) -> Run:
    """Attach the reverse-phase partner, or the reason why there is none."""
    if run.fault:
        return run
    own = run.phase_encoding
    if own is None:
        axis = run.metadata.get("PhaseEncodingAxis")
        known = f"only the axis ({axis}) is known" if axis else "nothing is known of it"
        return _noted(run, f"susceptibility: PhaseEncodingDirection is missing from the sidecar; {known}")
    candidates = _fieldmap_partners(layout, run) + [
        Partner(other.image, other.phase_encoding, other.bval, other.bvec) for other in runs if _is_sibling(run, other)
    ]
    candidates = [c for c in candidates if c.direction == OPPOSITE.get(own)]
    matching = [c for c in candidates if _same_geometry(run.image, c.image)]
    if matching:
        return replace(run, partner=matching[0])
    if candidates:
        return _noted(run, "susceptibility: the reverse-phase image has another grid; not used")
    extra = ""
    if layout.get(subject=run.entities["subject"], datatype="fmap", suffix="phasediff", extension=IMAGE):
        extra = " (a phase-difference field map is there; it is not used)"
    return _noted(run, f"susceptibility: no image with phase encoding {OPPOSITE.get(own)} belongs to this run{extra}")


def _is_sibling(run: Run, other: Run) -> bool:
    if other is run or other.fault or names.folder(other.entities) != names.folder(run.entities):
        return False
    return all(other.entities.get(e) == run.entities.get(e) for e in ("acquisition", "run"))


def _fieldmap_partners(layout, run: Run) -> list[Partner]:
    """Reverse-phase EPI in fmap/ that say they are meant for this run."""
    found = []
    query = {"subject": run.entities["subject"], "datatype": "fmap", "suffix": "epi", "extension": IMAGE}
    if run.entities.get("session"):
        query["session"] = run.entities["session"]
    sources = _as_list(run.metadata.get("B0FieldSource"))
    for image in layout.get(**query):
        metadata = image.get_metadata()
        intended = [Path(str(t)).name for t in _as_list(metadata.get("IntendedFor"))]
        identified = set(_as_list(metadata.get("B0FieldIdentifier"))) & set(sources)
        if run.image.name in intended or identified:
            found.append(Partner(Path(image.path), metadata.get("PhaseEncodingDirection", "")))
    return found


def _same_geometry(one: Path, other: Path) -> bool:
    import nibabel as nib
    import numpy as np

    try:
        a, b = nib.load(one), nib.load(other)
    except Exception:  # unreadable images are reported by the checks, not here
        return False
    return a.shape[:3] == b.shape[:3] and np.allclose(a.affine, b.affine, atol=GEOMETRY_TOLERANCE_MM)


def _check_labels(layout, entity: str, labels: Sequence[str]) -> None:
    if not labels:
        return
    known = sorted(str(v) for v in layout.get(return_type="id", target=entity))
    unknown = [label for label in labels if label not in known]
    if unknown:
        some = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
        raise SelectionError(f"no {entity} {', '.join(unknown)} in {layout.root}; there are: {some or 'none'}")


def _describe(participants, sessions, run_labels, filters) -> str:
    parts = [
        f"{what} {list(value)}"
        for what, value in (("participants", participants), ("sessions", sessions), ("runs", run_labels))
        if value
    ]
    if filters.get("dwi"):
        parts.append(f"filter {filters['dwi']}")
    return ", ".join(parts)


def _noted(run: Run, note: str) -> Run:
    return replace(run, notes=(*run.notes, note))


def _as_list(value) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]
