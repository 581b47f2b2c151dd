"""What methods know of their own errors, on scans that nothing was trained, chosen or tuned on.

python benchmarks/uncertainty.py ROOM [--data FOLDER] [--scans NAME ...] [--keep N ...] [--selections K] [--samples K]
    [--method NAME] [--weights PATH]

Scans, directions and references are those of `evidence.py`; only the volumes left out count. A method draws samples
and is calibrated as in the app, on the volumes that it is given alone. It is printed beside the same estimate with one
error everywhere, and beside the simple estimate of the best score with one error everywhere. That error is the root
mean square that each of them turns out to have on the very scan: nobody knows it beforehand. CRPS, energy score and
width are better when lower; the 90 % interval should hold 90 %. What noise does to the FA of the reference is part of
the errors of the method too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from evidence import FIT, KEEP, ROOMS, Case, cases
from scenes import roles

from bids_dmrigen.methods import SIMPLE, load
from bids_dmrigen.methods.base import Generated, Request
from bids_dmrigen.methods.rivals import Estimate
from bids_dmrigen.qc import evaluation
from bids_dmrigen.workflow.generate import LEFT_OUT

SHOWN = ("fa_crps", "dec_energy", "fa_width", "fa_coverage", "fa_coverage_white", "fa_coverage_grey",
         "fa_coverage_fluid")  # fmt: skip


def scores_of(result: Generated | Estimate, case: Case) -> dict[str, float]:
    """Return the scores of what a result says about its errors, against the volumes left out."""
    maps, _ = evaluation.maps_and_volumes(result, case.few, case.wanted, FIT)
    unseen = case.references["left_out_"]
    found = evaluation.uncertainty_scores(result, maps, case.few, unseen, case.mask, case.wanted, case.others)
    return {key: found.get(key, float("nan")) for key in SHOWN}


def rows_of(case: Case, name: str, request: Request) -> dict[str, dict[str, float]]:
    """Return the scores of a method, of its estimate with one error, and of the simple estimates."""
    method = load(name)
    options = method.spec.evaluation_options(case.wanted)
    made = method.generate(None, case.few, replace(request, options=options))
    simple = {arm: scores_of(evaluation.simple_arm(arm)(case.few, case.wanted), case) for arm in SIMPLE}
    return {name: scores_of(made, case), "one error": scores_of(replace(made, samples=None), case), **simple}


def main() -> None:
    """Print a table for every scan and number of directions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scans", nargs="+", default=[n for n, role in roles().items() if role == "report"])
    parser.add_argument("--keep", type=int, nargs="+")
    parser.add_argument("--selections", type=int, default=1)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--method", help="another one of the room")
    parser.add_argument("--weights")
    args = parser.parse_args()
    name = args.method or ROOMS[args.room]
    request = Request(weights=args.weights, n_samples=args.samples, left_out=LEFT_OUT)
    for keep in args.keep or KEEP[args.room]:
        for scan in args.scans:
            try:
                found = [rows_of(c, name, request) for c in cases(args.data, scan, args.room, keep, args.selections)]
            except evaluation.FAULTS as error:
                print(f"\n{scan}, {keep} directions: {error}", flush=True)
                continue
            show(scan, keep, found)


def show(scan: str, keep: int, found: list[dict[str, dict[str, float]]]) -> None:
    """Print the means over the selections of the method, its estimate with one error, and the best simple estimate."""
    means = {arm: {key: np.mean([row[arm][key] for row in found]) for key in SHOWN} for arm in found[0]}
    best = min(SIMPLE, key=lambda arm: means[arm]["fa_crps"])
    print(f"\n{scan}, {keep} directions, {len(found)} selections")
    print(f"{'':>12s}" + "".join(f"{key.removeprefix('fa_'):>16s}" for key in SHOWN))
    for arm in (*list(means)[:2], best):
        print(f"{arm:>12s}" + "".join(f"{means[arm][key]:16.4f}" for key in SHOWN), flush=True)


if __name__ == "__main__":
    main()
