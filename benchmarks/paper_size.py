"""Networks of size `paper`: their parameters, and what `dmrigen train METHOD --size paper` takes to its first step.

    python benchmarks/paper_size.py [METHOD ...] [--parameters]

Each method trains in a process of its own: imports, simulated subjects, the score of the start and the first step.
`--parameters` counts only, in seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from unittest import mock

from bids_dmrigen.methods import REGISTRY, load, spec_of

SHOWN = 0.05  # millions
TRAINABLE = [name for name in REGISTRY if spec_of(name).needs_weights and not spec_of(name).weights_from]


class FirstStepDone(Exception):
    """The first step has been taken."""


def parameters(method: str) -> str:
    """Return the millions of parameters of the network, and of its parts where it has several."""
    net = load(method).network("paper")
    parts = [f"{name} {_millions(part):.1f}" for name, part in net.named_children() if _millions(part) >= SHOWN]
    return f"{_millions(net):.1f} M" + (f" ({', '.join(parts)})" if 1 < len(parts) <= 6 else "")


def _millions(net) -> float:
    return sum(p.numel() for p in net.parameters()) / 1e6


def to_first_step(method: str) -> None:
    """Train until the first step is done and print what it took."""
    from bids_dmrigen.cli import train

    begun = time.perf_counter()

    def stop(*_: object) -> None:
        raise FirstStepDone

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(train, "_progress", return_value=stop):
        try:
            train.main([method, "--size", "paper", "--out", folder, "--device", "cpu"])
        except FirstStepDone:
            used, peak = os.times(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{time.perf_counter() - begun:6.0f} {used.user + used.system:6.0f} {peak:6.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: {', '.join(TRAINABLE)}")
    parser.add_argument("--parameters", action="store_true", help="count parameters only")
    parser.add_argument("--first-step", metavar="METHOD", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first_step:
        to_first_step(args.first_step)
        return
    print(
        "method, parameters"
        + ("" if args.parameters else "; to the first step: seconds, CPU seconds, peak memory (GB)")
    )
    for method in args.methods or TRAINABLE:
        row = f"{method:10} {parameters(method)}"
        if not args.parameters:
            command = [sys.executable, __file__, "--first-step", method]
            row += "; " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(row, flush=True)


if __name__ == "__main__":
    main()
