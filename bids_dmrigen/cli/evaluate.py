"""`dmrigen evaluate`: score methods on directions that are left out of a dense scan from the user's scanner."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..dwi.series import Scan, ScanError
from ..methods import REGISTRY, SIMPLE, options, spec_of
from ..methods.spec import Directions, Header
from .dense import Dense, InTemplate, image_files, read_dense, scan_names
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
BAD_SERIES = "--series {found}: expected NAME=FILE, with a name that no other arm has"
NO_SERIES = "--series: there is no file {path}"
ELSEWHERE = (
    "--series: {path} lies up to {away:.1f} mm from {image}, expected the same grid; write it with the scan's header"
)
ONE_ALONE = "--bval, --bvec, --mask and --series are for one image; several need their files beside them"


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    parser = tools.add_parser(
        "evaluate",
        help="leave directions of a dense scan out and score methods on them: can I trust it on my scanner?",
        description=DESCRIPTION,
        epilog=EPILOG.format(simple=_simple_help(), scores=_scores_help()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, nargs="+", metavar="IMAGE",
                        help="dense series, NIfTI, preprocessed is best; or folders, BIDS for instance: each series in "
                        "them gets a folder of its own, and all together paired differences")  # fmt: skip
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
                        "voxels, and have weights)")  # fmt: skip
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
    parser.add_argument("--steps", type=int, metavar="N", help="network evaluations per image (default: the sampler's)")
    parser.add_argument("--n-samples", type=int, default=8, metavar="K",
                        help="samples that a method's uncertainty comes from, which is scored too; 1 for none "
                        "(default: 8)")  # fmt: skip
    parser.add_argument("--series", nargs="+", default=[], metavar="NAME=FILE",
                        help="a series of your own as an arm: the same volumes, processed elsewhere. What was made of "
                        "all volumes has seen those that are left out")  # fmt: skip
    parser.add_argument("--xtract", type=Path, metavar="DIR_OR_FILE",
                        help="XTRACT's tracts, FSL's folder or a 4-D file with labels: FA and MD are compared in them "
                        "too, after registration to the template")  # fmt: skip
    parser.add_argument("--fibre-dir", type=Path, metavar="DIR",
                        help="fibre atlas of the method atlas, as in the app (default: analytic bundles)")  # fmt: skip
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
        Where --rotations is below 1 or --keep below 0, several images come with files of one, or neither --methods nor
        --simple names anything.
    """
    from ..qc import evaluation
    from ..qc.verdict import over_scans

    if args.rotations < 1 or min(args.keep) < 0:
        raise ValueError("--rotations: expected at least 1, --keep: at least 0")
    if args.methods == [] and not args.simple:
        raise ValueError("--methods and --simple name nothing to evaluate: give one of them a name, or leave one out")
    images = image_files(args.image)
    if len(images) > 1 and (args.bval, args.bvec, args.mask, args.series) != (None, None, None, []):
        raise ValueError(ONE_ALONE)
    if args.xtract is not None:
        from ..spatial.population import read_xtract

        read_xtract(args.xtract)  # before hours of work
    values, results = _option_values(args), {}
    for name, image in scan_names(images).items():
        folder = args.out if len(images) == 1 else args.out / name
        try:
            results[name] = _evaluated(args, name, image, folder, values)
        except evaluation.FAULTS as error:
            if len(images) == 1:
                raise
            print(f"{image}: {error}", flush=True)  # one odd scan never ends the call
    if len(images) > 1:
        from ..diffusion.storage import write_text

        sentences = over_scans(results, args.keep)
        print("\n" + "\n\n".join(sentences))
        write_text(args.out / "all_scans.md", "\n".join(f"- {sentence}" for sentence in sentences) + "\n")


def _evaluated(args, name: str, image: Path, folder: Path, values: Mapping[str, Any]):
    """Evaluate the arms on one scan, print the tables, write the results, and return them."""
    from ..diffusion.numerics import policy
    from ..qc import evaluation
    from ..qc.evaluation_page import write_results
    from ..qc.verdict import verdict

    scan = read_dense(image, args.bval, args.bvec, args.mask, args.b0_threshold)
    header = Header(scan.data.shape, tuple(scan.zooms_mm), scan.gradients)
    methods = args.methods
    if methods is None:
        methods = [name for name in REGISTRY if name not in SIMPLE and _works_in_place(name, values, header)]
        methods = [name for name in methods if _has_weights(name, args)]
    dense = Dense(name, scan)
    place = InTemplate(dense, folder / "template", args.fibre_dir)
    arms = {method: _arm(method, args, values, header, dense, place) for method in dict.fromkeys(methods)}
    arms |= {simple: evaluation.simple_arm(simple) for simple in args.simple}
    arms |= {own: _series(path, scan, image) for own, path in own_series(args.series).items()}
    folder.mkdir(parents=True, exist_ok=True)
    with policy(deterministic=True):  # so that the table has the same numbers every time
        result = evaluation.evaluate(scan, args.keep, arms, args.rotations, args.reference_method, _print_outcome)
    for keep in args.keep:
        print(f"\n{name}, {keep} directions per shell kept; maps against those of all {len(scan.gradients)} volumes")
        _print_table(evaluation.table(result, keep, list(arms)))
        print(f"\n{verdict(result, keep, list(arms))}")
    if result.note:
        print(f"\nnote: {result.note}")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings = {key: value for key, value in settings.items() if key not in ("run", "tool")} | {"image": str(image)}
    regions = [] if args.xtract is None else _in_tracts(args.xtract, place, result)
    print(f"\n{write_results(folder, result, scan, settings, regions)}")
    return result


def _series(path: Path, scan: Scan, image: Path) -> Scan:
    """Return the user's series of a scan.

    Raises
    ------
    ScanError
        Where it lies elsewhere: it would be compared voxel by voxel with other tissue.
    """
    import nibabel as nib

    from ..bids.images import GRID_TOLERANCE, grids_apart_mm
    from ..spatial.io import read_image

    data, own = read_image(path)
    wanted = nib.Nifti1Image(scan.mask.astype("uint8"), scan.affine)
    if data.shape[:3] == scan.mask.shape and grids_apart_mm(own, wanted) > GRID_TOLERANCE * min(scan.zooms_mm):
        raise ScanError(ELSEWHERE.format(path=path, away=grids_apart_mm(own, wanted), image=image))
    return replace(scan, data=data)


def _in_tracts(xtract: Path, place: InTemplate, result) -> list[dict[str, Any]]:
    """Return the scores in tracts; none, with a message, where the scan cannot be registered."""
    from ..qc.regions import region_scores

    try:
        return region_scores(result, place.tracts(xtract))
    except ScanError as error:
        print(f"no scores in tracts: {error}", flush=True)
        return []


def _option_values(args) -> dict[str, Any]:
    """Return the values of all options of all methods."""
    from ..workflow.settings import directions_of

    values = {}
    for option in options():
        given = getattr(args, option.name, None)
        given = option.default if given is None else option.checked(tuple(given) if option.many else given)
        values[option.name] = directions_of(given) if option.kind is Directions else given
    return values


def own_series(given: Sequence[str]) -> dict[str, Path]:
    """Return name -> file of NAME=FILE.

    Raises
    ------
    ValueError
        Where there is no "=", a name is taken, or there is no such file.
    """
    series: dict[str, Path] = {}
    for text in given:
        name, found, path = text.partition("=")
        if not found or not name or name in series or name in REGISTRY or name in SIMPLE:
            raise ValueError(BAD_SERIES.format(found=text))
        if not Path(path).is_file():
            raise ValueError(NO_SERIES.format(path=path))
        series[name] = Path(path)
    return series


def _has_weights(name: str, args) -> bool:
    """Return whether there are weights for a method that needs them: those of compared networks are not shipped."""
    from ..diffusion.weights import WeightsError
    from ..methods import given_weights, weights_of
    from ..workflow.settings import weights_by_method

    try:
        weights_of(name, args.size, given_weights(name, weights_by_method(args.weights)), args.weights_dir)
    except WeightsError:
        return False
    return True


def _works_in_place(name: str, values: Mapping[str, Any], header: Header) -> bool:
    """Return whether a method works in the scan's own space and, with these options, on its own voxels."""
    if spec_of(name).in_template:
        return False
    try:
        return spec_of(name).plan(values, header).edge_mm is None
    except ScanError:
        return False


def _arm(name: str, args, values: Mapping[str, Any], header: Header, dense: Dense, place: InTemplate):
    """Return the arm of a method, after its weights were verified."""
    from ..diffusion.parallel import choose_device
    from ..methods import check_weights, given_weights, load
    from ..methods.base import Request
    from ..workflow.generate import LEFT_OUT
    from ..workflow.settings import weights_by_method

    weights = given_weights(name, weights_by_method(args.weights))
    check_weights(name, args.size, weights, args.weights_dir, spec_of(name).options_by_key(values))
    method, device = load(name), choose_device(args.device)
    spec = method.spec
    plan = spec.plan(values, header)
    sampler = args.sampler or ("paper" if args.size == "paper" else "fast")
    request = Request(size=args.size, sampler=sampler, steps=args.steps, n_samples=args.n_samples, seed=args.seed,
                      left_out=LEFT_OUT if args.n_samples > 1 else 0,
                      subject="evaluate", run=dense.name, device=device, precision=args.precision, weights=weights,
                      weights_dir=args.weights_dir, minutes=plan.minutes)  # fmt: skip
    if spec.in_template:
        return place.arm(method, request)

    def generate(kept, wanted):
        spec.check(kept)
        options = {**plan.options, **spec.evaluation_options(wanted)}
        return method.generate(None, kept, replace(request, options=options))

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
