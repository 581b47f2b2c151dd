"""The tables and figures of the Di-Fusion paper that need more than maps: noise levels, ablation, T_c, fits, fibres.

python benchmarks/difusion_paper.py [levels] [ablation] [latter] [fit] [coherence]
    [--data DATA] [--arms NAME ...] [--seeds N] [--minutes M] [--steps N] [--shape X Y Z]

levels: Table 2. Simulated runs whose noisy images have about the PSNR of the paper's five simulations; PSNR and SSIM of
the weighted images against those without noise, mean and standard deviation over seeds, paper beside ours. ablation:
Fig. 6, the paper's algorithm without each of its parts, and what the app does by default. latter: Fig. 7, by the number
of diffusion steps T_c that are used. fit: Fig. 5, R² of the tensor and of constrained spherical deconvolution (DIPY),
in white matter of a shell of 60 directions: of directions that the model was not fitted to, denoised themselves as in
the paper, where a blurred run is at an advantage; and of acquired directions that the denoiser was not given.
coherence: Fig. 4, fibre-to-bundle coherence (DIPY) of probabilistic streamlines through the middle of the corpus
callosum, from 30 directions; few streamlines of low coherence are good, and the last row is that of all 84 directions.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.data import default_sphere
from dipy.denoise.enhancement_kernel import EnhancementKernel
from dipy.direction import ProbabilisticDirectionGetter
from dipy.reconst.cross_validation import kfold_xval
from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel, auto_response_ssst, response_from_mask_ssst
from dipy.reconst.dti import TensorModel
from dipy.tracking.fbcmeasures import FBCMeasures
from dipy.tracking.local_tracking import LocalTracking
from dipy.tracking.stopping_criterion import ThresholdStoppingCriterion
from dipy.tracking.streamline import Streamlines
from dipy.tracking.utils import seeds_from_mask
from papers import paper_beside
from scenes import dense_scan

from bids_dmrigen.diffusion.samplers import run_walk_times
from bids_dmrigen.dwi.gradients import even_subset
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.denoise import difusion_model
from bids_dmrigen.methods.spec import Header
from bids_dmrigen.qc import evaluation
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.scanner import SimulatedScan, demo_like
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.spatial.templates import embedded_mni

ARMS = ("mppca", "patch2self", "ascm", "nlm", "noisier2noise", "dip", "ddm2", "difusion")
NOISY_PSNR = (13.72, 16.09, 20.38, 23.76, 26.63)  # of the paper's five simulations, dB
FIRST_SNR = 10.0
SHELL, FOLDS, WHITE_FA = 2000.0, 10, 0.3
KEPT = 30  # directions that are tracked on
CALLOSUM_FA, SIDEWAYS, TRACKED_FA, SPURIOUS = 0.4, 0.9, 0.15, 0.2
MOST_STREAMLINES = 500

Denoiser = Callable[[Scan], np.ndarray]


def acquired(scan: Scan) -> np.ndarray:
    """Return the run as it is."""
    return np.asarray(scan.data, np.float32)


def arm(name: str, args, **options) -> Denoiser:
    """Return a denoiser with its default settings, and the options of the command."""

    def denoise(scan: Scan) -> np.ndarray:
        method = load(name)
        header = Header(scan.data.shape, tuple(scan.zooms_mm), scan.gradients)
        plan = method.spec.plan(method.spec.defaults(), header)
        steps = {} if args.steps is None else {"training_steps": args.steps}
        request = Request(options={**plan.options, **steps, **options}, minutes=args.minutes or plan.minutes)
        return method.generate(None, scan, request).mean

    return denoise


def arms(args) -> dict[str, Denoiser]:
    """Return the acquired run and every denoiser."""
    return {"acquired": acquired} | {name: arm(name, args) for name in args.arms}


def simulated(args, snr: float, seed: int) -> SimulatedScan:
    """Return a simulated run of 3 b0s and 30 directions."""
    arrays, affine = embedded_mni(2)
    subject = deform(procedural_atlas(**arrays, affine=affine), seed=3 + seed)
    return demo_like(subject, snr=snr, seed=seed, shape=tuple(args.shape))


def image_scores(run: SimulatedScan, series: np.ndarray) -> tuple[float, float]:
    """Return PSNR and SSIM of the weighted images against those without noise, in the mask."""
    weighted, mask = ~run.scan.gradients.is_b0, run.scan.mask
    scores = evaluation.volume_scores(series[..., weighted], run.clean[..., weighted], mask)
    return scores["dwi_psnr"], scores["dwi_ssim"]


def levels(args) -> None:
    """Print Table 2: five levels of noise."""
    first = simulated(args, FIRST_SNR, 0)
    reached = image_scores(first, first.scan.data)[0]
    for number, wanted in enumerate(NOISY_PSNR, 1):
        snr = FIRST_SNR * 10 ** ((wanted - reached) / 20)
        print(f"\nsimulation {number}, SNR {snr:.1f}, {args.seeds} runs of {'x'.join(map(str, args.shape))}")
        runs = [simulated(args, snr, seed) for seed in range(args.seeds)]
        stated = paper_beside("Di-Fusion", f"Table 2, simulation {number}")
        for name, denoise in arms(args).items():
            scores = np.array([image_scores(run, np.nan_to_num(denoise(run.scan))) for run in runs])
            mean, spread = scores.mean(0), scores.std(0, ddof=min(1, len(runs) - 1))
            paper = stated.get(name, {})
            print(
                f"{name:>15s}: PSNR {mean[0]:6.2f} ({spread[0]:.2f}) dB, paper {paper.get('dwi_psnr', '-')}, "
                f"SSIM {mean[1]:.3f} ({spread[1]:.3f}), paper {paper.get('dwi_ssim', '-')}",
                flush=True,
            )


class _WithoutFusion(difusion_model._Published):
    """The image that noise is added to is x alone."""

    def fused(self, given, t):
        return given.x


class _GaussianNoise(difusion_model._Published):
    """The noise is normal, of the standard deviation of x - x', not the shuffled difference itself."""

    def noisy(self, given, t, rngs):
        noise = torch.zeros_like(given.x)
        for k, rng in enumerate(rngs):
            inside = given.mask[k]
            drawn = rng.standard_normal(int(inside.sum())).astype(np.float32)
            noise[k][inside] = torch.from_numpy(drawn).to(noise) * (given.x[k] - given.other[k])[inside].std()
        return self.process.add_noise(self.fused(given, t), t[:, None, None], noise)


@contextmanager
def latter_steps(count: int) -> Iterator[None]:
    """Use this many of the 1000 diffusion steps."""
    times = {"paper": tuple(run_walk_times(count)), "fast": (count, 0)}
    with mock.patch.object(difusion_model, "LATTER", count), mock.patch.dict(difusion_model.TIMES, times):
        yield


def ablation(args) -> None:
    """Print Fig. 6: the paper's algorithm without each of its parts."""
    run = simulated(args, FIRST_SNR, 0)
    published = arm("difusion", args, variant="published")

    def show(name: str, denoise: Denoiser) -> None:
        psnr, ssim = image_scores(run, denoise(run.scan))
        print(f"{name:>40s}: PSNR {psnr:6.2f} dB, SSIM {ssim:.3f}", flush=True)

    print(f"\nablation, simulated, SNR {FIRST_SNR:g}")
    show("acquired", acquired)
    show("as published", published)
    for name, variant in {"without fusion": _WithoutFusion, "normal noise": _GaussianNoise}.items():
        with mock.patch.object(difusion_model, "_Published", variant):
            show(f"as published, {name}", published)
    with latter_steps(1000):
        show("as published, all diffusion steps", published)
    show("the app's (extended)", arm("difusion", args))


def latter(args) -> None:
    """Print Fig. 7: R² of the tensor by the number of diffusion steps that are used."""
    scan = shell_scan(args)
    print(f"\nT_c, {args.scan}, {np.count_nonzero(~scan.gradients.is_b0)} directions, R² of the tensor")
    for variant in ("published", "extended"):
        for count in (100, 200, 300, 400, 500, 700, 1000):
            with latter_steps(count):
                series = arm("difusion", args, variant=variant)(scan)
            print(f"{variant:>12s}, T_c {count:4d}: {_mean_r2(series, scan, tensor_model):.3f}", flush=True)


def shell_scan(args) -> Scan:
    """Return the b0s of the scan, and the shell at `SHELL`."""
    stem = args.data / "reference" / f"sub-{args.scan}"
    scan, _ = read_scan(f"{stem}_dwi.nii.gz", f"{stem}_dwi.bval", f"{stem}_dwi.bvec", f"{stem}_mask.nii.gz", 50.0)
    shell = next(volumes for b, volumes in scan.gradients.shells() if abs(b - SHELL) < 200)
    used = np.sort(np.r_[np.flatnonzero(scan.gradients.is_b0), shell])
    # Some volumes of this scan are corrected to below 0.
    return replace(scan, data=scan.data[..., used].clip(min=0), gradients=scan.gradients[used])


def _table(scan: Scan):
    return gradient_table(scan.gradients.bvals, bvecs=scan.gradients.bvecs, b0_threshold=scan.gradients.b0_threshold)


def tensor_model(scan: Scan, _: np.ndarray):
    """Return DIPY's tensor model, and what its cross-validation needs."""
    return TensorModel(_table(scan), min_signal=1e-3), ()


def deconvolution_model(scan: Scan, white: np.ndarray):
    """Return DIPY's model of constrained spherical deconvolution, and its response: that of the highest FA."""
    fa = evaluation.summary_maps(scan)["fa"]
    single = white & (fa > np.quantile(fa[white], 0.9))
    response, _ = response_from_mask_ssst(_table(scan), scan.data, single)
    return ConstrainedSphericalDeconvModel(_table(scan), response, sh_order_max=6), (response,)


def white_matter(scan: Scan) -> np.ndarray:
    """Return voxels of white matter, from the acquired volumes."""
    return scan.mask & (evaluation.summary_maps(scan)["fa"] > WHITE_FA) & (scan.data > 0).all(axis=3)


def _r2(data: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the squared correlation of each voxel's (V, N) directions."""
    a, b = data - data.mean(1, keepdims=True), predicted - predicted.mean(1, keepdims=True)
    return (a * b).sum(1) ** 2 / np.maximum((a**2).sum(1) * (b**2).sum(1), 1e-12)


def _mean_r2(series: np.ndarray, scan: Scan, make) -> float:
    """Return R² of directions that the model was not fitted to, mean over white matter."""
    white = white_matter(scan)
    smooth = replace(scan, data=np.maximum(series, 1e-3))
    model, further = make(smooth, white)
    weighted = ~scan.gradients.is_b0
    predicted = kfold_xval(model, smooth.data[white].astype(np.float64), FOLDS, *further)[:, weighted]
    return float(np.nanmean(_r2(smooth.data[white][:, weighted], predicted)))


def _left_out_r2(denoise: Denoiser, scan: Scan, make) -> float:
    """Return R² of acquired directions, from the model of the other half, which alone was denoised."""
    white, is_b0 = white_matter(scan), scan.gradients.is_b0
    weighted = np.flatnonzero(~is_b0)
    half = is_b0.copy()
    half[weighted[even_subset(scan.gradients.bvecs[weighted], len(weighted) // 2)]] = True
    few = Scan(scan.data[..., half], scan.affine, scan.gradients[half], scan.mask)
    few = replace(few, data=np.maximum(np.nan_to_num(denoise(few)), 1e-3))
    rest = scan.gradients[~half]
    others = gradient_table(rest.bvals, bvecs=rest.bvecs, b0_threshold=0)
    model, _ = make(few, white)
    inside = few.data[white].astype(np.float64)
    fit = model.fit(inside)
    predicted = fit.predict(others, S0=inside[:, few.gradients.is_b0].mean(1))
    return float(np.nanmean(_r2(scan.data[white][:, ~half], predicted)))


def fit(args) -> None:
    """Print Fig. 5: how well models of the microstructure predict directions that they were not fitted to."""
    scan = shell_scan(args)
    print(f"\nR² in white matter, {args.scan}: tensor, deconvolution; denoised ones, acquired ones of the other half")
    for name, denoise in arms(args).items():
        series = np.nan_to_num(denoise(scan))
        values = [_mean_r2(series, scan, make) for make in (tensor_model, deconvolution_model)]
        values += [_left_out_r2(denoise, scan, make) for make in (tensor_model, deconvolution_model)]
        print(f"{name:>15s}: " + "  ".join(f"{value:.3f}" for value in values), flush=True)


def streamlines_of(scan: Scan) -> Streamlines:
    """Return probabilistic streamlines through the middle of the corpus callosum, mm."""
    maps = evaluation.summary_maps(scan)
    model = ConstrainedSphericalDeconvModel(
        _table(scan), auto_response_ssst(_table(scan), scan.data, roi_radii=10, fa_thr=0.6)[0], sh_order_max=6
    )
    coefficients = model.fit(scan.data, mask=scan.mask).shm_coeff
    getter = ProbabilisticDirectionGetter.from_shcoeff(coefficients, max_angle=30.0, sphere=default_sphere)
    places = np.moveaxis(np.indices(scan.mask.shape), 0, -1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    centre = places[scan.mask].mean(0)[0]
    middle = np.abs(places[..., 0] - centre) < 2 * scan.zooms_mm[0]
    callosum = scan.mask & middle & (maps["fa"] > CALLOSUM_FA) & (np.abs(maps["direction"][..., 0]) > SIDEWAYS)
    seeds = seeds_from_mask(callosum, scan.affine, density=1)
    stop = ThresholdStoppingCriterion(np.where(scan.mask, maps["fa"], 0), TRACKED_FA)
    tracking = LocalTracking(getter, stop, seeds, scan.affine, step_size=1.0, random_seed=1)
    # Of many, evenly spaced ones: the measure compares each with each.
    found = [line for line in tracking if len(line) > 10]
    return Streamlines(found[:: max(1, len(found) // MOST_STREAMLINES)])


def coherence(args) -> None:
    """Print Fig. 4: number and coherence of streamlines."""
    dense = dense_scan(args.data)
    kept = evaluation.kept_volumes(dense.gradients, KEPT)
    few = Scan(dense.data[..., kept], dense.affine, dense.gradients[kept], dense.mask)
    kernel = EnhancementKernel(1.0, 0.04, 1.0)
    cases = {name: (few, denoise) for name, denoise in arms(args).items()} | {"all 84 directions": (dense, acquired)}
    print(f"\ncanon, {KEPT} directions: streamlines, median coherence, share below {SPURIOUS:g}")
    for name, (scan, denoise) in cases.items():
        lines = streamlines_of(replace(scan, data=np.maximum(np.nan_to_num(denoise(scan)), 1e-3)))
        _, _, values = FBCMeasures(lines, kernel).get_points_rfbc_thresholded(0)
        values = np.array(values)
        print(f"{name:>20s}: {len(lines):5d}, {np.median(values):.3f}, {np.mean(values < SPURIOUS):.3f}", flush=True)


PARTS = {f.__name__: f for f in (levels, ablation, latter, fit, coherence)}


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scan", default="mdtb2k", help="of fit and latter, in DATA/reference (default: mdtb2k)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each noise level (default: 2)")
    parser.add_argument("--shape", type=int, nargs=3, default=[72, 88, 8], help="of simulated runs")
    parser.add_argument("--minutes", type=float, help="longest training on a run (default: the method's)")
    parser.add_argument("--steps", type=int, help="training steps on a run (default: the method's)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
    for part in args.parts or PARTS:
        PARTS[part](args)


if __name__ == "__main__":
    main()
