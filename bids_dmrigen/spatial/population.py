"""Population maps from files in a template's space: the ADC atlas and XTRACT's tracts."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..bids.names import sidecar_path
from ..diffusion.storage import read_object, write_text
from ..dwi.adc import FREE_WATER_MM2_PER_S
from ..dwi.series import ScanError
from ..methods.base import Population
from ..simulate.anatomy import subvoxels
from ..simulate.atlas_file import AtlasError
from .io import image_in_template, open_image, read_image, write_image
from .templates import check_fibre_atlas, fibre_images

PACKAGED_ADC_ATLAS = Path(__file__).parent / "data" / "adc_atlas.nii.gz"
UNITS = "mm^2/s"
STEP_MM2_PER_S = 1e-7  # step of the stored diffusivities; 16 bits are enough for free water
LARGEST_MM2_PER_S = 2 * FREE_WATER_MM2_PER_S  # noise may exceed free water; larger values are in another unit
MAKE_ONE = "make one with `dmrigen prepare --adc-atlas`"
ANY_MNI = "MNI152"  # an atlas's `Space`: some template whose name begins like this


def _both_sides(*names: str) -> list[str]:
    return [f"{name} {side}" for name in names for side in "LR"]


TRACTS = (
    "Anterior Commissure",
    *_both_sides(
        "Arcuate Fasciculus",
        "Acoustic Radiation",
        "Anterior Thalamic Radiation",
        "Cingulum subsection: Dorsal",
        "Cingulum subsection: Peri-genual",
        "Cingulum subsection: Temporal",
        "Corticospinal Tract",
        "Frontal Aslant Tract",
    ),
    "Forceps Major",
    "Forceps Minor",
    *_both_sides("Fornix", "Inferior Fronto-Occipital Fasciculus", "Inferior Longitudinal Fasciculus"),
    "Middle Cerebellar Peduncle",
    *_both_sides(
        "Middle Longitudinal Fasciculus",
        "Optic Radiation",
        "Superior Longitudinal Fasciculus 1",
        "Superior Longitudinal Fasciculus 2",
        "Superior Longitudinal Fasciculus 3",
        "Superior Thalamic Radiation",
        "Uncinate Fasciculus",
        "Vertical Occipital Fasciculus",
    ),
)
XTRACT_IMAGES = ("xtract-tract-atlases-prob-2mm.nii.gz", "xtract-tract-atlases-prob-1mm.nii.gz")  # 2 mm is enough
XTRACT_LABELS = "XTRACT.xml"
# Release 2 in FSL's data package has more tracts, as fractions, and labels that do not match its volumes.
XTRACT_RELEASE = "expected the 42 tracts of XTRACT's first release (Warrington et al. 2020, FSL's xtract atlas 1.x)"


def check_atlas(kind: str, path: str | Path) -> None:
    """Refuse a faulty atlas early; of large images only headers are read.

    Parameters
    ----------
    kind
        As in `MethodSpec.population`: "adc", "tracts" or "fibres".
    path
        As for `read_adc_atlas` (which is small, and read whole), `read_xtract` or `templates.read_fibre_atlas`.

    Raises
    ------
    AtlasError
        Where a file is missing or does not hold what it should.
    """
    {"adc": read_adc_atlas, "tracts": _find_tracts, "fibres": check_fibre_atlas}[kind](path)


def digest(kind: str, path: str | Path) -> str:
    """Return the SHA-256, in hexadecimal digits, of an atlas's concatenated images; see `check_atlas`."""
    path = Path(path)
    images = fibre_images(path) if kind == "fibres" else [_xtract_files(path)[0] if kind == "tracts" else path]
    total = hashlib.sha256()
    for image in images:
        total.update(image.read_bytes())
    return total.hexdigest()


def other_space(adc_atlas: str | Path, template: str) -> str | None:
    """Return the space in an ADC atlas's sidecar if it differs from the template's, else None."""
    space = read_object(sidecar_path(Path(adc_atlas))).get("Space")
    same = space in (None, template) or (space == ANY_MNI and template.startswith(ANY_MNI))
    return None if same else str(space)


def read_adc_atlas(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an ADC atlas, its b-values and its affine.

    Parameters
    ----------
    path
        4-D image in mm²/s, with a sidecar .json whose `BValues` say what each volume is.

    Returns
    -------
    data
        (X, Y, Z, K) float32, mm²/s; 0 where there is no brain.
    bvals
        (K,) s/mm², rising.
    affine
        (4, 4) voxel indices to world RAS+, mm.

    Raises
    ------
    AtlasError
        Where a file is missing or does not hold such an atlas.
    """
    path = Path(path)
    data, affine = _read_4d(path)
    sidecar = sidecar_path(path)
    try:
        if not sidecar.exists():
            raise AtlasError(f"{sidecar}: no such file; it must give the b-values of {path.name}; {MAKE_ONE}")
        bvals = np.asarray(read_object(sidecar)["BValues"], dtype=np.float64)
    except AtlasError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise AtlasError(
            f"{sidecar}: expected JSON with BValues, numbers in s/mm², found none ({error!r}); {MAKE_ONE}"
        ) from None
    if bvals.shape != data.shape[3:] or not (np.diff(bvals, prepend=0.0) > 0).all():
        raise AtlasError(
            f"{sidecar}: expected {data.shape[3]} rising BValues, one per volume of {path.name}, "
            f"found {bvals.tolist()}; {MAKE_ONE}"
        )
    low, high = float(data.min()), float(data.max())
    if not (low >= 0 and 0 < high <= LARGEST_MM2_PER_S):  # NaN fails too
        raise AtlasError(
            f"{path}: expected diffusivities in mm²/s, 0 to {LARGEST_MM2_PER_S:g}, "
            f"found {low:g} to {high:g}; {MAKE_ONE}"
        )
    return data, bvals, affine


def write_adc_atlas(path: Path, data: np.ndarray, bvals: Sequence[float], affine: np.ndarray, about: dict[str, Any]):
    """Write an ADC atlas as 16-bit integers, with its sidecar; return the image's path.

    Parameters
    ----------
    path
        Image, .nii.gz.
    data
        (X, Y, Z, K) mm²/s, 0 to free water's diffusivity.
    bvals
        (K,) s/mm², rising.
    affine
        (4, 4) voxel indices to world RAS+ of the template, mm.
    about
        Further entries of the sidecar.
    """
    write_image(path, data, image_in_template(data.shape, affine), np.int16, STEP_MM2_PER_S)
    text = json.dumps({"BValues": [float(b) for b in bvals], "Units": UNITS} | about, indent=2, ensure_ascii=False)
    write_text(sidecar_path(path), text + "\n")
    return path


def coarser(adc: np.ndarray, affine: np.ndarray, voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return an ADC atlas (X, Y, Z, K) averaged over cubes with edges of `voxel_mm`, and its affine."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    ratio = voxel_mm / zooms
    shape = tuple(int(n) for n in np.ceil(np.array(adc.shape[:3]) / ratio - 1e-6))
    to_old = np.diag([*ratio, 1.0])
    to_old[:3, 3] = (ratio - 1) / 2  # the grids share a corner, not a centre
    return _adc_on(adc, affine, shape, affine @ to_old), affine @ to_old


def read_xtract(path: str | Path) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return the 42 tracts of XTRACT, whatever their order in the files.

    Parameters
    ----------
    path
        FSL's folder `data/atlases/XTRACT`, with `xtract-tract-atlases-prob-2mm.nii.gz` (or 1mm) in it and `XTRACT.xml`
        in it or beside it; or one 4-D image in percent with labels beside it, for NAME_percent.nii.gz in
        NAME_labels.tsv: columns index (from 0) and name.

    Returns
    -------
    tracts
        (X, Y, Z, 42) float32, share of subjects in whom a voxel belongs to the tract, 0 to 1.
    names
        `TRACTS`.
    affine
        (4, 4) voxel indices to MNI world RAS+, mm.

    Raises
    ------
    AtlasError
        Where a file is missing, the tracts are others, or values are not percentages.
    """
    image, names = _find_tracts(path)
    tracts, affine = _read_4d(image)
    low, high = float(tracts.min()), float(tracts.max())
    if not (low >= 0 and 1 < high <= 100):  # NaN fails too
        raise AtlasError(
            f"{image}: expected percent of subjects, 0 to 100, found {low:g} to {high:g}; use the "
            "probabilistic atlas in percent, not labels or fractions"
        )
    tracts /= 100  # in place: at 1 mm it is more than a gigabyte
    if names != TRACTS:
        tracts = tracts[..., [names.index(name) for name in TRACTS]]
    return tracts, TRACTS, affine


def population_on(
    shape: Sequence[int], affine: np.ndarray, adc_atlas: str | Path, xtract: str | Path | None = None
) -> Population:
    """Return the population maps on a grid in MNI space.

    Parameters
    ----------
    shape, affine
        Shape (3,) of the grid and its (4, 4) voxel indices to MNI world RAS+, mm.
    adc_atlas
        As for `read_adc_atlas`.
    xtract
        As for `read_xtract`; None: without tracts.

    Raises
    ------
    AtlasError
        Where an atlas is missing, faulty or does not overlap the grid.
    """
    shape = tuple(int(n) for n in shape)
    data, bvals, source = read_adc_atlas(adc_atlas)
    adc = _adc_on(data, source, shape, affine)
    if not adc.any():
        raise AtlasError(f"{adc_atlas}: has no brain where the template is; expected an atlas in MNI coordinates")
    tracts = None
    if xtract is not None:
        data, _, source = read_xtract(xtract)
        tracts = np.empty((*shape, data.shape[3]), np.float32)
        for k in range(data.shape[3]):
            tracts[..., k] = _resampled(data[..., k], source, shape, affine)
        if not tracts.any():
            raise AtlasError(f"{xtract}: has no tract where the template is; expected an atlas in MNI coordinates")
    return Population(adc, bvals, tracts)


def _adc_on(adc: np.ndarray, affine: np.ndarray, shape, new_affine: np.ndarray) -> np.ndarray:
    """Return an ADC atlas on another grid; voxels outside the brain (0) are left out of the averages."""
    out = np.zeros((*shape, adc.shape[3]), np.float32)
    for k in range(adc.shape[3]):
        share = _resampled((adc[..., k] > 0).astype(np.float32), affine, shape, new_affine)
        values = _resampled(adc[..., k], affine, shape, new_affine)
        np.divide(values, share, out=out[..., k], where=share > 0.5)
    return out


def _resampled(volume: np.ndarray, affine: np.ndarray, shape, new_affine: np.ndarray) -> np.ndarray:
    """Return a volume (X, Y, Z) resampled linearly, averaged within larger voxels; 0 outside it."""
    from scipy import ndimage

    matrix = np.linalg.inv(affine) @ new_affine
    times = np.linalg.norm(matrix[:3, :3], axis=0).max()
    offsets = subvoxels(1 if times < 1.01 else int(np.ceil(times)) + 1)
    total = np.zeros(shape, np.float32)
    for offset in offsets:
        start = matrix[:3, :3] @ offset + matrix[:3, 3]
        total += ndimage.affine_transform(volume, matrix[:3, :3], start, tuple(shape), np.float32, order=1)
    return total / len(offsets)


def _read_4d(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return an image's values (X, Y, Z, N) and affine."""
    _check_4d(path)
    try:
        data, image = read_image(path)
    except ScanError as error:
        raise AtlasError(str(error)) from None
    return data, image.affine


def _check_4d(path: Path) -> tuple[int, int, int, int]:
    """Return the shape (X, Y, Z, N) in an image's header."""
    try:
        shape = open_image(path).shape
    except ScanError as error:
        raise AtlasError(str(error)) from None
    if len(shape) != 4:
        raise AtlasError(f"{path}: expected a 4-D image (x, y, z, volume), found shape {shape}")
    return shape


def _find_tracts(path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Return the image of XTRACT's tracts and the names of its volumes, from its header and labels."""
    image, labels = _xtract_files(Path(path))
    names = tuple(_xml_labels(labels) if labels.suffix == ".xml" else _tsv_labels(labels))
    odd = sorted(set(names) ^ set(TRACTS))
    if len(names) != len(TRACTS) or odd:
        raise AtlasError(f"{labels}: {XTRACT_RELEASE}, found {len(names)} labels (not in both: {', '.join(odd[:3])})")
    n_volumes = _check_4d(image)[3]
    if n_volumes != len(TRACTS):
        raise AtlasError(f"{image}: {XTRACT_RELEASE}, found {n_volumes} volumes")
    return image, names


def _xtract_files(path: Path) -> tuple[Path, Path]:
    """Return the image and the file of labels."""
    if path.is_dir():
        images = [path / name for name in XTRACT_IMAGES]
        labels = [path / XTRACT_LABELS, path.resolve().parent / XTRACT_LABELS]
    else:
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        images = [path]
        labels = [path.with_name(f"{s}_labels.tsv") for s in dict.fromkeys((stem.rpartition("_")[0] or stem, stem))]
    chosen = []
    for files in (images, labels):
        present = [file for file in files if file.is_file()]
        if not present:
            raise AtlasError(f"{path}: expected {' or '.join(str(file) for file in files)}, found no such file")
        chosen.append(present[0])
    return chosen[0], chosen[1]


def _tsv_labels(path: Path) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(row["index"], row["name"]) for row in csv.DictReader(file, delimiter="\t")]
        return _in_order(rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtlasError(f"{path}: expected columns index (0, 1, ...) and name, tab-separated ({error!r})") from None


def _xml_labels(path: Path) -> list[str]:
    try:
        return _in_order([(label.get("index"), label.text) for label in ElementTree.parse(path).iter("label")])
    except (OSError, ElementTree.ParseError, ValueError, TypeError, AttributeError) as error:
        raise AtlasError(f'{path}: expected FSL\'s <label index="0">name</label>, from 0 on ({error!r})') from None


def _in_order(rows: Sequence[tuple[str | None, str | None]]) -> list[str]:
    """Return the names in order of their indices, which must be 0, 1, ..."""
    complete = [(index, name) for index, name in rows if index is not None and name is not None]
    names = {int(index): " ".join(name.split()) for index, name in complete}
    if sorted(names) != list(range(len(rows))):
        raise ValueError(f"the indices are {sorted(names)}")
    return [names[index] for index in range(len(rows))]
