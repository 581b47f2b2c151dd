"""Scan to T1w to template and back: registration, and atlases brought into the scan's space."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from ..dwi.series import ScanError
from ..qc.iqm import mutual_information
from ..qc.metrics import dice
from ..spatial.templates import Template
from .brain import dilate, erode, largest

WORKING_MM = 2.0
STRIPPED_LITRES = 2.2  # more tissue than this is a whole head
FAT_RATIO, DURA_RATIO, RIM_DEPTH_MM = 1.5, 0.25, 14.0  # relative to white matter's T1w; how deep fat is looked for
RIM_MM = 8.0  # beyond the brain's edge, so that the edge itself is seen


@dataclass(frozen=True, eq=False)
class Brain:
    """A template: arrays (X, Y, Z) on one grid, brain extracted, and its affine."""

    name: str
    t1w: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    white: np.ndarray | None = None  # FA, or the probability of white matter


def load_template(found: Template | None = None) -> Brain:
    """Return a template from its files, or the embedded one, on a grid of 2 mm."""
    from ..spatial.ants_tools import from_ants, to_ants
    from ..spatial.io import read_volume
    from ..spatial.templates import EMBEDDED_NAME, embedded_mni

    if found is None:
        arrays, affine = embedded_mni(int(WORKING_MM))
        return Brain(EMBEDDED_NAME, arrays["t1w"], arrays["brain"], affine, arrays["white"])
    t1w, image = read_volume(found.t1w)
    grid = _coarse(to_ants(t1w, image.affine))
    values, affine = from_ants(grid)

    def on_grid(path: Path) -> np.ndarray:
        from ..spatial.ants_tools import warp

        data, source = read_volume(path)
        return warp(to_ants(data, source.affine), grid, ()).numpy()

    mask = on_grid(found.mask) > 0.5
    white = on_grid(found.fa) * mask if found.fa else None
    return Brain(found.name, values * mask, mask, affine, white)


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
    from ..spatial.ants_tools import Stage, register_linear, to_ants

    scan = to_ants(b0 * mask, affine)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    head = _coarse(to_ants(t1w, t1w_affine))
    rim = to_ants(dilate(mask, RIM_MM, zooms), affine)
    # Two images of one session share the scanner's coordinates; of two sessions they may not.
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

    The scan is the fixed image, so that the metric looks where the scan has data, however little that is.

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
    from ..spatial.ants_tools import Stage, center_of, register, register_linear, to_ants, write_matrix

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

    An extracted T1w is freed of what extraction leaves (fat, dura); on a whole head the template's brain is warped.
    """
    from ..spatial.ants_tools import from_ants, to_ants, warp

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
    """Return the tissue (X, Y, Z) without fat, which outshines white matter, and dura, which is dim, at its edge."""
    from scipy import ndimage

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
    from ..spatial.ants_tools import to_ants, warp
    from ..spatial.io import read_image

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

    Centres of mass mislead where part of the brain lies outside the field of view: along the head the guesses also
    align the tops, and stand between; heads nod.
    """
    center, target = _center(mask, affine), _center(template.mask, template.affine)
    tops = [_top(mask, affine), _top(template.mask, template.affine)]
    by_top = (tops[1] - tops[0]) - (target[2] - center[2])
    starts = []
    for rise in (0.0,) if abs(by_top) < 10 else (0.0, by_top / 2, by_top):
        for nod in (-15.0, 0.0, 15.0):
            angle = np.deg2rad(nod)
            start = np.eye(4)
            start[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            start[:3, 3] = target + np.array([0.0, 0.0, rise]) - start[:3, :3] @ center
            starts.append(start)
    return starts


def _best(starts, first, affine, mask, second, second_affine) -> np.ndarray:
    """Return the matrix (first's points to second's) with the highest mutual information in the mask."""
    from scipy import ndimage

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


class _NormalizeInputSpec(BaseInterfaceInputSpec):
    in_reference = File(exists=True, mandatory=True, desc="mean b0 of the preprocessed scan")
    in_mask = File(exists=True, mandatory=True, desc="the scan's brain")
    in_fa = File(exists=True, desc="the scan's FA; helps where there is no T1w")
    in_t1w = File(exists=True, desc="T1w of the same head, whole or brain-extracted")
    template_name = traits.Str(desc="TemplateFlow name; not given: the embedded template")
    template_t1w = File(exists=True, desc="the template's T1w")
    template_mask = File(exists=True, desc="the template's brain mask")
    template_fa = File(exists=True, desc="the template's FA, where it has one")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="ITK threads")
    random_seed = traits.Int(1, usedefault=True, desc="of the metric's sampling")


class _NormalizeOutputSpec(TraitedSpec):
    out_to_t1w = File(desc="rigid .mat that resamples the scan onto the T1w; only with a T1w")
    out_from_t1w = File(desc="rigid .mat that resamples the T1w onto the scan; only with a T1w")
    out_to_template = File(exists=True, desc=".h5 that resamples the scan onto the template")
    out_from_template = File(exists=True, desc=".h5 that resamples an atlas onto the scan")
    out_t1w = File(desc="T1w on the scan's grid; only with a T1w")
    out_reference_template = File(exists=True, desc="mean b0 on the template's 2 mm grid")
    out_fa_template = File(desc="FA on the template's 2 mm grid; only with an FA")
    out_brain_template = File(exists=True, desc="the template's brain on its own 2 mm grid, uint8")
    out_template_mask = File(exists=True, desc="the template's brain on the scan's grid, uint8")
    out_template_t1w = File(exists=True, desc="the template's T1w on the scan's grid")
    out_report = File(exists=True, desc="JSON: template, Dice of its brain with the scan's, mutual information")


class Normalize(SimpleInterface):
    """Register a scan to its T1w, where there is one, and to the template."""

    input_spec = _NormalizeInputSpec
    output_spec = _NormalizeOutputSpec

    def _run_interface(self, runtime):
        from ..spatial.ants_tools import set_threads, to_ants, warp
        from ..spatial.io import read_image, write_atomically, write_image

        inputs = self.inputs
        set_threads(inputs.num_threads)
        folder = Path(runtime.cwd)
        b0, image = read_image(inputs.in_reference)
        mask = read_image(inputs.in_mask)[0] > 0.5
        if mask.shape != b0.shape or not mask.any():
            raise ScanError(
                f"{inputs.in_mask}: expected a brain mask of shape {b0.shape}, "
                f"found {mask.shape} with {mask.sum()} voxels"
            )
        template = load_template(self._template())
        fa = read_image(inputs.in_fa)[0] if isdefined(inputs.in_fa) else None
        if isdefined(inputs.in_t1w):
            transforms = self._through_t1w(b0, mask, image, template, folder)
        else:
            images = {"b0": b0} if fa is None else {"b0": b0, "fa": fa}
            transforms = register_to_template(images, image.affine, mask, template, folder, inputs.random_seed)
        for name, path in zip(("to", "from"), transforms, strict=True):
            target = folder / f"{name}_template.h5"
            shutil.move(path, target)
            self._results[f"out_{name}_template"] = str(target)
        grid, target = to_ants(b0, image.affine), to_ants(template.t1w, template.affine)
        back = [self._results["out_from_template"]]
        warped = warp(to_ants(template.mask, template.affine), grid, back).numpy() > 0.5
        template_t1w = warp(target, grid, back).numpy()
        for name, data, kind in (
            ("template_mask", warped, np.uint8),
            ("template_t1w", template_t1w, np.float32),
        ):
            self._results[f"out_{name}"] = str(write_image(folder / f"{name}.nii", data, image, kind))
        for name, data in (("reference", b0), ("fa", fa)):
            if data is not None:
                moved = warp(to_ants(data, image.affine), target, [self._results["out_to_template"]]).numpy()
                self._results[f"out_{name}_template"] = str(
                    _write(folder / f"{name}_template.nii", moved, template.affine)
                )
        brain = _write(folder / "brain_template.nii", template.mask, template.affine, np.uint8)
        self._results["out_brain_template"] = str(brain)
        report = {
            "Template": template.name,
            "ThroughT1w": bool(isdefined(inputs.in_t1w)),
            "Dice": dice(warped, mask),
            "MutualInformation": mutual_information(b0, template_t1w, mask),
        }
        self._results["out_report"] = str(folder / "normalize.json")
        write_atomically(self._results["out_report"], lambda part: Path(part).write_text(json.dumps(report, indent=2)))
        return runtime

    def _template(self) -> Template | None:
        i = self.inputs
        if not isdefined(i.template_t1w):
            return None
        fa = Path(i.template_fa) if isdefined(i.template_fa) else None
        return Template(i.template_name, Path(i.template_t1w), Path(i.template_mask), fa=fa)

    def _through_t1w(self, b0, mask, image, template: Brain, folder: Path) -> tuple[Path, Path]:
        from ..spatial.ants_tools import from_ants, to_ants, warp, write_matrix
        from ..spatial.io import read_volume, write_image

        seed = self.inputs.random_seed
        t1w, t1w_image = read_volume(self.inputs.in_t1w)
        brain = t1w_brain(t1w, t1w_image.affine, template, folder / "extract", seed)
        to_scan = register_to_t1w(b0, image.affine, mask, t1w * brain, t1w_image.affine, seed)
        self._results["out_to_t1w"] = str(write_matrix(folder / "to_t1w.mat", to_scan))
        self._results["out_from_t1w"] = str(write_matrix(folder / "from_t1w.mat", np.linalg.inv(to_scan)))
        # The T1w enters the scan's world by its header alone: no interpolation, and one transform to the template.
        moved = to_scan @ t1w_image.affine
        on_scan = warp(to_ants(t1w, moved), to_ants(b0, image.affine), ()).numpy()
        self._results["out_t1w"] = str(write_image(folder / "t1w.nii", on_scan, image))
        corners = np.argwhere(brain)
        low, high = np.maximum(corners.min(0) - 12, 0), corners.max(0) + 13
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        shifted = moved.copy()
        shifted[:3, 3] += moved[:3, :3] @ low
        coarse, grid = from_ants(_coarse(to_ants((t1w * brain)[box], shifted)))
        inside = from_ants(_coarse(to_ants(brain[box], shifted)))[0] > 0.5
        return register_to_template({"t1w": coarse}, grid, inside, template, folder, seed)


def _write(path: Path, data: np.ndarray, affine: np.ndarray, kind=np.float32) -> Path:
    import nibabel as nib

    from ..spatial.io import write_image

    return write_image(path, data, nib.Nifti1Image(np.zeros(data.shape, np.uint8), affine), kind)
