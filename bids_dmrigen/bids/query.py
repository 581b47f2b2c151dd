"""Find the diffusion runs of a BIDS dataset, their reverse-phase partners and T1w images.

A run that cannot be used is returned too, with its `fault`: the other runs are processed and the report names it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import names

if TYPE_CHECKING:
    from bids import BIDSLayout
    from bids.layout import BIDSImageFile
    from nibabel.spatialimages import SpatialImage

Filters = Mapping[str, Mapping[str, Any]]  # pybids filters under the keys "dwi" and "t1w"

IMAGE = [".nii", ".nii.gz"]
OPPOSITE = {"i": "i-", "i-": "i", "j": "j-", "j-": "j", "k": "k-", "k-": "k"}
AXES = ("i", "j", "k")
GEOMETRY_TOLERANCE_MM = 1.0
READOUT_TOLERANCE = 0.02  # relative: distortion is proportional to the total readout time
MOST_TABLELESS_B0 = 6  # largest number of volumes of a partner without b-values; 7 could be a tensor series
NOT_MAGNITUDE = ("phase", "real", "imag")  # values of `part` of images that are not magnitudes
NOT_INDEXED = ("sourcedata", "code", "models", "stimuli", ".git", "work")
DUPLICATE = (
    "{images}: {number} images of the name {name}, expected one; their results would overwrite each other: "
    "rename or remove all but one, or select one with a filter file"
)
NOTHING_SELECTED = (
    "{prefix}-{label}: no diffusion run (*_dwi.nii[.gz]) in the selection; "
    "remove the label, or list all runs with --dry-run and without labels"
)
ABSENT_T1W = (
    "T1w: {path} is a link to a file that does not exist; it is not used: fetch it (datalad get) or repair the link"
)


class DatasetError(ValueError):
    """A dataset that cannot be used at all."""


class SelectionError(ValueError):
    """A label or filter that selects nothing."""


class _SidecarError(ValueError):
    """A sidecar that cannot be read; it becomes the fault of the runs it belongs to."""


class _Texts:
    """The text files that apply to the images of a dataset; every folder is listed only once."""

    def __init__(self, layout: BIDSLayout) -> None:
        self.root = Path(layout.root)
        self.folders: dict[Path, list[Path]] = {}

    def of(self, image: Path, extension: str) -> list[Path]:
        """Return the text files that apply to an image by the inheritance principle, the most specific one last.

        They are in the image's folder or above, and have its suffix. The image has every entity of their names.
        """
        pairs, suffix = _name_parts(image)
        matches: list[Path] = []
        for folder in image.parents:
            here = [(_name_parts(path), path) for path in self._listed(folder) if path.suffix == extension]
            fitting = [(len(entities), path) for (entities, kind), path in here if kind == suffix and entities <= pairs]
            matches = [path for _, path in sorted(fitting)] + matches
            if folder == self.root:
                break
        return matches

    def metadata(self, image: Path) -> dict[str, Any]:
        """Return the metadata of an image from all sidecars that apply; deeper files override those above."""
        metadata: dict[str, Any] = {}
        for path in self.of(image, ".json"):
            try:
                content = json.loads(path.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError) as error:
                raise _SidecarError(f"{path}: cannot be read as JSON ({error}); correct or remove it") from None
            if not isinstance(content, dict):
                raise _SidecarError(f"{path}: expected a JSON object, found {type(content).__name__}; correct it")
            metadata |= content
        return metadata

    def _listed(self, folder: Path) -> list[Path]:
        if folder not in self.folders:
            self.folders[folder] = [p for p in folder.iterdir() if p.suffix in (".json", ".bval", ".bvec")]
        return self.folders[folder]


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
    mask: Path | None = None  # for a run that is already preprocessed
    preprocessed: bool = False
    fault: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's entities as in its file name."""
        return names.stem(self.entities)

    @property
    def phase_encoding(self) -> str | None:
        """The phase-encoding direction with its sign: i, i-, j, j-, k, k-; None where the sidecar does not say."""
        return _one_of(tuple(OPPOSITE), self.metadata.get("PhaseEncodingDirection"))

    @property
    def phase_encoding_axis(self) -> str | None:
        """The phase-encoding axis without sign: i, j or k; None where the sidecar does not say."""
        direction = self.phase_encoding
        return direction[0] if direction else _one_of(AXES, self.metadata.get("PhaseEncodingAxis"))

    @property
    def slice_axis(self) -> str:
        """The axis along which slices were acquired: i, j or k; k where the sidecar does not say."""
        direction = _one_of(tuple(OPPOSITE), self.metadata.get("SliceEncodingDirection"))
        return direction[0] if direction else "k"

    @property
    def readout_s(self) -> float | None:
        """The total read-out time, s; None where the sidecar does not say."""
        return _readout_s(self.metadata)


def open_layout(
    bids_dir: Path, database: Path | None = None, derivative: bool = False, exclude: Sequence[Path] = ()
) -> BIDSLayout:
    """Return the pybids layout of a dataset.

    Parameters
    ----------
    bids_dir
        Root of the dataset.
    database
        Folder of a pybids index to use, or to make where there is none.
    derivative
        True for a derivative dataset.
    exclude
        Folders that are not indexed; folders outside the dataset are ignored.

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
    skip = {*NOT_INDEXED, *(() if derivative else ("derivatives",)), *_inside(bids_dir, exclude)}
    return BIDSLayout(
        bids_dir,
        validate=False,
        is_derivative=derivative,
        config=["bids", "derivatives"] if derivative else ["bids"],
        database_path=database,
        # Without metadata, as one broken sidecar would stop the indexing. Sidecars are read for each run.
        indexer=BIDSLayoutIndexer(
            validate=False, ignore=[re.compile(rf"^/{re.escape(s)}(/|$)") for s in sorted(skip)], index_metadata=False
        ),
    )


def find_runs(
    layout: BIDSLayout,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    run_labels: Sequence[str] = (),
    filters: Filters | None = None,
) -> list[Run]:
    """Return every diffusion run of a raw dataset, in order, including those with a fault.

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
    query = {"datatype": "dwi", "suffix": "dwi", "extension": IMAGE}
    images = _select(layout, query, participants, sessions, run_labels, filters)
    if not images:
        raise DatasetError(f"{layout.root}: no diffusion run (sub-*/[ses-*/]dwi/*_dwi.nii[.gz]) was found")
    texts = _Texts(layout)
    runs = fault_duplicates([_with_tables(_new_run(texts, image)) for image in images])
    runs = [_with_t1w(layout, run, filters.get("t1w", {})) for run in runs]
    # A partner need not be selected: labels and filters choose the runs to process, not their partners.
    related = {}
    for run in runs:
        folder = names.folder(run.entities)
        if folder not in related:
            everything = layout.get(subject=run.entities["subject"], **query)
            same = [i for i in _magnitudes(everything) if i.entities.get("session") == run.entities.get("session")]
            related[folder] = fault_duplicates([_new_run(texts, image) for image in same])
    return [_with_partner(layout, texts, run, related[names.folder(run.entities)]) for run in runs]


def find_preprocessed(
    layout: BIDSLayout,
    raw: Sequence[Run],
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    run_labels: Sequence[str] = (),
    filters: Filters | None = None,
) -> list[Run]:
    """Return the preprocessed runs of a derivative dataset (QSIPrep's, or this app's own).

    Labels and filters work as in `find_runs`, on the files of the derivative. T1w images are those of the raw runs of
    the same subject and session.

    Raises
    ------
    SelectionError
        Where a label does not exist or the filters match nothing.
    DatasetError
        Where the dataset has no preprocessed run.
    """
    query = {"suffix": "dwi", "desc": "preproc", "extension": IMAGE}
    images = _select(layout, query, participants, sessions, run_labels, filters or {})
    if not images:
        raise DatasetError(f"{layout.root}: no preprocessed run (*_desc-preproc_dwi.nii[.gz]) was found")
    texts, runs = _Texts(layout), []
    for image in images:
        run = _with_tables(_new_run(texts, image))
        stem = run.image.name.split("_desc-preproc")[0]
        masks = [run.image.with_name(f"{stem}_desc-brain_mask{e}") for e in (".nii.gz", ".nii")]
        mask = next((m for m in masks if m.exists()), None)
        source = next((r for r in raw if names.folder(r.entities) == names.folder(run.entities)), run)
        notes = tuple(note for note in source.notes if note.startswith("T1w: "))
        runs.append(replace(run, mask=mask, t1w=source.t1w, notes=notes, preprocessed=True))
    return fault_duplicates(runs)


def labels_without_run(
    runs: Sequence[Run], participants: Sequence[str], sessions: Sequence[str], run_labels: Sequence[str]
) -> list[str]:
    """Return a sentence for every requested label that has no run in the selection.

    Parameters
    ----------
    runs
        The selected runs.
    participants, sessions, run_labels
        Requested labels without their prefix.
    """
    asked = (("subject", "sub", participants), ("session", "ses", sessions), ("run", "run", run_labels))
    return [
        NOTHING_SELECTED.format(prefix=prefix, label=label)
        for entity, prefix, labels in asked
        for label in dict.fromkeys(labels)
        if not any(_same_label(entity, run.entities.get(entity), label) for run in runs)
    ]


def _same_label(entity: str, label: str | int | None, wanted: str) -> bool:
    """Return whether two labels are the same; leading zeros of run numbers are ignored."""
    if entity == "run" and label is not None:
        return str(label).lstrip("0") == wanted.lstrip("0")
    return label == wanted


def fault_duplicates(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with a fault where two have the same name: their outputs would have the same names."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(run.name, []).append(run)
    return [replace(run, fault=run.fault or _duplicate(same[run.name])) for run in runs]


def _duplicate(runs: Sequence[Run]) -> str | None:
    if len(runs) == 1:
        return None
    images = " and ".join(str(run.image) for run in runs)
    return DUPLICATE.format(images=images, number=len(runs), name=runs[0].name)


def _select(
    layout: BIDSLayout,
    query: Mapping[str, Any],
    participants: Sequence[str],
    sessions: Sequence[str],
    run_labels: Sequence[str],
    filters: Filters,
) -> list[BIDSImageFile]:
    """Return the images that the labels and filters select, in order; empty only where nothing was requested."""
    _check_filters(layout, filters)
    _check_labels(layout, "subject", participants)
    _check_labels(layout, "session", sessions)
    query = {**query, **filters.get("dwi", {})}
    if participants:
        query["subject"] = list(participants)
    if sessions:
        query["session"] = list(sessions)
    images = _magnitudes(layout.get(invalid_filters="allow", **query), derivative="desc" in query)
    if run_labels:
        images = [i for i in images if any(_same_label("run", i.entities.get("run"), label) for label in run_labels)]
    if not images and (filters.get("dwi") or run_labels or participants or sessions):
        raise SelectionError(
            f"no diffusion run matches {_describe(participants, sessions, run_labels, filters)} "
            f"in {layout.root}; relax the selection, or list all runs with --dry-run and no filter"
        )
    return images


def _magnitudes(images: Iterable[BIDSImageFile], derivative: bool = False) -> list[BIDSImageFile]:
    """Return magnitude images; for a raw dataset, only raw ones."""
    foreign = () if derivative else ("desc-", "space-")  # derivatives stored among the raw files
    return sorted(
        (
            image
            for image in images
            if image.entities.get("part") not in NOT_MAGNITUDE
            and not any(pair.startswith(foreign) for pair in _name_parts(Path(image.path))[0])
        ),
        key=lambda image: image.path,
    )


def _new_run(texts: _Texts, image: BIDSImageFile) -> Run:
    path = Path(image.path)
    entities = {name: str(image.entities[name]) for name in names.ENTITIES if name in image.entities}
    # Only the deepest and most specific file counts; unlike JSON, tables are not merged.
    bval, bvec = (next(reversed(texts.of(path, extension)), None) for extension in (".bval", ".bvec"))
    try:
        return Run(entities, path, bval, bvec, texts.metadata(path))
    except _SidecarError as error:
        return Run(entities, path, bval, bvec, fault=str(error))


def _with_tables(run: Run) -> Run:
    """Return the run, with a fault where .bval or .bvec is missing; only a partner may lack them."""
    missing = [e for e, path in ((".bval", run.bval), (".bvec", run.bvec)) if path is None]
    if not missing:
        return run
    fault = f"{run.image}: its {' and '.join(missing)} file is missing; a diffusion series needs both beside the image"
    return replace(run, fault="; ".join(filter(None, (fault, run.fault))))


def _name_parts(path: Path) -> tuple[set[str], str]:
    """Return the `key-value` pairs of a BIDS file name and its suffix."""
    *pairs, suffix = path.name.split(".")[0].split("_")
    return set(pairs), suffix


def _with_t1w(layout: BIDSLayout, run: Run, extra: Mapping[str, Any]) -> Run:
    """Attach the T1w of the same session, else of the same subject; the first of several by path."""
    query = {"suffix": "T1w", "extension": IMAGE, "subject": run.entities["subject"], **extra}
    images = sorted(layout.get(invalid_filters="allow", **query), key=lambda i: i.path)
    available = [i for i in images if Path(i.path).exists()]
    same = [i for i in available if i.entities.get("session") == run.entities.get("session")]
    notes = tuple(ABSENT_T1W.format(path=i.path) for i in images if i not in available)
    chosen = next(iter(same or available), None)
    return replace(run, t1w=Path(chosen.path) if chosen else None, notes=(*run.notes, *notes))


def _with_partner(layout: BIDSLayout, texts: _Texts, run: Run, related: Sequence[Run]) -> Run:
    """Attach the reverse-phase partner, or the reason why there is none."""
    if run.fault:
        return run
    run_direction = run.phase_encoding
    if run_direction is None:
        return _noted(run, _unknown_direction(run.metadata))
    candidates, refused = _fieldmap_partners(layout, texts, run)
    candidates += [
        (Partner(other.image, direction, other.bval, other.bvec), other.metadata)
        for other in related
        if _is_sibling(run, other) and (direction := other.phase_encoding) is not None
    ]
    for partner, metadata in candidates:
        if partner.direction != OPPOSITE[run_direction]:
            continue
        reason = _mismatch(run, partner, metadata)
        if reason is None:
            return replace(run, partner=partner)
        refused.append(reason)
    if refused:
        return _noted(run, "; ".join(refused))
    extra = ""
    if layout.get(subject=run.entities["subject"], datatype="fmap", suffix="phasediff", extension=IMAGE):
        extra = " (there is a phase-difference field map; it is not used)"
    return _noted(run, f"no image with phase encoding {OPPOSITE[run_direction]} belongs to this run{extra}")


def _unknown_direction(metadata: dict[str, Any]) -> str:
    """Return a sentence about what is unknown of the phase encoding, and why."""
    direction, axis = metadata.get("PhaseEncodingDirection"), metadata.get("PhaseEncodingAxis")
    if direction is None:
        what = "PhaseEncodingDirection is missing from the sidecar"
    else:
        what = f"PhaseEncodingDirection {direction!r} of the sidecar is none of {', '.join(OPPOSITE)}"
    if axis is None:
        return f"{what}; the phase encoding is unknown"
    if _one_of(AXES, axis):
        return f"{what}; only the axis ({axis}) is known"
    return f"{what}; PhaseEncodingAxis {axis!r} is none of {', '.join(AXES)}"


def _mismatch(run: Run, partner: Partner, metadata: dict[str, Any]) -> str | None:
    """Return why an image of opposite phase encoding cannot be used to correct the run; None if it can."""
    if not _same_geometry(run.image, partner.image):
        return "the reverse-phase image has another grid; not used"
    if partner.bval is None and _name_parts(partner.image)[1] == "dwi":
        n = _volumes(partner.image)
        if n > MOST_TABLELESS_B0:
            return (
                f"{partner.image.name} has no b-values and {n} volumes, too many to assume that all are b0s; not used: "
                "add its .bval and .bvec, with zeros if all are b0s"
            )
    run_s, partner_s = run.readout_s, _readout_s(metadata)
    if run_s and partner_s and abs(run_s - partner_s) > READOUT_TOLERANCE * max(run_s, partner_s):
        return f"the reverse-phase image has another TotalReadoutTime ({partner_s:g} s, this run {run_s:g} s); not used"
    return None


def _readout_s(metadata: dict[str, Any]) -> float | None:
    value = metadata.get("TotalReadoutTime")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _is_sibling(run: Run, other: Run) -> bool:
    if other.image == run.image or other.fault or (other.bval is None) != (other.bvec is None):
        return False
    return all(other.entities.get(e) == run.entities.get(e) for e in ("acquisition", "run", "chunk"))


def _fieldmap_partners(
    layout: BIDSLayout, texts: _Texts, run: Run
) -> tuple[list[tuple[Partner, dict[str, Any]]], list[str]]:
    """Return the EPI images in fmap/ meant for this run, with metadata, and why others are refused."""
    partners, refused = [], []
    query = {"subject": run.entities["subject"], "datatype": "fmap", "suffix": "epi", "extension": IMAGE}
    if run.entities.get("session"):
        query["session"] = run.entities["session"]
    sources = _as_list(run.metadata.get("B0FieldSource"))
    for image in _magnitudes(layout.get(**query)):
        path = Path(image.path)
        try:
            metadata = texts.metadata(path)
        except _SidecarError as error:
            refused.append(f"{error}; {path.name} is not used")
            continue
        intended = [Path(str(t)).name for t in _as_list(metadata.get("IntendedFor"))]
        identified = any(i in sources for i in _as_list(metadata.get("B0FieldIdentifier")))
        if run.image.name not in intended and not identified:
            continue
        direction = _one_of(tuple(OPPOSITE), metadata.get("PhaseEncodingDirection"))
        if direction:
            partners.append((Partner(path, direction), metadata))
        else:
            refused.append(f"{path.name}: {_unknown_direction(metadata)}; not used")
    return partners, refused


def _volumes(image: Path) -> int:
    import nibabel as nib

    shape = cast("SpatialImage", nib.load(image)).shape
    return int((*shape, 1)[3])


def _same_geometry(one: Path, other: Path) -> bool:
    import nibabel as nib
    import numpy as np

    try:
        a, b = (cast("SpatialImage", nib.load(path)) for path in (one, other))
    except Exception:  # unreadable images are reported by the checks, not here
        return False
    return a.shape[:3] == b.shape[:3] and np.allclose(a.affine, b.affine, atol=GEOMETRY_TOLERANCE_MM)


def _check_filters(layout: BIDSLayout, filters: Filters) -> None:
    unknown = set(filters) - {"dwi", "t1w"}
    if unknown:
        raise SelectionError(f"filter file: unknown keys {sorted(unknown)}; expected dwi and t1w")
    entities = set(layout.get_entities())
    for key, wanted in filters.items():
        if not isinstance(wanted, dict):
            raise SelectionError(f"filter file: {key} is {wanted!r}; expected an object of entities and their values")
        if set(wanted) - entities:
            raise SelectionError(
                f"filter file: {key}: {sorted(set(wanted) - entities)} are not entities of file names; "
                f"expected some of {sorted(entities)}"
            )


def _check_labels(layout: BIDSLayout, entity: str, labels: Sequence[str]) -> None:
    if not labels:
        return
    available = sorted(str(v) for v in layout.get(return_type="id", target=entity))
    unknown = [label for label in labels if label not in available]
    if unknown:
        some = ", ".join(available[:20]) + (" ..." if len(available) > 20 else "")
        raise SelectionError(f"no {entity} {', '.join(unknown)} in {layout.root}; there are: {some or 'none'}")


def _describe(participants: Sequence[str], sessions: Sequence[str], run_labels: Sequence[str], filters: Filters) -> str:
    parts = [
        f"{what} {list(value)}"
        for what, value in (("participants", participants), ("sessions", sessions), ("runs", run_labels))
        if value
    ]
    if filters.get("dwi"):
        parts.append(f"filter {filters['dwi']}")
    return ", ".join(parts)


def _noted(run: Run, note: str) -> Run:
    return replace(run, notes=(*run.notes, f"susceptibility: {note}"))


def _inside(root: Path, folders: Sequence[Path]) -> set[str]:
    """Return the folders that are inside a dataset, relative to its root."""
    inside = set()
    for folder in folders:
        for resolve in (os.path.abspath, os.path.realpath):
            relative = os.path.relpath(resolve(folder), resolve(root))
            if Path(relative).parts[:1] not in ((), ("..",)):
                inside.add(Path(relative).as_posix())
    return inside


def _one_of(allowed: Sequence[str], value: Any) -> str | None:
    return value if value in allowed else None


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
