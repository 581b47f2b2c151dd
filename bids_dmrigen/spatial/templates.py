"""Templates: the one embedded in nilearn, and those in a directory that the user gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..dwi.series import ScanError
from .io import open_image, read_image, read_volume

if TYPE_CHECKING:  # this module loads torch
    from ..simulate.atlas import Atlas

EMBEDDED_URL = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"
EMBEDDED_NAME = "MNI152NLin2009aSym"  # TemplateFlow's spelling of nilearn's bundled ICBM 2009a symmetric maps
# Images (.nii.gz) of an atlas with fibre directions -> their axes after the three spatial ones.
FIBRE_IMAGES = {
    "T1w": (), "brain_mask": (), "tissue_wm_gm_csf_percent": (3,), "peaks_world_ras": (9,), "qa": (3,),
}  # fmt: skip
SAME_GRID_MM = 1e-3
WRONG_FIBRES = (
    "{path}: expected shape {expected} with the affine of T1w.nii.gz, found {found}{elsewhere}; "
    "a fibre atlas holds {names} (.nii.gz) on one grid"
)


class TemplateError(ValueError):
    """A template is missing or cannot be used; the message says what was expected."""


@dataclass(frozen=True)
class Template:
    """Files of one template; `name` is TemplateFlow's, as in `tpl-<name>`."""

    name: str
    t1w: Path
    mask: Path
    fa: Path | None = None


def embedded_mni(resolution_mm: int = 2) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the MNI maps that nilearn carries: no files, no network.

    Parameters
    ----------
    resolution_mm
        Voxel size, a whole number. The stored maps have 1 mm; other sizes are resampled from them.

    Returns
    -------
    arrays
        `t1w` (skull-stripped, in [0, 1]), `white`, `grey` (probabilities) as float32 and `brain` (bool), each
        (X, Y, Z) on one grid.
    affine
        (4, 4) voxel indices to world RAS+ of MNI152NLin2009aSym, mm.
    """
    from nilearn import datasets

    images = {
        "t1w": datasets.load_mni152_template(resolution=resolution_mm),
        "white": datasets.load_mni152_wm_template(resolution=resolution_mm),
        "grey": datasets.load_mni152_gm_template(resolution=resolution_mm),
        "brain": datasets.load_mni152_brain_mask(resolution=resolution_mm),
    }
    arrays: dict[str, np.ndarray] = {
        name: np.asarray(image.dataobj, dtype=np.float32) for name, image in images.items()
    }
    arrays["brain"] = arrays["brain"] > 0.5
    for name in ("t1w", "white", "grey"):
        arrays[name] = np.clip(arrays[name], 0, 1) * arrays["brain"]
    return arrays, np.array(images["t1w"].affine, dtype=np.float64)


def read_fibre_atlas(folder: str | Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the maps of an atlas with measured fibre directions, as arguments of `simulate.atlas.fibre_atlas`.

    Parameters
    ----------
    folder
        Holds, on one grid, `T1w`, `brain_mask`, `tissue_wm_gm_csf_percent` (three maps), `peaks_world_ras` (nine:
        three directions) and `qa` (three strengths), all .nii.gz.

    Returns
    -------
    arrays
        `t1w`, `white`, `grey`, `brain`, `directions` and `strengths`.
    affine
        (4, 4) voxel indices to world RAS+, mm.

    Raises
    ------
    AtlasError
        As `check_fibre_atlas`.
    ScanError
        Where an image is truncated.
    """
    from scipy import ndimage

    check_fibre_atlas(folder)
    images = [read_image(path) for path in fibre_images(folder)]
    t1w, brain, tissue, peaks, strengths = (np.asarray(data, dtype=np.float32) for data, _ in images)
    brain = ndimage.binary_fill_holes(brain > 0.5)  # brain masks may leave out the ventricles
    arrays = {"t1w": np.clip(t1w / np.quantile(t1w[brain], 0.999), 0, 1) * brain, "brain": brain}
    arrays |= dict(zip(("white", "grey"), np.moveaxis(tissue[..., :2], 3, 0) / 100, strict=True))
    arrays["directions"] = np.moveaxis(peaks.reshape(*peaks.shape[:3], 3, 3), (3, 4), (0, 1))
    arrays["strengths"] = np.moveaxis(strengths, 3, 0)
    return arrays, images[0][1].affine


def check_fibre_atlas(folder: str | Path) -> None:
    """Refuse an atlas that `read_fibre_atlas` cannot read; only the images' headers are read.

    Raises
    ------
    AtlasError
        Where a file is missing, is not an image, or has another shape or affine than the others.
    """
    from ..simulate.atlas_file import AtlasError

    paths = fibre_images(folder)
    try:
        images = [open_image(path) for path in paths]
    except ScanError as error:
        raise AtlasError(f"{error}; a fibre atlas holds {', '.join(FIBRE_IMAGES)} (.nii.gz) on one grid") from None
    grid, affine = images[0].shape[:3], images[0].affine
    for path, image, extra in zip(paths, images, FIBRE_IMAGES.values(), strict=True):
        away = not np.allclose(image.affine, affine, atol=SAME_GRID_MM)
        if image.shape != (*grid, *extra) or away:
            raise AtlasError(
                WRONG_FIBRES.format(
                    path=path, expected=(*grid, *extra), found=image.shape, names=", ".join(FIBRE_IMAGES),
                    elsewhere=" with another affine" * away,
                )
            )  # fmt: skip


def fibre_images(folder: str | Path) -> list[Path]:
    """Return the images of an atlas with fibre directions, in the order of `FIBRE_IMAGES`."""
    return [Path(folder) / f"{name}.nii.gz" for name in FIBRE_IMAGES]


def read_anatomy(source: str | Path | None = None, resolution_mm: int = 2) -> Atlas:
    """Return mean tissue and fibre directions, from a folder for `read_fibre_atlas` or, with None, the embedded atlas.

    `resolution_mm` is the voxel size of the embedded atlas.
    """
    from ..simulate.atlas import fibre_atlas, procedural_atlas

    if source is None:
        arrays, affine = embedded_mni(resolution_mm)
        return procedural_atlas(**arrays, affine=affine)
    arrays, affine = read_fibre_atlas(source)
    return fibre_atlas(**arrays, affine=affine)


def find_template(template_dir: str | Path) -> Template:
    """Return the files of the template in a directory: TemplateFlow's layout or plain files.

    Accepted are `tpl-<name>/tpl-<name>[_res-..]_T1w.nii.gz`, below the directory or in it, and plain
    `tpl-<name>_T1w.nii.gz`, each with its `*_mask.nii.gz` or `*_desc-brain_mask.nii.gz`; FA is
    optional. Of several resolutions, 1 mm (`res-01`, `res-1`) is preferred, then the first by name.

    Raises
    ------
    TemplateError
        Where the directory, the T1w, its mask or the template's name is missing, or there are several templates.
    """
    folder = Path(template_dir)
    if not folder.is_dir():
        raise TemplateError(f"{folder}: no such directory; --template-dir names a folder with a standard brain")
    t1w = _files(folder, "T1w")
    if not t1w:
        raise TemplateError(f"{folder}: no *_T1w.nii.gz found; expected tpl-<name>[_res-01]_T1w.nii.gz and its mask")
    names = {path: name for path in t1w if (name := _name(path)) is not None}
    for nameless in (path for path in t1w if path not in names):
        raise TemplateError(
            f"{nameless}: the file name does not say which template this is; "
            "name it tpl-<name>_T1w.nii.gz, e.g. tpl-MNI152NLin6Asym_T1w.nii.gz"
        )
    if len(set(names.values())) > 1:
        listed = ", ".join(sorted(set(names.values())))
        raise TemplateError(f"{folder}: holds several templates ({listed}); name the folder of one of them")
    name = names[t1w[0]]
    head = t1w[0]
    mask = _companion(folder, "mask", head) or _companion(folder, "desc-brain_mask", head)
    if mask is None:
        raise TemplateError(f"{head}: no brain mask beside it; expected tpl-{name}[_res-01][_desc-brain]_mask.nii.gz")
    return Template(name, head, mask, _companion(folder, "FA", head))


def check_template(template: Template) -> None:
    """Read the files of a template whole, so that a damaged one is noticed before anything is computed.

    Raises
    ------
    TemplateError
        Where one cannot be read, or T1w and mask are on different grids.
    """
    try:
        (t1w, head), (mask, other) = (read_volume(path) for path in (template.t1w, template.mask))
        if template.fa is not None:
            read_volume(template.fa)
    except ScanError as error:
        raise TemplateError(str(error)) from None
    if t1w.shape != mask.shape or not np.allclose(head.affine, other.affine, atol=SAME_GRID_MM):
        raise TemplateError(f"{template.mask}: the mask is not on the grid of {template.t1w.name}; give one that is")


def _files(folder: Path, suffix: str) -> list[Path]:
    """Return whole-head images of this suffix at most two levels down, finest first."""
    files = [
        path
        for pattern in (f"*_{suffix}.nii*", f"*/*_{suffix}.nii*")
        for path in folder.glob(pattern)
        if "cohort-" not in path.name and ("desc-" not in path.name or "desc-brain" in path.name)
    ]
    return sorted(files, key=lambda path: (_resolution(path) not in ("01", "1"), "desc-brain" in path.name, path.name))


def _companion(folder: Path, suffix: str, t1w: Path) -> Path | None:
    """Return the file of this suffix that belongs to the T1w: same folder, same resolution."""
    for path in _files(folder, suffix):
        if path.parent == t1w.parent and _name(path) in (None, _name(t1w)) and _resolution(path) == _resolution(t1w):
            return path
    return None


def _name(path: Path) -> str | None:
    match = re.search(r"(?:^|_)tpl-([a-zA-Z0-9]+)", path.name) or re.search(r"^tpl-([a-zA-Z0-9]+)$", path.parent.name)
    return match.group(1) if match else None


def _resolution(path: Path) -> str | None:
    match = re.search(r"_res-([a-zA-Z0-9]+)", path.name)
    return match.group(1) if match else None
