"""Susceptibility distortion from two b0s of opposite phase encoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg

from ..bids.tables import read_bvals
from ..dwi.series import Scan, ScanError
from .ants_tools import Stage, register_linear, to_ants
from .brain_mask import brain_mask
from .io import read_image
from .resample import sample_volume
from .similarity import pearson

NOT_OPPOSITE = "phase encoding {first} and {second}: expected opposites, such as j and j-"
GRID_MISMATCH = "the b0s have shapes {first} and {second}; both must be on one grid"
LEVELS = ((2, 8.0), (2, 4.0), (1, 2.0))  # grid reduction and smoothing (full width, mm), coarse to fine
STIFFNESS = 0.18  # weight of the squared strain against the squared difference of b0s of unit mean square
LARGEST_STRAIN = 0.95  # at 1, two points of the anatomy would be mapped to one
STEPS, LINE_STEPS, SOLVER_STEPS = 10, 6, 20
STILL_MM = 0.1  # smaller head motion is ignored


@dataclass(frozen=True, eq=False)
class Distortion:
    """Displacement and corrected images, estimated from two b0s of opposite phase encoding.

    Parameters
    ----------
    field_mm
        (X, Y, Z) displacement along the phase axis, towards higher index: the content of voxel y of the true
        anatomy is found at y + field in the first b0 and at y - field in the second.
    corrected, corrected_opposite
        (X, Y, Z) both b0s undistorted, signal modulated.
    head_motion
        (4, 4) world RAS+: points of the head in the first b0 to points of the head in the second.
    """

    field_mm: np.ndarray
    corrected: np.ndarray
    corrected_opposite: np.ndarray
    head_motion: np.ndarray


def phase_axis(direction: str, opposite_direction: str, path: str | Path) -> int:
    """Return the voxel axis of two opposite phase-encoding directions as BIDS names them.

    >>> phase_axis("j", "j-", "epi.nii")
    1

    Parameters
    ----------
    direction, opposite_direction
        Such as `j` and `j-`.
    path
        File of the second image, named in messages.

    Raises
    ------
    ScanError
        Where the directions are not opposite.
    """
    if direction[0] != opposite_direction[0] or direction == opposite_direction:
        raise ScanError(f"{path}: " + NOT_OPPOSITE.format(first=direction, second=opposite_direction))
    return "ijk".index(direction[0])


def read_opposite_b0(path: str | Path, bval: str | Path | None, b0_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean b0 (X, Y, Z) of an image of opposite phase encoding, and its (4, 4) affine.

    Single values that are not finite become 0, as in the series that is corrected.

    Parameters
    ----------
    path
        A b0 volume, or a series.
    bval
        Text file with its b-values, s/mm²; None: every volume is a b0.
    b0_threshold
        Volumes at or below this b-value are b0, s/mm².

    Raises
    ------
    ScanError
        Where the image cannot be read, the number of b-values is wrong, or no volume is a b0.
    """
    data, image = read_image(path)
    data = np.nan_to_num(data, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if data.ndim == 3:
        return data, image.affine
    data = data.reshape(*data.shape[:3], -1)  # five axes, one of them of length one
    if bval is None:
        return data.mean(axis=3), image.affine
    bvals = read_bvals(bval)
    if len(bvals) != data.shape[3]:
        raise ScanError(f"{bval}: {len(bvals)} entries, but the image has {data.shape[3]} volumes")
    is_b0 = bvals <= b0_threshold
    if not is_b0.any():
        raise ScanError(f"{bval}: no b0 volume in the series of opposite phase encoding")
    return data[..., is_b0].mean(axis=3), image.affine


def find_distortion(
    scan: Scan,
    opposite_b0: np.ndarray,
    opposite_affine: np.ndarray,
    axis: int,
    *,
    readout_s: float | None = None,
    seed: int = 1,
) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
    """Return images and numbers about a scan's distortion, from its mean b0 and one of opposite phase encoding.

    Parameters
    ----------
    scan
        The series.
    opposite_b0, opposite_affine
        (U, V, W) b0 on any grid, and its (4, 4) affine, RAS+ mm.
    axis
        Phase-encoding voxel axis 0, 1 or 2 of the scan.
    readout_s
        Total readout time, s; None: no field in Hz is reported.
    seed
        Of the head-motion metric's sampling.

    Returns
    -------
    images
        (X, Y, Z) each on the scan's grid: `field` (mm), `b0`, `opposite`, `corrected_b0`, `corrected_opposite`.
    report
        Correlations of the b0s in the brain before and after, displacements (mm), head motion (mm), readout time (s).

    Raises
    ------
    ScanError
        Where no brain is found.
    """
    b0 = scan.mean_b0()
    opposite_b0 = _on_grid(opposite_b0, opposite_affine, b0.shape, scan.affine)
    rough = brain_mask((b0 + opposite_b0) / 2, scan.zooms_mm)
    distortion = estimate_displacement(b0, opposite_b0, scan.affine, axis, mask=rough, seed=seed)
    mask = brain_mask((distortion.corrected + distortion.corrected_opposite) / 2, scan.zooms_mm)
    size = np.abs(distortion.field_mm[mask])
    images = {
        "field": distortion.field_mm,
        "b0": b0,
        "opposite": opposite_b0,
        "corrected_b0": distortion.corrected,
        "corrected_opposite": distortion.corrected_opposite,
    }
    report = {
        "CorrelationRaw": pearson(b0, opposite_b0, mask),
        "CorrelationCorrected": pearson(distortion.corrected, distortion.corrected_opposite, mask),
        "MeanDisplacementMm": float(size.mean()),
        "MaxDisplacementMm": float(size.max()),
        "HeadMotionMm": float(np.linalg.norm(distortion.head_motion[:3, 3])),
        "TotalReadoutTime": readout_s,
        "MaxFieldHz": None if readout_s is None else float(size.max() / scan.zooms_mm[axis] / readout_s),
    }
    return images, report


def estimate_displacement(
    b0: np.ndarray,
    opposite_b0: np.ndarray,
    affine: np.ndarray,
    axis: int,
    *,
    mask: np.ndarray | None = None,
    seed: int = 1,
) -> Distortion:
    """Estimate the displacement along the phase axis from two b0s of opposite phase encoding.

    The true anatomy is halfway between. The field d minimises (Ruthotto et al. 2012, HySCO; Andersson et al. 2003)

        sum [I1(y + d)(1 + d') - I2(y - d)(1 - d')]² + stiffness * sum |grad d|²

    by Gauss-Newton steps, coarse to fine. A head that moved between the two is aligned rigidly *after* a
    first correction, when no distortion is left that a rotation could explain, and the field is refined.

    Parameters
    ----------
    b0, opposite_b0
        (X, Y, Z) on one grid.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    axis
        Phase-encoding voxel axis 0, 1 or 2.
    mask
        (X, Y, Z) bool, voxels that head motion is estimated from.
    seed
        Of the head-motion metric's sampling.

    Raises
    ------
    ScanError
        Where the shapes differ.
    """
    if b0.shape != opposite_b0.shape:
        raise ScanError(GRID_MISMATCH.format(first=b0.shape, second=opposite_b0.shape))
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    to_index = np.linalg.inv(affine)
    scale = _typical(b0) / _typical(opposite_b0)  # runs may be scaled differently
    partner, motion = opposite_b0 * scale, np.eye(4)
    displacement = _fit_field(b0, partner, zooms, axis)
    estimate = _head_motion(unwarp(b0, displacement, axis), unwarp(partner, -displacement, axis), affine, mask, seed)
    # A shift along the phase axis looks like a constant field. It is already in the field, so it is removed here.
    local = to_index @ estimate @ affine
    center = (np.array(b0.shape) - 1) / 2
    local[axis, 3] -= local[axis, :3] @ center + local[axis, 3] - center[axis]
    estimate = affine @ local @ to_index
    if _largest_shift(estimate - np.eye(4), b0.shape, affine) > STILL_MM:
        motion = estimate
        partner = scale * sample_volume(opposite_b0, to_index @ motion @ affine)
        displacement = _fit_field(b0, partner, zooms, axis, displacement)
    return Distortion(
        field_mm=(displacement * zooms[axis]).astype(np.float32),
        corrected=unwarp(b0, displacement, axis),
        corrected_opposite=unwarp(partner, -displacement, axis) / scale,
        head_motion=motion,
    )


def _on_grid(data: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """Return the image on the target grid: unchanged if it is already on it, else by cubic splines."""
    if data.shape == shape and np.allclose(affine, target, atol=1e-3):
        return data
    matrix = np.linalg.inv(affine) @ target
    return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=3)


def _typical(image: np.ndarray) -> float:
    return float(np.sqrt(np.mean(image[image > image.mean()] ** 2)))


def _largest_shift(change: np.ndarray, shape, affine: np.ndarray) -> float:
    """Return the largest shift (mm) that a change of matrix (4, 4) causes near the faces of the field of view."""
    center = (np.array(shape) - 1) / 2
    faces = [center + sign * center * np.eye(3)[a] for a in range(3) for sign in (-0.7, 0.7)]
    points = np.column_stack([faces, np.ones(len(faces))]) @ affine.T
    return float(np.linalg.norm(points @ change[:3].T, axis=1).max())


def _head_motion(first, second, affine, mask, seed: int) -> np.ndarray:
    """Return the rigid matrix (4, 4) from points of the first undistorted b0 to points of the second."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    return register_linear(
        to_ants(first, affine),
        to_ants(second, affine),
        [Stage("Rigid[0.1]", (50,), (max(1, round(5.0 / zooms.max())),), (2.0,), sampling=0.5)],
        start=np.eye(4),
        mask=None if mask is None else to_ants(mask, affine),
        seed=seed,
    )


def unwarp(image: np.ndarray, displacement_voxels: np.ndarray, axis: int) -> np.ndarray:
    """Return I(y + d)(1 + d'): the image (X, Y, Z) at displaced points, with its signal conserved."""
    moved = sample_volume(image, np.eye(4), displacement_voxels, axis)
    return np.maximum(moved, 0) * np.maximum(1 + np.gradient(displacement_voxels, axis=axis), 0).astype(np.float32)


def _fit_field(first, second, zooms, axis: int, start=None) -> np.ndarray:
    """Return the displacement (X, Y, Z) in voxels along `axis`; a start skips all but the finest level."""
    # The phase axis is moved to the end, so that all helpers work along the last axis.
    pair = [np.moveaxis(image, axis, -1).astype(np.float32) / _typical(first) for image in (first, second)]
    zooms = np.append(np.delete(zooms, axis), zooms[axis])
    shape = pair[0].shape
    d = np.zeros(shape, np.float32) if start is None else np.moveaxis(start, axis, -1).astype(np.float32)
    for reduction, width_mm in LEVELS if start is None else LEVELS[-1:]:
        size = [max(4, -(-n // reduction)) if reduction > 1 else n for n in shape]
        smooth = [ndimage.gaussian_filter(image, width_mm / zooms / 2.355) for image in pair]
        step = zooms * np.array(shape) / size
        small = [_resized(image, size) for image in smooth]
        solution = _gauss_newton(small, _resized(d, size) * (zooms[-1] / step[-1]), step)
        d = _resized(solution, shape) * (step[-1] / zooms[-1])
    return np.moveaxis(d, -1, axis)


def _resized(image: np.ndarray, shape) -> np.ndarray:
    """Return the image on a grid of another shape over the same field of view, linearly interpolated."""
    if tuple(shape) == image.shape:
        return image
    ratio = np.array(image.shape) / shape
    return ndimage.affine_transform(
        image, np.diag(ratio), (ratio - 1) / 2, output_shape=tuple(shape), order=1, mode="nearest"
    )


def _gauss_newton(pair, d: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Return the displacement (..., Y) in voxels that minimises the cost, starting from `d`."""
    weights = (STIFFNESS * (zooms[-1] / zooms) ** 2).astype(np.float32)
    residual, slope, stretch = _residual(pair, d)
    cost = _cost(residual, d, weights)
    for _ in range(STEPS):
        step = _newton_step(residual, slope, stretch, d, weights)
        for _ in range(LINE_STEPS):
            trial = d + step
            if np.abs(_difference(trial)).max() < LARGEST_STRAIN:
                parts = _residual(pair, trial)
                lower = _cost(parts[0], trial, weights)
                if lower < cost:
                    break
            step = step / 2
        else:
            return d
        gain = (cost - lower) / cost
        d, cost, (residual, slope, stretch) = trial, lower, parts
        if gain < 2e-3:
            break
    return d


def _newton_step(residual, slope, stretch, d, weights) -> np.ndarray:
    """Return the step (..., Y) that solves (J'J + stiffness) step = -gradient by conjugate gradients."""

    def normal(vector):
        step = vector.reshape(d.shape)
        change = slope * step + stretch * _difference(step)
        return (slope * change + _difference_adjoint(stretch * change) + _stiffen(step, weights)).ravel()

    gradient = slope * residual + _difference_adjoint(stretch * residual) + _stiffen(d, weights)
    diagonal = (slope**2 + 0.5 * stretch**2 + 2 * weights.sum()).ravel()
    size = (d.size, d.size)
    step, _ = cg(
        LinearOperator(size, matvec=normal, dtype=np.float32),
        -gradient.ravel(),
        rtol=0.1,
        maxiter=SOLVER_STEPS,
        M=LinearOperator(size, matvec=lambda vector: vector / diagonal, dtype=np.float32),
    )
    return step.reshape(d.shape).astype(np.float32)


def _residual(pair, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return I1(y + d)(1 + d') - I2(y - d)(1 - d') and its derivatives by d and by d'."""
    (first, first_slope), (second, second_slope) = _read(pair[0], d), _read(pair[1], -d)
    change = _difference(d)
    residual = first * (1 + change) - second * (1 - change)
    return residual, first_slope * (1 + change) + second_slope * (1 - change), first + second


def _read(image: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the image (..., Y) at y + d and its slope there, linear between voxels, 0 outside."""
    size = image.shape[-1]
    place = np.arange(size, dtype=np.float32) + d
    low = np.floor(place).astype(np.int64)
    padded = np.pad(image, [(0, 0)] * (image.ndim - 1) + [(1, 1)])
    left = np.take_along_axis(padded, np.clip(low + 1, 0, size + 1), axis=-1)
    right = np.take_along_axis(padded, np.clip(low + 2, 0, size + 1), axis=-1)
    return left + (place - low) * (right - left), right - left


def _difference(d):
    """Return the central difference along the last axis, 0 at both ends."""
    out = np.zeros_like(d)
    out[..., 1:-1] = (d[..., 2:] - d[..., :-2]) / 2
    return out


def _difference_adjoint(v):
    out = np.zeros_like(v)
    out[..., 2:] += v[..., 1:-1] / 2
    out[..., :-2] -= v[..., 1:-1] / 2
    return out


def _stiffen(d, weights):
    """Return the weighted negative Laplacian with free ends."""
    out = np.zeros_like(d)
    for axis, weight in enumerate(weights):
        change = weight * np.diff(d, axis=axis)
        ends = [(0, 0)] * d.ndim
        ends[axis] = (1, 1)
        out -= np.diff(np.pad(change, ends), axis=axis)
    return out


def _cost(residual, d, weights) -> float:
    rough = sum(w * np.sum(np.diff(d, axis=a) ** 2) for a, w in enumerate(weights))
    return 0.5 * float(np.sum(residual**2) + rough)
