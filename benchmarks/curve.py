"""Held-out loss and real-scan score of a training against its hours.

python benchmarks/curve.py FOLDER [--method NAME] [--data FOLDER] [--scans NAME ...] [--keep N] [--selections K]
    [--fit ols|wls]

FOLDER is that of `dmrigen train --keep-every`. For each of the weights that were kept there, the first row being the
network before the training: hours, steps, held-out loss, and for each scan of role `report` what the method has in FA
over the best simple estimate, dB, against the volumes that it did not see (see `evidence.py`). Nothing was chosen by
these scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from evidence import FIT, KEEP, ROOMS, cases, scores_of
from scenes import roles

from bids_dmrigen.diffusion.checkpoints import kept_weights
from bids_dmrigen.methods import SIMPLE, load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.qc import evaluation

KEY = "left_out_fa_psnr"


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=ROOMS.values(), default="diffdti")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scans", nargs="+", default=[n for n, role in roles().items() if role == "report"])
    parser.add_argument("--keep", type=int, help="directions of a shell (default: the first of evidence.py)")
    parser.add_argument("--selections", type=int, default=2)
    parser.add_argument("--fit", choices=("ols", "wls"), default=FIT, help="of the references")
    args = parser.parse_args()
    room = next(room for room, method in ROOMS.items() if method == args.method)
    keep = args.keep or KEEP[room][0]
    shown = [(name, list(cases(args.data, name, room, keep, args.selections, args.fit))) for name in args.scans]
    best = [[best_simple(case) for case in found] for _, found in shown]
    method = load(args.method)
    net = method.network("small")
    print(f"{'hours':>6s} {'steps':>7s} {'held-out loss':>14s} " + " ".join(f"{name:>12s}" for name in args.scans))
    rows = [(None, None), *kept_weights(args.folder / "checkpoint.safetensors")]
    for weights, progress in rows:
        if weights is not None:
            net.load_state_dict(weights)
        gains = []
        for (_, found), simple in zip(shown, best, strict=True):
            scores = [scores_of(arm_of(method, net), case)[KEY] for case in found]
            gains.append(float(np.mean(np.subtract(scores, simple))))
        hours, steps = (progress.seconds / 3600, progress.step) if progress else (0.0, 0)
        loss = progress.history[-1]["held_out"] if progress else rows[-1][1].start_loss
        print(f"{hours:6.2f} {steps:7d} {loss:14.4f} " + " ".join(f"{gain:+12.2f}" for gain in gains), flush=True)


def arm_of(method, net):
    """Return a network of a method as an arm."""
    return lambda kept, wanted: method.generate(net, kept, Request(options=method.spec.evaluation_options(wanted)))


def best_simple(case) -> float:
    """Return the best score of the simple estimates."""
    return float(np.nanmax([scores_of(evaluation.simple_arm(name), case)[KEY] for name in SIMPLE]))


if __name__ == "__main__":
    main()
