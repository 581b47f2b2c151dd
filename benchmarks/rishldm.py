"""RISH latent diffusion against classical methods: the paper's tables on simulated pairs, real scans, repeats, cost.

python benchmarks/rishldm.py [simulated] [levels] [real] [repeat] [cost] [ablation]
    [--data DATA] [--atlas ATLAS] [--weights NAME_OR_PATH] [--compared NAME=FILE ...] [--minutes M]
    [--sampler paper|fast]

simulated: subjects who were not trained on, 2.5 mm, b = 1000, SNR 20, 30 directions, against the noise-free 2 mm scan
of the same subject (Table 1 of Zhu et al. 2024: NMSE and SSIM of the RISH features and of FA). The arms are up-sampling
by cubic splines alone, scaling of each degree by the mean ratio of the training pairs (linear RISH harmonisation), the
method, and the method with the measured features in place of those that the diffusion decodes. levels: the same errors
by the noise level of the latents. real: one run of 12 directions of a dense scan against all 84, with and without
voxels that are 0 in some volume. repeat: two runs of a subject, each enhanced separately: the within-subject standard
deviation of FA, FA of white and grey matter, and the angle between fibres before and after. cost: a whole brain.
ablation (Table 2): without fine-tuning, where the second autoencoder is trained from the start, and without
super-resolution; not part of the default.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from papers import compared_weights, show_stated
from scenes import REAL, dense_scan
from scipy import ndimage

from bids_dmrigen.cli.atlases import EMBEDDED, load_atlas
from bids_dmrigen.diffusion.numerics import resolve_precision
from bids_dmrigen.diffusion.training import train
from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.harmonics import order_for, rish, undamped_weights
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Generated, Request
from bids_dmrigen.methods.enhance import rishldm_model as rishldm
from bids_dmrigen.methods.enhance import stages as rishldm_stages
from bids_dmrigen.qc import evaluation, metrics
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.examples import HELD_OUT, SimulatedSubjects
from bids_dmrigen.simulate.scanner import acquire, protocol, scan_grid
from bids_dmrigen.simulate.signal import Tissue
from bids_dmrigen.spatial.brain_mask import brain_of
from bids_dmrigen.spatial.io import read_scan

SUBJECTS, SNR, DIRECTIONS, BVAL = 4, 20.0, 30, 1000.0
POOR_MM, GOOD_MM, SHAPE = 2.5, 2.0, (64, 76, 32)
COLUMNS = ("L0", "L2", "L4", "FA")
WHITE_FA, GREY_FA, FIBRE_FA = 0.35, 0.15, 0.3
ORDER = 4
# Shares of the ablation's minutes: more for the autoencoders than in training, because the ablation compares them.
SHARES = {"autoencoder_3t": 0.12, "autoencoder_7t": 0.08, "unet": 0.25, "refiner": 0.55}

Arm = Callable[[Scan, float | None], Generated]


def arms(args, net=None, **options) -> dict[str, Arm]:
    """Return the classical arms, and the method with the given options: (scan, voxel size) -> series."""

    def arm(name: str, network=None, weights: str | None = args.weights) -> Arm:
        def make(scan: Scan, voxel_mm: float | None) -> Generated:
            request = Request(weights=weights, sampler=args.sampler, options={"voxel_mm": voxel_mm, **options})
            return load(name).generate(network, scan, request)

        return make

    method = arm("rishldm", net)
    return {
        "B-spline": spline,
        "RISH scaling": arm("rish", net),
        "RISH latent diffusion": method,
        "measured features, no diffusion": replaced(method, "translate", lambda net, low, *how: low),
        **{name: arm(name, None, file) for name, file in compared_weights(args.compared).items()},
    }


def replaced(arm: Arm, name: str, instead: Callable) -> Arm:
    """Return an arm of the method with one of its functions replaced."""

    def make(scan: Scan, voxel_mm: float | None) -> Generated:
        original = getattr(rishldm, name)
        setattr(rishldm, name, instead)
        try:
            return arm(scan, voxel_mm)
        finally:
            setattr(rishldm, name, original)

    return make


def spline(scan: Scan, voxel_mm: float | None) -> Generated:
    """Return the up-sampled series; without a voxel size, the series as acquired."""
    if voxel_mm is None:
        acquired = np.ones(len(scan.gradients), bool)
        return Generated(np.asarray(scan.data, np.float32), None, scan.gradients, (), acquired, {})
    return load("bspline").generate(None, scan, Request(options={"voxel_mm": voxel_mm}))


def pairs(args, n: int = SUBJECTS):
    """Yield poor scans of held-out subjects, and a function (affine, shape) -> noise-free series of the subject."""
    atlas = load_atlas(args.atlas)
    for seed in range(n):
        subject, tissue = deform(atlas, HELD_OUT + 300 + seed), Tissue.random(HELD_OUT + 300 + seed)
        affine = scan_grid(subject, POOR_MM, SHAPE)
        table = protocol(affine, DIRECTIONS, 1, BVAL)
        poor = acquire(subject, table, affine, SHAPE, SNR, seed, tissue=tissue).scan

        def good(affine, shape, subject=subject, tissue=tissue, table=table, seed=seed):
            return acquire(subject, table, affine, shape, np.inf, seed, tissue=tissue).clean

        yield poor, good


def columns(data: np.ndarray, gradients: GradientTable, affine, mask) -> dict[str, np.ndarray]:
    """Return the RISH features of S / S0 and FA, (X, Y, Z) each."""
    scan = Scan(np.asarray(data, np.float32), affine, gradients, mask)
    volumes = gradients.shells()[0][1]
    directions = torch.as_tensor(gradients.world_directions(affine)[volumes])
    order = order_for(len(volumes), ORDER)
    signal = torch.as_tensor(scan.data[mask][:, volumes] / np.maximum(scan.mean_b0()[mask], 1e-6)[:, None]).double()
    features = rish(signal @ undamped_weights(directions, order).T, order).numpy()
    maps = {"FA": evaluation.summary_maps(scan)["fa"]}
    for k, values in enumerate(features.T):
        maps[COLUMNS[k]] = np.zeros(mask.shape)
        maps[COLUMNS[k]][mask] = values
    return maps


def scored(generated: Generated, poor: Scan, good) -> dict[str, float]:
    """Return NMSE and SSIM of each column against the good scan, on the grid of the result."""
    affine, mask = (poor.affine, poor.mask) if generated.grid is None else (generated.grid.affine, generated.grid.mask)
    estimate = columns(generated.mean, poor.gradients, affine, mask)
    true = columns(good(affine, mask.shape), poor.gradients, affine, mask)
    inner = ndimage.binary_erosion(mask, iterations=evaluation.EROSIONS)
    scores = {f"NMSE {name}": metrics.nmse(estimate[name], true[name], inner) for name in COLUMNS}
    return scores | {f"SSIM {name}": metrics.ssim(estimate[name], true[name], inner) for name in COLUMNS}


def show(rows: dict[str, list[dict[str, float]]], title: str) -> None:
    """Print mean and standard deviation of each arm's scores over subjects."""
    names = list(next(iter(rows.values()))[0])
    print(f"\n{title}\n{'':>34s}" + "".join(f"{name:>16s}" for name in names))
    for arm, scores in rows.items():
        values = np.array([[s[name] for name in names] for s in scores])
        shown = (f"{m:8.4f} ± {d:.3f}" for m, d in zip(values.mean(axis=0), values.std(axis=0), strict=True))
        print(f"{arm:>34s}" + "".join(f"{text:>16s}" for text in shown), flush=True)


def table_1(args, chosen: dict[str, Arm], title: str) -> None:
    """Print Table 1's columns for these arms."""
    for voxel_mm in (GOOD_MM, None):
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
        for poor, good in pairs(args):
            for name, arm in chosen.items():
                rows[name].append(scored(arm(poor, voxel_mm), poor, good))
        show(rows, f"{title}, {POOR_MM:g} mm to {voxel_mm or POOR_MM:g} mm, SNR {SNR:g}, {DIRECTIONS} directions")


def simulated(args) -> None:
    """Print the paper's Table 1."""
    table_1(args, arms(args), f"simulated, {SUBJECTS} subjects")
    show_stated("RISH-LDM", "Table 1, features")
    show_stated("RISH-LDM", "Table 1")


def levels(args) -> None:
    """Print the errors for several levels of noise and guidance, which are the same for all degrees."""
    chosen = {}
    for time_, guidance in ((50, 0.0), (100, 0.0), (200, 0.0), (400, 0.0), (200, 1.0)):
        at_level = arms(args, noise=(time_,) * 3, guidance=(guidance,) * 3)["RISH latent diffusion"]
        chosen[f"t = {time_}, w = {guidance:g}"] = at_level
        chosen[f"t = {time_}, w = {guidance:g}, decoded alone"] = decoded_alone(at_level)
    table_1(args, chosen, "levels")


def decoded_alone(arm: Arm) -> Arm:
    """Return an arm of the method without super-resolution: it up-samples the decoded features by cubic splines."""
    return replaced(arm, "refined", lambda net, decoded, condition: decoded.clamp_min(0))


def real(args) -> None:
    """Print the errors of one run's maps against those of all runs of a dense scan."""
    dense = dense_scan(args.data)
    first = np.arange(int(np.flatnonzero(dense.gradients.is_b0)[1]))  # the runs follow one another
    few = Scan(dense.data[..., first], dense.affine, dense.gradients[first], dense.mask)
    inner = ndimage.binary_erosion(dense.mask, iterations=evaluation.EROSIONS)
    masks = {"all voxels": inner, "without zeros": inner & (dense.data > 0).all(axis=3)}
    reference = evaluation.summary_maps(dense)
    print(f"\n{REAL}, its first run of {len(first) - 1} directions against all")
    for name, arm in arms(args).items():
        maps = evaluation.summary_maps(replace(few, data=arm(few, None).mean))
        for which, mask in masks.items():
            scores = evaluation.map_scores(maps, reference, mask)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in scores.items())
            print(f"{name:>34s}, {which:13s}  {shown}", flush=True)


def real_run(path: Path) -> Scan:
    """Return a real scan as acquired, with its brain mask, without voxels that are 0 in some volume."""
    stem = str(path).removesuffix(".nii.gz")
    scan, _ = read_scan(path, f"{stem}.bval", f"{stem}.bvec", None, 50.0)
    mask = brain_of(scan) & (scan.data > 0).all(axis=3)
    return replace(scan, mask=mask)


def repeat(args) -> None:
    """Print the difference of two runs of a subject, the tissue contrast, and the change of the fibre directions."""
    import ants

    runs = [real_run(path) for path in sorted((args.data / "bids/sub-sagittal").rglob("*_dwi.nii.gz"))[:2]]

    def image(volume: np.ndarray, scan: Scan):
        flip = np.diag([-1.0, -1, 1])
        linear, zooms = flip @ scan.affine[:3, :3], scan.zooms_mm
        return ants.from_numpy(
            np.ascontiguousarray(volume, np.float32), tuple(flip @ scan.affine[:3, 3]), tuple(zooms), linear / zooms
        )

    with tempfile.TemporaryDirectory() as folder:
        b0s = [image(scan.mean_b0(), scan) for scan in runs]
        moved = ants.registration(b0s[0], b0s[1], "Rigid", outprefix=f"{folder}/r", random_seed=1)["fwdtransforms"]
        results = {}
        for name, arm in arms(args).items():
            maps = [evaluation.summary_maps(replace(scan, data=arm(scan, None).mean)) for scan in runs]
            second = ants.apply_transforms(b0s[0], image(maps[1]["fa"], runs[1]), moved, "linear").numpy()
            results[name] = (maps[0], second)
        second_mask = ants.apply_transforms(b0s[0], image(runs[1].mask, runs[1]), moved, "linear").numpy() > 0.99
    both = ndimage.binary_erosion(runs[0].mask & second_mask, iterations=evaluation.EROSIONS)
    raw, raw_second = results["B-spline"]
    mean = (raw["fa"] + raw_second) / 2
    white, grey, fibres = both & (mean > WHITE_FA), both & (mean < GREY_FA), both & (raw["fa"] > FIBRE_FA)
    print(f"\nsub-sagittal, two runs; white matter FA > {WHITE_FA}, grey < {GREY_FA} of the raw runs' mean")
    for name, (maps, second) in results.items():
        deviation = np.sqrt(np.mean((maps["fa"] - second)[both] ** 2) / 2)
        contrast = [float(((maps["fa"] + second) / 2)[part].mean()) for part in (white, grey)]
        cosine = np.abs((maps["direction"] * raw["direction"]).sum(axis=-1)[fibres]).clip(0, 1)
        print(
            f"{name:>34s}  within-subject sd {deviation:.4f}, white {contrast[0]:.3f}, grey {contrast[1]:.3f}, "
            f"difference {contrast[0] - contrast[1]:.4f}, median angle {np.degrees(np.median(np.arccos(cosine))):.2f}",
            flush=True,
        )


def cost(args) -> None:
    """Print time and memory of a whole brain, on the scan's grid and on a finer one."""
    scan = real_run(next((args.data / "bids/sub-elition").rglob("*_dwi.nii.gz")))
    for voxel_mm in (None, 1.5):
        start = time.perf_counter()
        generated = arms(args)["RISH latent diffusion"](scan, voxel_mm)
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        grid = "x".join(map(str, generated.mean.shape))
        print(f"cost, {'x'.join(map(str, scan.data.shape))} to {grid}: {seconds:.1f} s, peak {peak:.2f} GB", flush=True)


def ablation(args) -> None:
    """Train with and without fine-tuning for the same minutes; print both, also without super-resolution."""
    method, atlas = load("rishldm"), load_atlas(args.atlas)
    source, held_out = SimulatedSubjects.from_atlas(atlas, 20), SimulatedSubjects.from_atlas(atlas, 4, held_out=True)
    first = method.network("small")
    stages = [kind.name for kind in rishldm_stages.STAGES]

    def trained(net, names):
        for stage in (s for s in method.trainings(net) if s.name in names):
            stage.begin(source, args.batch, 0)
            if net is not first and stage.name == "autoencoder_7t":  # independent of the first autoencoder
                net.autoencoder_7t.load_state_dict(method.network("small").autoencoder_7t.state_dict())
            precision = resolve_precision("auto", source.device)
            plan = replace(stage.training_plan("small"), minutes=args.minutes * SHARES[stage.name], precision=precision)
            make, score = stage.examples(source, "small", args.batch, 0), stage.held_out(held_out, "small", 0)
            done = train(net, make, stage.loss, score, plan)
            print(f"{stage.name}: {done.steps} steps, held-out loss {done.held_out_loss:.4f}", flush=True)
        return net.eval()

    trained(first, stages[:1])
    separate = trained(deepcopy(first), stages[1:])
    nets = {"without fine-tuning": separate, "with fine-tuning": trained(first, stages[1:])}
    chosen = {}
    for name, net in nets.items():
        arm = arms(args, net)["RISH latent diffusion"]
        chosen |= {f"{name}, decoded alone": decoded_alone(arm), f"{name}, super-resolution": arm}
    table_1(args, {"B-spline": spline} | chosen, f"ablation, {args.minutes:g} minutes each")
    show_stated("RISH-LDM", "Table 2")


PARTS = {f.__name__: f for f in (simulated, levels, real, repeat, cost, ablation)}


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but levels and ablation")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--atlas", default=EMBEDDED, help="atlas of the simulated subjects (default: the embedded one)")
    parser.add_argument("--weights", help="default: rishldm-small")
    parser.add_argument("--compared", nargs="+", default=[], metavar="NAME=FILE",
                        help="weights of cnn7t, gan7t, refinement, of `dmrigen benchmark enhance`")  # fmt: skip
    parser.add_argument("--sampler", choices=("paper", "fast"), default="fast")
    parser.add_argument("--minutes", type=float, default=20, help="minutes per training of the ablation (default: 20)")
    parser.add_argument("--batch", type=int, default=4, help="blocks per step of the ablation (default: 4)")
    args = parser.parse_args()
    for part in args.parts or [name for name in PARTS if name not in ("levels", "ablation")]:
        PARTS[part](args)


if __name__ == "__main__":
    main()
