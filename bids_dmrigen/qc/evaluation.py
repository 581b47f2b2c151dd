"""Evaluate methods on a dense scan: directions are left out, generated again and compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from ..dwi.gradients import GradientError, GradientTable, even_subset, pair_energies
from ..dwi.series import Scan, ScanError
from ..dwi.tensor import WELL_CONDITIONED, condition, principal_direction, tensor_volumes
from ..dwi.uncertainty import FLUID_MD
from ..methods.base import Generated, Request
from ..methods.calibration import calibrated
from ..methods.rivals import RIVALS, SAME_BVAL, Estimate, least_squares
from ..methods.uncertainty import standard_errors
from ..spatial.coverage import within_coverage
from . import metrics
from .definitions import EVALUATION as SCORES
from .distributions import Colours, distribution_scores, noise_of_fa

STARTS = 3  # starting points of the search for even directions
EROSIONS = 2  # of the mask, by one voxel each: voxels at its edge are partly air
THIN = 6  # slices; an axis with fewer is not eroded along
BEST_SIMPLE = "best simple"
FAULTS = (ScanError, GradientError)  # of a scan that an arm cannot work on
# Of an arm that gave up: diverging trainings, singular fits, memory, registration. They end the arm, not the call.
FAILURES = (ArithmeticError, LookupError, RuntimeError, ValueError)
SAMPLE_IMAGES = 4  # of the left-out volumes, kept of each outcome
DIRECTION_FA_MIN = 0.3
OTHER_MAPS = ("md", "ad", "rd", "dec")  # than FA, which are scored
# Scores of papers that are in the files, not in the tables.
ALONE = ("md_ssim", "md_nmse", "ad_ssim", "rd_ssim", "dec_ssim", "dec_nmse", "fa_coverage_white", "fa_coverage_grey",
         "fa_coverage_fluid")  # fmt: skip
NEW_DEGREES = 3.0  # a direction nearer than this to a kept one is not new
MATCH_DEGREES = 0.5  # largest angle between a wanted volume and the generated one that matches it

NOTHING_LEFT_OUT = "{keep} directions are to be kept, but no shell has more (shells: {shells}); give a smaller number"
NO_SHELL = "no diffusion-weighted volume in the scan"
MASK_TOO_SMALL = "the mask is empty after eroding it {n} times; give a mask of the whole brain"
EMPTY_VOXELS = (
    "{empty} of the {total} voxels of the mask, eroded {n} times, are 0 in some volume: they moved out of the field of "
    "view, or were too dark; they are left out of all scores"
)

# An arm of the comparison: (kept volumes, table of the left-out ones) -> a series, maps, or a simple estimate.
Arm = Callable[[Scan, GradientTable], Generated | Estimate]
OTHER_SERIES = "a series of {found} volumes on a grid of {shape}, expected those of the scan: {expected} on {grid}"
OTHER_VOXELS = "a result of {found} voxels, expected {expected}: the method makes no finer voxels"


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
    slice_errors
        (Z,) mean squared error of FA in each slice against the left-out volumes, or all where those have no maps; NaN
        where the slice has no scored voxel.
    images
        (X, Y, Z, K) the arm's images of up to `SAMPLE_IMAGES` left-out volumes; empty where it makes none.
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
    slice_errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: float = 0.0
    record: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All outcomes, the maps from all acquired volumes, the mask of the scores, and what was left out of it.

    `images` are the acquired volumes (X, Y, Z, K) of `Outcome.images`, for the first selection.
    """

    outcomes: tuple[Outcome, ...]
    reference: dict[str, np.ndarray]
    mask: np.ndarray
    note: str = ""
    images: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def summary(self, keep: int, arm: str) -> dict[str, tuple[float, float]]:
        """Return (mean, standard deviation) over the selections of each score; NaN where there is none."""
        rows = [o for o in self.outcomes if (o.keep, o.arm) == (keep, arm) and not o.fault]
        return {key: _mean_and_deviation([o.scores[key] for o in rows]) for key in SCORES}

    def best_simple(self, keep: int) -> dict[str, tuple[str, float, float]]:
        """Return, for each score, the simple estimate with the best mean over the selections: (name, mean, deviation).

        Each score has its own best one: a user who knew which to take could not do better. Scores that no simple
        estimate has are left out.
        """
        arms = dict.fromkeys(o.arm for o in self.outcomes if o.keep == keep and o.arm in RIVALS)
        summaries, best = {arm: self.summary(keep, arm) for arm in arms}, {}
        for key, definition in SCORES.items():
            known = [(arm, *s[key]) for arm, s in summaries.items() if np.isfinite(s[key][0])]
            if known and definition.better is not None:
                chosen = max if definition.better == "higher" else min
                best[key] = chosen(known, key=lambda row: row[1])
        return best


def scored_voxels(scan: Scan) -> tuple[np.ndarray, str]:
    """Return the voxels that scores are computed in, (X, Y, Z) bool, and a sentence about those left out, or "".

    They are those of the eroded mask that have signal in every volume. The mask is not eroded along an axis with fewer
    than `THIN` slices: nothing would be left of it.

    Raises
    ------
    ScanError
        Where there are none.
    """
    structure = ndimage.generate_binary_structure(3, 1)
    for axis, size in enumerate(scan.mask.shape):
        if size < THIN:
            structure.swapaxes(0, axis)[[0, 2]] = False
    mask = ndimage.binary_erosion(scan.mask, structure, iterations=EROSIONS)
    lit = mask.copy()
    lit[mask] = (scan.data[mask] > 0).all(axis=1)
    if not lit.any():
        raise ScanError(MASK_TOO_SMALL.format(n=EROSIONS))
    empty = int(mask.sum() - lit.sum())
    return lit, EMPTY_VOXELS.format(empty=empty, total=int(mask.sum()), n=EROSIONS) if empty else ""


def simple_arm(name: str) -> Arm:
    """Return the arm of a simple estimate (`methods.rivals`)."""
    return lambda kept, wanted: RIVALS[name](kept)


def evaluate(
    scan: Scan,
    keep: Iterable[int],
    arms: Mapping[str, Arm | Scan],
    rotations: int = 1,
    fit: str = "wls",
    tell: Callable[[Outcome], None] | None = None,
    truth: np.ndarray | None = None,
    given: Scan | None = None,
) -> Evaluation:
    """Leave directions out of a dense scan, and score what every arm generates without them.

    Parameters
    ----------
    scan
        The dense scan with its brain mask.
    keep
        Numbers of directions to keep on every shell; all b0s are kept.
    arms
        Name -> arm; those of simple estimates are made by `simple_arm` and have their names. Or the same volumes after
        other processing, to whose kept volumes a tensor is fitted.
    rotations
        Selections of directions per number; see `kept_volumes`. Where no direction is kept, there is one.
    fit
        Tensor fit of the references and of every series: "wls", as in the app, or "ols", as in the papers.
        Simple estimates have their own.
    tell
        Called with every outcome.
    truth
        (X, Y, Z, N) noise-free signals of a simulated scan, to compare with instead of the scan itself.
    given
        The volumes that arms see instead of those of the scan, with larger voxels (`dwi.blocks`). Results have the
        voxels of the scan; those of simple estimates are up-sampled.

    Raises
    ------
    ScanError
        Where no shell has more directions than are kept, the eroded mask has no signal, or a series given as an arm is
        not one of the scan's volumes.
    """
    for arm in arms.values():
        if isinstance(arm, Scan) and arm.data.shape != scan.data.shape:
            raise ScanError(
                OTHER_SERIES.format(found=arm.data.shape[3], shape=arm.data.shape[:3], expected=scan.data.shape[3],
                                    grid=scan.data.shape[:3])
            )  # fmt: skip
    mask, note = scored_voxels(scan)
    scan, seen = within_coverage(scan), scan if given is None else given
    seen = within_coverage(seen)
    selections = [
        (n, k, kept_volumes(scan.gradients, n, k, rotations)) for n in keep for k in range(rotations if n else 1)
    ]
    against = scan if truth is None else replace(scan, data=truth)
    reference, outcomes = summary_maps(against, fit), []
    for n, rotation, kept in selections:
        references = (reference, left_out_maps(against, kept, fit))
        for name, arm in arms.items():
            outcomes.append(_outcome(scan, seen, kept, against.data, references, mask, (name, n, rotation), arm, fit))
            if tell is not None:
                tell(outcomes[-1])
    images = sample_images(against.data, wanted_volumes(scan.gradients, selections[0][2]))
    return Evaluation(tuple(outcomes), reference, mask, note, images)


def _outcome(
    scan: Scan, seen: Scan, kept, truth, references, mask, label: tuple[str, int, int], arm: Arm | Scan, fit: str
) -> Outcome:
    """Return the scored result of an arm from the kept volumes; its `fault` says if the arm cannot use the scan.

    `seen` is what the arm sees of the scan, and `references` are the maps of all volumes, and those of the left-out
    ones or None.
    """
    begun = time.monotonic()
    few, own = (Scan(s.data[..., kept], s.affine, s.gradients[kept], s.mask) for s in (seen, scan))
    wanted = wanted_volumes(scan.gradients, kept)
    scores = dict.fromkeys(SCORES, float("nan"))
    try:
        result: Generated | Estimate
        if isinstance(arm, Scan):
            result = least_squares(replace(own, data=arm.data[..., kept]), fit)
        else:
            result = arm(few, scan.gradients[wanted])
        seconds = time.monotonic() - begun
        result = _on_voxels_of(result, seen, own)
        maps, volumes = maps_and_volumes(result, own, scan.gradients[wanted], fit)
    except FAULTS as error:
        return Outcome(*label, scores, fault=str(error))
    except FAILURES as error:
        return Outcome(*label, scores, fault=f"{type(error).__name__}: {error}")
    reference, left_out = references
    scores |= map_scores(maps, reference, mask)
    if left_out is not None:
        independent = map_scores(maps, left_out, mask, whole=False)
        scores |= {f"left_out_{key}": value for key, value in independent.items() if f"left_out_{key}" in SCORES}
        scores["tensor_snr"] = independent["tensor_snr"]
    images = np.zeros(0) if volumes is None else sample_images(volumes)
    if volumes is not None:
        acquired = truth[..., wanted]
        scores |= volume_scores(volumes, acquired, mask)
        scores["contrast_error"] = contrast_error(volumes, acquired, scan.gradients[wanted], mask)
    unseen = reference if left_out is None else left_out
    measured = left_out is not None and truth is scan.data
    others = left_out_scan(scan, kept) if measured else None
    scores |= uncertainty_scores(result, maps, own, unseen, mask, scan.gradients[wanted], others)
    shown = {name: maps[name] for name in ("fa", "md", "dec")}
    errors = slice_errors(maps["fa"], unseen["fa"], mask)
    if isinstance(result, Estimate):
        return Outcome(*label, scores, shown, errors, images, seconds)
    return Outcome(*label, scores, shown, errors, images, seconds, result.record, result.warnings)


def uncertainty_scores(
    result: Generated | Estimate,
    maps: Mapping[str, np.ndarray],
    kept: Scan,
    reference: Mapping[str, np.ndarray],
    mask: np.ndarray,
    wanted: GradientTable,
    others: Scan | None = None,
) -> dict[str, float]:
    """Return the scores of what an arm says about its uncertainty; see `distributions.distribution_scores`.

    `others` are the acquired volumes that the reference was fitted to: what their noise does to its FA is added to the
    standard errors of an arm with samples. None where the reference is free of noise.
    """
    if isinstance(result, Estimate) or result.samples is None:
        return distribution_scores(maps, reference, mask)
    colours, fitted = Colours(mask), list[int]()
    if result.gradients is not None:
        used = _used(result, generated_places(result, wanted))
        fitted = used[tensor_volumes(result.gradients[used])].tolist()
    result = calibrated(result, kept, maps)
    errors = standard_errors(result, kept, Request(), fitted or None, each=colours)
    error = errors["fa"] if others is None else np.hypot(errors["fa"], noise_of_fa(others))
    return distribution_scores(maps, reference, mask, error, colours)


def _used(result: Generated, places: np.ndarray | None) -> np.ndarray:
    """Return the volumes of a series that maps are fitted to: those that the reference has too."""
    if places is None:
        return np.arange(len(result.acquired))
    return np.r_[np.flatnonzero(result.acquired), places]


def _on_voxels_of(result: Generated | Estimate, seen: Scan, scan: Scan) -> Generated | Estimate:
    """Return a result on the voxels of the scan, of which the arm saw larger ones.

    Raises
    ------
    ScanError
        Where a method made other voxels.
    """
    if isinstance(result, Estimate):
        return result.on_finer(scan) if result.series.mask.shape != scan.mask.shape else result
    if seen.mask.shape != scan.mask.shape and (result.grid is None or result.grid.mask.shape != scan.mask.shape):
        found = seen.mask.shape if result.grid is None else result.grid.mask.shape
        raise ScanError(OTHER_VOXELS.format(found=found, expected=scan.mask.shape))
    return result


def sample_images(volumes: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Return up to `SAMPLE_IMAGES` of the (X, Y, Z, N) volumes, evenly chosen among those given (default: all)."""
    places = np.arange(volumes.shape[3]) if among is None else np.asarray(among)
    if places.dtype == bool:
        places = np.flatnonzero(places)
    count = min(SAMPLE_IMAGES, len(places))
    return np.asarray(volumes[..., places[np.linspace(0, len(places) - 1, count).astype(int)]], np.float32)


def slice_errors(estimate: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return (Z,) mean squared differences of two volumes (X, Y, Z) over the mask of each slice; NaN where none is."""
    counts = mask.sum(axis=(0, 1))
    sums = (np.square(estimate - reference) * mask).sum(axis=(0, 1))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def maps_and_volumes(
    result: Generated | Estimate, kept: Scan, wanted: GradientTable, fit: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the maps of an arm's result, and its volumes for the wanted directions (None where it has none).

    Parameters
    ----------
    result
        What the arm returned for the `kept` volumes.
    wanted
        Table of the wanted directions.
    fit
        Tensor fit of a series, "ols" or "wls".
    """
    if isinstance(result, Estimate):
        return result.maps(), result.volumes(wanted)
    if result.gradients is None:
        maps = result.named_maps()
        if "tensor" in maps:
            maps["direction"] = principal_direction(maps["tensor"])
        return maps, None
    places = generated_places(result, wanted)
    used = _used(result, places)
    maps = summary_maps(Scan(result.mean[..., used], kept.affine, result.gradients[used], kept.mask), fit)
    return maps, None if places is None else result.mean[..., places]


def left_out_maps(scan: Scan, kept: np.ndarray, fit: str) -> dict[str, np.ndarray] | None:
    """Return the maps of the left-out volumes, whose noise no arm has seen.

    Where all b0s are kept they serve here too, and the MD of both has their noise. None where these volumes hardly
    determine a tensor. `first` and `second` are the tensors (X, Y, Z, 6) of two halves of the directions, where both
    halves determine a tensor.
    """
    others = left_out_scan(scan, kept)
    used = tensor_volumes(others.gradients)
    if condition(others.gradients.bvecs[used & ~others.gradients.is_b0]) > WELL_CONDITIONED:
        return None
    return summary_maps(others, fit) | _halves(others, fit)


def left_out_scan(scan: Scan, kept: np.ndarray) -> Scan:
    """Return the volumes that are left out, with all b0s where none of them is."""
    is_b0 = scan.gradients.is_b0
    chosen = ~kept if (is_b0 & ~kept).any() else ~kept | is_b0
    return Scan(scan.data[..., chosen], scan.affine, scan.gradients[chosen], scan.mask)


def _halves(scan: Scan, fit: str) -> dict[str, np.ndarray]:
    """Return the tensors of two halves of every shell's directions, `first` and `second`; nothing where one has none.

    The noise of their anisotropic parts is independent. Both have the b0s, whose noise is in their mean diffusivities.
    """
    first, second = scan.gradients.is_b0.copy(), scan.gradients.is_b0.copy()
    for _, volumes in scan.gradients.shells():
        chosen = even_subset(scan.gradients.bvecs[volumes], len(volumes) // 2)
        first[volumes[chosen]] = second[np.delete(volumes, chosen)] = True
    directions = scan.gradients.bvecs * tensor_volumes(scan.gradients)[:, None]
    if any(condition(directions[half & directions.any(axis=1)]) > WELL_CONDITIONED for half in (first, second)):
        return {}
    parts = [Scan(scan.data[..., half], scan.affine, scan.gradients[half], scan.mask) for half in (first, second)]
    return {name: summary_maps(part, fit)["tensor"] for name, part in zip(("first", "second"), parts, strict=True)}


def kept_volumes(gradients: GradientTable, keep: int, rotation: int = 0, rotations: int = 1) -> np.ndarray:
    """Return (N,) bool: all b0s, and `keep` evenly spread directions of every shell (all, if it has no more).

    With 0 the b0s alone are kept, for methods that need no more.

    The search for even directions of selection number `rotation` (of `rotations`) starts at that share of the shell.
    Different starts usually lead to different selections. Of the results of three starts that determine a tensor well,
    where there are such, the most even one is taken: six even directions may lie on a cone.

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
    for _, volumes in shells if keep else ():
        first, share = rotation * len(volumes) // rotations, len(volumes) / rotations / STARTS
        candidates = [_even_volumes(gradients, volumes, keep, first + round(k * share)) for k in range(STARTS)]
        kept[min(candidates, key=lambda chosen: _badness(gradients.bvecs[chosen]))] = True
    return kept


def _even_volumes(gradients: GradientTable, volumes: np.ndarray, keep: int, start: int) -> np.ndarray:
    turned = np.roll(volumes, -start)
    return turned[even_subset(gradients.bvecs[turned], min(keep, len(turned)))]


def _badness(bvecs: np.ndarray) -> tuple[bool, float]:
    return bool(condition(bvecs) > WELL_CONDITIONED), float(pair_energies(bvecs).sum())


def summary_maps(scan: Scan, fit: str = "ols") -> dict[str, np.ndarray]:
    """Return the maps of a scan, as `Estimate.maps` does.

    The tensor is fitted to the volumes of `tensor_volumes`.
    """
    return least_squares(scan, fit).maps()


def map_scores(
    estimate: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], mask, whole: bool = True
) -> dict[str, float]:
    """Return the scores of maps, as `summary_maps` gives them, against maps from all acquired volumes.

    Not `whole`, those that papers have in addition (`ALONE`), which take long, are left out.

    The angle of the principal direction is NaN for estimates without a `direction`, the scores of AD and RD without
    these maps, the SNR of the tensor where there is no `tensor` or where the reference has no halves.
    """
    angle = float("nan")
    if "direction" in estimate:
        angle = metrics.direction_angle(
            estimate["direction"], reference["direction"], reference["fa"], mask, DIRECTION_FA_MIN
        )
    snr = float("nan")
    if "tensor" in estimate and "first" in reference:
        tissue = mask & (reference["md"] < FLUID_MD)  # fluid has no anisotropy, but the most noise
        snr = metrics.tensor_snr(estimate["tensor"], reference["first"], reference["second"], tissue)
    fa = metrics.scores(estimate["fa"], reference["fa"], mask)
    maps = [(name, estimate[name], reference[name]) for name in OTHER_MAPS if name in estimate]
    further = {f"{name}_psnr": metrics.psnr(one, other, mask) for name, one, other in maps}
    for name, one, other in maps if whole else ():
        found = {f"{name}_{key}": value for key, value in metrics.scores(one, other, mask).items()}
        further |= {key: found[key] for key in ALONE if key in found}
    return {
        "fa_psnr": fa["psnr"],
        "fa_ssim": fa["ssim"],
        "fa_nmse": fa["nmse"],
        "fa_error": fa["mae"],
        "direction_angle": angle,
        "tensor_snr": snr,
        **further,
    }


def volume_scores(estimate: np.ndarray, reference: np.ndarray, mask) -> dict[str, float]:
    """Return the mean scores of (X, Y, Z, K) generated volumes against the acquired ones."""
    pairs = [(estimate[..., k], reference[..., k]) for k in range(reference.shape[3])]
    return {
        "dwi_psnr": float(np.mean([metrics.psnr(e, r, mask) for e, r in pairs])),
        "dwi_ssim": float(np.mean([metrics.ssim(e, r, mask) for e, r in pairs])),
        "dwi_nmse": float(np.mean([metrics.nmse(e, r, mask) for e, r in pairs])),
    }


def contrast_error(estimate: np.ndarray, reference: np.ndarray, gradients: GradientTable, mask) -> float:
    """Return the error of the directional contrast of (X, Y, Z, K) volumes, relative to that contrast.

    The contrast of volume i of a shell is c_i = S_i / mean(S) - 1. The result is sum (c_estimate - c_reference)² over
    sum c_reference², over the mask and the shells; NaN where no shell has two of the volumes. The noise of the
    reference is part of it, so that even the truth does not reach 0.
    """
    error = total = 0.0
    for _, volumes in gradients.shells():
        e, r = (np.asarray(v[mask][:, volumes], dtype=np.float64) for v in (estimate, reference))
        e, r = (s / np.maximum(s.mean(axis=1, keepdims=True), 1e-12) - 1 for s in (e, r))
        error, total = error + float(((e - r) ** 2).sum()), total + float((r**2).sum())
    return error / total if total else float("nan")


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
    the standard deviation. Where there are simple estimates, the last row has the best of them for each score.
    """
    keys = [key for key in SCORES if key not in ALONE]
    rows = [["method", *(SCORES[key].heading for key in keys)]]
    for arm in arms:
        faults = [o.fault for o in evaluation.outcomes if (o.keep, o.arm) == (keep, arm) and o.fault]
        found = evaluation.summary(keep, arm)
        cells = [_cell(*found[key], key) for key in keys]
        rows.append([arm, faults[0]] if faults else [arm, *cells])
    best = evaluation.best_simple(keep)
    if best:
        rows.append([BEST_SIMPLE, *(_cell(*best[key][1:], key) if key in best else "-" for key in keys)])
    return rows


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else float("nan")
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(mean) else float("nan")


def _cell(mean: float, deviation: float, key: str) -> str:
    digits = {"dB": 2, "degrees": 1}.get(SCORES[key].unit, 4 if SCORES[key].better == "lower" else 3)
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if np.isnan(deviation) else f" ({deviation:.{digits}f})")
