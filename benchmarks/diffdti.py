"""Diff-DTI against least squares: tables of simulated subjects, real scans, samplers, spread, cost, ablation.

python benchmarks/diffdti.py [simulated] [real] [rotations] [scans] [share] [samplers] [hyperparameters] [spread]
    [cost] [ablation] [--data DATA] [--atlas ATLAS] [--weights NAME_OR_PATH] [--minutes M]

simulated: subjects who were not trained on, b = 1000, SNR 20, six and three directions (Tables II and III of Zhang et
al. 2024), against the maps of the noise-free signal. real: a dense scan of 84 directions, of which six and three are
kept. rotations: five selections of these directions. scans: six directions of other scans against all. share: what the
maps would be with a share of the network's change, on the scans to choose on. samplers: the mean, the fast sampler and
the paper's. hyperparameters (Fig. 7): one draw of the paper's sampler, by the number of times N, by the size r of its
corrector's steps and by the noise sigma_max that it starts from; not part of the default. spread: the share of true
values inside a 90 % interval of 16 samples. cost: six directions of the dense scan. ablation (Table IV): both variants
are trained from the start, side by side on one core each, for the same minutes; not part of the default.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from papers import show_stated
from scenes import REAL, dense_scan, held_out_scan, middle
from scipy import ndimage

from bids_dmrigen.cli.atlases import EMBEDDED, load_atlas
from bids_dmrigen.diffusion.numerics import resolve_precision
from bids_dmrigen.diffusion.processes import VarianceExploding
from bids_dmrigen.diffusion.training import train
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.uncertainty import NORMAL_90, TISSUES, tissue_of
from bids_dmrigen.methods import SIMPLE
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.maps import diffdti_model
from bids_dmrigen.methods.maps.diffdti_model import STEPS, DiffDTI
from bids_dmrigen.methods.maps.examples import PROCESS
from bids_dmrigen.methods.uncertainty import standard_errors
from bids_dmrigen.qc import evaluation, metrics
from bids_dmrigen.simulate.examples import SimulatedSubjects
from bids_dmrigen.spatial.brain_mask import brain_of
from bids_dmrigen.spatial.io import read_scan

SUBJECTS, SLICES, SNR = 2, 6, 20.0
SAMPLES = 8
SCANS = ("elition", "prisma", "sagittal")  # subjects of data/bids: the first run of each
CHOOSING = ("uih", "ge15t", "slab", "thick")  # scans for choosing settings: no result is reported for them
MAPS, KINDS = {"fa": "FA", "md": "MD", "dec": "colour"}, ("PSNR", "SSIM", "NMSE")


def arms(args, **settings) -> dict[str, evaluation.Arm]:
    """Return least squares and Diff-DTI."""

    def make(kept: Scan, wanted: GradientTable):
        return DiffDTI().generate(args.net, kept, Request(weights=args.weights, **settings))

    return {**{name: evaluation.simple_arm(name) for name in SIMPLE}, "Diff-DTI": make}


def show(results: list[evaluation.Evaluation], keep: int, title: str) -> None:
    """Print PSNR, SSIM and NMSE of each map, means over outcomes, as the paper's tables have them."""
    print(f"\n{title}")
    print(f"{'':>16s}" + "".join(f"{f'{label} {kind}':>12s}" for label in MAPS.values() for kind in KINDS), end="")
    print(f"{'lowest FA':>12s}{'FA error':>12s}")
    rows: dict[str, list] = {}
    for result in results:
        for o in (o for o in result.outcomes if o.keep == keep):
            if o.fault:
                print(f"{o.arm:>16s}  {o.fault[:90]}")
                continue
            scores = [metrics.scores(o.maps[name], result.reference[name], result.mask) for name in MAPS]
            numbers = [each[kind.lower()] for each in scores for kind in KINDS]
            rows.setdefault(o.arm, []).append([*numbers, scores[0]["psnr"], scores[0]["mae"]])
    for arm, numbers in rows.items():
        values = [*np.mean(numbers, axis=0)]
        values[-2] = np.min(numbers, axis=0)[-2]
        print(f"{arm:>16s}" + "".join(f"{value:12.3f}" for value in values), flush=True)


def subjects(args, n: int, first: int = 0, voxel_mm: float = 2.5, slices: int = SLICES):
    """Return held-out scans of 60 directions and their noise-free signals."""
    gradients = GradientTable(
        np.r_[np.zeros(1), np.full(60, 1000.0)], np.concatenate([np.zeros((1, 3)), even_directions(60)])
    )
    atlas = load_atlas(args.atlas)
    for seed in range(first, first + n):
        yield middle(*held_out_scan(atlas, seed, SNR, gradients, voxel_mm), slices)


def simulated(args) -> None:
    """Print the paper's Tables II and III on simulated subjects."""
    scans = list(subjects(args, SUBJECTS))
    for keep in (6, 3):
        results = [evaluation.evaluate(s, [keep], arms(args), truth=clean) for s, clean in scans]
        show(
            results,
            keep,
            f"simulated, SNR {SNR:g}, one b0 and {keep} directions, {SUBJECTS} subjects, {SLICES} slices each",
        )


def real(args) -> None:
    """Print the scores on a real dense scan."""
    result = evaluation.evaluate(dense_scan(args.data), [6, 3], arms(args))
    for keep in (6, 3):
        show([result], keep, f"{REAL}, {keep} directions of 84")


def rotations(args) -> None:
    """Print the mean and the worst of five selections of directions."""
    for keep in (6, 3):
        result = evaluation.evaluate(dense_scan(args.data), [keep], arms(args), rotations=5)
        show([result], keep, f"{REAL}, {keep} directions of 84, five selections")


def real_scan(args, subject: str):
    """Return the path of a real scan's first run, and the scan without voxels that are 0 in some volume."""
    path = sorted((args.data / f"bids/sub-{subject}").rglob("*_dwi.nii.gz"))[0]
    stem = str(path).removesuffix(".nii.gz")
    scan, _ = read_scan(path, f"{stem}.bval", f"{stem}.bvec", None, 50.0)
    mask = brain_of(scan) & (scan.data > 0).all(axis=3)
    return path, Scan(scan.data, scan.affine, scan.gradients, mask)


def scans(args) -> None:
    """Print the scores on other scans: six of their directions against all."""
    for subject in SCANS:
        path, scan = real_scan(args, subject)
        n = int((~scan.gradients.is_b0).sum())
        show([evaluation.evaluate(scan, [6], arms(args))], 6, f"{path.name}, 6 directions of {n}")


def share(args) -> None:
    """Print the PSNR of FA, MD and colour by the share of the network's change, on the scans for choosing.

    1 is what the method does: with six directions, half of what the network says.
    """
    kinds, shares = ("fa", "md", "dec"), np.linspace(0, 2, 9)
    print("\nPSNR by the share of the change, " + " ".join(f"{s:.2f}" for s in shares))
    for subject in CHOOSING:
        _, scan = real_scan(args, subject)
        for keep in (3, 6):
            kept = evaluation.kept_volumes(scan.gradients, keep)
            few = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
            uncorrected = DiffDTI().generate(DiffDTI().network("small"), few, Request()).named_maps()
            corrected = DiffDTI().generate(args.net, few, Request(weights=args.weights)).named_maps()
            reference = evaluation.summary_maps(scan)
            inner = ndimage.binary_erosion(scan.mask, iterations=evaluation.EROSIONS)
            for kind in kinds:
                maps = [uncorrected[kind] + s * (corrected[kind] - uncorrected[kind]) for s in shares]
                values = " ".join(f"{metrics.psnr(m, reference[kind], inner):6.2f}" for m in maps)
                print(f"{subject:>8s}, {keep} directions, {kind:>4s}: {values}", flush=True)


def samplers(args) -> None:
    """Print FA PSNR against the truth with every sampler."""
    (scan, clean), *_ = subjects(args, 1, 7, 4.0)
    settings = {
        "the mean, 1 evaluation": {},
        "mean of 3 draws, the paper's": {"n_samples": 3, "sampler": "paper"},
        "one draw, fast": {"steps": STEPS[2]},
        "one draw, the paper's": {"sampler": "paper"},
    }
    print("\nsamplers, simulated, six directions, against the truth")
    for name, setting in settings.items():
        outcome = evaluation.evaluate(scan, [6], {"x": arms(args, **setting)["Diff-DTI"]}, truth=clean).outcomes[0]
        evaluations = outcome.record["Sampler"]["NetworkEvaluations"]
        print(
            f"{name:>30s}: FA PSNR {outcome.scores['fa_psnr']:.2f} dB, {evaluations} evaluations a draw, "
            f"{outcome.seconds:.0f} s",
            flush=True,
        )


def hyperparameters(args) -> None:
    """Print FA PSNR and SSIM of the paper's sampler by its settings, against the truth.

    The weights are trained up to 348: a start from less noise leaves the first times out, and a start from more asks
    the network for the noise that it knows best.
    """
    (scan, clean), *_ = subjects(args, 1, 7, 4.0, slices=2)

    def show(name: str, value: float, steps: int) -> None:
        chosen = {"x": arms(args, sampler="paper", steps=2 * steps)["Diff-DTI"]}
        scores = evaluation.evaluate(scan, [6], chosen, truth=clean).outcomes[0].scores
        print(f"{name:>10s} {value:7g}: FA PSNR {scores['fa_psnr']:.2f} dB, SSIM {scores['fa_ssim']:.3f}", flush=True)

    print("\nthe paper's sampler, simulated, six directions; the paper chose N = 1000, r = 0.075, sigma_max = 348")
    for steps in (200, 500, 1000, 1500, 2000):
        with process_of(PROCESS.high, steps):
            show("N", steps, steps)
    for ratio in (0.01, 0.05, 0.075, 0.1, 0.16):
        with process_of(PROCESS.high, args.times), mock.patch.object(diffdti_model, "CORRECTOR_SNR", ratio):
            show("r", ratio, args.times)
    for high in (248.0, 348.0, 448.0):
        with process_of(high, args.times):
            show("sigma_max", high, args.times)


@contextmanager
def process_of(high: float, steps: int) -> Iterator[None]:
    """Sample with another largest noise or number of times; the network is told its own time of the same noise."""
    process, raw = VarianceExploding(PROCESS.low, high, steps), diffdti_model._raw

    def told(net, x, t, condition):
        sigma = process.marginal(t.cpu())[1]
        own = 1 + (PROCESS.steps - 1) * torch.log(sigma / PROCESS.low) / np.log(PROCESS.high / PROCESS.low)
        own = own.clamp(1, PROCESS.steps).to(t.device, torch.float32)
        return raw(lambda seen, _, *rest: net(seen, own, *rest), x, t, condition)

    with mock.patch.object(diffdti_model, "PROCESS", process), mock.patch.object(diffdti_model, "_raw", told):
        yield


def spread(args) -> None:
    """Print the share of the true values in the 90 % interval, by map and tissue."""
    inside = {}
    for seed, (scan, clean) in enumerate(subjects(args, SUBJECTS, 20)):
        for keep in (6, 3):
            kept = evaluation.kept_volumes(scan.gradients, keep)
            few = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
            generated = DiffDTI().generate(args.net, few, Request(weights=args.weights, n_samples=SAMPLES))
            truth = evaluation.summary_maps(Scan(clean, scan.affine, scan.gradients, scan.mask))
            tissues = tissue_of(truth["fa"], truth["md"])  # from the true maps
            for name, expected in standard_errors(generated, few, Request()).items():
                error = np.abs(truth[name] - generated.named_maps()[name])
                within = (error <= NORMAL_90 * expected)[scan.mask]
                for k in range(3):
                    inside.setdefault((keep, name, TISSUES[k]), []).append(within[tissues[scan.mask] == k])
                inside.setdefault((keep, name, "all"), []).append(within)
        print(f"subject {seed + 1} of {SUBJECTS}", flush=True)
    print(f"\nshare of true values in the 90 % interval from {SAMPLES} samples, simulated, SNR {SNR:g}")
    for (keep, name, where), parts in inside.items():
        print(f"{keep} directions, {name:>4s}, {where:>13s}: {np.concatenate(parts).mean():.3f}")


def cost(args) -> None:
    """Print time and memory of six directions of the dense scan."""
    scan = dense_scan(args.data)
    kept = evaluation.kept_volumes(scan.gradients, 6)
    few = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
    for samples in (1, SAMPLES):
        begun = time.perf_counter()
        DiffDTI().generate(args.net, few, Request(weights=args.weights, n_samples=samples))
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"cost, {'x'.join(map(str, few.data.shape))}, {samples} samples: {seconds:.1f} s, peak memory {peak:.2f} GB"
        )


def trained(fefm: bool, atlas: str, minutes: float) -> tuple[dict, int]:
    """Return the state of a network trained for these minutes, and its steps; runs in a separate process."""
    torch.set_num_threads(1)
    method, anatomy = DiffDTI(), load_atlas(atlas)
    source, held_out = (
        SimulatedSubjects.from_atlas(anatomy, 20),
        SimulatedSubjects.from_atlas(anatomy, 4, held_out=True),
    )
    plan = replace(method.training_plan("small"), minutes=minutes, precision=resolve_precision("auto", source.device))
    net = method.network("small", fefm)
    make, score = method.examples(source, "small", 32, 0), method.held_out(held_out, "small", 0)
    steps = train(net, make, method.loss, score, plan).steps
    return net.state_dict(), steps


def ablation(args) -> None:
    """Train with and without feature enhancement side by side, for the same minutes, and print Table IV."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        trainings = {fefm: pool.submit(trained, fefm, args.atlas, args.minutes) for fefm in (False, True)}
    for fefm, training in trainings.items():
        state, steps = training.result()
        args.net = DiffDTI().network("small", fefm)
        args.net.load_state_dict(state)
        for keep in (6, 3):
            results = [evaluation.evaluate(s, [keep], arms(args), truth=clean) for s, clean in subjects(args, SUBJECTS)]
            title = f"{'with' if fefm else 'without'} FEFM, {keep} directions, {steps} steps, {args.minutes:g} minutes"
            show(results, keep, title)
        show([evaluation.evaluate(dense_scan(args.data), [6], arms(args))], 6, f"{REAL}, 6 directions of 84")
    show_stated("Diff-DTI", "Table IV")


PARTS = {
    f.__name__: f for f in (simulated, real, rotations, scans, share, samplers, hyperparameters, spread, cost, ablation)
}


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but the last and hyperparameters")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--atlas", default=EMBEDDED, help="atlas of the simulated subjects (default: the embedded one)")
    parser.add_argument("--weights", help="default: diffdti-small")
    parser.add_argument("--times", type=int, default=1000, help="N of r and sigma_max in Fig. 7 (default: 1000)")
    parser.add_argument("--minutes", type=float, default=20, help="minutes per training of the ablation (default: 20)")
    args = parser.parse_args()
    args.net = None
    for part in args.parts or [name for name in PARTS if name not in ("hyperparameters", "ablation")]:
        PARTS[part](args)


if __name__ == "__main__":
    main()
