"""The whole app on real scans: status, minutes per run, peak memory, and a second call, which computes nothing again.

python benchmarks/real_scans.py BIDS_DIR OUT_DIR [options of bids_dmrigen, e.g. --participant-label canon]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from subprocess import Popen

import psutil


def measured(command: list[str]) -> tuple[int, float, float]:
    """Return exit status, seconds, and peak memory in GB (proportional set size summed over the process tree)."""
    start, peak = time.monotonic(), 0.0
    process = Popen(command)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for member in [tree, *tree.children(recursive=True)]:
                total += member.memory_full_info().pss
        except psutil.Error:  # a process ended while its memory was read
            pass
        peak = max(peak, total / 1e9)
        time.sleep(0.5)
    return process.returncode, time.monotonic() - start, peak


def main() -> int:
    """Run the app twice; print time and memory."""
    data, out, *options = sys.argv[1:]
    command = [str(Path(sys.executable).parent / "bids_dmrigen"), data, out, "participant"]
    command += ["--methods", "difusion", *options]
    status, seconds, peak = measured(command)
    runs = len(list(Path(out).rglob("*_desc-quality_metrics.json")))
    again, seconds_again, _ = measured(command)
    print(f"status {status}, {runs} runs complete")
    print(f"{seconds / 60:.1f} min in all, {seconds / 60 / max(runs, 1):.2f} min per run (goal: at most 12)")
    print(f"peak memory of all processes {peak:.2f} GB (goal: under 4)")
    print(f"second call: status {again}, {seconds_again:.0f} s (goal: within 60)")
    return status or again


if __name__ == "__main__":
    sys.exit(main())
