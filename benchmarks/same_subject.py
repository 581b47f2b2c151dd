"""How far training could take a method: it goes on being trained on the very scan that it is then scored on.

python benchmarks/same_subject.py ROOM OUT [--scan NAME] [--minutes M] [--batch B] [--keep N ...] [--selections K]
    [--data FOLDER]

ROOM is maps (Diff-DTI), directions (QID²) or enhance (RISH latent diffusion), as in `evidence.py`, whose table is
printed for the shipped weights, and for those that were trained on, for M minutes, on all volumes of the scan and on
anatomies that its tensors make. The second table is no result: these weights know the brain, and something of the noise
of the reference. It says what more or better scans to train on could give at most. The weights are in OUT, which
continues where it stopped; they are for nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from evidence import KEEP, ROOMS, compare, report_scan

from bids_dmrigen.cli.prepare import anatomy_of
from bids_dmrigen.diffusion.arrays import write_prepared
from bids_dmrigen.dwi.noise import estimate_sigma
from bids_dmrigen.simulate.measured import write_anatomies

TRAINED, HELD_OUT = "same", "again"  # the same scan twice: what is held out is no other subject, on purpose
ROOMS_SHOWN = ("maps", "directions", "enhance")


def write_examples(args) -> list[str]:
    """Write the scan as training data; return the options of `dmrigen train` that name it."""
    scan = report_scan(args.data, args.scan)
    subjects = (TRAINED, HELD_OUT)
    anatomies = args.out / "anatomies.safetensors"
    anatomy = anatomy_of(scan)
    write_anatomies(anatomies, [(args.scan, subject, *anatomy) for subject in subjects])
    options = ["--anatomies", str(anatomies), "--held-out", HELD_OUT]
    if args.room == "enhance":  # learns from simulated pairs alone
        return options
    data = args.out / "scan.safetensors"
    sigma = estimate_sigma(scan).sigma
    write_prepared(data, [(args.scan, subject, scan, sigma) for subject in subjects])
    return ["--data", str(data), *options]


def train(args) -> Path:
    """Train the method on the scan, from its shipped weights; return the new ones."""
    args.out.mkdir(parents=True, exist_ok=True)
    name = ROOMS[args.room]
    command = [sys.executable, "-m", "bids_dmrigen.cli.train", name, "--out", str(args.out), "--init", f"{name}-small",
               "--minutes", str(args.minutes), "--batch", str(args.batch), "--no-calibration",
               *write_examples(args)]  # fmt: skip
    subprocess.run(command, check=True)
    return args.out / f"{name}-small.safetensors"


def main() -> None:
    """Train, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("room", choices=ROOMS_SHOWN)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scan", default="canon", help="of role report (default: canon)")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--keep", type=int, nargs="+", help="directions of a shell (default: the first of evidence.py)")
    parser.add_argument("--selections", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    trained = train(args)
    shown = {"room": args.room, "data": args.data, "scans": [args.scan], "selections": args.selections, "method": None,
             "keep": args.keep or list(KEEP[args.room][:1]), "out": None}  # fmt: skip
    for title, weights in (("shipped weights", None), ("trained on this very scan", str(trained))):
        print(f"\n{title}")
        with tempfile.TemporaryDirectory() as work:
            compare(argparse.Namespace(**shown, weights=weights), Path(work))


if __name__ == "__main__":
    main()
