"""Find the diffusion runs of a BIDS dataset, their reverse-phase partners, field maps and T1w images.

A run that cannot be used is returned too, with its `fault`: the other runs are processed and the report names it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..diffusion.storage import TextError, read_object
from ..dwi.gradients import B0_THRESHOLD_S_PER_MM2
from . import names
from .fieldmaps import SUFFIXES, Group, groups_of, with_fieldmap
from .images import fault_of, fault_of_mask
from .leftovers import NOT_MAGNITUDE, is_well_named, odd_folders
from .partners import KINDS, Candidate, candidates_of, with_partner
from .run import Run, as_list
from .texts import Texts, name_parts

if TYPE_CHECKING:
    from bids import BIDSLayout
    from bids.layout import BIDSImageFile

# What filters cannot choose: entity -> values that are possible.
FIXED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "dwi": {"datatype": ("dwi",), "suffix": ("dwi",), "extension": (".nii", ".nii.gz", "nii", "nii.gz")},
    "t1w": {"datatype": ("anat",), "suffix": ("T1w",), "extension": (".nii", ".nii.gz", "nii", "nii.gz"),
            "subject": ()},
}  # fmt: skip
Filters = Mapping[str, Mapping[str, Any]]  # pybids filters under the keys "dwi" and "t1w"

IMAGE = [".nii", ".nii.gz"]
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes of file names that are no text, as Python shows them
NOT_INDEXED = ("sourcedata", "code", "models", "stimuli", ".git", "work")
LARGEST_LABEL = 2**63  # in the database of the index
DUPLICATE = (
    "{images}: {number} images of the name {name}, expected one; their results would overwrite each other: "
    "rename or remove all but one, or select one with a filter file"
)
RUN_PATHS = ("sub-*/dwi/*_dwi.*", "sub-*/ses-*/dwi/*_dwi.*")
OLD_INDEX = (
    "--bids-database-dir {database}: the index there {what} {n} image(s) of diffusion runs, such as {path}: it is "
    "older than the dataset, or of another one; remove it, and it is made again"
)
NOTHING_SELECTED = (
    "{prefix}-{label}: no diffusion run (*_dwi.nii[.gz]) in the selection; "
    "remove the label, or list all runs with --dry-run and without labels"
)


class DatasetError(ValueError):
    """A dataset that cannot be used at all."""


class SelectionError(ValueError):
    """A label or filter that selects nothing."""


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
        read_object(description)
    except TextError as error:
        raise DatasetError(str(error)) from None
    skip = {*NOT_INDEXED, *odd_folders(bids_dir), *_inside(bids_dir, exclude)}
    if not derivative:
        skip.add("derivatives")
    layout = BIDSLayout(
        bids_dir,
        validate=False,
        is_derivative=derivative,
        config=[_below(bids_dir, name) for name in (["bids", "derivatives"] if derivative else ["bids"])],
        database_path=database,
        # Without metadata, as one broken sidecar would stop the indexing. Sidecars are read for each run.
        indexer=BIDSLayoutIndexer(
            validate=False,
            ignore=[*(re.compile(rf"^/{re.escape(s)}(/|$)") for s in sorted(skip)), NOT_UTF8],
            index_metadata=False,
        ),
    )
    if database is not None:
        _check_index(layout, bids_dir, database, skip)
    return layout


def _check_index(layout: BIDSLayout, root: Path, database: Path, skip: Collection[str]) -> None:
    """Refuse an index that was made of another dataset, or of this one before images came or went."""
    there = {Path(os.path.abspath(path)) for pattern in RUN_PATHS for path in root.glob(pattern)}
    there = {p for p in there if not any(p.is_relative_to(Path(os.path.abspath(root / s))) for s in skip)}
    there = {p for p in there if p.name.endswith(tuple(IMAGE)) and not NOT_UTF8.search(str(p))}
    indexed = {Path(os.path.abspath(i.path)) for i in layout.get(suffix="dwi", datatype="dwi", extension=IMAGE)}
    for what, files in (("does not hold", there - indexed), ("holds", {p for p in indexed if not os.path.lexists(p)})):
        if files:
            raise DatasetError(OLD_INDEX.format(database=database, what=what, n=len(files), path=min(files)))


def _below(root: Path, name: str) -> dict[str, Any]:
    """Return a configuration of pybids that reads entities from the paths below the root, the last of each kind.

    Its own would take `sub-` of a folder above the dataset for the subject.
    """
    from bids.config import get_option

    config: dict[str, Any] = json.loads(Path(get_option("config_paths")[name]).read_text(encoding="utf-8"))
    start = f"^{re.escape(str(root.absolute()))}.*"
    for entity in config["entities"]:
        if entity.get("pattern", "").startswith(("[_/", "[/")):
            entity["pattern"] = start + entity["pattern"]
    return config


def find_runs(
    layout: BIDSLayout,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    run_labels: Sequence[str] = (),
    filters: Filters | None = None,
    b0_threshold: float = B0_THRESHOLD_S_PER_MM2,
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
    b0_threshold
        Volumes with a b-value at or below this are b0s, s/mm².

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
    texts = Texts(Path(layout.root))
    runs = fault_duplicates([_with_tables(_new_run(texts, image)) for image in images])
    runs = [_with_t1w(layout, run, filters.get("t1w", {})) for run in runs]
    subjects = dict.fromkeys(run.entities["subject"] for run in runs)
    corrections = {subject: _corrections(layout, texts, subject) for subject in subjects}
    corrected = []
    for run in runs:
        candidates, groups = corrections[run.entities["subject"]]
        identifiers = set[str]().union(*(group.identifiers for group in groups))
        corrected.append(with_fieldmap(with_partner(run, candidates, b0_threshold, identifiers), groups))
    return corrected


def _corrections(layout: BIDSLayout, texts: Texts, subject: str) -> tuple[list[Candidate], list[Group]]:
    """Return what may correct the susceptibility distortion of a subject's runs: images and field maps.

    They need not be selected: labels and filters choose the runs to process, not what these are corrected with.
    """
    images = layout.get(subject=subject, datatype=["dwi", "fmap"], suffix=list(KINDS), extension=IMAGE)
    fields = layout.get(subject=subject, datatype="fmap", suffix=list(SUFFIXES), extension=IMAGE)
    return candidates_of(_magnitudes(images), texts), groups_of(candidates_of(_magnitudes(fields), texts))


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
    the same subject and session. A brain mask that cannot be used, or is on another grid than its series, is left out
    with a note; the run is then treated as one without a mask.

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
    texts, runs = Texts(Path(layout.root)), []
    for image in images:
        run = _with_tables(_new_run(texts, image))
        stem = run.image.name.split("_desc-preproc")[0]
        masks = [run.image.with_name(f"{stem}_desc-brain_mask{e}") for e in (".nii.gz", ".nii")]
        faults = {m: fault_of_mask(m, run.image) for m in masks if m.exists() or m.is_symlink()}
        mask = next((m for m, fault in faults.items() if fault is None), None)
        source = next((r for r in raw if names.folder(r.entities) == names.folder(run.entities)), run)
        notes = tuple(note for note in source.notes if note.startswith("T1w: "))
        notes += tuple(f"brain mask: {fault}" for fault in faults.values() if fault)
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
            and is_well_named(Path(image.path))
            and not any(pair.startswith(foreign) for pair in name_parts(Path(image.path))[0])
        ),
        key=lambda image: image.path,
    )


def _new_run(texts: Texts, image: BIDSImageFile) -> Run:
    path = Path(image.path)
    entities = names.entities_of(image.entities)
    bval, bvec = (texts.table(path, extension) for extension in (".bval", ".bvec"))
    try:
        return Run(entities, path, bval, bvec, texts.metadata(path))
    except TextError as error:
        return Run(entities, path, bval, bvec, fault=str(error))


def _with_tables(run: Run) -> Run:
    """Return the run, with a fault where .bval or .bvec is missing; only a partner may lack them."""
    missing = [e for e, path in ((".bval", run.bval), (".bvec", run.bvec)) if path is None]
    if not missing:
        return run
    fault = f"{run.image}: its {' and '.join(missing)} file is missing; a diffusion series needs both beside the image"
    return replace(run, fault="; ".join(filter(None, (fault, run.fault))))


def _with_t1w(layout: BIDSLayout, run: Run, extra: Mapping[str, Any]) -> Run:
    """Attach the T1w of the same session, else of the same subject; of several the first by path that can be used."""
    query = {"suffix": "T1w", "extension": IMAGE, "subject": run.entities["subject"], **extra}
    images = sorted(layout.get(invalid_filters="allow", **query), key=lambda i: i.path)
    own = [i.entities.get("session") == run.entities.get("session") for i in images]
    notes = list(run.notes)
    for _, image in sorted(zip(own, images, strict=True), key=lambda pair: not pair[0]):
        fault = fault_of(Path(image.path))
        if fault is None:
            return replace(run, t1w=Path(image.path), notes=tuple(notes))
        notes.append(f"T1w: {fault}")
    return replace(run, notes=tuple(notes))


def _check_filters(layout: BIDSLayout, filters: Filters) -> None:
    unknown = set(filters) - {"dwi", "t1w"}
    if unknown:
        raise SelectionError(f"filter file: unknown keys {sorted(unknown)}; expected dwi and t1w")
    entities = set(layout.get_entities())
    for key, wanted in filters.items():
        if not isinstance(wanted, dict):
            raise SelectionError(f"filter file: {key} is {wanted!r}; expected an object of entities and their values")
        for name, value in wanted.items():
            allowed = FIXED[key].get(name)
            if not all(_is_plain(v) for v in as_list(value)):
                raise SelectionError(f"filter file: {key}: {name} is {value!r}; expected a value, or a list of values")
            if allowed is not None and not (as_list(value) and set(as_list(value)) <= set(allowed)):
                expected = f"only {' or '.join(allowed)} is possible" if allowed else "it is that of the run"
                raise SelectionError(f"filter file: {key}: {name} is {value!r}; {expected}; take the entry out")
        if set(wanted) - entities:
            raise SelectionError(
                f"filter file: {key}: {sorted(set(wanted) - entities)} are not entities of file names; "
                f"expected some of {sorted(entities)}"
            )


def _is_plain(value: Any) -> bool:
    """Return whether the index can look for a value."""
    if isinstance(value, str) and value.strip().isdigit():
        return len(value) < len(str(LARGEST_LABEL))
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and abs(value) < LARGEST_LABEL)


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


def _inside(root: Path, folders: Sequence[Path]) -> set[str]:
    """Return the folders that are inside a dataset, relative to its root."""
    inside = set()
    for folder in folders:
        for resolve in (os.path.abspath, os.path.realpath):
            relative = os.path.relpath(resolve(folder), resolve(root))
            if Path(relative).parts[:1] not in ((), ("..",)):
                inside.add(Path(relative).as_posix())
    return inside
