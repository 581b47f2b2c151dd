"""`dmrigen evaluate`: score methods on directions that are left out of a dense scan from the user's scanner."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..dwi.series import Scan, ScanError
from ..methods import REGISTRY, SIMPLE, options, spec_of
from ..methods.spec import Directions, Header
from .parser import add_options

DESCRIPTION = """\
Leave directions of a dense diffusion scan out, let methods and simple estimates work with the rest, and compare with
what was left out. A gain is a gain over the best simple estimate.
"""
EPILOG = """\
simple estimates, which use the kept volumes alone:
{simple}

scores, all in the mask eroded twice (R: 99.9th percentile of the reference there):
{scores}

The reference is measured too: it has noise, and it contains the kept volumes. So an estimate that is better than the
scan does not get a perfect score. No score shows whether anatomy was invented: look at the pictures too.
"""
NEEDS_TEMPLATE = "{name} starts from the b0, in the template's space: the app's report compares volumes left out"


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    parser = tools.add_parser(
        "evaluate",
        help="leave directions of a dense scan out and score methods on them: can I trust it on my scanner?",
        description=DESCRIPTION,
        epilog=EPILOG.format(simple=_simple_help(), scores=_scores_help()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="dense series, NIfTI; preprocessed is best")
    parser.add_argument("--bval", type=Path, metavar="FILE", help="b-values, FSL (default: beside the image)")
    parser.add_argument("--bvec", type=Path, metavar="FILE", help="directions, FSL (default: beside the image)")
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="brain mask (default: found in b0 and mean DWI, without voxels where a volume is 0)",
    )
    parser.add_argument("--keep", type=int, nargs="+", required=True, metavar="N",
                        help="directions to keep on every shell, spread evenly; several numbers in turn")  # fmt: skip
    parser.add_argument("--methods", nargs="*", choices=list(REGISTRY), metavar="METHOD",
                        help=f"of {', '.join(REGISTRY)} (default: all that work in a scan's own space, on its own "
                        "voxels)")  # fmt: skip
    parser.add_argument("--simple", nargs="*", choices=list(SIMPLE), default=list(SIMPLE), metavar="NAME",
                        help=f"simple estimates, of {', '.join(SIMPLE)} (default: all)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for results.json, results.csv, index.html")  # fmt: skip
    parser.add_argument("--reference-method", choices=("ols", "wls"), default="wls",
                        help="tensor fit of the reference and of every method: weighted linear least squares, as in "
                        "the app, or ordinary ones, as in the papers (default: wls)")  # fmt: skip
    parser.add_argument("--rotations", type=int, default=1, metavar="K",
                        help="different selections of directions per number (default: 1)")  # fmt: skip
    parser.add_argument("--b0-threshold", type=float, default=50.0, metavar="B",
                        help="volumes at or below this b-value, s/mm², are b0 (default: 50)")  # fmt: skip
    parser.add_argument("--size", choices=("small", "paper"), default="small", help="network size (default: small)")
    parser.add_argument("--sampler", choices=("fast", "paper"),
                        help="the paper's or a faster one (default: fast; paper with --size paper)")  # fmt: skip
    parser.add_argument("--weights", nargs="+", default=[], metavar="METHOD=NAME_OR_PATH",
                        help="weights (default: those named METHOD-SIZE)")  # fmt: skip
    parser.add_argument("--weights-dir", type=Path, metavar="DIR", help="folder searched before the package")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random number (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="arithmetic of the networks (default: auto, the faster one)")  # fmt: skip
    add_options(parser.add_argument_group("options of the methods"), [n for n in REGISTRY if not _in_template(n)])
    parser.set_defaults(run=run)


def _in_template(name: str) -> bool:
    return spec_of(name).in_template


def run(args) -> None:
    """Evaluate, print the tables and write the results.

    Raises
    ------
    ValueError
        Where --rotations or --keep is below 1, or neither --methods nor --simple names anything.
    """
    from ..diffusion.numerics import policy
    from ..qc import evaluation
    from ..qc.evaluation_page import write_results
    from ..spatial.io import read_scan

    if args.rotations < 1 or min(args.keep) < 1:
        raise ValueError("--rotations and --keep: expected at least 1")
    if args.methods == [] and not args.simple:
        raise ValueError("--methods and --simple name nothing to evaluate: give one of them a name, or leave one out")
    stem = args.image.name.removesuffix(".gz").removesuffix(".nii")
    bval, bvec = (given or args.image.with_name(f"{stem}.{kind}") for given, kind in
                  ((args.bval, "bval"), (args.bvec, "bvec")))  # fmt: skip
    scan, _ = read_scan(args.image, bval, bvec, args.mask, args.b0_threshold)
    if args.mask is None:
        from ..spatial.brain_mask import brain_of

        # A voxel that is 0 in some volume would be an outlier of the tensor fit.
        mask = brain_of(scan) & (scan.data > 0).all(axis=3)
        scan = Scan(scan.data, scan.affine, scan.gradients, mask)
    header = Header(scan.data.shape, tuple(scan.zooms_mm), scan.gradients)
    values = _option_values(args)
    if args.methods is None:
        args.methods = [name for name in REGISTRY if name not in SIMPLE and _works_in_place(name, values, header)]
    arms = {name: _arm(name, args, values, header, stem) for name in dict.fromkeys(args.methods)}
    arms |= {name: evaluation.simple_arm(name) for name in args.simple}
    args.out.mkdir(parents=True, exist_ok=True)
    with policy(deterministic=True):  # so that the table has the same numbers every time
        result = evaluation.evaluate(scan, args.keep, arms, args.rotations, args.reference_method, _print_outcome)
    for keep in args.keep:
        print(f"\n{keep} directions per shell kept; maps against those of all {len(scan.gradients)} volumes")
        _print_table(evaluation.table(result, keep, list(arms)))
    if result.note:
        print(f"\nnote: {result.note}")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings = {key: value for key, value in settings.items() if key not in ("run", "tool")}
    print(f"\n{write_results(args.out, result, scan, settings)}")


def _option_values(args) -> dict[str, Any]:
    """Return the values of all options of all methods."""
    from ..workflow.settings import directions_of

    values = {}
    for option in options():
        given = getattr(args, option.name, None)
        given = option.default if given is None else option.checked(tuple(given) if option.many else given)
        values[option.name] = directions_of(given) if option.kind is Directions else given
    return values


def _works_in_place(name: str, values: Mapping[str, Any], header: Header) -> bool:
    """Return whether a method works in the scan's own space and, with these options, on its own voxels."""
    if spec_of(name).in_template:
        return False
    try:
        return spec_of(name).plan(values, header).edge_mm is None
    except ScanError:
        return False


def _arm(name: str, args, values: Mapping[str, Any], header: Header, run_name: str):
    """Return the arm of a method, after its weights were verified."""
    from ..diffusion.parallel import choose_device
    from ..methods import check_weights, given_weights, load
    from ..methods.base import Request
    from ..workflow.settings import weights_by_method

    weights = given_weights(name, weights_by_method(args.weights))
    check_weights(name, args.size, weights, args.weights_dir, spec_of(name).options_by_key(values))
    method, device = load(name), choose_device(args.device)
    spec = method.spec
    if spec.in_template:
        raise ValueError(NEEDS_TEMPLATE.format(name=name))
    plan = spec.plan(values, header)
    sampler = args.sampler or ("paper" if args.size == "paper" else "fast")

    def generate(kept, wanted):
        spec.check(kept)
        request = Request(size=args.size, sampler=sampler, seed=args.seed, subject="evaluate", run=run_name,
                          device=device, precision=args.precision, weights=weights, weights_dir=args.weights_dir,
                          minutes=plan.minutes,
                          options={**plan.options, **spec.evaluation_options(wanted)})  # fmt: skip
        return method.generate(None, kept, request)

    return generate


def _print_outcome(outcome) -> None:
    result_text = outcome.fault or f"FA PSNR {outcome.scores['fa_psnr']:.2f} dB, {outcome.seconds:.1f} s"
    print(f"{outcome.keep} directions, selection {outcome.rotation + 1}, {outcome.arm}: {result_text}", flush=True)


def _print_table(rows: list[list[str]]) -> None:
    complete = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[k]) for row in complete) for k in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=False))]
        print("  ".join(cells) if len(row) == len(rows[0]) else f"{row[0].ljust(widths[0])}  {row[1]}")


def _simple_help() -> str:
    return "\n".join(f"  {name:<8}{text}" for name, text in SIMPLE.items())


def _scores_help() -> str:
    import textwrap

    from ..qc.definitions import EVALUATION

    texts = (f"{d.heading}: {d.text}" for d in EVALUATION.values())
    return "\n".join(textwrap.fill(t, 110, initial_indent="  ", subsequent_indent="      ") for t in texts)
