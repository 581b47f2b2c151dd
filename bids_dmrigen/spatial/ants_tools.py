"""Conversion of arrays and world RAS+ matrices to ANTs and back: images, linear transforms, registration, resampling.

Everything outside this module is in world RAS+ mm. ITK's world is LPS: x and y change sign here and nowhere
else. A transform maps points of the fixed (reference) space to points of the moving space, as ITK's do.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

THREADS_VARIABLE = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
BAD_TRANSFORM = "{files}: cannot be read as a transform ({reason}); copy the file again or compute it anew"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def set_threads(n: int) -> None:
    """Set how many threads ITK uses; this works only before `ants` is first imported in the process."""
    os.environ[THREADS_VARIABLE] = str(int(n))


def to_ants(data: np.ndarray, affine: np.ndarray):
    """Return a 3-D array with its (4, 4) RAS+ affine as an ANTsImage (float32)."""
    import ants

    affine = RAS_TO_LPS @ np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=affine[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=affine[:3, :3] / spacing,
    )


def from_ants(image) -> tuple[np.ndarray, np.ndarray]:
    """Return the array and the (4, 4) RAS+ affine of an ANTsImage."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    affine[:3, 3] = image.origin
    return image.numpy(), RAS_TO_LPS @ affine


def write_matrix(path: str | Path, matrix: np.ndarray, center_mm=(0.0, 0.0, 0.0)) -> Path:
    """Write a (4, 4) RAS+ matrix, fixed points to moving points, as an ITK affine transform (.mat).

    The center, a world point (3,), does not change the map; a registration that starts from it rotates about it.
    """
    import ants

    lps = RAS_TO_LPS @ np.asarray(matrix, dtype=np.float64) @ RAS_TO_LPS
    center = RAS_TO_LPS[:3, :3] @ center_mm
    transform = ants.create_ants_transform(
        transform_type="AffineTransform",
        dimension=3,
        precision="double",
        matrix=lps[:3, :3],
        translation=lps[:3, 3] + lps[:3, :3] @ center - center,
        center=center.tolist(),
    )
    ants.write_transform(transform, str(path))
    return Path(path)


def read_matrix(path: str | Path) -> np.ndarray:
    """Return the (4, 4) RAS+ matrix of an ITK linear transform file.

    Raises
    ------
    ValueError
        Where the file holds no affine transform.
    """
    import ants

    transform = ants.read_transform(str(path))
    parameters, center = np.asarray(transform.parameters), np.asarray(transform.fixed_parameters)[:3]
    if len(parameters) != 12:
        raise ValueError(f"{path}: expected an affine transform of 12 parameters, found {len(parameters)}")
    lps = np.eye(4)
    lps[:3, :3] = parameters[:9].reshape(3, 3)
    lps[:3, 3] = parameters[9:] + center - lps[:3, :3] @ center
    return RAS_TO_LPS @ lps @ RAS_TO_LPS


@dataclass(frozen=True)
class Stage:
    """One stage of a registration, coarse to fine.

    Parameters
    ----------
    transform
        ITK's name with its step, such as `Rigid[0.1]`.
    iterations, shrinks, sigmas_mm
        One entry per level: most iterations, grid reduction, smoothing (mm, standard deviation).
    metric, bins, sampling
        `MI` with a number of histogram bins, or `CC` with a radius (both `bins`); fraction of voxels sampled.
    weights
        One weight per transform parameter (0 holds it fixed); if empty, all are free.
    """

    transform: str
    iterations: Sequence[int]
    shrinks: Sequence[int]
    sigmas_mm: Sequence[float]
    metric: str = "MI"
    bins: int = 32
    sampling: float = 0.25
    weights: Sequence[float] = ()


def register(
    fixed,
    moving,
    stages: Sequence[Stage],
    prefix: str | Path,
    *,
    start: Sequence[str | Path] = (),
    mask=None,
    moving_mask=None,
    composite: bool = False,
    seed: int = 1,
) -> list[Path]:
    """Register images and return the transform files written under `prefix`.

    Parameters
    ----------
    fixed, moving
        ANTsImages, or sequences of them: several contrasts of the same two heads, each weighing the same.
    stages
        Run in order, each starting where the last ended.
    start
        Transform files to start from, in ITK's order (the last one acts first). Without any, the registration starts
        with the centres of mass aligned.
    mask, moving_mask
        ANTsImages; the metric uses only voxels where they are not zero.
    composite
        Write `prefixComposite.h5` (fixed to moving) and `prefixInverseComposite.h5` instead of one file per stage.
    seed
        Random seed of the metric's sampling; with one ITK thread results are identical to the bit.

    Raises
    ------
    RuntimeError
        Where ANTs fails.
    """
    import ants
    from ants.internal import get_pointer_string

    # The pointers are valid only while these copies live; `--float 0` reads double precision.
    fixed, moving = (
        [image.clone("double") for image in (side if isinstance(side, list | tuple) else [side])]
        for side in (fixed, moving)
    )
    masks = [None if image is None else image.clone("double") != 0 for image in (mask, moving_mask)]
    mask_names = ",".join("NA" if image is None else get_pointer_string(image) for image in masks)
    pairs = [f"{get_pointer_string(f)},{get_pointer_string(m)}" for f, m in zip(fixed, moving, strict=True)]
    arguments = ["--dimensionality", "3", "--float", "0", "--random-seed", str(seed)]
    arguments += ["--output", str(prefix), "--write-composite-transform", str(int(composite))]
    arguments += ["--winsorize-image-intensities", "[0.005,0.995]"]
    for name in [f"[{path},0]" for path in start] or [f"[{pairs[0]},1]"]:
        arguments += ["--initial-moving-transform", name]
    for stage in stages:
        arguments += [*_arguments_of(stage, pairs), "--masks", f"[{mask_names}]"]
    ants.registration(fixed=arguments, moving=None)
    return sorted(Path(prefix).parent.glob(Path(prefix).name + "*"))


def _arguments_of(stage: Stage, pairs: Sequence[str]) -> list[str]:
    """Return the arguments of one stage; `pairs` are the pointers of fixed and moving images, "fixed,moving"."""
    arguments = ["--transform", stage.transform]
    for pair in pairs:
        arguments += ["--metric", f"{stage.metric}[{pair},1,{stage.bins},Regular,{stage.sampling}]"]
    arguments += ["--convergence", f"[{_levels(stage.iterations)},1e-7,20]"]
    arguments += ["--shrink-factors", _levels(stage.shrinks)]
    arguments += ["--smoothing-sigmas", _levels(stage.sigmas_mm) + "mm"]
    if stage.weights:
        arguments += ["--restrict-deformation", _levels(stage.weights)]
    return arguments


def register_linear(fixed, moving, stages: Sequence[Stage], *, start: np.ndarray | None = None, **kwargs) -> np.ndarray:
    """Return the (4, 4) RAS+ matrix from fixed to moving points; parameters as for `register`."""
    image = fixed[0] if isinstance(fixed, list | tuple) else fixed
    with tempfile.TemporaryDirectory(prefix="ants-") as folder:
        files: tuple[Path, ...] = ()
        if start is not None:
            # Turning about a far corner couples rotation and translation, and the optimiser stops short.
            files = (write_matrix(Path(folder) / "start.mat", start, center_of(image)),)
        written = register(fixed, moving, stages, Path(folder) / "out-", start=files, **kwargs)
        return read_matrix(written[0])


def center_of(image) -> np.ndarray:
    """Return the world RAS+ point (3,), mm, in the middle of an ANTsImage's field of view."""
    _, affine = from_ants(image)
    return affine[:3] @ [*((np.array(image.shape) - 1) / 2), 1]


def warp(image, reference, transforms: Sequence[str | Path], interpolation: str = "linear"):
    """Return an ANTsImage resampled onto the grid of `reference` through transform files (the last acts first).

    Raises
    ------
    ValueError
        Where a file is missing or holds no transform.
    """
    import ants

    for path in transforms:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; expected a transform")
    try:
        return ants.apply_transforms(
            fixed=reference,
            moving=image,
            transformlist=[str(path) for path in transforms],
            interpolator=interpolation,
            singleprecision=False,
        )
    except RuntimeError as error:
        files = ", ".join(map(str, transforms))
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise ValueError(BAD_TRANSFORM.format(files=files, reason=reason)) from None


def _levels(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)
