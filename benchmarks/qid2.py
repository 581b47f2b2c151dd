"""QID² against the simple alternatives, its two samplers against each other, and its cost.

python benchmarks/qid2.py [simulated] [real] [samplers] [cost] [--data DATA] [--atlas ATLAS] [--weights NAME_OR_PATH]

simulated: held-out subjects, 90 directions at b = 1000: 30 even ones are kept and 60 generated; SNR 15 and 30 (Table 1
of Chen et al. 2024), against the noise-free signal and its FA. real: a dense scan of 84 directions, of which 12 and 30
are kept. samplers: FA of the mean, of the fast sampler and of the paper's 1000 steps. cost: 12 directions to 60.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from scenes import REAL, dense_scan, held_out_scan, matrix_rate, middle

from bids_dmrigen.cli.atlases import EMBEDDED, load_atlas
from bids_dmrigen.diffusion.numerics import resolve_precision
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import SIMPLE, load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.directions.qid2_model import QID2, STEPS
from bids_dmrigen.qc import evaluation, metrics

SUBJECTS = 2
SLICES = 6  # of each simulated scan that are scored
ARMS = (*SIMPLE, "interp", "sh", "qid2")
TABLE = ("dwi_psnr", "dwi_ssim", "fa_error", "fa_ssim", "fa_psnr", "dec_psnr", "direction_angle")


def arm(name: str, args, **settings) -> evaluation.Arm:
    """Return an arm of the comparison."""
    if name in SIMPLE:
        return evaluation.simple_arm(name)
    weights = args.weights if name == "qid2" else None

    def make(kept: Scan, wanted: GradientTable):
        request = Request(weights=weights, options={"directions": wanted.bvecs}, **settings)
        return load(name).generate(None, kept, request)

    return make


def show(result: evaluation.Evaluation, keep: int, title: str) -> None:
    """Print the scores of every arm."""
    print(f"\n{title}")
    print("".join(f"{text:>17s}" for text in ("", *(evaluation.SCORES[key].label for key in TABLE))))
    for name in ARMS:
        values = [result.summary(keep, name)[key][0] for key in TABLE]
        print(f"{name:>17s}" + "".join(f"{value:17.4f}" for value in values), flush=True)


def simulated(args) -> None:
    """Print the paper's Table 1 on simulated subjects."""
    atlas = load_atlas(args.atlas)
    b = np.r_[np.zeros(6), np.full(90, 1000.0)]
    gradients = GradientTable(b, np.concatenate([np.zeros((6, 3)), even_directions(90)]))
    for snr in (15.0, 30.0):
        results = []
        for seed in range(SUBJECTS):
            scan, clean = middle(*held_out_scan(atlas, seed, snr, gradients), SLICES)
            arms = {name: arm(name, args) for name in ARMS}
            results += evaluation.evaluate(scan, [30], arms, truth=clean).outcomes
        merged = evaluation.Evaluation(tuple(results), {}, np.zeros(0))
        show(merged, 30, f"simulated, SNR {snr:g}, 30 directions to 90, {SUBJECTS} subjects, {SLICES} slices each")


def real(args) -> None:
    """Print the scores on a real dense scan."""
    scan = dense_scan(args.data)
    arms = {name: arm(name, args) for name in ARMS}
    result = evaluation.evaluate(scan, [12, 30], arms)
    for keep in (12, 30):
        show(result, keep, f"{REAL}, {keep} directions of 84")


def samplers(args) -> None:
    """Print FA PSNR against the truth with both samplers, and between them."""
    atlas = load_atlas(args.atlas)
    directions = even_directions(30)
    gradients = GradientTable(np.r_[np.zeros(2), np.full(30, 1000.0)], np.concatenate([np.zeros((2, 3)), directions]))
    scan, clean = middle(*held_out_scan(atlas, 7, 20.0, gradients, 4.0), 1)
    settings = {
        f"{STEPS[1]} evaluation, the mean": {},
        f"{STEPS[2]} evaluations, a draw": {"steps": STEPS[2]},
        f"{STEPS[0]} evaluations, a draw": {"sampler": "paper"},
    }
    result = evaluation.evaluate(
        scan, [12], {name: arm("qid2", args, **s) for name, s in settings.items()}, truth=clean
    )
    print(f"\nsamplers, simulated, 12 directions to 30, {int(result.mask.sum())} voxels, against the truth")
    for outcome in result.outcomes:
        between = metrics.psnr(outcome.maps["fa"], result.outcomes[-1].maps["fa"], result.mask)
        print(
            f"{outcome.arm:>30s}: FA PSNR {outcome.scores['fa_psnr']:.2f} dB, {outcome.seconds:.0f} s; "
            f"against the last {between:.1f} dB",
            flush=True,
        )


def cost(args) -> None:
    """Print time, memory and the share of the machine's matrix products, 12 directions to 60."""
    scan = dense_scan(args.data)
    few = scan.data[..., evaluation.kept_volumes(scan.gradients, 12)]
    scan = Scan(few, scan.affine, scan.gradients[evaluation.kept_volumes(scan.gradients, 12)], scan.mask)
    precision = resolve_precision("auto", torch.device("cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start = time.perf_counter()
    generated = QID2().generate(None, scan, Request(weights=args.weights, options={"directions": 60}))
    seconds = time.perf_counter() - start
    images = int((~generated.acquired).sum()) * int(scan.mask.any(axis=(0, 1)).sum())
    evaluations = images * generated.record["Sampler"]["NetworkEvaluations"]
    each = operations(scan) * evaluations
    rate = matrix_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    print(
        f"\ncost, {'x'.join(map(str, scan.data.shape[:3]))}, 12 directions to 60, {precision}, "
        f"{torch.get_num_threads()} threads: {seconds:.0f} s, {evaluations / seconds:.1f} evaluations/s, "
        f"{each / seconds / 1e9:.0f} of {rate / 1e9:.0f} Gflop/s ({each / seconds / rate:.0%} of its matrix products), "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB ({before:.2f} before)",
        flush=True,
    )


def operations(scan: Scan) -> float:
    """Return the floating-point operations of one evaluation on one slice of a scan's brain."""
    from torch.utils.flop_counter import FlopCounterMode

    from bids_dmrigen.methods.directions.qid2_model import MARGIN
    from bids_dmrigen.methods.directions.task import REFERENCES

    inside = np.argwhere(scan.mask)
    height, width = np.minimum(np.ptp(inside, axis=0)[:2] + 1 + 2 * MARGIN, scan.data.shape[:2])
    net = QID2().network("small")
    x = torch.zeros(1, net.spec.in_channels, int(height), int(width))
    condition = torch.zeros(1, REFERENCES.default + 1, 3), torch.zeros(1, REFERENCES.default + 1), torch.zeros(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, torch.zeros(1), *condition)
    return float(counter.get_total_flops())


PARTS = {"simulated": simulated, "real": real, "samplers": samplers, "cost": cost}


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--atlas", default=EMBEDDED, help="atlas of the simulated subjects (default: the embedded one)")
    parser.add_argument("--weights", help="default: qid2-small")
    args = parser.parse_args()
    for part in args.parts or PARTS:
        PARTS[part](args)


if __name__ == "__main__":
    main()
