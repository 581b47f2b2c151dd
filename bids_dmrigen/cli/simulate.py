"""`dmrigen simulate`: scans of simulated subjects as a BIDS dataset, with their true values."""

from __future__ import annotations

from pathlib import Path

from .atlases import EMBEDDED, HELP

HEAD_MM = (175.0, 215.0, 170.0)  # field of view, right-left, back-front, down-up
README = """\
Simulated diffusion MRI

Made by `dmrigen simulate` (atlas {atlas}, seed {seed}): {n} subjects, {volumes} volumes each, with a
multi-compartment diffusion signal, partial volume, coil bias and Rician noise, without motion and distortion. No
subject was scanned. The true values of each run (noise-free series, tensor maps) are in derivatives/truth.
"""


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    text = "write scans of simulated subjects as a BIDS dataset, with known truth"
    parser = tools.add_parser("simulate", help=text, description=text)
    parser.add_argument("out_dir", type=Path, metavar="OUT", help="folder to write; must be empty or absent")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="subjects (default: 1)")
    parser.add_argument("--directions", type=int, nargs="+", default=[30], metavar="N",
                        help="directions on each shell (default: 30)")  # fmt: skip
    parser.add_argument("--bvals", type=float, nargs="+", default=[1000.0], metavar="B",
                        help="b-value of each shell, s/mm² (default: 1000)")  # fmt: skip
    parser.add_argument("--b0", type=int, default=3, metavar="N", help="b0 volumes (default: 3)")
    parser.add_argument("--snr", type=float, nargs="+", default=[25.0], metavar="SNR",
                        help="b0 signal of white matter over the noise; two numbers: drawn between them for each "
                        "subject, log-uniformly; inf for no noise (default: 25)")  # fmt: skip
    parser.add_argument("--voxel-mm", type=float, default=2.5, metavar="MM", help="voxel size, mm (default: 2.5)")
    parser.add_argument("--atlas", default=EMBEDDED, metavar="DIR_OR_FILE", help=HELP)
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the first subject; the next ones follow (default: 0)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args) -> None:
    """Simulate and write the dataset."""
    from ..simulate.anatomy import deform
    from .atlases import load_atlas
    from .simulated import write_descriptions

    _check(args)
    atlas = load_atlas(args.atlas)
    labels = [f"{number + 1:0{max(2, len(str(args.n)))}d}" for number in range(args.n)]
    name = args.atlas if args.atlas == EMBEDDED else Path(args.atlas).name
    volumes = args.b0 + sum(args.directions)
    write_descriptions(args.out_dir, README.format(atlas=name, seed=args.seed, n=args.n, volumes=volumes), labels)
    for number, label in enumerate(labels):
        snr = _write_subject(args, deform(atlas, args.seed + number), label, args.seed + number)
        print(f"sub-{label}: {volumes} volumes, SNR {snr:.3g}", flush=True)


def _check(args) -> None:
    if args.out_dir.exists() and (not args.out_dir.is_dir() or any(args.out_dir.iterdir())):
        raise ValueError(f"{args.out_dir} is not empty; give a new folder")
    if len(args.directions) != len(args.bvals):
        raise ValueError(
            f"{len(args.directions)} numbers of directions but {len(args.bvals)} b-values; give one number per b-value"
        )
    if min(args.n, args.b0, *args.directions) < 1 or not min(*args.bvals, *args.snr, args.voxel_mm) > 0:
        raise ValueError("--n, --b0, --directions: at least 1; --bvals, --snr, --voxel-mm: more than 0")
    if len(args.snr) > 2:
        raise ValueError("--snr: expected one number, or two")


def _write_subject(args, subject, label: str, seed: int) -> float:
    """Simulate the scan of one subject, write it with its true values, and return the SNR."""
    import numpy as np

    from ..simulate import scanner
    from .simulated import sidecar, write_gradients, write_image, write_json, write_truth

    shape = tuple(int(np.ceil(extent / args.voxel_mm)) for extent in HEAD_MM)
    affine = scanner.scan_grid(subject, args.voxel_mm, shape)
    gradients = scanner.protocol(affine, args.directions, args.b0, args.bvals)
    low, high = min(args.snr), max(args.snr)
    snr = low if low == high else float(np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high))))
    result = scanner.acquire(subject, gradients, affine, shape, snr, seed)
    dwi = args.out_dir / f"sub-{label}" / "dwi" / f"sub-{label}_dwi.nii.gz"
    write_image(dwi, result.scan.data, affine, np.int16)
    write_gradients(dwi, gradients)
    write_json(dwi.with_name(f"sub-{label}_dwi.json"), sidecar("j"))
    write_truth(args.out_dir / "derivatives" / "truth", label, result, np.zeros((len(gradients), 6)), None)
    return snr
