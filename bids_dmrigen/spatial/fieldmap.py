"""Susceptibility distortion from a map of the static field: a phase difference, two phases, or the field itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..bids.fieldmaps import GRID_TOLERANCE_MM, UNITS_IN_HZ, turn_of
from ..bids.run import AXES, FieldMap
from ..dwi.series import Scan, ScanError
from .ants_tools import Stage, register_linear, to_ants
from .brain_mask import brain_mask, dilate
from .io import read_volume
from .rigid import field_of_view_center
from .similarity import dice, mutual_information
from .susceptibility import unwarp

SMOOTHING_MM = 2.0  # standard deviation: phase noise of single voxels, and little of the field
REACH_MM = (32.0, 16.0, 8.0, 4.0)  # standard deviations, for the field outside the brain
FEW = 0.02  # share of known voxels in a neighbourhood that is too narrow
AROUND_MM = 3.0  # around the brain, the field is still used: the edge of a mask is uncertain
ELSEWHERE = 0.6  # share of the overlap that brain and head have with their centres in one place
CLEAR_GAIN = 1.05  # of mutual information: 2 mm lower it by 7 to 10 %, errors of registration raise it by 2 %
PASSES = 2  # registration needs the corrected b0, the correction needs the registration
NO_TURN = "{path}: values from {lowest:g} to {highest:g} are no phase: expected radians or the integers of a scanner"
OTHER_GRIDS = "{path}: its grid is not that of {other}; phase, field and magnitude images must share one grid"


@dataclass(frozen=True, eq=False)
class Field:
    """The static field of a head, off resonance.

    Parameters
    ----------
    hz
        (X, Y, Z) field in Hz, smoothed; 0 where it was not measured.
    weight
        (X, Y, Z) from 0 to 1: how well it is known, 0 outside the head.
    magnitude
        (X, Y, Z) image of the same head on the same grid.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    """

    hz: np.ndarray
    weight: np.ndarray
    magnitude: np.ndarray
    affine: np.ndarray


def radians(values: np.ndarray, path: str | Path = "phase") -> np.ndarray:
    """Return a phase image in radians, [-pi, pi], from the values of a scanner.

    >>> radians(np.array([0, 1024, 2048, 4095])).round(2)
    array([-3.14, -1.57,  0.  ,  3.14])

    Parameters
    ----------
    values
        Any shape: radians, milliradians, or integers that divide one turn; see `bids.fieldmaps.turn_of`.
    path
        Its file, named in messages.

    Raises
    ------
    ScanError
        Where the values are none of these.
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    lowest, highest = float(values.min()), float(values.max())
    turn = turn_of(lowest, highest)
    if turn is None:
        raise ScanError(NO_TURN.format(path=path, lowest=lowest, highest=highest))
    zero, length = turn
    return wrapped((values - zero) * (2 * np.pi / length))


def wrapped(phase: np.ndarray) -> np.ndarray:
    """Return angles in radians as those of [-pi, pi) that differ from them by whole turns."""
    return (np.asarray(phase) + np.pi) % (2 * np.pi) - np.pi


def unwrapped(phase: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return phase (X, Y, Z) in rad without its jumps by whole turns; 0 outside the mask.

    Unwrapping begins with the most reliable voxels (Herráez et al. 2002, Abdul-Rahman et al. 2005, in scikit-image).
    One number of whole turns stays unknown for the whole image. It is chosen so that the median in the mask is within
    half a turn of 0, as a shimmed head is near resonance. Less than a turn is never taken off: it is a field.

    Parameters
    ----------
    phase
        (X, Y, Z) rad, wrapped.
    mask
        (X, Y, Z) bool, connected.
    """
    from skimage.restoration import unwrap_phase

    smooth = np.ma.filled(unwrap_phase(np.ma.array(phase, mask=~mask), rng=0), 0)
    turns = np.rint(np.median(smooth[mask]) / (2 * np.pi))
    return np.where(mask, smooth - 2 * np.pi * turns, 0)


def read_field(fieldmap: FieldMap) -> Field:
    """Return the field of a field map in Hz.

    Phase images become radians, their difference is unwrapped in the brain and divided by 2 pi and the time between
    the echoes. The field is then smoothed in the brain, and continued outside.

    Raises
    ------
    ScanError
        Where an image cannot be read, the grids differ, or there is no brain in the magnitude image.
    """
    magnitude, image = read_volume(fieldmap.magnitude)
    affine, zooms = image.affine, np.linalg.norm(image.affine[:3, :3], axis=0)
    magnitude = np.nan_to_num(magnitude)
    mask = brain_mask(magnitude, zooms)
    volumes = []
    for path in fieldmap.images:
        data, other = read_volume(path)
        if data.shape != magnitude.shape or not np.allclose(other.affine, affine, atol=GRID_TOLERANCE_MM):
            raise ScanError(OTHER_GRIDS.format(path=path, other=Path(fieldmap.magnitude).name))
        volumes.append(data)
    if fieldmap.kind == "fieldmap":
        hz = np.nan_to_num(np.asarray(volumes[0], np.float64)) * UNITS_IN_HZ[fieldmap.units]
    else:
        phases = [radians(data, path) for data, path in zip(volumes, fieldmap.images, strict=True)]
        difference = phases[0] if len(phases) == 1 else wrapped(phases[1] - phases[0])
        first, second = fieldmap.echo_times_s
        hz = unwrapped(difference, mask) / (2 * np.pi * (second - first))
    # The noise of a phase is the inverse of the magnitude; bright fat is no better known than the brain.
    weight = mask * np.minimum(np.maximum(magnitude / np.median(magnitude[mask]), 0.01), 1)
    return Field(smooth_inside(hz, weight, zooms), weight, magnitude, affine)


def smooth_inside(field: np.ndarray, weight: np.ndarray, zooms_mm: np.ndarray) -> np.ndarray:
    """Return a field (X, Y, Z) smoothed lightly; voxels with weight 0 have no influence, and become 0.

    Parameters
    ----------
    field
        (X, Y, Z), any unit.
    weight
        (X, Y, Z), 0 or above: noise of the phase falls with the magnitude.
    zooms_mm
        (3,) voxel size.
    """
    weight = np.asarray(weight, np.float64)
    total = ndimage.gaussian_filter(weight, SMOOTHING_MM / zooms_mm)
    mean = ndimage.gaussian_filter(field * weight, SMOOTHING_MM / zooms_mm) / np.maximum(total, 1e-12)
    return np.where(weight > 0, mean, 0)


def continued(field: np.ndarray, weight: np.ndarray, zooms_mm: np.ndarray) -> np.ndarray:
    """Return a field (X, Y, Z) continued smoothly outside the voxels where it is known.

    Outside, each voxel has the mean of those known nearby, of a neighbourhood that is wider where few are near.

    Parameters
    ----------
    field
        (X, Y, Z), any unit; unchanged where the weight is above 0.
    weight
        (X, Y, Z), 0 where the field is not known.
    zooms_mm
        (3,) voxel size.
    """
    weight = np.asarray(weight, np.float64) / weight.max()
    outside = np.full(field.shape, np.average(field, weights=weight))
    for width_mm in REACH_MM:
        near = ndimage.gaussian_filter(weight, width_mm / zooms_mm)
        mean = ndimage.gaussian_filter(field * weight, width_mm / zooms_mm)
        outside = (mean + FEW * outside) / (near + FEW)
    return np.where(weight > 0, field, outside)


def displacement_voxels(hz: np.ndarray, direction: str, readout_s: float) -> np.ndarray:
    """Return how far a field moves the signal along the phase axis, in voxels towards higher index.

    The signal of the true position y is found at y + displacement in the scan. Above resonance it moves towards
    higher index where the direction has no sign (j), and towards lower index with the minus (j-).

    >>> displacement_voxels(np.array([100.0]), "j-", 0.05)
    array([-5.])

    Parameters
    ----------
    hz
        Field, Hz, on the grid of the scan.
    direction
        PhaseEncodingDirection: i, i-, j, j-, k or k-.
    readout_s
        TotalReadoutTime, s.
    """
    return np.asarray(hz) * readout_s * (-1 if direction.endswith("-") else 1)


def correct_with_field(
    scan: Scan, field: Field, direction: str, readout_s: float, seed: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return images and numbers about a scan's distortion, from its mean b0 and the field of the same head.

    The magnitude image is registered rigidly to the b0 after correction: a distorted b0 would mislead it. As each
    needs the other, both are done twice. The field moves with the head. Where registration makes the two images
    hardly more alike, the scanner's coordinates are kept: its error is then larger than the head motion.

    Parameters
    ----------
    scan
        The series.
    field
        From `read_field`, on any grid.
    direction
        PhaseEncodingDirection of the series.
    readout_s
        TotalReadoutTime of the series, s.
    seed
        Of the registration metric's sampling.

    Returns
    -------
    images
        (X, Y, Z) each on the scan's grid: `field` (mm along the phase axis, towards higher index), `b0`,
        `corrected_b0`, `magnitude` (0 outside its field of view).
    report
        Mutual information of b0 and magnitude in the brain before and after, displacements (mm), head motion (mm),
        readout time (s), field (Hz).

    Raises
    ------
    ScanError
        Where no brain is found.
    """
    b0 = scan.mean_b0()
    best = _best_pass(scan, field, direction, readout_s, seed)
    shift_mm = (best.shift * scan.zooms_mm[AXES.index(direction[0])]).astype(np.float32)
    images = {"field": shift_mm, "b0": b0, "corrected_b0": best.corrected, "magnitude": best.magnitude}
    center, inside = field_of_view_center(scan.affine, b0.shape), np.abs(shift_mm[best.brain])
    hz = best.shift[best.brain] / displacement_voxels(np.ones(1), direction, readout_s)
    report = {
        "MagnitudeSimilarityRaw": mutual_information(b0, best.magnitude, best.brain),
        "MagnitudeSimilarityCorrected": best.similarity,
        "MeanDisplacementMm": float(inside.mean()),
        "MaxDisplacementMm": float(inside.max()),
        "HeadMotionMm": float(np.linalg.norm((best.motion @ [*center, 1])[:3] - center)),
        "TotalReadoutTime": readout_s,
        "MedianFieldHz": float(np.median(hz)),
        "MaxFieldHz": float(np.abs(hz).max()),
    }
    return images, report


class _Pass(NamedTuple):
    """One correction: similarity of b0 and magnitude, where the head is (4, 4), and images (X, Y, Z)."""

    similarity: float
    motion: np.ndarray
    shift: np.ndarray  # voxels
    brain: np.ndarray
    corrected: np.ndarray
    magnitude: np.ndarray


def _best_pass(scan: Scan, field: Field, direction: str, readout_s: float, seed: int) -> _Pass:
    """Return the correction with registration where it is clearly better, else the one without."""
    b0 = scan.mean_b0()
    brain = brain_mask(b0, scan.zooms_mm)
    motion = _start(brain, scan.affine, field)
    passes: list[_Pass] = []
    for _ in range(PASSES + 1):
        if passes:
            motion = _head_motion(passes[-1].corrected, brain, scan, field, motion, seed)
        shift = displacement_voxels(_on_scan(field, brain, scan, motion), direction, readout_s)
        corrected = unwarp(b0, shift, AXES.index(direction[0]))
        brain = brain_mask(corrected, scan.zooms_mm)
        magnitude = _on_grid(field.magnitude, field.affine, b0.shape, scan.affine, motion, mode="constant")
        similarity = mutual_information(corrected, magnitude, brain)
        passes.append(_Pass(similarity, motion, shift, brain, corrected, magnitude))
    return passes[-1] if passes[-1].similarity > CLEAR_GAIN * passes[0].similarity else passes[0]


def _on_grid(
    data: np.ndarray,
    affine: np.ndarray,
    shape: Sequence[int],
    target: np.ndarray,
    motion: np.ndarray,
    mode: str = "nearest",
) -> np.ndarray:
    """Return data (U, V, W) on the target grid, linear; `motion` takes world points of the target to the data."""
    matrix = np.linalg.inv(affine) @ motion @ target
    return ndimage.affine_transform(
        np.asarray(data, np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=1, mode=mode
    )


def _on_scan(field: Field, brain: np.ndarray, scan: Scan, motion: np.ndarray) -> np.ndarray:
    """Return the field in Hz on the scan's grid, continued from what was measured in the scan's brain (X, Y, Z) bool.

    Magnitude images show scalp and fat, where the phase is another: only the scan says where the brain is.
    """
    zooms = np.linalg.norm(field.affine[:3, :3], axis=0)
    around = dilate(brain, AROUND_MM, scan.zooms_mm)
    inside = _on_grid(around, scan.affine, field.hz.shape, field.affine, np.linalg.inv(motion), mode="constant") > 0.5
    measured = field.weight * inside
    whole = continued(field.hz, measured if measured.any() else field.weight, zooms)
    return _on_grid(whole, field.affine, brain.shape, scan.affine, motion)


def _start(brain: np.ndarray, affine: np.ndarray, field: Field) -> np.ndarray:
    """Return where registration starts: the scanner's coordinates, unless the field map lies elsewhere in them."""
    head, centred = field.weight > 0, np.eye(4)
    here = affine[:3] @ [*ndimage.center_of_mass(brain), 1]
    centred[:3, 3] = field.affine[:3] @ [*ndimage.center_of_mass(head), 1] - here
    starts = np.eye(4), centred
    moved = [_on_grid(head, field.affine, brain.shape, affine, start, mode="constant") > 0.5 for start in starts]
    as_is, best = (dice(image, brain) for image in moved)
    return starts[0] if as_is > ELSEWHERE * best else centred


def _head_motion(corrected, brain, scan: Scan, field: Field, start: np.ndarray, seed: int) -> np.ndarray:
    """Return the rigid matrix (4, 4) from points of the corrected b0 to points of the magnitude image."""
    around = dilate(brain, AROUND_MM, scan.zooms_mm)
    fixed, moving = to_ants(corrected, scan.affine), to_ants(field.magnitude, field.affine)
    coarse = max(1, round(6.0 / scan.zooms_mm.max()))
    stage = Stage("Rigid[0.1]", (100, 50), (coarse, 1), (4.0, 1.0), sampling=1.0)
    return register_linear(fixed, moving, [stage], start=start, mask=to_ants(around, scan.affine), seed=seed)
