"""The scores of a benchmark: the arms of a room on each scan. What is scored stays, arm by arm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..dwi.series import Scan
from ..methods import SIMPLE, load, spec_of
from ..methods.base import Generated, Method, Request
from ..methods.enhance.task import VOXEL_SIZE
from ..methods.spec import TRAINING_STEPS, Header
from ..qc import evaluation
from ..qc.benchmark_page import DRAWN, picture_maps, pictures, rows_of
from ..qc.rooms import ROOMS
from .dense import Dense, InTemplate, coarser, read_dense, simulated
from .parser import given_options

if TYPE_CHECKING:
    from ..qc.evaluation import Arm

REFERENCE = "reference"
UNLIMITED = 10**9  # training steps, of arms whose training on the run is limited by time


@dataclass(frozen=True)
class Scored:
    """An arm that is scored: what it does, and all that its scores depend on beside the scan, JSON-serialisable."""

    arm: Arm
    made_of: dict[str, Any]


def score_all(args, names: Sequence[str], weights: dict[str, Path], images: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Score every arm on every scan; return a row for each scan, selection and arm."""
    rows: list[dict[str, Any]] = []
    aligned = any(spec_of(name).in_template for name in names)
    for dense in simulated(args.atlas, args.simulated, aligned, args.coarser):
        rows += scored(args, names, weights, dense)
    for name, image in images.items():
        try:
            dense = coarser(name, read_dense(image), args.coarser)
        except evaluation.FAULTS as error:
            print(f"{image}: {error}", flush=True)  # one odd scan never ends the call
            continue
        rows += scored(args, names, weights, dense)
    return rows


def scored(args, names: Sequence[str], weights: dict[str, Path], dense: Dense) -> list[dict[str, Any]]:
    """Return the rows of one scan; arms are scored whose rows are not there, failed, or were made of something else."""
    folder = args.out / "scans" / dense.name.replace(" ", "-")
    arms = arms_of_scan(args, names, weights, dense)
    common = {"scan": digest(dense), "keep": args.keep, "selections": args.selections, "seed": args.seed,
              "precision": args.precision, "software": __version__}  # fmt: skip
    made_of = {name: json.loads(json.dumps(common | arm.made_of)) for name, arm in arms.items()}
    missing = [name for name in arms if not _stored(folder, name, made_of[name])]
    if missing:
        keep = ROOMS[args.room].keep if args.keep is None else (args.keep,)
        try:
            result = evaluation.evaluate(dense.scan, keep, {name: arms[name].arm for name in missing}, args.selections,
                                         truth=dense.truth, tell=_tell(dense), given=dense.given)  # fmt: skip
        except evaluation.FAULTS as error:
            print(f"{dense.name}: {error}", flush=True)
            return []
        _store(folder, result, dense, made_of | {REFERENCE: common})
        _draw(args.out, folder, list(arms), dense)
    return [row for name in (*arms, REFERENCE) for row in _stored(folder, name, made_of.get(name), failed=True)]


def digest(dense: Dense) -> str:
    """Return a digest of all that scores of a scan depend on."""
    found, scan = hashlib.blake2b(digest_size=8), dense.scan
    arrays = [scan.data, scan.mask, scan.affine, scan.gradients.bvals, scan.gradients.bvecs, dense.truth]
    for array in arrays + ([] if dense.given is None else [dense.given.data, dense.given.mask]):
        found.update(b"" if array is None else np.ascontiguousarray(array).data)
    return found.hexdigest()


def arms_of_scan(args, names: Sequence[str], weights: dict[str, Path], dense: Dense) -> dict[str, Scored]:
    """Return the arms of a scan: those of the room and, where it is not in the template's space, simple estimates.

    A diffusion model is asked once, and (`--draws`) its samples are averaged, as another arm.
    """
    from ..diffusion.parallel import choose_device
    from ..diffusion.weights import read_card

    atlas = Path(args.atlas)
    fibres = atlas if atlas.is_dir() else None
    # Named by its content: the transforms of another scan or mask are not taken.
    place = InTemplate(dense, args.out / "template" / f"{dense.name.replace(' ', '-')}-{digest(dense)}", fibres)
    arms: dict[str, Scored] = {}
    for name in names:
        method, file = load(name), weights.get(name)
        values = method.spec.defaults() | given_options(args, name)
        made_of: dict[str, Any] = {"weights": None if file is None else read_card(file).sha256,
                                   "options": given_options(args, name)}  # fmt: skip
        if method.spec.in_template:
            made_of["atlas"] = str(args.atlas)
        request = Request(seed=args.seed, subject="benchmark", run=dense.name, device=choose_device(args.device),
                          precision=args.precision, weights=None if file is None else str(file))  # fmt: skip
        if method.spec.trains_on_run:
            request, made_of["minutes"] = replace(request, minutes=args.minutes), args.minutes
        arms[name] = Scored(_arm(method, values, request, dense, place), made_of)
        if args.draws and file is not None and method.spec.draws:
            drawn = replace(request, n_samples=args.draws)
            arms[DRAWN.format(arm=name, count=args.draws)] = Scored(
                _arm(_Averaging(method), values, drawn, dense, place), made_of | {"draws": args.draws}
            )
    if not any(spec_of(name).in_template for name in names):
        arms |= {name: Scored(evaluation.simple_arm(name), {}) for name in SIMPLE if name not in arms}
    return arms


class _Averaging(Method):
    """A method whose result is the mean of its samples."""

    def __init__(self, method: Method):
        self.spec, self._method = method.spec, method

    def generate(self, net: Any, scan: Scan, request: Request) -> Generated:
        """Return the mean of the samples."""
        return self._method.generate(net, scan, request).averaged()


def _arm(method: Method, values: Mapping[str, Any], request: Request, dense: Dense, place: InTemplate) -> Arm:
    spec, scan = method.spec, dense.seen
    if spec.in_template:
        return place.arm(method, request)
    header = Header(scan.data.shape, tuple(scan.zooms_mm), scan.gradients)
    if dense.given is not None:
        values = {**values, VOXEL_SIZE.name: float(dense.scan.zooms_mm[0])}
    limit = {TRAINING_STEPS: UNLIMITED} if spec.trains_on_run else {}

    def generate(kept, wanted):
        plan = spec.plan(values, header)
        spec.check(kept)
        return method.generate(
            None, kept, replace(request, options={**plan.options, **limit, **spec.evaluation_options(wanted)})
        )

    return generate


def _stored(folder: Path, arm: str, made_of: dict[str, Any] | None, failed: bool = False) -> list[dict[str, Any]]:
    """Return the rows of an arm that are there and made of the same (None: of anything).

    Rows of an arm that failed are not returned, unless `failed`: it is tried again.
    """
    path = folder / f"{_slug(arm)}.json"
    if not path.is_file():
        return []
    stored = json.loads(path.read_text())
    same = made_of is None or stored["made_of"] == made_of
    well = failed or not any(row.get("fault") for row in stored["rows"])
    return stored["rows"] if same and well else []


def _store(folder: Path, result: evaluation.Evaluation, dense: Dense, made_of: Mapping[str, Any]) -> None:
    """Write rows and maps of each arm, and those of the reference."""
    from ..diffusion.storage import write_text

    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(result, dense.name, dense.truth is not None)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        maps: dict[str, Any] = picture_maps(result, arm)
        np.savez_compressed(folder / f"{_slug(arm)}.npz", allow_pickle=False, **maps)
        write_text(folder / f"{_slug(arm)}.json", json.dumps({"made_of": made_of[arm], "rows": own}, indent=1))


def _draw(out: Path, folder: Path, arms: Sequence[str], dense: Dense) -> None:
    maps = {}
    for arm in (*arms, REFERENCE):
        if (folder / f"{_slug(arm)}.npz").is_file():
            with np.load(folder / f"{_slug(arm)}.npz") as file:
                maps[arm] = {name: file[name] for name in file.files}
    if REFERENCE in maps:
        generated = frozenset(arm for arm in arms if arm not in SIMPLE)
        pictures(maps, generated, dense.scan, out, dense.name)


def _slug(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "-")


def _tell(dense: Dense):
    def tell(outcome) -> None:
        text = outcome.fault or f"FA PSNR {outcome.scores['fa_psnr']:.2f} dB, {outcome.seconds:.1f} s"
        print(f"{dense.name}, selection {outcome.rotation + 1}, {outcome.arm}: {text}", flush=True)

    return tell
