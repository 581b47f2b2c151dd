"""Phy-Diff against the registered atlas: simulated subjects, real scans, round trip, samplers, cost.

python benchmarks/phydiff.py [roundtrip] [simulated] [real] [samplers] [cost] [ablation]
    [--data DATA] [--atlas ATLAS] [--weights NAME_OR_PATH] [--compared NAME=FILE ...] [--xtract DIR_OR_FILE]
    [--fibres DIR] [--minutes M]

roundtrip: a scan to the template's grid and back, for a dense scan and a whole brain. simulated: subjects who were not
trained on, aligned with the template as after registration; b = 1000, 2000, 3000 and random b-values, against the
noise-free images: absolute PSNR and SSIM in the mask, and those of the paper (every slice of both images is scaled to
0 ... 1 before). real: the acquired directions of two scans, generated from the b0 alone, and the agreement of the
colour FA of the generated shell with that of the acquired shell. samplers: fast against 800 ancestral steps, on
simulated subjects. cost: 30 directions of the dense scan. ablation: the paper's Tables 1 and 2 on simulated subjects;
every variant is trained from the start for the same minutes, each on one core, and one of them also with an adapter,
for a third of the minutes; not part of the default. The arms are the atlas of `--fibres` (default: analytic bundles)
and, where its weights exist, Phy-Diff.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
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
from bids_dmrigen.diffusion.weights import WeightsError
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.synthesis.phydiff_model import STEPS
from bids_dmrigen.qc import evaluation, metrics
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.examples import HELD_OUT
from bids_dmrigen.simulate.individual import ALIGNED
from bids_dmrigen.simulate.scanner import acquire
from bids_dmrigen.simulate.signal import Tissue
from bids_dmrigen.spatial.bias import bias_field
from bids_dmrigen.spatial.brain_mask import brain_of
from bids_dmrigen.spatial.in_template import TemplateFiles, generate_in_template
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.spatial.normalize import load_template, register_to_template
from bids_dmrigen.spatial.population import PACKAGED_ADC_ATLAS, population_on
from bids_dmrigen.spatial.template_space import TemplateSpace

SUBJECTS, SLICES, SNR, DIRECTIONS = 2, 8, 25.0, 6
TRAINED_ON = 20  # subjects of the trainings of the ablation
SHELLS = (1000.0, 2000.0, 3000.0)
GRID = np.diag([2.0, 2, 2, 1])
GRID[:3, 3] = [-80, -112, -4]
SCANS = ("canon", "uih")  # uih is for choosing: nothing was trained on it


def arms(args) -> dict:
    """Return name -> method: the atlas, and Phy-Diff where its weights exist."""
    methods = {"atlas": load("atlas")}
    try:
        from bids_dmrigen.methods import check_weights

        check_weights("phydiff", "small", args.weights)
        methods["phydiff"] = load("phydiff")
    except WeightsError as reason:
        print(f"Phy-Diff is left out: {reason}")
    return methods


def in_papers_metric(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the mean PSNR and SSIM over slices (X, Y, Z), after each slice of both images is scaled to 0 ... 1."""

    def scaled(image):
        low, high = image.min(axis=(0, 1), keepdims=True), image.max(axis=(0, 1), keepdims=True)
        return (image - low) / np.maximum(high - low, 1e-12)

    e, t = scaled(estimate), scaled(truth)
    everywhere = np.ones(t.shape, bool)
    psnr = np.mean([10 * np.log10(1 / np.mean((e[..., z] - t[..., z]) ** 2)) for z in range(t.shape[2])])
    return float(psnr), metrics.ssim(e, t, everywhere, value_range=1.0, slice_axis=2)


@dataclass(frozen=True)
class Arm:
    """A method, its trained network (None: stored weights), whether tracts are its input, and settings of sampling."""

    method: object
    net: object = None
    tracts: bool = True
    settings: dict = field(default_factory=dict)


def simulated(args) -> None:
    """Print the scores of every arm on simulated subjects, in the paper's metric and in the absolute one."""
    from bids_dmrigen.diffusion.weights import load_weights

    chosen = {name: Arm(method) for name, method in arms(args).items()}
    for name, file in compared_weights(args.compared).items():
        method = load(name)
        net = method.network("small").eval()
        load_weights(net, file, name, "small")
        chosen[name] = Arm(method, net)
    show_simulated(args, chosen)
    for b in ("any b", "b = 1000", "b = 2000", "b = 3000"):
        show_stated("Phy-Diff", f"Table 1, {b}")


def show_simulated(args, chosen: dict[str, Arm], subjects=SUBJECTS, slices=SLICES, directions=DIRECTIONS) -> None:
    """Print the scores of these arms."""
    atlas, shape = load_atlas(args.atlas), (80, 96, slices)
    maps = population_on(shape, GRID, args.adc or PACKAGED_ADC_ATLAS, args.xtract)
    maps = replace(maps, anatomy=atlas)
    rows: dict[tuple[str, str], list] = {}
    for seed in range(subjects):
        subject = deform(atlas, HELD_OUT + 100 + seed, ALIGNED)
        any_b = np.random.default_rng(seed).uniform(500, 3200, directions)
        bvals = np.concatenate([np.repeat(SHELLS, directions), any_b])
        world = np.tile(even_directions(directions), (4, 1))
        table = GradientTable.from_world(bvals, world, GRID)
        whole = GradientTable.from_world(np.r_[0.0, bvals], np.concatenate([np.zeros((1, 3)), world]), GRID)
        simulation = acquire(subject, whole, GRID, shape, SNR, seed, tissue=Tissue.random(HELD_OUT + seed))
        scan = simulation.scan
        b0 = Scan(scan.data[..., :1], GRID, scan.gradients[:1], scan.mask)
        for name, arm in chosen.items():
            population = maps if arm.tracts else replace(maps, tracts=None)
            request = Request(weights=args.weights, population=population, options={"table": table}, **arm.settings)
            result = arm.method.generate(arm.net, b0, request).mean
            for k, b in enumerate(("1000", "2000", "3000", "any")):
                for v in range(k * directions, (k + 1) * directions):
                    truth = simulation.clean[..., 1 + v] * b0.mask
                    image = result[..., v]
                    absolute = metrics.psnr(image, truth, b0.mask), metrics.ssim(image, truth, b0.mask)
                    rows.setdefault((name, b), []).append([*absolute, *in_papers_metric(image, truth)])
    print(f"\nsimulated, b0 of SNR {SNR:g}, {subjects} subjects, {slices} slices, {directions} directions each")
    print(f"{'arm':>30s}{'b':>6s}{'PSNR':>9s}{'SSIM':>9s}{'PSNR, paper':>13s}{'SSIM, paper':>13s}")
    for (name, b), values in rows.items():
        psnr, ssim, paper_psnr, paper_ssim = np.mean(values, axis=0)
        print(f"{name:>30s}{b:>6s}{psnr:9.2f}{ssim:9.4f}{paper_psnr:13.2f}{paper_ssim:13.4f}", flush=True)


VARIANTS = {  # of the network
    "without XTRACT": {},
    "without physics (DDPM-HDiT)": {"physics": False},
    "without the query mapping": {"query_mapping": False},
}


def trained(variant: str, atlas_path: str, adc: Path | None, xtract: Path | None, minutes: float) -> list[dict]:
    """Return the states of a variant trained for these minutes, without and with an adapter, in a separate process."""
    torch.set_num_threads(1)
    method, atlas, states = load("phydiff"), load_atlas(atlas_path), []
    net = method.network("small", **VARIANTS[variant])
    for tracts in (None, xtract) if xtract else (None,):
        population = population_on(atlas.shape, atlas.affine, adc or PACKAGED_ADC_ATLAS, tracts)
        source = method.subjects(atlas, TRAINED_ON, population=population)
        held_out = method.subjects(atlas, 4, held_out=True, population=population)
        method.freeze(net, source)
        budget = minutes / 3 if tracts else minutes
        plan = replace(
            method.training_plan("small"), minutes=budget, precision=resolve_precision("auto", source.device)
        )
        make, score = method.examples(source, "small", 16, 0), method.held_out(held_out, "small", 0)
        done = train(net, make, method.loss, score, plan)
        scores = f"held-out loss {done.start_loss:.4f} at the start, {done.held_out_loss:.4f} at best"
        print(f"{variant}{', adapter' if tracts else ''}: {done.steps} steps, {scores}", flush=True)
        states.append(deepcopy(net.state_dict()))
    return states


def ablation(args) -> None:
    """Train every variant for the same minutes on one core, and print Tables 1 and 2: the mean, and one draw."""
    method, whole = load("phydiff"), "without XTRACT"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = {
            name: pool.submit(trained, name, args.atlas, args.adc, args.xtract if name == whole else None, args.minutes)
            for name in VARIANTS
        }
    chosen = {"atlas": Arm(load("atlas"))}
    for variant, job in jobs.items():
        for name, state in zip((variant, "Phy-Diff"), job.result(), strict=False):
            net = method.network("small", **VARIANTS[variant]).eval()
            net.load_state_dict(state)
            chosen[f"{name}, mean"] = Arm(method, net, name == "Phy-Diff")
            chosen[f"{name}, draw"] = Arm(method, net, name == "Phy-Diff", {"steps": STEPS[2]})
    show_simulated(args, chosen)
    show_stated("Phy-Diff", "Table 2")


def scan_of(args, subject: str) -> Scan:
    """Return a real scan with its brain mask, without the coil bias, which is removed as in the app."""
    if subject == "canon":
        scan = dense_scan(args.data)
    else:
        path = sorted((args.data / f"bids/sub-{subject}").rglob("*_dwi.nii.gz"))[0]
        stem = str(path).removesuffix(".nii.gz")
        scan, _ = read_scan(path, f"{stem}.bval", f"{stem}.bvec", None, 50.0)
    mask = brain_of(scan)
    field = bias_field(scan.mean_b0(), scan.affine, mask)
    return Scan(scan.data / field[..., None], scan.affine, scan.gradients, mask)


def registered(args, subject: str) -> tuple[Scan, TemplateFiles]:
    """Return a real scan and its transforms to the embedded template; they are kept in the work folder."""
    import nibabel as nib

    scan, template = scan_of(args, subject), load_template()
    folder = args.work / subject
    folder.mkdir(parents=True, exist_ok=True)
    to, back = folder / "template-InverseComposite.h5", folder / "template-Composite.h5"
    if not to.exists():
        images = {"b0": scan.mean_b0(), "fa": evaluation.summary_maps(scan)["fa"]}
        register_to_template(images, scan.affine, scan.mask, template, folder)
    nib.save(nib.Nifti1Image(template.mask.astype(np.uint8), template.affine), folder / "brain.nii")
    return scan, TemplateFiles(folder / "brain.nii", to, back, args.adc, args.xtract, args.fibres)


def roundtrip(args) -> None:
    """Print by how much going to the template and back changes a scan and its directions."""
    template = load_template()
    for subject in SCANS:
        scan, files = registered(args, subject)
        space = TemplateSpace.of(
            scan.mask, scan.affine, template.mask, template.affine, [files.to_template], [files.from_template]
        )
        inner = ndimage.binary_erosion(scan.mask, iterations=3)
        series = np.asarray(scan.data[..., :3], np.float32)
        returned = space.onto_scan(space.onto_template(series))[inner]
        rms = np.sqrt(((returned - series[inner]) ** 2).mean()) / np.sqrt((series[inner] ** 2).mean())
        table = space.table_on_scan(space.table_on_template(scan.gradients))
        cosine = np.abs((table.bvecs * scan.gradients.bvecs).sum(axis=1))[~scan.gradients.is_b0]
        print(
            f"{subject}: grid of {space.affine[0, 0]:g} mm, {100 * rms:.2f} % rms, directions "
            f"{np.degrees(np.arccos(cosine.clip(0, 1))).max():.3f} degrees at most",
            flush=True,
        )


def real(args) -> None:
    """Print how well each arm predicts the acquired volumes of real scans from the b0 alone."""
    for subject in SCANS:
        scan, files = registered(args, subject)
        inner = ndimage.binary_erosion(scan.mask, iterations=evaluation.EROSIONS)
        weighted = np.flatnonzero(~scan.gradients.is_b0)
        reference = evaluation.summary_maps(scan)
        print(f"\n{REAL if subject == 'canon' else subject}, {len(weighted)} acquired directions from the b0")
        for name, method in arms(args).items():
            options = {"bvalues": [1000.0], "directions": 1}
            begun = time.perf_counter()
            request = Request(weights=args.weights, left_out=len(weighted), options=options)
            left_out = generate_in_template(method, scan, request, files).left_out
            seconds = time.perf_counter() - begun
            psnr = np.mean([
                metrics.psnr(left_out.mean[..., k], scan.data[..., v], inner) for k, v in enumerate(left_out.volumes)
            ])  # fmt: skip
            order = np.r_[np.flatnonzero(scan.gradients.is_b0), left_out.volumes]
            data = np.concatenate([scan.data[..., scan.gradients.is_b0], left_out.mean], axis=3)
            maps = evaluation.summary_maps(Scan(data, scan.affine, scan.gradients[order], scan.mask))
            colour = metrics.psnr(maps["dec"], reference["dec"], inner)
            angle = metrics.direction_angle(maps["direction"], reference["direction"], reference["fa"], inner, 0.3)
            print(
                f"{name:>10s}: DWI PSNR {psnr:.2f} dB, colour-FA PSNR {colour:.2f} dB, direction {angle:.1f} degrees, "
                f"{seconds:.0f} s",
                flush=True,
            )


def samplers(args) -> None:
    """Print the scores of every sampler on a few images of a simulated subject."""
    method = load("phydiff")
    chosen = {
        "the mean, 1 evaluation": Arm(method),
        f"a draw, {STEPS[2]} evaluations": Arm(method, settings={"steps": STEPS[2]}),
        "a draw, the paper's 800": Arm(method, settings={"sampler": "paper"}),
    }
    show_simulated(args, chosen, subjects=1, slices=2, directions=2)


def cost(args) -> None:
    """Print time and memory of 30 directions of the dense scan."""
    scan, files = registered(args, "canon")
    for name, method in arms(args).items():
        begun = time.perf_counter()
        options = {"bvalues": [1500.0], "directions": 30}
        generate_in_template(method, scan, Request(weights=args.weights, options=options), files)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{name}: 30 directions in {time.perf_counter() - begun:.0f} s, peak memory {peak:.2f} GB", flush=True)


PARTS = {f.__name__: f for f in (roundtrip, simulated, real, samplers, cost, ablation)}


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but ablation")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--atlas", default=EMBEDDED, help="atlas of the simulated subjects (default: the embedded one)")
    parser.add_argument("--weights", help="default: phydiff-small")
    parser.add_argument("--compared", nargs="+", default=[], metavar="NAME=FILE",
                        help="weights of compared arms, which `dmrigen benchmark synthesis` trained")  # fmt: skip
    parser.add_argument("--adc", type=Path, help="ADC atlas (default: the packaged one)")
    parser.add_argument("--xtract", type=Path, help="tracts (default: none)")
    parser.add_argument("--fibres", type=Path, help="fibre atlas of the arm on real scans (default: analytic bundles)")
    parser.add_argument("--minutes", type=float, default=10, help="minutes per training of the ablation (default: 10)")
    parser.add_argument("--work", type=Path, help="folder that keeps registrations (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.work or Path(folder)
        for part in args.parts or [name for name in PARTS if name != "ablation"]:
            PARTS[part](args)


if __name__ == "__main__":
    main()
