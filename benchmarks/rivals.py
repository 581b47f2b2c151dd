"""The simple rivals: how wide to smooth and how much to shrink, fitted to the scans of roles `train` and `choose`.

python benchmarks/rivals.py FOLDER

FOLDER holds the scans of roles train and choose (`training/roles.tsv`), preprocessed by this app with --denoise none.
Prints for every scan and number of directions the best width of smoothing and share of shrinkage in hindsight, and the
rule that is best over all of them: the constants in `dwi/smoothing.py` and `methods/rivals.py`. A score is the mean of
FA PSNR against all volumes and, where they determine a tensor, against the left-out ones.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from scenes import scans_of_roles

from bids_dmrigen.dwi import smoothing
from bids_dmrigen.dwi.noise import estimate_sigma
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import rivals
from bids_dmrigen.qc import evaluation

KEEP, SELECTIONS = (6, 12), 3
WIDTHS = np.r_[0:0.8:0.1, 0.35, 0.45, 0.55, 1.0]
SHARES = np.r_[0:1.6:0.2]
AT, PER = np.r_[0.2:0.8:0.025], np.r_[-0.05:0.3:0.025]


def scored(scan: Scan, kept: np.ndarray, mask: np.ndarray):
    """Return estimate -> mean FA PSNR against all volumes and against the left-out ones."""
    references = [evaluation.summary_maps(scan), evaluation.left_out_maps(scan, kept, "ols")]

    def score(estimate: rivals.Estimate) -> float:
        maps = estimate.maps()
        return float(np.mean([evaluation.map_scores(maps, r, mask)["fa_psnr"] for r in references if r is not None]))

    return score


def curves(scan: Scan, keep: int) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Return for each selection the shell's noise, and the scores of every width and of every share."""
    mask, _ = evaluation.scored_voxels(scan)
    rows = []
    for k in range(SELECTIONS):
        kept = evaluation.kept_volumes(scan.gradients, keep, k, SELECTIONS)
        few, score = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask), scored(scan, kept, mask)
        bval, volumes = few.gradients.shells()[0]
        noise = smoothing.shell_noise(few, bval, volumes, estimate_sigma(few).sigma)
        widths = [score(rivals.wls(smoothing.smooth_contrast(few, width))) for width in WIDTHS]
        shares = [score(rivals.shrunk(few, share)) for share in SHARES]
        rows.append((noise, np.array(widths), np.array(shares)))
    return rows


def main() -> None:
    """Print the curves and the rules."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    order = np.argsort(WIDTHS)
    every: list[list[tuple[float, np.ndarray, np.ndarray]]] = []
    print(f"{'scan':>28s} directions  noise  best width (dB over none)  best share (dB over none)")
    for name, scan in scans_of_roles(args.folder, "train", "choose"):
        for keep in KEEP:
            if keep + 4 > max(len(volumes) for _, volumes in scan.gradients.shells()):
                continue
            rows = curves(scan, keep)
            every.append(rows)
            noise = np.mean([row[0] for row in rows])
            widths, shares = (np.mean([row[k] for row in rows], axis=0) for k in (1, 2))
            print(
                f"{name:>28s} {keep:10d} {noise:6.3f} {WIDTHS[widths.argmax()]:11.2f} ({widths.max() - widths[0]:5.2f})"
                f" {SHARES[shares.argmax()]:18.2f} ({shares.max() - shares[0]:5.2f})",
                flush=True,
            )

    def gain(at: float, per: float) -> float:
        """Return the mean score, over scans, of a rule for the width."""
        scores = []
        for rows in every:
            for noise, widths, _ in rows:
                width = np.clip(at + per * np.log(noise / smoothing.NOISE), 0, smoothing.WIDEST)
                scores.append(np.interp(width, WIDTHS[order], widths[order]) / len(rows))
        return float(np.sum(scores) / len(every))

    at, per = max(product(AT, PER), key=lambda pair: gain(*pair))
    shares = np.mean([np.mean([row[2] for row in rows], axis=0) for rows in every], axis=0)
    print(f"\nwidth = {at:.3f} + {per:.3f} ln(noise / {smoothing.NOISE}): mean {gain(at, per):.2f} dB; "
          f"one width for all, {max(AT, key=lambda a: gain(a, 0)):.3f}: {max(gain(a, 0) for a in AT):.2f} dB; "
          f"none: {gain(0, 0):.2f} dB")  # fmt: skip
    print(f"share = {SHARES[shares.argmax()]:.1f}: mean {shares.max():.2f} dB")


if __name__ == "__main__":
    main()
