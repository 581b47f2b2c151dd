"""Methods beside the best simple estimate, on scans that nothing was trained, chosen or tuned on.

python benchmarks/evidence.py ROOM [--data FOLDER] [--scans NAME ...] [--keep N ...] [--selections K] [--method NAME]
    [--weights PATH]

ROOM is maps (Diff-DTI), directions (QID²), enhance (RISH latent diffusion) or denoise (Di-Fusion). FOLDER is that of
the data. Scans are those of role `report` (`training/roles.tsv`). A method and the simple estimates see every second b0
and N directions of one shell (maps) or of every shell (the others). Each score is printed against the maps of all
volumes, which hold the noise of the input, and against those of the volumes left out, which do not: mean over K
selections of directions of the simple estimate that is best for this score, with its name, and of the method, and the
difference; then the smallest difference of one selection. `tensor_snr` compares with two halves of the left-out
volumes, so that noise of the reference is no error (`qc/data/evaluation.tsv`). Series and references are fitted by
weighted least squares, as in the app. Scores are computed in the mask eroded twice, without voxels empty in some
volume.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import three
from scenes import roles

from bids_dmrigen.dwi.gradients import GradientTable, even_subset
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.tensor import condition, tensor_volumes
from bids_dmrigen.methods import SIMPLE, load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.maps.task import MOST
from bids_dmrigen.qc import evaluation
from bids_dmrigen.qc.evaluation import SCORES, Arm
from bids_dmrigen.spatial.coverage import within_coverage

FILES = {"canon": "sub-canon_desc-merged"}  # of the others, sub-NAME
SHELLS = {"canon": 1500, "mdtb2k": 1000, "mdtb6k": 1500, "noddislice": 700, "dsislab": 1540}  # s/mm², of maps
ROOMS = {"maps": "diffdti", "directions": "qid2", "enhance": "rishldm", "denoise": "difusion"}
KEEP = {"maps": (6, 3), "directions": (12, 30, 60), "enhance": (12,), "denoise": (12, 30)}
MAPS = ("fa_psnr", "dec_psnr", "md_psnr", "direction_angle")
TABLE = (*MAPS, *(f"left_out_{key}" for key in MAPS), "tensor_snr", "dwi_psnr", "contrast_error")
FIT = "wls"  # of series and references, as in the app
NOTHING_LEFT = "the directions that are left out determine no tensor"
TRIES = 30  # selections that are looked at to find different ones


@dataclass(frozen=True)
class Case:
    """What the arms see of a scan, what they are asked for, and what they are compared with.

    Parameters
    ----------
    few
        The kept volumes.
    wanted
        Table of the left-out volumes that may be generated.
    acquired
        (X, Y, Z, K) those volumes.
    references
        Maps of all volumes (prefix "") and of the left-out ones (prefix "left_out_"); None where they determine none.
    mask
        (X, Y, Z) bool, the scored voxels.
    others
        The volumes of the second of these references.
    """

    few: Scan
    wanted: GradientTable
    acquired: np.ndarray
    references: dict[str, dict[str, np.ndarray] | None]
    mask: np.ndarray
    others: Scan


def report_scan(data: Path, name: str) -> Scan:
    """Return a scan of role report."""
    stem = data / "reference" / FILES.get(name, f"sub-{name}")
    image = nib.load(f"{stem}_dwi.nii.gz")
    bvecs = np.loadtxt(f"{stem}_dwi.bvec")
    bvecs = bvecs.T if len(bvecs) == 3 else bvecs
    length = np.linalg.norm(bvecs, axis=1, keepdims=True)  # those of dsislab are as long as the root of b
    gradients = GradientTable(np.loadtxt(f"{stem}_dwi.bval"), np.divide(bvecs, length, where=length > 0, out=0 * bvecs))
    mask = np.asarray(nib.load(f"{stem}_mask.nii.gz").dataobj) > 0
    scan = Scan(np.asarray(image.dataobj, dtype=np.float32), image.affine, gradients, mask)
    return within_coverage(scan)


def cases(data: Path, name: str, room: str, keep: int, selections: int, fit: str = FIT) -> Iterator[Case]:
    """Yield the cases of a scan: different selections of directions; `fit` is that of the references."""
    scan = report_scan(data, name)
    if room == "maps":
        yield from _map_cases(data, name, scan, keep, selections, fit)
        return
    mask, _ = evaluation.scored_voxels(scan)
    reference = evaluation.summary_maps(scan, fit)
    for k in range(selections):
        kept = evaluation.kept_volumes(scan.gradients, keep, k, selections) & ~_hidden_b0s(scan.gradients)
        wanted = evaluation.wanted_volumes(scan.gradients, kept | scan.gradients.is_b0)
        references = {"": reference, "left_out_": evaluation.left_out_maps(scan, kept, fit)}
        if references["left_out_"] is None:
            raise ScanError(NOTHING_LEFT)
        others = evaluation.left_out_scan(scan, kept)
        yield Case(_part(scan, kept), scan.gradients[wanted], scan.data[..., wanted], references, mask, others)


def _map_cases(data: Path, name: str, scan: Scan, keep: int, selections: int, fit: str) -> Iterator[Case]:
    """Yield cases with directions of one shell; the tensor of the reference comes from the low shells.

    `mdtb6k` has six directions at b = 1500 s/mm² and too few others: its reference is `mdtb2k`, the same slices of the
    same person, and all its selections are this one.
    """
    low = tensor_volumes(scan.gradients)
    volumes = next(v for b, v in scan.gradients.shells() if abs(b - SHELLS[name]) < 0.05 * SHELLS[name])
    scan = Scan(scan.data, scan.affine, scan.gradients, scan.mask & (scan.data[..., low] > 0).all(axis=3))
    other = report_scan(data, "mdtb2k") if name == "mdtb6k" else None
    if other is not None:
        scan = Scan(scan.data, scan.affine, scan.gradients, scan.mask & other.mask)
    mask, _ = evaluation.scored_voxels(_part(scan, low))
    reference = evaluation.summary_maps(scan, fit)
    seen: set[tuple[int, ...]] = set()
    for k in range(TRIES):
        turned = np.roll(volumes, -k * len(volumes) // TRIES)
        chosen = np.sort(turned[even_subset(scan.gradients.bvecs[turned], keep)])
        well = keep < 6 or condition(scan.gradients.bvecs[chosen]) < evaluation.WELL_CONDITIONED
        if tuple(chosen) in seen or not well or len(seen) == selections:
            continue
        seen.add(tuple(chosen))
        kept = scan.gradients.is_b0 & ~_hidden_b0s(scan.gradients)
        kept[chosen] = True
        if other is not None:
            others = evaluation.left_out_scan(other, np.zeros(len(other.gradients), bool))
            references = {"left_out_": evaluation.left_out_maps(other, np.zeros(len(other.gradients), bool), fit)}
        else:
            others = evaluation.left_out_scan(_part(scan, low), kept[low])
            left_out = evaluation.left_out_maps(_part(scan, low), kept[low], fit)
            references = {"": reference, "left_out_": left_out}
        wanted = np.setdiff1d(volumes, chosen)
        yield Case(_part(scan, kept), scan.gradients[wanted], scan.data[..., wanted], references, mask, others)


def _hidden_b0s(gradients: GradientTable) -> np.ndarray:
    """Return (N,) bool: every second b0, which no arm sees, so that the MD of left-out volumes has noise of its own."""
    hidden = np.zeros(len(gradients), bool)
    hidden[np.flatnonzero(gradients.is_b0)[1::2]] = True
    return hidden


def _part(scan: Scan, volumes: np.ndarray) -> Scan:
    return Scan(scan.data[..., volumes], scan.affine, scan.gradients[volumes], scan.mask)


def scores_of(arm: Arm, case: Case) -> dict[str, float]:
    """Return the scores of an arm; NaN where it cannot work on the case or a score does not apply."""
    scores = dict.fromkeys(TABLE, float("nan"))
    try:
        maps, volumes = evaluation.maps_and_volumes(arm(case.few, case.wanted), case.few, case.wanted, FIT)
    except evaluation.FAULTS:
        return scores
    for prefix, reference in case.references.items():
        if reference is None:
            continue
        known = evaluation.map_scores(maps, reference, case.mask)
        scores |= {f"{prefix}{key}": known[key] for key in MAPS}
        if prefix:
            scores["tensor_snr"] = known["tensor_snr"]
    if volumes is not None and len(case.wanted):
        scores["dwi_psnr"] = evaluation.volume_scores(volumes, case.acquired, case.mask)["dwi_psnr"]
        scores["contrast_error"] = evaluation.contrast_error(volumes, case.acquired, case.wanted, case.mask)
    return scores


def arms_of(room: str, keep: int, named: str | None, weights: str | None, data: Path, work: Path) -> dict[str, Arm]:
    """Return the simple estimates, `sh` where directions are wanted, and the method, which is the last.

    Fewer than six directions determine no tensor, and have simple estimates of their own.
    """

    def method(name: str) -> Arm:
        spec = load(name).spec

        def make(kept: Scan, wanted: GradientTable):
            options = spec.evaluation_options(wanted)
            return load(name).generate(None, kept, Request(weights=weights, options=options))

        return make

    names = [*(["sh"] if room == "directions" else []), named or ROOMS[room]]
    simple = {name: evaluation.simple_arm(name) for name in SIMPLE}
    if room == "maps" and keep < MOST:
        simple = three.estimates(data / "atlas", work)
    return simple | {name: method(name) for name in names}


def show(name: str, keep: int, rows: dict[str, list[dict[str, float]]]) -> dict[str, dict]:
    """Print and return, for each score, the best simple estimate, the method and their difference."""
    *simple, method = rows
    print(f"\n{name}, {keep} directions, {len(rows[method])} selections")
    print(f"{'score':>28s}{'best simple':>22s}{method:>12s}{'gain':>9s}{'worst':>9s}")
    table = {}
    for key in TABLE:
        values = {arm: np.array([row[key] for row in rows[arm]]) for arm in rows}
        sign = 1 if SCORES[key].better == "higher" else -1
        known = [arm for arm in simple if np.isfinite(values[arm]).all()]
        if not known or not np.isfinite(values[method]).any():
            continue
        best = max(known, key=lambda arm: sign * values[arm].mean())
        gains = sign * (values[method] - values[best])
        table[key] = {"best": best, "simple": float(values[best].mean()), "method": float(values[method].mean()),
                      "gain": float(gains.mean()), "worst": float(gains.min())}  # fmt: skip
        row = table[key]
        print(f"{key:>28s}{row['simple']:12.3f} {best:>9s}{row['method']:12.3f}{row['gain']:9.3f}{row['worst']:9.3f}")
    return table


def main() -> None:
    """Print the tables of a room."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scans", nargs="+", default=[n for n, role in roles().items() if role == "report"])
    parser.add_argument("--keep", type=int, nargs="+")
    parser.add_argument("--selections", type=int, default=5)
    parser.add_argument("--method", help="another one of the room")
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, help="JSON with every number")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        compare(args, Path(work))


def compare(args, work: Path) -> None:
    """Print the table of every scan and number of directions, and the means over them."""
    document = {}
    for keep in args.keep or KEEP[args.room]:
        arms = arms_of(args.room, keep, args.method, args.weights, args.data, work)
        for name in args.scans:
            try:
                rows: dict[str, list] = {arm: [] for arm in arms}
                for case in cases(args.data, name, args.room, keep, args.selections):
                    for arm, make in arms.items():
                        rows[arm].append(scores_of(make, case))
            except evaluation.FAULTS as error:
                print(f"\n{name}, {keep} directions: {error}")
                continue
            document[f"{name} {keep}"] = show(name, keep, rows)
        for key in ("fa_psnr", "left_out_fa_psnr", "tensor_snr"):
            gains = [document[at][key]["gain"] for at in document if at.endswith(f" {keep}") and key in document[at]]
            if gains:
                what = f"{key}, {keep} directions: mean gain over the best simple estimate"
                print(f"\n{what} {np.mean(gains):.2f} dB, smallest {min(gains):.2f}")
    if args.out:
        args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
