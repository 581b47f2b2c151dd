"""`dmrigen benchmark`: train every arm of a room on the same examples, score all, say which is worth it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..methods import REGISTRY, SIMPLE, room_of, spec_of
from ..qc.rooms import ROOMS
from .atlases import EMBEDDED, HELP

DESCRIPTION = (
    "Train every learnt arm of a room for the same time on the same examples, score all arms on simulated subjects "
    "that nothing was trained on and on scans of yours, and write tables, a page and JSON. Called again with the same "
    "folder, it does only what is missing."
)
MINUTES, SUBJECTS, BATCH, SIMULATED = 20.0, 40, 16, 2
SMALL_BATCH = 2  # of arms whose examples are blocks in three dimensions
OTHER_ROOM = "{name} is not in the room {room}; its arms: {arms}"
NO_TRAINING = "{name} could not be trained, see {log}"


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    parser = tools.add_parser("benchmark", help="train and score every arm of a room", description=DESCRIPTION)
    parser.add_argument("room", choices=tuple(ROOMS), help="the question")
    parser.add_argument("--list", action="store_true", help="list the arms with parameters and evaluations, and end")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for weights, results.json, tables.md, index.html"
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="arms (default: all of the room)")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M",
                        help=f"training of each learnt arm (default: {MINUTES:g})")  # fmt: skip
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="ready weights of arms")
    parser.add_argument("--data", type=Path, metavar="FILE",
                        help="prepared scans to train on; for synthesis those of --in-template")  # fmt: skip
    parser.add_argument("--anatomies", type=Path, metavar="FILE", help="anatomies of real scans to train on")
    parser.add_argument("--held-out", nargs="+", metavar="LABEL", help="subjects of both to score the training on")
    parser.add_argument("--subjects", type=int, default=SUBJECTS, metavar="K",
                        help=f"simulated subjects to train on (default: {SUBJECTS})")  # fmt: skip
    parser.add_argument("--atlas", default=EMBEDDED, metavar="DIR_OR_FILE", help=HELP)
    parser.add_argument("--batch", type=int, metavar="B",
                        help=f"examples per step (default: {BATCH}; {SMALL_BATCH} for blocks)")  # fmt: skip
    parser.add_argument("--simulated", type=int, default=SIMULATED, metavar="K",
                        help=f"simulated subjects to score on (default: {SIMULATED})")  # fmt: skip
    parser.add_argument("--scans", type=Path, nargs="+", default=[], metavar="FILE_OR_DIR",
                        help="dense series to score on, or folders of them")  # fmt: skip
    parser.add_argument("--keep", type=int, metavar="N", help="directions kept on every shell (default: the room's)")
    parser.add_argument("--selections", type=int, default=2, metavar="K",
                        help="different selections of directions per scan (default: 2)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="trainings at a time; on GPUs, one on each in turn (default: 1)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of the networks"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random number (default: 0)")
    parser.set_defaults(run=run)


def run(args) -> None:
    """List the arms, or train, score and write.

    Raises
    ------
    ValueError
        Where an arm is not in the room, --out is missing, or an arm could not be trained.
    """
    names = arms_of(args.room, args.arms)
    if args.list:
        _list(names)
        return
    if args.out is None:
        raise ValueError("--out: give a folder for the results")
    from ..workflow.settings import weights_by_method

    args.out.mkdir(parents=True, exist_ok=True)
    given = {name: Path(path) for name, path in weights_by_method(args.weights).items()}
    weights = train_all(args, [name for name in names if spec_of(name).needs_weights], given)
    from ..diffusion.numerics import policy
    from ..qc.benchmark_page import write_benchmark

    with policy(deterministic=True):
        rows = score_all(args, names, weights)
    print(f"\n{write_benchmark(args.out, args.room, rows, _costs(names, weights), _settings(args))}")


def arms_of(room: str, wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the arms of a room.

    Raises
    ------
    ValueError
        Where a wanted name is not one of them.
    """
    names = [name for name in REGISTRY if room_of(name) == room]
    for name in wanted or ():
        if name not in names:
            raise ValueError(OTHER_ROOM.format(name=name, room=room, arms=", ".join(names)))
    return [name for name in names if not wanted or name in wanted]


def train_all(args, names: Sequence[str], given: dict[str, Path]) -> dict[str, Path]:
    """Train the arms whose weights are neither given nor there, each in a process of its own; return all weights.

    Raises
    ------
    ValueError
        Where a training fails.
    """
    from ..diffusion.weights import default_name, find_weights

    own = {name: spec_of(name).weights_from or name for name in names}
    folders = {maker: args.out / "arms" / maker for maker in dict.fromkeys(own.values())}
    files = {maker: folder / f"{default_name(maker, 'small')}.safetensors" for maker, folder in folders.items()}
    files |= {name: find_weights(str(path)) for name, path in given.items()}
    missing = [maker for maker in folders if not files[maker].is_file()]
    with ThreadPoolExecutor(max(args.jobs, 1)) as pool:
        results = list(pool.map(lambda task: _train(args, *task), enumerate(missing)))
    for maker, status in zip(missing, results, strict=True):
        if status:
            raise ValueError(NO_TRAINING.format(name=maker, log=folders[maker] / "training.txt"))
    return {name: files[own[name]] for name in names}


def _train(args, number: int, name: str) -> int:
    """Train one arm; return the exit status."""
    from ..diffusion.parallel import usable_gpus

    folder = args.out / "arms" / name
    folder.mkdir(parents=True, exist_ok=True)
    gpus = usable_gpus(args.device)
    device = f"cuda:{gpus[number % len(gpus)]}" if len(gpus) > 1 else args.device
    blocks = spec_of(name).paired
    batch = args.batch or (SMALL_BATCH if blocks else BATCH)
    call = [sys.executable, "-m", "bids_dmrigen.cli.train", name, "--out", str(folder), "--minutes", str(args.minutes)]
    call += ["--atlas", str(args.atlas), "--subjects", str(args.subjects), "--batch", str(batch)]
    call += ["--device", device, "--precision", args.precision, "--seed", str(args.seed), "--no-calibration"]
    # Blocks need pairs of scans, which prepared scans are not; scans in the template's space have no anatomies.
    if args.data is not None and not blocks:
        call += ["--data", str(args.data)]
    if args.anatomies is not None and not spec_of(name).in_template:
        call += ["--anatomies", str(args.anatomies)]
    if args.held_out and (args.data or args.anatomies):
        call += ["--held-out", *args.held_out]
    print(f"training {name} for {args.minutes:g} minutes", flush=True)
    with (folder / "training.txt").open("a") as log:
        return subprocess.run(call, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def score_all(args, names: Sequence[str], weights: dict[str, Path]) -> list[dict[str, Any]]:
    """Score every arm on every scan; return a row for each scan, selection and arm. What is scored stays."""
    from ..qc.evaluation import FAULTS
    from .dense import Dense, image_files, read_dense, simulated, stem_of

    rows: list[dict[str, Any]] = []
    aligned = any(spec_of(name).in_template for name in names)
    for dense in simulated(args.atlas, args.simulated, aligned):
        rows += _scored(args, names, weights, dense)
    for image in image_files(args.scans):
        try:
            dense = Dense(stem_of(image), read_dense(image))
        except FAULTS as error:
            print(f"{image}: {error}", flush=True)  # one odd scan never ends the call
            continue
        rows += _scored(args, names, weights, dense)
    return rows


def _scored(args, names: Sequence[str], weights: dict[str, Path], dense) -> list[dict[str, Any]]:
    """Return the rows of one scan, from its file where nothing has changed since."""
    from ..diffusion.storage import write_text
    from ..diffusion.weights import read_card
    from ..qc import evaluation
    from ..qc.benchmark_page import pictures, rows_of

    made_of: dict[str, Any] = {name: read_card(path).sha256 for name, path in weights.items()}
    made_of |= {"keep": args.keep, "selections": args.selections, "arms": list(names), "seed": args.seed}
    path = args.out / "scans" / f"{dense.name.replace(' ', '-')}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["made_of"] == json.loads(json.dumps(made_of)):
            return stored["rows"]
    room = ROOMS[args.room]
    keep = room.keep if args.keep is None else (args.keep,)
    try:
        result = evaluation.evaluate(
            dense.scan, keep, _arms(args, names, weights, dense), args.selections, truth=dense.truth, tell=_tell(dense)
        )
    except evaluation.FAULTS as error:
        print(f"{dense.name}: {error}", flush=True)
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_of(result, dense.name, dense.truth is not None)
    pictures(result, dense.scan, args.out, dense.name)
    write_text(path, json.dumps({"made_of": made_of, "rows": rows}, indent=1))
    return rows


def _arms(args, names: Sequence[str], weights: dict[str, Path], dense) -> dict[str, Any]:
    """Return the arms of a scan: those of the room and, where it is not in the template's space, simple estimates."""
    from ..diffusion.parallel import choose_device
    from ..methods import load
    from ..methods.base import Request
    from ..methods.spec import Header
    from ..qc import evaluation
    from .dense import InTemplate

    scan, device = dense.scan, choose_device(args.device)
    header = Header(scan.data.shape, tuple(scan.zooms_mm), scan.gradients)
    place = InTemplate(dense, args.out / "template" / dense.name.replace(" ", "-"))

    def arm(name: str):
        method = load(name)
        spec = method.spec
        values = spec.defaults()
        plan = spec.plan(values, header)
        file = weights.get(name)
        request = Request(seed=args.seed, subject="benchmark", run=dense.name, device=device, precision=args.precision,
                          weights=None if file is None else str(file), minutes=plan.minutes)  # fmt: skip
        if spec.in_template:
            return place.arm(method, request)

        def generate(kept, wanted):
            spec.check(kept)
            from dataclasses import replace

            options = {**plan.options, **spec.evaluation_options(wanted)}
            return method.generate(None, kept, replace(request, options=options))

        return generate

    arms: dict[str, Any] = {}
    for name in names:
        try:
            arms[name] = arm(name)
        except evaluation.FAULTS:  # nothing to do on the scan's own voxels
            continue
    if not any(spec_of(name).in_template for name in names):
        arms |= {name: evaluation.simple_arm(name) for name in SIMPLE if name not in arms}
    return arms


def _tell(dense):
    def tell(outcome) -> None:
        text = outcome.fault or f"FA PSNR {outcome.scores['fa_psnr']:.2f} dB, {outcome.seconds:.1f} s"
        print(f"{dense.name}, selection {outcome.rotation + 1}, {outcome.arm}: {text}", flush=True)

    return tell


def _costs(names: Sequence[str], weights: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return for each arm its number of parameters, and minutes and steps of its training."""
    from ..diffusion.weights import read_card

    costs: dict[str, dict[str, Any]] = {}
    for name in names:
        costs[name] = {"parameters": _parameters(name)}
        if name in weights:
            card = read_card(weights[name])
            costs[name] |= {"minutes": card.minutes, "steps": card.steps, "hardware": card.hardware}
    return costs


def _parameters(name: str) -> int:
    from ..methods import load
    from ..methods.at_once import n_parameters

    net = load(spec_of(name).weights_from or name).network("small")
    return 0 if net is None else n_parameters(net)


def _list(names: Sequence[str]) -> None:
    """Print the arms, with how many parameters each has, and how often a network is asked for an image."""
    print(f"{'arm':<16}{'parameters':>12}  {'asked':<48}what it does")
    for name in names:
        spec = spec_of(name)
        asked = spec.sampler_name("fast")
        print(f"{name:<16}{_parameters(name):>12}  {asked[:46]:<48}{spec.line}")
    for name, text in SIMPLE.items():
        print(f"{name:<16}{0:>12}  {'none':<48}{text}")


def _settings(args) -> dict[str, Any]:
    kept = {key: value for key, value in vars(args).items() if key not in ("run", "tool", "list", "out")}
    return {key: [p.name for p in value] if key == "scans" else value.name if isinstance(value, Path) else value
            for key, value in kept.items()}  # fmt: skip
