"""`dmrigen prepare`: a BIDS dataset (or an atlas) as one array file that training reads."""

from __future__ import annotations

import sys
from itertools import chain, islice
from pathlib import Path

from .atlases import EMBEDDED

BVALUES = (1000.0, 2000.0, 3000.0)
SUBJECTS = 20


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    parser = tools.add_parser(
        "prepare",
        help="write a BIDS dataset as one array file for `dmrigen train --data`, or an atlas",
        description="Write the diffusion runs of a BIDS dataset, raw or preprocessed, as one array file for training: "
        "masked, cropped, in units of the median b0. A run that cannot be used is named with the reason, and the exit "
        "status is then 1. Preprocessed runs are best: motion stays in raw ones.",
    )
    parser.add_argument("source", metavar="SOURCE", help="root of a BIDS or derivative dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write: .safetensors, an ADC atlas .nii.gz")
    parser.add_argument("--participant-label", nargs="+", default=(), metavar="LABEL", help="subjects (default: all)")
    parser.add_argument("--b0-threshold", type=float, default=50.0, metavar="B",
                        help="volumes at or below this b-value, s/mm², are b0 (default: 50)")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--atlas", action="store_true",
                      help=f"write an atlas instead: SOURCE is a folder of images, or {EMBEDDED}")  # fmt: skip
    kind.add_argument("--adc-atlas", action="store_true",
                      help="write the mean apparent diffusion coefficient, mm²/s, in the template's space instead: "
                      "of simulated subjects where SOURCE is an anatomy in MNI coordinates, as for `dmrigen train "
                      "--atlas`, or of the preprocessed runs of a dataset that bids_dmrigen wrote")  # fmt: skip
    kind.add_argument("--anatomies", action="store_true",
                      help="write the runs' tensors, denoised, as anatomies for `dmrigen train` instead")  # fmt: skip
    kind.add_argument("--in-template", action="store_true",
                      help="write the runs on the template's 2 mm grid, for methods that work there; SOURCE is a "
                      "dataset that bids_dmrigen wrote with --output-spaces template")  # fmt: skip
    adc = parser.add_argument_group("with --adc-atlas")
    adc.add_argument("--bvalues", type=float, nargs="+", metavar="B",
                     help="b-values, s/mm²; a shell counts for the nearest (default: 1000 2000 3000)")  # fmt: skip
    adc.add_argument("--subjects", type=int, metavar="N", help=f"simulated subjects (default: {SUBJECTS})")
    adc.add_argument("--voxel-mm", type=float, metavar="MM",
                     help="edge of the atlas's voxels, mm (default: the source's; 2 for a dataset)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args) -> int:
    """Write the file; return 1 if a run was left out, else 0.

    Raises
    ------
    ValueError
        Where the file name has the wrong ending, or an option belongs to another output.
    """
    suffix = ".nii.gz" if args.adc_atlas else ".safetensors"
    if not args.out.name.endswith(suffix):
        raise ValueError(f"{args.out}: the file's name has to end with {suffix}")
    if args.adc_atlas:
        return _write_adc_atlas(args)
    for option in ("bvalues", "subjects", "voxel_mm"):
        if getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for --adc-atlas alone; leave it out, or add --adc-atlas")
    if args.atlas:
        from ..simulate.atlas_file import save_atlas
        from .atlases import load_atlas

        print(save_atlas(args.out, load_atlas(args.source)))
        return 0
    from ..diffusion.arrays import write_prepared
    from ..simulate.measured import write_anatomies

    left_out: list[str] = []
    if args.anatomies:
        count = write_anatomies(args.out, _anatomies(args, left_out))
    elif args.in_template:
        count = _write_in_template(args, left_out)
    else:
        count = write_prepared(args.out, _scans(args, left_out))
    print(f"{args.out}: {count} runs, {args.out.stat().st_size / 1e6:.0f} MB")
    return _exit_status(left_out)


def _exit_status(left_out: list[str]) -> int:
    """Print how many runs were left out; return the exit status."""
    if left_out:
        print(f"{len(left_out)} runs were left out, see above", file=sys.stderr)
    return 1 if left_out else 0


def _scans(args, left_out: list[str]):
    """Yield (name, subject, scan, noise level) of every usable run."""
    from ..spatial.coverage import read_run

    for item, (scan, sigma) in _usable(args, left_out, lambda item: _with_noise(read_run(item, args.b0_threshold))):
        shells = ", ".join(f"{len(v)} at b={b:.0f}" for b, v in scan.gradients.shells())
        print(f"{item.name}: {shells}; noise level {sigma:.4g}", flush=True)
        yield item.name, item.entities["subject"], scan, sigma


def _anatomies(args, left_out: list[str]):
    """Yield the anatomy of every usable run, as `write_anatomies` takes it."""
    from ..spatial.coverage import read_run

    for item, anatomy in _usable(args, left_out, lambda item: anatomy_of(read_run(item, args.b0_threshold))):
        print(f"{item.name}: {int(anatomy[0].sum())} voxels", flush=True)
        yield item.name, item.entities["subject"], *anatomy


def anatomy_of(scan):
    """Return the anatomy of a scan, as `simulate.measured.write_anatomies` takes it: brain, affine, b0 and tensors.

    Voxels in which a sample is missing are not in the brain.
    """
    from dataclasses import replace

    import numpy as np
    import torch

    from ..dwi.tensor import tensor_volumes
    from ..methods.maps.outputs import from_lower_triangles
    from ..methods.rivals import wls
    from ..methods.starts import mean_start

    used = np.r_[np.flatnonzero(scan.gradients.is_b0), tensor_volumes(scan.gradients)]
    scan = replace(scan, mask=scan.mask & (scan.data[..., np.unique(used)] > 0).all(axis=3))
    fit = wls(replace(scan, data=mean_start(scan))).fit
    b0 = torch.from_numpy(scan.mean_b0()[scan.mask].astype(np.float32))
    affine = torch.as_tensor(scan.affine, dtype=torch.float64)
    return torch.from_numpy(scan.mask), affine, b0 / b0.median(), from_lower_triangles(fit.tensor)


def _write_in_template(args, left_out: list[str]) -> int:
    """Write the runs on the template's grid; return how many."""
    from ..diffusion.arrays import write_prepared
    from ..spatial.adc_atlas import GRID_AFFINE, GRID_SHAPE, find_transform
    from ..spatial.coverage import read_run
    from ..spatial.template_space import series_in_template

    templates: set[str] = set()

    def read(item):
        transform, template = find_transform(item)
        scan, sigma = _with_noise(read_run(item, args.b0_threshold))
        templates.add(template)
        return series_in_template(scan, transform, GRID_SHAPE, GRID_AFFINE), sigma

    def scans():
        for item, (scan, sigma) in _usable(args, left_out, read):
            print(f"{item.name}: {int(scan.mask.sum())} voxels of {_one(templates, args)}", flush=True)
            yield item.name, item.entities["subject"], scan, sigma

    runs = scans()
    first = list(islice(runs, 1))  # with which the template is known
    return write_prepared(args.out, chain(first, runs), _one(templates, args))


def _write_adc_atlas(args) -> int:
    """Write the ADC atlas of simulated subjects or of a dataset's runs; return 1 where a run was left out."""
    from ..spatial.population import coarser, write_adc_atlas

    bvals = sorted(set(args.bvalues or BVALUES))
    if args.voxel_mm is not None and args.voxel_mm <= 0:
        raise ValueError(f"--voxel-mm: expected an edge in mm above 0, found {args.voxel_mm:g}")
    root = Path(args.source)
    left_out: list[str] = []
    if _is_derivative(root):
        data, affine, fields = _adc_of_runs(args, bvals, left_out)
    elif (root / "dataset_description.json").exists():
        raise ValueError(
            f"{root}: expected an anatomy or a dataset that bids_dmrigen wrote, found a raw dataset; "
            "run bids_dmrigen on it and give its output"
        )
    else:
        data, affine, fields = _adc_of_simulated(args, bvals)
    if args.voxel_mm is not None:
        data, affine = coarser(data, affine, args.voxel_mm)
    write_adc_atlas(args.out, data, bvals, affine, fields)
    for k, b in enumerate(bvals):
        inside = data[..., k][data[..., k] > 0]
        print(f"b={b:g}: mean {inside.mean() if inside.size else 0:.3g} mm²/s in {inside.size} voxels")
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")
    return _exit_status(left_out)


def _adc_of_simulated(args, bvals):
    """Return the mean ADC of simulated subjects, its affine, and the fields of its sidecar."""
    from ..simulate.adc import mean_adc
    from ..spatial.templates import EMBEDDED_NAME
    from .atlases import load_atlas

    n_subjects, atlas = SUBJECTS if args.subjects is None else args.subjects, load_atlas(args.source)
    data = mean_adc(atlas, bvals, n_subjects, progress=lambda n: print(f"{n} of {n_subjects} subjects", flush=True))
    source = EMBEDDED if args.source == EMBEDDED else Path(args.source).resolve().name
    space = EMBEDDED_NAME if args.source == EMBEDDED else "MNI152"
    return data, atlas.affine, {"Source": f"simulated subjects of {source}", "Subjects": n_subjects, "Space": space}


def _adc_of_runs(args, bvals, left_out: list[str]):
    """Return the mean ADC of the subjects of a preprocessed dataset, its affine, and the fields of its sidecar."""
    from ..spatial.adc_atlas import GRID_AFFINE, find_transform, mean_of_runs, shells_on_template
    from ..spatial.coverage import read_run

    if args.subjects is not None:
        raise ValueError(f"--subjects is for simulated subjects, but {args.source} is a dataset; leave it out")
    templates: set[str] = set()

    def read(item):
        transform, template = find_transform(item)
        scan = read_run(item, args.b0_threshold)
        templates.add(template)
        return [b for b, _ in scan.gradients.shells()], shells_on_template(scan, transform, bvals)

    def maps():
        for item, (shells, adc) in _usable(args, left_out, read):
            print(f"{item.name}: b={', '.join(f'{b:.0f}' for b in shells)}", flush=True)
            yield item.entities["subject"], shells, adc

    data, n_runs, n_subjects = mean_of_runs(maps(), bvals)
    source = Path(args.source).resolve().name
    return data, GRID_AFFINE, {"Source": source, "Subjects": n_subjects, "Runs": n_runs, "Space": _one(templates, args)}


def _one(templates: set[str], args) -> str:
    """Return the template that all runs are registered to; refuse several."""
    if len(templates) > 1:
        raise ValueError(
            f"{args.source}: expected runs registered to one template, found {', '.join(sorted(templates))}; "
            "choose those of one with --participant-label"
        )
    return next(iter(templates), "")


def _usable(args, left_out: list[str], read):
    """Yield every run with the result of `read`; print which runs cannot be read, and why."""
    from ..bids.query import find_preprocessed, find_runs, open_layout
    from ..dwi.gradients import GradientError
    from ..dwi.series import ScanError

    root = Path(args.source)
    labels = [label.removeprefix("sub-") for label in args.participant_label]
    derivative = _is_derivative(root)
    layout = open_layout(root, derivative=derivative)
    runs = find_preprocessed(layout, (), labels) if derivative else find_runs(layout, labels)
    # Sorted, so that the runs of a subject follow one another.
    for item in sorted(runs, key=lambda run: run.entities.get("subject", "")):
        try:
            if item.fault:
                raise ScanError(item.fault)
            result = read(item)
        except (ScanError, GradientError) as error:
            left_out.append(item.name)
            print(f"left out: {item.name}: {error}", file=sys.stderr, flush=True)
            continue
        yield item, result


def _with_noise(scan):
    """Return a scan and its noise level."""
    from ..dwi.noise import estimate_sigma

    return scan, estimate_sigma(scan).sigma


def _is_derivative(root: Path) -> bool:
    from ..diffusion.storage import TextError, read_object

    try:
        return read_object(root / "dataset_description.json").get("DatasetType") == "derivative"
    except TextError:
        return False  # `open_layout` says what is wrong
