"""`dmrigen prepare`: a BIDS dataset (or an atlas) as one array file that training reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .atlases import EMBEDDED


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    parser = tools.add_parser(
        "prepare",
        help="write a BIDS dataset as one array file for `dmrigen train --data`",
        description="Write the diffusion runs of a BIDS dataset, raw or preprocessed, as one array file for training: "
        "masked, cropped, in units of the median b0. A run that cannot be used is named with the reason, and the exit "
        "status is then 1. Preprocessed runs are best: motion stays in raw ones.",
    )
    parser.add_argument("source", metavar="SOURCE", help="root of a BIDS or derivative dataset")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--participant-label", nargs="+", default=(), metavar="LABEL", help="subjects (default: all)")
    parser.add_argument("--b0-threshold", type=float, default=50.0, metavar="B",
                        help="volumes at or below this b-value, s/mm², are b0 (default: 50)")  # fmt: skip
    parser.add_argument("--atlas", action="store_true",
                        help=f"write an atlas instead: SOURCE is a folder of images, or {EMBEDDED}")  # fmt: skip
    parser.set_defaults(run=run)


def run(args) -> int:
    """Write the array file; return 1 where a run was left out."""
    if args.out.suffix != ".safetensors":
        raise ValueError(f"{args.out}: the file's name has to end with .safetensors")
    if args.atlas:
        from ..simulate.atlas_file import save_atlas
        from .atlases import load_atlas

        print(save_atlas(args.out, load_atlas(args.source)))
        return 0
    from ..diffusion.arrays import write_prepared

    left_out: list[str] = []
    count = write_prepared(args.out, _scans(args, left_out))
    print(f"{args.out}: {count} runs, {args.out.stat().st_size / 1e6:.0f} MB")
    if left_out:
        print(f"{len(left_out)} runs were left out, see above", file=sys.stderr)
    return 1 if left_out else 0


def _scans(args, left_out: list[str]):
    """Yield (name, subject, scan, noise level) of every usable run; say which are not, and why."""
    from ..bids.query import find_preprocessed, find_runs, open_layout
    from ..dwi.gradients import GradientError
    from ..dwi.series import ScanError

    root = Path(args.source)
    labels = [label.removeprefix("sub-") for label in args.participant_label]
    derivative = _is_derivative(root)
    layout = open_layout(root, derivative=derivative)
    for item in find_preprocessed(layout, (), labels) if derivative else find_runs(layout, labels):
        try:
            if item.fault:
                raise ScanError(item.fault)
            scan, sigma = _read(item, args.b0_threshold)
        except (ScanError, GradientError) as error:
            left_out.append(item.name)
            print(f"left out: {item.name}: {error}", file=sys.stderr, flush=True)
            continue
        shells = ", ".join(f"{len(v)} at b={b:.0f}" for b, v in scan.gradients.shells())
        print(f"{item.name}: {shells}; noise level {sigma:.4g}", flush=True)
        yield item.name, item.entities["subject"], scan, sigma


def _read(item, b0_threshold: float):
    """Return a run as a scan with its brain mask, and its noise level."""
    from ..dwi.noise import estimate_sigma
    from ..dwi.series import Scan, ScanError
    from ..interfaces.brain import brain_mask, mean_dwi
    from ..interfaces.io import read_scan

    scan, _ = read_scan(item.image, item.bval, item.bvec, item.mask, b0_threshold)
    if scan.gradients.is_b0.all():
        raise ScanError("all volumes are b0")
    if item.mask is None:
        scan = Scan(scan.data, scan.affine, scan.gradients, brain_mask(scan.mean_b0(), scan.zooms_mm, mean_dwi(scan)))
    return scan, estimate_sigma(scan).sigma


def _is_derivative(root: Path) -> bool:
    try:
        return json.loads((root / "dataset_description.json").read_text("utf-8-sig")).get("DatasetType") == "derivative"
    except (OSError, ValueError, AttributeError):
        return False  # `open_layout` says what is wrong
