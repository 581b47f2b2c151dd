"""How good a perfect estimate could look: the noise of the references that maps are scored against.

python benchmarks/limits.py [--data FOLDER] [--scans NAME ...] [--keep N] [--selections K]

A tensor of every voxel is taken for the truth: `smooth`, from all volumes of the reference. Signals that follow from it
get noise of the scan's level, and references are made of them as of the acquired volumes. Printed are the scores of the
true maps against these references: no estimate can be expected to do better on the scan. The second row of each scan
shows what least squares on N directions of the same noisy signals has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from evidence import FIT, MAPS, Case, cases, report_scan
from scenes import roles

from bids_dmrigen.dwi.noise import estimate_sigma
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import design_matrix, tensor_volumes
from bids_dmrigen.methods.rivals import RIVALS, Estimate
from bids_dmrigen.qc import evaluation


def imitation(scan: Scan, seed: int) -> tuple[Estimate, Scan]:
    """Return a tensor fit, and the scan that it predicts with Rician noise of the scan's level."""
    truth, sigma = RIVALS["smooth"](scan), estimate_sigma(scan).sigma
    design = design_matrix(scan.gradients.bvals, scan.gradients.world_directions(scan.affine))
    logs = truth.fit.tensor.double().numpy() @ design[:, :6].T + np.log(truth.fit.s0.clamp_min(1e-3).numpy())[:, None]
    signal, rng = np.exp(logs), np.random.default_rng(seed)
    noisy = np.hypot(signal + sigma * rng.normal(size=signal.shape), sigma * rng.normal(size=signal.shape))
    data = np.zeros(scan.data.shape, np.float32)
    data[scan.mask] = noisy
    return truth, Scan(data, scan.affine, scan.gradients, scan.mask)


def limits(name: str, data: Path, case: Case, seed: int) -> dict[str, dict[str, float]]:
    """Return the scores of the true maps, and of least squares on the kept directions, by reference and score."""
    scan = report_scan(data, "mdtb2k" if name == "mdtb6k" else name)
    low = tensor_volumes(scan.gradients)
    scan = Scan(scan.data[..., low], scan.affine, scan.gradients[low], scan.mask)
    truth, noisy = imitation(scan, seed)
    kept = noisy.gradients.is_b0.copy()
    if name != "mdtb6k":
        kept |= _among(case, noisy)
    references = {"": evaluation.summary_maps(noisy, FIT)} if name != "mdtb6k" else {}
    references["left_out_"] = evaluation.left_out_maps(noisy, kept, FIT) or {}
    few = Scan(noisy.data[..., kept], noisy.affine, noisy.gradients[kept], noisy.mask)
    found = {"perfect": truth.maps()} | ({"ols": RIVALS["ols"](few).maps()} if name != "mdtb6k" else {})
    out: dict[str, dict[str, float]] = {}
    for arm, maps in found.items():
        out[arm] = {}
        for prefix, reference in references.items():
            if reference:
                scores = evaluation.map_scores(maps, reference, case.mask & noisy.mask)
                out[arm] |= {prefix + key: scores[key] for key in MAPS}
    return out


def _among(case: Case, scan: Scan) -> np.ndarray:
    """Return which volumes of the scan the case keeps, by their b-vectors and b-values."""
    table, kept = scan.gradients, case.few.gradients
    same = np.abs(table.bvecs @ kept.bvecs.T) > 1 - 1e-9
    same &= np.abs(table.bvals[:, None] - kept.bvals) < 1e-6
    return same.any(axis=1)


def main() -> None:
    """Print the limits of the scans."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scans", nargs="+", default=[n for n, role in roles().items() if role == "report"])
    parser.add_argument("--keep", type=int, default=6)
    parser.add_argument("--selections", type=int, default=5)
    args = parser.parse_args()
    keys = [prefix + key for prefix in ("", "left_out_") for key in MAPS]
    print(f"{'scan':>12s}{'estimate':>10s}" + "".join(f"{key.replace('direction_', ''):>20s}" for key in keys))
    for name in args.scans:
        found = [
            limits(name, args.data, case, seed)
            for seed, case in enumerate(cases(args.data, name, "maps", args.keep, args.selections))
        ]
        for arm in found[0]:
            row = [np.mean([scores[arm].get(key, np.nan) for scores in found]) for key in keys]
            print(f"{name:>12s}{arm:>10s}" + "".join(f"{value:20.2f}" for value in row))


if __name__ == "__main__":
    main()
