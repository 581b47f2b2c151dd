"""Susceptibility: correlation of opposite b0s before and after correction by the pair, by SyN, and by a field map.

Usage: python benchmarks/susceptibility.py [DATA_BIDS_DIRECTORY]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # before ants is imported

import numpy as np

from bids_dmrigen.bids.query import find_runs, open_layout
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.scanner import acquire, protocol, scan_grid, susceptibility
from bids_dmrigen.spatial.ants_tools import Stage, register, to_ants, write_matrix
from bids_dmrigen.spatial.brain_mask import brain_mask
from bids_dmrigen.spatial.fieldmap import correct_with_field, read_field
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.spatial.similarity import pearson
from bids_dmrigen.spatial.susceptibility import estimate_displacement, unwarp
from bids_dmrigen.spatial.templates import embedded_mni

PAIRS = {
    "canon": ("sub-canon/dwi/sub-canon_acq-ortho_dir-PA_dwi", "sub-canon/dwi/sub-canon_acq-ortho_dir-AP_dwi"),
    "prisma": ("sub-prisma/dwi/sub-prisma_dir-AP_dwi", "sub-prisma/dwi/sub-prisma_dir-PA_dwi"),
    "uih": ("sub-uih/dwi/sub-uih_dir-AP_dwi", "sub-uih/dwi/sub-uih_dir-PA_dwi"),
}


def half_syn(first: np.ndarray, second: np.ndarray, zooms: np.ndarray, axis: int) -> np.ndarray:
    """Return half of the field (X, Y, Z), voxels, of SyN restricted to one axis, in index space."""
    import ants

    grid = np.diag([*zooms, 1.0])
    weights = tuple(float(a == axis) for a in range(3))
    with tempfile.TemporaryDirectory() as folder:
        start = write_matrix(Path(folder) / "start.mat", np.eye(4))
        stage = Stage("SyN[0.2,3,0]", (60, 40, 20), (4, 2, 1), (8, 4, 2), sampling=1, weights=weights)
        register(to_ants(first, grid), to_ants(second, grid), [stage], f"{folder}/s-", start=(start,))
        warps = [p for p in Path(folder).glob("s-*Warp.nii.gz") if "Inverse" not in p.name]
        field = ants.image_read(str(warps[0])).numpy()[..., axis]
    sign = 1.0 if axis == 2 else -1.0  # LPS
    return -sign * field / zooms[axis] / 2


def compare(name: str, first: np.ndarray, second: np.ndarray, affine: np.ndarray) -> None:
    """Print correlations, displacements and the ratio of CPU times."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    started = time.process_time()
    estimate = estimate_displacement(first, second, affine, 1)
    ours = time.process_time() - started
    started = time.process_time()
    syn = half_syn(first, second, zooms, 1)
    theirs = time.process_time() - started
    mask = brain_mask((estimate.corrected + estimate.corrected_opposite) / 2, zooms)
    size = np.abs(estimate.field_mm[mask])
    by_syn = [pearson(unwarp(first, s * syn, 1), unwarp(second, -s * syn, 1), mask) for s in (1, -1)]
    print(
        f"{name}: correlation raw {pearson(first, second, mask):.3f}, corrected "
        f"{pearson(estimate.corrected, estimate.corrected_opposite, mask):.3f}, half SyN {max(by_syn):.3f}; "
        f"|displacement| mean {size.mean():.2f} max {size.max():.2f} mm; "
        f"CPU time SyN / ours {theirs / ours:.1f}",
        flush=True,
    )


def compare_field_map(data: Path, subject: str, scans: list[Scan]) -> None:
    """Print what a subject's field map gives for two scans of opposite phase encoding, and the pair for comparison."""
    runs = [run for run in find_runs(open_layout(data), [subject]) if run.fieldmap is not None]
    if len(runs) < len(scans):
        return
    field = read_field(runs[0].fieldmap)
    images, turned = [], []
    for run, scan in zip(runs, scans, strict=True):
        direction, readout_s = run.metadata["PhaseEncodingDirection"], run.readout_s
        images.append(correct_with_field(scan, field, direction, readout_s)[0])
        wrong = direction.rstrip("-") + ("" if direction.endswith("-") else "-")
        turned.append(correct_with_field(scan, field, wrong, readout_s)[0]["corrected_b0"])
    first, second = (i["corrected_b0"] for i in images)
    pair = estimate_displacement(scans[0].mean_b0(), scans[1].mean_b0(), scans[0].affine, 1)
    mask = brain_mask((pair.corrected + pair.corrected_opposite) / 2, scans[0].zooms_mm)
    by_map = images[0]["field"]
    print(
        f"{subject}, field map: correlation corrected {pearson(first, second, mask):.3f}, with the wrong sign "
        f"{pearson(*turned, mask):.3f}; displacement against that of the pair: correlation "
        f"{np.corrcoef(by_map[mask], pair.field_mm[mask])[0, 1]:.3f}, median difference "
        f"{np.median(np.abs(by_map - pair.field_mm)[mask]):.2f} mm",
        flush=True,
    )


def simulated() -> None:
    """Print the error of the field against the truth of a simulated pair, SNR 20."""
    arrays, atlas_affine = embedded_mni(2)
    atlas = procedural_atlas(**arrays, affine=atlas_affine)
    shape = (64, 80, 54)
    affine = scan_grid(atlas, 2.5, shape)
    truth = susceptibility(affine, shape)
    gradients = protocol(affine, 1, 1, 1000)
    b0s = [
        acquire(atlas, gradients, affine, shape, 20, seed, displacement=sign * truth, bias=0).scan
        for seed, sign in ((1, 1), (2, -1))
    ]
    estimate = estimate_displacement(b0s[0].mean_b0(), b0s[1].mean_b0(), affine, 1)
    mask = b0s[0].mask
    error = (estimate.field_mm - truth)[mask]
    print(
        f"simulated: displacement rms {np.sqrt((truth[mask] ** 2).mean()):.2f} max {np.abs(truth[mask]).max():.2f} "
        f"mm, error rms {np.sqrt((error**2).mean()):.2f} 95 % {np.percentile(np.abs(error), 95):.2f} mm",
        flush=True,
    )


if __name__ == "__main__":
    simulated()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/bids")
    for name, stems in PAIRS.items():
        if Path(f"{folder / stems[0]}.nii.gz").exists():
            pair = [read_scan(*(f"{folder / stem}.{end}" for end in ("nii.gz", "bval", "bvec")))[0] for stem in stems]
            compare(name, pair[0].mean_b0(), pair[1].mean_b0(), pair[0].affine)
            compare_field_map(folder, name, pair)
