"""What earlier calls stored of a run in the output folder; a later call keeps it, makes it again, or is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bids import names
from ..diffusion.storage import TextError, read_object, read_text
from ..qc.report import ReportError, RunRecord, entities_of, method_figures, read_record

PREPROCESSING = "Preprocessing"  # entry of the sidecar of the preprocessed series
DENOISING = "Denoising"  # one of its entries
NOT_DONE = "not done"
UNKNOWN = "the sidecar of the stored series does not say how it was made"
NO_METHODS = ("preproc", "brain")  # labels after desc- in names of images that are not of a method
RESULTS = (".nii.gz", ".tsv", ".h5", ".mat")  # ends of file names; every other file is beside one of these
OF_METHOD = re.compile(r"_desc-([A-Za-z0-9]+)_(?:dwi|dwimap)\.nii\.gz$")


def stored_methods(out_dir: Path, entities: Mapping[str, str]) -> tuple[str, ...]:
    """Return the methods whose results for a run lie in the output folder, by the names of the files."""
    folder = (out_dir / names.output_path(entities, "preproc")).parent
    labels = set()
    for path in folder.glob(f"{names.stem(entities)}_*.nii.gz"):
        label = OF_METHOD.search(path.name)
        same_run = names.stem(entities_of(path.name)) == names.stem(entities)
        if label and same_run and label[1] not in NO_METHODS and not names.OF_UNCERTAINTY.search(label[1]):
            labels.add(label[1])
    return tuple(sorted(labels))


def stored_files(out_dir: Path, entities: Mapping[str, str]) -> list[str]:
    """Return the images, tables and transforms of a run in the output folder, relative to it, in order."""
    folder, own = (out_dir / names.output_path(entities, "preproc")).parent, names.stem(entities)
    found = (path for path in folder.glob(f"{own}_*") if path.name.endswith(RESULTS))
    return sorted(path.relative_to(out_dir).as_posix() for path in found if names.stem(entities_of(path.name)) == own)


def stored_preprocessing(out_dir: Path, entities: Mapping[str, str]) -> dict[str, str]:
    """Return how the stored preprocessed series of a run was made, from its sidecar; empty where it does not say."""
    stored = _object(out_dir / names.sidecar_path(names.output_path(entities, "preproc"))).get(PREPROCESSING)
    return stored if isinstance(stored, dict) else {}


def stored_description(out_dir: Path) -> dict[str, Any]:
    """Return the description of the derivative dataset; empty where it cannot be read."""
    return _object(out_dir / "dataset_description.json")


def stored_record(out_dir: Path, entities: Mapping[str, str]) -> RunRecord:
    """Return the record of a run; where it cannot be read, a record with only the run's entities."""
    try:
        return read_record(out_dir, entities)
    except ReportError:
        return RunRecord(dict(entities))


def stored_metrics(out_dir: Path, entities: Mapping[str, str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return those of a run's stored quality metrics that are of these methods."""
    metrics = _object(out_dir / names.output_path(entities, "metrics"))
    return {key: entry for key, entry in metrics.items() if isinstance(entry, dict) and entry.get("source") in methods}


def stored_reasons(out_dir: Path, entities: Mapping[str, str], methods: Sequence[str]) -> list[str]:
    """Return the items of the stored list of missing figures that are about these methods, as HTML."""
    try:
        items = re.findall(r"<li>.*?</li>", read_text(out_dir / names.figure_path(entities, "skipped", "html")))
    except TextError:
        return []
    return [item for item in items if item.startswith(tuple(f"<li>{method}: " for method in methods))]


def stored_figures(methods: Sequence[str]) -> list[str]:
    """Return the keys of all figures that are of these methods alone."""
    return [key for method in methods for key in method_figures(method)]


def stored_maps(
    out_dir: Path, entities: Mapping[str, str], method: str, params: Sequence[str]
) -> tuple[dict[str, Path], Path | None]:
    """Return the stored tensor maps of a method, and the brain mask where they are on a finer grid.

    Parameters
    ----------
    out_dir
        Derivative dataset.
    entities
        Of the run.
    method
        Name of the method.
    params
        The maps that are wanted, such as `fa`.

    Returns
    -------
    maps
        Parameter -> file; empty where one of them is missing.
    mask
        None where the maps are on the grid of the run.
    """
    label = stored_record(out_dir, entities).voxels.get(method)
    grid = {} if label is None else {"voxel_mm": names.voxel_mm(label)}
    maps = {param: out_dir / names.output_path(entities, "map", param=param, source=method, **grid) for param in params}
    mask = out_dir / names.output_path(entities, "mask", **grid)
    if not all(path.is_file() for path in (*maps.values(), mask)):
        return {}, None
    return maps, mask if grid else None


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return a phrase for each difference between two ways of preprocessing.

    >>> changes({"Denoising": "none", "Image": "a"}, {"Denoising": "mppca", "Image": "a"})
    ['Denoising: none -> mppca']
    """
    keys = dict.fromkeys([*before, *after])
    pairs = [(key, before.get(key, NOT_DONE), after.get(key, NOT_DONE)) for key in keys]
    return [f"{key}: {old} -> {new}" for key, old, new in pairs if old != new]


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty where it cannot be read."""
    try:
        return read_object(path)
    except TextError:
        return {}
