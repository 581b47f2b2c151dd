"""Registration of a scan to its T1w and to the template, and atlases resampled into the scan's space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .ants_tools import Stage, center_of, from_ants, register, register_linear, to_ants, warp, write_matrix
from .brain_mask import dilate, erode, largest
from .io import read_image, read_volume
from .similarity import dice, mutual_information
from .templates import EMBEDDED_NAME, Template, embedded_mni

WORKING_MM = 2.0
STRIPPED_LITRES = 2.2  # a T1w with more tissue than this shows a whole head
FAT_RATIO, DURA_RATIO, RIM_DEPTH_MM = 1.5, 0.25, 14.0  # relative to white matter's T1w; largest depth of fat
RIM_MM = 8.0  # margin around the brain, so that its edge enters the metric


@dataclass(frozen=True, eq=False)
class Brain:
    """A template: arrays (X, Y, Z) on one grid, brain extracted, and its affine."""

    name: str
    t1w: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    white: np.ndarray | None = None  # FA, or the probability of white matter


@dataclass(frozen=True, eq=False)
class Normalized:
    """A scan registered to the template: transforms, and images of the template on the grid of the scan.

    Parameters
    ----------
    to_template, from_template
        Composite transform files: the first resamples the scan onto the template, the second an atlas onto the scan.
    on_scan
        (X, Y, Z) each: `template_mask`, bool, `template_t1w` and, with a T1w, `t1w`.
    t1w_to_scan
        (4, 4) rigid, points of the T1w to points of the scan, world RAS+ mm; None without a T1w.
    report
        Name of the template, whether the T1w was used, Dice of the brain masks, mutual information.
    """

    to_template: Path
    from_template: Path
    on_scan: dict[str, np.ndarray]
    t1w_to_scan: np.ndarray | None
    report: dict[str, str | bool | float]


def load_template(template: Template | None = None) -> Brain:
    """Return a template from its files, or the embedded one, on a grid of 2 mm."""
    if template is None:
        arrays, affine = embedded_mni(int(WORKING_MM))
        return Brain(EMBEDDED_NAME, arrays["t1w"], arrays["brain"], affine, arrays["white"])
    t1w, image = read_volume(template.t1w)
    grid = _coarse(to_ants(t1w, image.affine))
    values, affine = from_ants(grid)

    def on_grid(path: Path) -> np.ndarray:
        data, source = read_volume(path)
        return warp(to_ants(data, source.affine), grid, ()).numpy()

    mask = on_grid(template.mask) > 0.5
    white = on_grid(template.fa) * mask if template.fa else None
    return Brain(template.name, values * mask, mask, affine, white)


def normalize(
    b0: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    template: Brain,
    folder: Path,
    *,
    fa: np.ndarray | None = None,
    t1w: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 1,
) -> Normalized:
    """Register a scan to its T1w, where there is one, and to the template.

    Parameters
    ----------
    b0, mask
        (X, Y, Z) the scan's mean b0 and brain.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    template
        The target.
    folder
        Where transform files are written.
    fa
        (X, Y, Z) the scan's FA; used where there is no T1w.
    t1w
        (U, V, W) T1w of the same head, whole or brain-extracted, and its (4, 4) affine.
    seed
        Of the metric's sampling.
    """
    t1w_to_scan, on_scan = None, {}
    if t1w is not None:
        t1w_to_scan, on_scan["t1w"], transforms = _through_t1w(b0, affine, mask, *t1w, template, folder, seed)
    else:
        images = {"b0": b0} if fa is None else {"b0": b0, "fa": fa}
        transforms = register_to_template(images, affine, mask, template, folder, seed)
    to_template, from_template = transforms
    grid, target = to_ants(b0, affine), to_ants(template.t1w, template.affine)
    on_scan["template_mask"] = warp(to_ants(template.mask, template.affine), grid, [from_template]).numpy() > 0.5
    on_scan["template_t1w"] = warp(target, grid, [from_template]).numpy()
    report: dict[str, str | bool | float] = {
        "Template": template.name,
        "ThroughT1w": t1w is not None,
        "Dice": dice(on_scan["template_mask"], mask),
        "MutualInformation": mutual_information(b0, on_scan["template_t1w"], mask),
    }
    return Normalized(to_template, from_template, on_scan, t1w_to_scan, report)


def _through_t1w(b0, affine, mask, t1w, t1w_affine, template: Brain, folder: Path, seed: int):
    """Return the matrix from T1w points to scan points, the T1w on the scan's grid, and the two transform files."""
    brain = t1w_brain(t1w, t1w_affine, template, folder / "extract", seed)
    to_scan = register_to_t1w(b0, affine, mask, t1w * brain, t1w_affine, seed)
    # The T1w is moved to the scan's world by its affine: no interpolation, and one transform to the template.
    moved = to_scan @ t1w_affine
    on_scan = warp(to_ants(t1w, moved), to_ants(b0, affine), ()).numpy()
    corners = np.argwhere(brain)
    low, high = np.maximum(corners.min(0) - 12, 0), corners.max(0) + 13
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    shifted = moved.copy()
    shifted[:3, 3] += moved[:3, :3] @ low
    coarse, grid = from_ants(_coarse(to_ants((t1w * brain)[box], shifted)))
    inside = from_ants(_coarse(to_ants(brain[box], shifted)))[0] > 0.5
    return to_scan, on_scan, register_to_template({"t1w": coarse}, grid, inside, template, folder, seed)


def register_to_t1w(
    b0: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    t1w: np.ndarray,
    t1w_affine: np.ndarray,
    seed: int = 1,
) -> np.ndarray:
    """Return the rigid (4, 4) RAS+ matrix from T1w points to scan points, by mutual information.

    Parameters
    ----------
    b0, mask
        (X, Y, Z) the scan's mean b0 and brain.
    affine, t1w_affine
        (4, 4) voxel indices to world RAS+, mm.
    t1w
        (U, V, W) brain-extracted T1w.
    seed
        Of the metric's sampling.
    """
    scan = to_ants(b0 * mask, affine)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    head = _coarse(to_ants(t1w, t1w_affine))
    rim = to_ants(dilate(mask, RIM_MM, zooms), affine)
    # Images of one session share the scanner's coordinates; images of two sessions may not.
    centers = [_center(mask, affine), _center(t1w > 0, t1w_affine)]
    shift = np.eye(4)
    shift[:3, 3] = centers[1] - centers[0]
    coarse = [Stage("Rigid[0.1]", (100,), (_shrink(8.0, zooms),), (4.0,))]
    starts = [register_linear(scan, head, coarse, start=s, mask=rim, seed=seed) for s in (np.eye(4), shift)]
    best = _best(starts, b0 * mask, affine, rim.numpy() > 0, t1w, t1w_affine)
    fine = [
        Stage(
            "Rigid[0.1]",
            (100, 100),
            (_shrink(4.0, zooms), _shrink(2.0, zooms)),
            (2.0, 1.0),
            sampling=0.5,
        )
    ]
    return np.linalg.inv(register_linear(scan, head, fine, start=best, mask=rim, seed=seed))


def register_to_template(
    images: dict[str, np.ndarray],
    affine: np.ndarray,
    mask: np.ndarray,
    template: Brain,
    folder: Path,
    seed: int = 1,
) -> tuple[Path, Path]:
    """Register brain images in the scan's world to the template: affine, then SyN.

    The scan is the fixed image, so that the metric is computed where the scan has data, however little that is.

    Parameters
    ----------
    images
        (X, Y, Z) each: `t1w`, or `b0` and (when there is one) `fa`.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    mask
        (X, Y, Z) bool brain.
    template
        The target.
    folder
        Where files are written.
    seed
        Of the metric's sampling.

    Returns
    -------
    to_template, from_template
        Composite transforms (.h5): the first resamples a scan's image onto the template, the second an atlas onto
        the scan.
    """
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    first = images.get("t1w", images.get("b0"))
    rim_array = dilate(mask, RIM_MM, zooms)
    rim = to_ants(rim_array, affine)
    fixed, moving = [to_ants(first * mask, affine)], [to_ants(template.t1w, template.affine)]
    if "fa" in images and template.white is not None:
        fixed.append(to_ants(images["fa"] * mask, affine))
        moving.append(to_ants(template.white, template.affine))
    shrinks = [_shrink(size, zooms) for size in (8.0, 4.0, 2.0)]
    coarse = Stage("Rigid[0.1]", (30,), (shrinks[0],), (4.0,))
    guesses = [
        register_linear(fixed[0], moving[0], [coarse], start=guess, mask=rim, seed=seed)
        for guess in _starts(mask, affine, template)
    ]
    best = _best(guesses, first * mask, affine, rim_array, template.t1w, template.affine)
    start = write_matrix(folder / "start.mat", best, center_of(fixed[0]))
    stages = [
        Stage("Affine[0.1]", (100, 50), shrinks[:2], (4.0, 2.0)),
        Stage("SyN[0.2,3,0]", (60, 40, 20), shrinks, (4.0, 2.0, 1.0), sampling=1.0),
    ]
    register(fixed, moving, stages, folder / "template-", start=(start,), mask=rim, composite=True, seed=seed)
    return folder / "template-InverseComposite.h5", folder / "template-Composite.h5"


def t1w_brain(t1w: np.ndarray, affine: np.ndarray, template: Brain, folder: Path, seed: int = 1) -> np.ndarray:
    """Return the brain (X, Y, Z) bool of a T1w.

    From a T1w that is already brain-extracted, remaining fat and dura are removed. For a whole head, the template's
    brain mask is warped to it.
    """
    head = to_ants(t1w, affine)
    coarse = _coarse(head)
    values, grid = from_ants(coarse)
    tissue = values > 0.02 * np.percentile(values, 99.5)
    if tissue.sum() * WORKING_MM**3 / 1e6 < STRIPPED_LITRES and np.mean(t1w == 0) > 0.3:
        brain = to_ants(_without_rim(values, tissue, np.linalg.norm(grid[:3, :3], axis=0)), grid)
        return (warp(brain, head, ()).numpy() > 0.5) & (t1w > 0)
    folder.mkdir(parents=True, exist_ok=True)
    whole = np.ones(values.shape, bool)
    _, from_template = register_to_template({"t1w": values}, grid, whole, template, folder, seed)
    return warp(to_ants(template.mask, template.affine), head, [from_template]).numpy() > 0.5


def _without_rim(t1w: np.ndarray, tissue: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Return the tissue (X, Y, Z) without the fat (brighter than white matter) and dura (dark) at its edge."""
    tissue = ndimage.binary_fill_holes(tissue)
    depth = ndimage.distance_transform_edt(tissue, sampling=zooms)
    white = np.median(t1w[depth > min(15.0, depth.max() / 2)])
    fat = (t1w > FAT_RATIO * white) & (depth < RIM_DEPTH_MM)
    inside = (tissue & ~fat & (t1w > DURA_RATIO * white)) | (depth > 20)
    core = largest(erode(inside, 3.0, zooms))
    brain = dilate(core, 4.5, zooms) & tissue & ~fat
    return ndimage.binary_fill_holes(brain | erode(dilate(brain, 5.0, zooms), 5.0, zooms))


def apply_to_scan(atlas: str | Path, transform: str | Path, reference: str | Path, labels: bool = False) -> np.ndarray:
    """Return an atlas file on the scan's grid, through a stored transform.

    Parameters
    ----------
    atlas
        Image in the template's space, 3-D or 4-D.
    transform
        `from-<template>_to-dwi` transform file.
    reference
        Image that has the scan's grid.
    labels
        Take the nearest label instead of interpolating linearly.

    Returns
    -------
    (X, Y, Z) or (X, Y, Z, N) float32.
    """
    data, image = read_image(atlas)
    grid, grid_image = read_image(reference)
    target = to_ants(grid if grid.ndim == 3 else grid[..., 0], grid_image.affine)
    volumes = data[..., None] if data.ndim == 3 else data
    out = np.empty((*target.shape, volumes.shape[3]), np.float32)
    for volume in range(volumes.shape[3]):
        source = to_ants(volumes[..., volume], image.affine)
        out[..., volume] = warp(source, target, [transform], "nearestNeighbor" if labels else "linear").numpy()
    return out[..., 0] if data.ndim == 3 else out


def _starts(mask: np.ndarray, affine: np.ndarray, template: Brain) -> list[np.ndarray]:
    """Return rigid guesses (4, 4) from scan points to template points.

    Centres of mass mislead where part of the brain is outside the field of view. So guesses also align the tops of the
    brains, or lie halfway, with the head tilted forward or back.
    """
    center, target = _center(mask, affine), _center(template.mask, template.affine)
    tops = [_top(mask, affine), _top(template.mask, template.affine)]
    by_top = (tops[1] - tops[0]) - (target[2] - center[2])
    starts = []
    for rise in (0.0,) if abs(by_top) < 10 else (0.0, by_top / 2, by_top):
        for nod in (-15.0, 0.0, 15.0):
            start = np.eye(4)
            start[:3, :3] = Rotation.from_euler("x", nod, degrees=True).as_matrix()
            start[:3, 3] = target + np.array([0.0, 0.0, rise]) - start[:3, :3] @ center
            starts.append(start)
    return starts


def _best(starts, first, affine, mask, second, second_affine) -> np.ndarray:
    """Return the matrix (first's points to second's) with the highest mutual information in the mask."""

    def score(start: np.ndarray) -> float:
        matrix = np.linalg.inv(second_affine) @ start @ affine
        moved = ndimage.affine_transform(
            np.asarray(second, np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=first.shape, order=1
        )
        return mutual_information(first, moved, mask)

    return max(starts, key=score)


def _top(mask: np.ndarray, affine: np.ndarray) -> float:
    heights = np.argwhere(mask) @ affine[2, :3] + affine[2, 3]
    return float(np.percentile(heights, 99.8))


def _center(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def _shrink(size_mm: float, zooms: np.ndarray) -> int:
    return max(1, int(size_mm / zooms.max() + 0.5))


def _coarse(image):
    import ants

    return ants.resample_image(image, (WORKING_MM,) * 3, use_voxels=False, interp_type=0)
