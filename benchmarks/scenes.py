"""Scans that several benchmarks share: simulated subjects who were not trained on, and a real dense scan."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bids_dmrigen.bids.query import find_preprocessed, open_layout
from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.qc import evaluation
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.examples import HELD_OUT
from bids_dmrigen.simulate.scanner import acquire, scan_grid
from bids_dmrigen.simulate.signal import Tissue
from bids_dmrigen.spatial.coverage import read_run
from bids_dmrigen.spatial.io import read_scan

REAL = "reference/sub-canon_desc-merged"


def held_out_scan(atlas, seed: int, snr: float, gradients: GradientTable, voxel_mm: float = 2.5):
    """Return a scan of a simulated subject who was not trained on, and its noise-free signals."""
    subject = deform(atlas, HELD_OUT + 100 + seed)
    shape = (72, 88, 64) if voxel_mm < 3 else (46, 56, 40)
    affine = scan_grid(subject, voxel_mm, shape)
    simulated = acquire(subject, gradients, affine, shape, snr, seed, tissue=Tissue.random(HELD_OUT + seed))
    return simulated.scan, simulated.clean


def middle(scan: Scan, clean: np.ndarray, n: int) -> tuple[Scan, np.ndarray]:
    """Return the middle slices of a scan: n slices, and those above and below that the scores leave out."""
    rim = evaluation.EROSIONS
    first = scan.data.shape[2] // 2 - n // 2 - rim
    part = np.s_[:, :, first : first + n + 2 * rim]
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [0, 0, first, 1])[:3]
    return Scan(scan.data[part], affine, scan.gradients, scan.mask[part]), clean[part]


def dense_scan(data: Path) -> Scan:
    """Return the real dense scan."""
    stem = data / REAL
    return read_scan(f"{stem}_dwi.nii.gz", f"{stem}_dwi.bval", f"{stem}_dwi.bvec", f"{stem}_mask.nii.gz", 50.0)[0]


def roles() -> dict[str, str]:
    """Return subject -> role: train, choose or report; one for each person."""
    with open(Path(__file__).parents[1] / "training" / "roles.tsv", newline="") as file:
        return {row["subject"]: row["role"] for row in csv.DictReader(file, delimiter="\t")}


def scans_of_roles(folder: Path, *wanted: str) -> Iterator[tuple[str, Scan]]:
    """Yield name and scan of the first run of every subject with one of the roles, from a folder that the app wrote."""
    subjects = [subject for subject, role in roles().items() if role in wanted]
    seen = set()
    for run in find_preprocessed(open_layout(folder, derivative=True), (), ()):
        subject = run.entities["subject"]
        if subject in subjects and subject not in seen:
            seen.add(subject)
            yield run.name, read_run(run, 50.0)


def matrix_rate(dtype: torch.dtype, n: int = 2048, rounds: int = 5) -> float:
    """Return the operations per second of a large matrix product."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)
