"""Evaluate methods on a dense scan: directions are left out, generated again and compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import ndimage

from ..dwi.gradients import GradientError, GradientTable, even_subset, pair_energies
from ..dwi.series import Scan, ScanError
from ..dwi.tensor import fit_tensor, tensor_maps
from ..methods.base import Generated
from ..spatial.coverage import within_coverage
from . import metrics
from .definitions import EVALUATION as SCORES

STARTS = 3  # starting points of the search for even directions
EROSIONS = 2  # of the mask, by one voxel each: voxels at its edge are partly air
DIRECTION_FA_MIN = 0.3
TENSOR_BMAX = 1550.0  # s/mm²; some scanners store more than the nominal 1500
SAME_BVAL = 0.05  # relative difference of b-values within one shell
NEW_DEGREES = 3.0  # a direction nearer than this to a kept one is not new
MATCH_DEGREES = 0.5  # largest angle between a wanted volume and the generated one that matches it

NOTHING_LEFT_OUT = "{keep} directions are to be kept, but no shell has more (shells: {shells}); give a smaller number"
NO_SHELL = "no diffusion-weighted volume in the scan"
MASK_TOO_SMALL = "the mask is empty after eroding it {n} times; give a mask of the whole brain"
EMPTY_VOXELS = (
    "{empty} of the {total} voxels of the mask, eroded {n} times, are 0 in some volume: they moved out of the field of "
    "view, or were too dark; they are left out of all scores"
)

# An arm of the comparison: (kept volumes, table of the left-out ones) -> its result, a series or maps.
Arm = Callable[[Scan, GradientTable], Generated]


@dataclass(frozen=True)
class Outcome:
    """The result of one arm with one selection of directions.

    Parameters
    ----------
    arm, keep, rotation
        Name of the arm, directions kept per shell, number of the selection.
    scores
        A value for each key of `SCORES`; NaN where it does not apply.
    maps
        `fa`, `md` (X, Y, Z; mm²/s) and `dec` (X, Y, Z, 3); empty where the arm failed.
    seconds
        Time that the arm took.
    record, warnings
        Record and warnings of the method.
    fault
        Why there is no result, or "".
    """

    arm: str
    keep: int
    rotation: int
    scores: dict[str, float]
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    record: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All outcomes, the maps from all acquired volumes, the mask of the scores, and what was left out of it."""

    outcomes: tuple[Outcome, ...]
    reference: dict[str, np.ndarray]
    mask: np.ndarray
    note: str = ""

    def summary(self, keep: int, arm: str) -> dict[str, tuple[float, float]]:
        """Return (mean, standard deviation) over the selections of each score; NaN where there is none."""
        rows = [o for o in self.outcomes if (o.keep, o.arm) == (keep, arm) and not o.fault]
        return {key: _mean_and_deviation([o.scores[key] for o in rows]) for key in SCORES}


def scored_voxels(scan: Scan) -> tuple[np.ndarray, str]:
    """Return the voxels that scores are computed in, (X, Y, Z) bool, and a sentence about those left out, or "".

    They are those of the eroded mask that have signal in every volume.

    Raises
    ------
    ScanError
        Where there are none.
    """
    mask = ndimage.binary_erosion(scan.mask, iterations=EROSIONS)
    lit = mask.copy()
    lit[mask] = (scan.data[mask] > 0).all(axis=1)
    if not lit.any():
        raise ScanError(MASK_TOO_SMALL.format(n=EROSIONS))
    empty = int(mask.sum() - lit.sum())
    return lit, EMPTY_VOXELS.format(empty=empty, total=int(mask.sum()), n=EROSIONS) if empty else ""


def as_acquired(kept: Scan, wanted: GradientTable) -> Generated:
    """Generate nothing: the arm whose maps come from the kept volumes alone."""
    return Generated(kept.data, None, kept.gradients, (), np.ones(len(kept.gradients), bool), {})


def evaluate(
    scan: Scan,
    keep: Iterable[int],
    arms: Mapping[str, Arm],
    rotations: int = 1,
    fit: str = "ols",
    tell: Callable[[Outcome], None] | None = None,
    truth: np.ndarray | None = None,
) -> Evaluation:
    """Leave directions out of a dense scan, and score what every arm generates without them.

    Parameters
    ----------
    scan
        The dense scan with its brain mask.
    keep
        Numbers of directions to keep on every shell; all b0s are kept.
    arms
        Name -> arm; `as_acquired` is the arm without a method.
    rotations
        Selections of directions per number; see `kept_volumes`.
    fit
        Tensor fit of the reference and of every arm: "ols" (linear least squares, as in the papers) or "wls".
    tell
        Called with every outcome.
    truth
        (X, Y, Z, N) noise-free signals of a simulated scan, to compare with instead of the scan itself.

    Raises
    ------
    ScanError
        Where no shell has more directions than are kept, or the eroded mask has no signal.
    """
    mask, note = scored_voxels(scan)
    scan = within_coverage(scan)
    selections = [(n, k, kept_volumes(scan.gradients, n, k, rotations)) for n in keep for k in range(rotations)]
    against = scan if truth is None else replace(scan, data=truth)
    reference, outcomes = summary_maps(against, fit), []
    for n, rotation, kept in selections:
        for name, arm in arms.items():
            outcomes.append(_outcome(scan, kept, against.data, reference, mask, (name, n, rotation), arm, fit))
            if tell is not None:
                tell(outcomes[-1])
    return Evaluation(tuple(outcomes), reference, mask, note)


def _outcome(scan: Scan, kept, truth, reference, mask, label: tuple[str, int, int], arm: Arm, fit: str) -> Outcome:
    """Return the scored result of an arm from the kept volumes; its `fault` says if the arm cannot use the scan."""
    begun = time.monotonic()
    few = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
    wanted = wanted_volumes(scan.gradients, kept)
    scores = dict.fromkeys(SCORES, float("nan"))
    try:
        generated = arm(few, scan.gradients[wanted])
        seconds = time.monotonic() - begun
        maps, places = _maps_of(generated, scan, wanted, fit)
    except (ScanError, GradientError) as error:
        return Outcome(*label, scores, fault=str(error))
    scores |= map_scores(maps, reference, mask)
    if places is not None:
        scores |= volume_scores(generated.mean[..., places], truth[..., wanted], mask)
    shown = {name: maps[name] for name in ("fa", "md", "dec")}
    return Outcome(*label, scores, shown, seconds, generated.record, generated.warnings)


def _maps_of(generated: Generated, scan: Scan, wanted, fit: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the maps of an arm's result, and the places of the wanted volumes in its series (None for maps)."""
    if generated.gradients is None:
        return generated.named_maps(), None
    places = generated_places(generated, scan.gradients[wanted])
    # Generated volumes that were not requested are left out: the reference does not have them.
    used = np.arange(len(generated.gradients)) if places is None else np.r_[np.flatnonzero(generated.acquired), places]
    return summary_maps(Scan(generated.mean[..., used], scan.affine, generated.gradients[used], scan.mask), fit), places


def kept_volumes(gradients: GradientTable, keep: int, rotation: int = 0, rotations: int = 1) -> np.ndarray:
    """Return (N,) bool: all b0s, and `keep` evenly spread directions of every shell (all, if it has no more).

    The search for even directions of selection number `rotation` (of `rotations`) starts at that share of the shell.
    Different starts usually lead to different selections. The most even result of three starts is taken: a single
    search can end in a selection that hardly determines a tensor (one in 28 did, for six directions of 84).

    Raises
    ------
    ScanError
        Where no direction would be left out.
    """
    shells = gradients.shells()
    if not shells:
        raise ScanError(NO_SHELL)
    if keep >= max(len(volumes) for _, volumes in shells):
        counts = ", ".join(f"{len(volumes)} at b={b:.0f}" for b, volumes in shells)
        raise ScanError(NOTHING_LEFT_OUT.format(keep=keep, shells=counts))
    kept = gradients.is_b0.copy()
    for _, volumes in shells:
        first, share = rotation * len(volumes) // rotations, len(volumes) / rotations / STARTS
        candidates = [_even_volumes(gradients, volumes, keep, first + round(k * share)) for k in range(STARTS)]
        kept[min(candidates, key=lambda chosen: pair_energies(gradients.bvecs[chosen]).sum())] = True
    return kept


def _even_volumes(gradients: GradientTable, volumes: np.ndarray, keep: int, start: int) -> np.ndarray:
    turned = np.roll(volumes, -start)
    return turned[even_subset(gradients.bvecs[turned], min(keep, len(turned)))]


def summary_maps(scan: Scan, fit: str = "ols") -> dict[str, np.ndarray]:
    """Return `fa`, `md` (X, Y, Z; mm²/s), `dec` and `direction` (X, Y, Z, 3; world RAS+) of a scan, 0 outside its mask.

    The tensor is fitted to the volumes of `tensor_volumes`.
    """
    used = tensor_volumes(scan.gradients)
    table, signal = scan.gradients[used], np.asarray(scan.data[scan.mask][:, used], dtype=np.float32)
    directions = table.world_directions(scan.affine)
    maps = tensor_maps(fit_tensor(torch.from_numpy(signal), table.bvals, directions, fit))
    maps["direction"] = maps["eigenvectors"][:, :, 0]
    volumes = {}
    for name in ("fa", "md", "dec", "direction"):
        values = maps[name].numpy()
        volumes[name] = np.zeros(scan.mask.shape + values.shape[1:], dtype=np.float32)
        volumes[name][scan.mask] = values
    return volumes


def tensor_volumes(gradients: GradientTable) -> np.ndarray:
    """Return (N,) bool: b0s and the shells up to b = 1500 s/mm², or the lowest shell where all lie above.

    A tensor does not describe the signal at higher b-values: the fit would depend on how many volumes each shell has,
    and selections of directions change that.
    """
    used = gradients.is_b0.copy()
    for k, (bval, volumes) in enumerate(gradients.shells()):
        used[volumes] = k == 0 or bval <= TENSOR_BMAX
    return used


def map_scores(estimate: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], mask) -> dict[str, float]:
    """Return the scores of maps, as `summary_maps` gives them, against maps from all acquired volumes.

    The angle of the principal direction is NaN for estimates without a `direction`.
    """
    angle = float("nan")
    if "direction" in estimate:
        angle = metrics.direction_angle(
            estimate["direction"], reference["direction"], reference["fa"], mask, DIRECTION_FA_MIN
        )
    fa = metrics.scores(estimate["fa"], reference["fa"], mask)
    return {
        "fa_psnr": fa["psnr"],
        "fa_ssim": fa["ssim"],
        "fa_nmse": fa["nmse"],
        "fa_error": fa["mae"],
        "dec_psnr": metrics.psnr(estimate["dec"], reference["dec"], mask),
        "md_psnr": metrics.psnr(estimate["md"], reference["md"], mask),
        "direction_angle": angle,
    }


def volume_scores(estimate: np.ndarray, reference: np.ndarray, mask) -> dict[str, float]:
    """Return the mean scores of (X, Y, Z, K) generated volumes against the acquired ones."""
    pairs = [(estimate[..., k], reference[..., k]) for k in range(reference.shape[3])]
    return {
        "dwi_psnr": float(np.mean([metrics.psnr(e, r, mask) for e, r in pairs])),
        "dwi_ssim": float(np.mean([metrics.ssim(e, r, mask) for e, r in pairs])),
        "dwi_nmse": float(np.mean([metrics.nmse(e, r, mask) for e, r in pairs])),
    }


def wanted_volumes(gradients: GradientTable, kept: np.ndarray) -> np.ndarray:
    """Return indices of left-out volumes at least 3 degrees from every kept direction of their shell."""
    left_out = np.flatnonzero(~kept)
    return left_out[_nearest(gradients[left_out], gradients[kept])[1] < np.cos(np.radians(NEW_DEGREES))]


def generated_places(generated: Generated, wanted: GradientTable) -> np.ndarray | None:
    """Return the places of the (K,) wanted volumes in a generated series; None unless all were generated."""
    candidates = np.flatnonzero(~np.asarray(generated.acquired, bool))
    if generated.gradients is None or not len(candidates) or not len(wanted):
        return None
    nearest, cosine = _nearest(wanted, generated.gradients[candidates])
    return candidates[nearest] if (cosine >= np.cos(np.radians(MATCH_DEGREES))).all() else None


def _nearest(wanted: GradientTable, candidates: GradientTable) -> tuple[np.ndarray, np.ndarray]:
    """Return for each wanted volume the nearest one of the same shell and its |cosine|; -1 where there is none."""
    cosine = np.abs(wanted.bvecs @ candidates.bvecs.T)  # (K, M)
    cosine[np.abs(wanted.bvals[:, None] - candidates.bvals) > SAME_BVAL * wanted.bvals[:, None]] = -1
    return cosine.argmax(axis=1), cosine.max(axis=1)


def table(evaluation: Evaluation, keep: int, arms: Sequence[str]) -> list[list[str]]:
    """Return the papers' table for one number of kept directions: a header, then a row per arm.

    Columns are the scores, with unit and better direction. For several selections, a cell is the mean and, in brackets,
    the standard deviation.
    """
    rows = [["method", *(definition.heading for definition in SCORES.values())]]
    for arm in arms:
        faults = [o.fault for o in evaluation.outcomes if (o.keep, o.arm) == (keep, arm) and o.fault]
        cells = [_cell(*value, key) for key, value in evaluation.summary(keep, arm).items()]
        rows.append([arm, faults[0]] if faults else [arm, *cells])
    return rows


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else float("nan")
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(mean) else float("nan")


def _cell(mean: float, deviation: float, key: str) -> str:
    digits = {"dB": 2, "degrees": 1}.get(SCORES[key].unit, 4 if SCORES[key].better == "lower" else 3)
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if np.isnan(deviation) else f" ({deviation:.{digits}f})")
