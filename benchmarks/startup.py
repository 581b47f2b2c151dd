"""How long the user waits for the first output of --version, --help and a run, seconds.

Usage: python benchmarks/startup.py [COMMAND ...]

COMMAND starts the app, e.g. docker run --rm IMAGE; by default it is the app of this environment.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

CALLS = {"--version": ["--version"], "--help": ["--help"], "first line of a run": ["/", "/tmp/out", "participant"]}
REPEATS = 5


def seconds_to_first_line(command: list[str]) -> float:
    """Return the time until a command prints its first line; then it is ended."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        line = process.stdout.readline()
        waited = time.perf_counter() - started
        process.terminate()
    if not line.strip():
        raise SystemExit(f"{' '.join(command)} printed nothing")
    return waited


if __name__ == "__main__":
    app = sys.argv[1:] or [str(Path(sys.executable).parent / "bids_dmrigen")]
    for name, options in CALLS.items():
        times = [seconds_to_first_line([*app, *options]) for _ in range(REPEATS)]
        print(f"{name:20} median {statistics.median(times):5.2f}, slowest {max(times):5.2f}", flush=True)
