"""`dmrigen benchmark`: train every arm of a room on the same examples, score all, say which is worth it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..methods import REGISTRY, SIMPLE, room_of, spec_of
from ..qc.rooms import ROOMS
from .atlases import EMBEDDED, HELP
from .parser import add_options, given_options

DESCRIPTION = (
    "Train every learnt arm of a room for the same time on the same examples, score all arms on simulated subjects "
    "that nothing was trained on and on scans of yours, and write tables, a page and JSON. Called again with the same "
    "folder, it does only what is missing."
)
MINUTES, SUBJECTS, BATCH, SIMULATED, DRAWS = 20.0, 40, 16, 2, 4
SMALL_BATCH = 2  # of arms whose examples are blocks in three dimensions
OTHER_ROOM = "{name} is not in the room {room}; its arms: {arms}"
NO_FINER = "--coarser {edge}: these arms make no finer voxels: {names}; take those of enhance"
NO_TRAINING = "{name} could not be trained, see {log}"
NOT_USED = "{flag} is not used: no learnt arm of {room} can be trained on it"
LEFT_OUT = "the results are without {names}: training failed"


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
                        help="training of each learnt arm; of arms that are trained on the run, on each run "
                        f"(default: {MINUTES:g})")  # fmt: skip
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
    parser.add_argument("--coarser", type=int, default=1, metavar="F",
                        help="arms see blocks of F x F x F voxels, and are asked for the scan's own voxels; for arms "
                        "that make finer voxels (default: 1)")  # fmt: skip
    parser.add_argument("--keep", type=int, metavar="N", help="directions kept on every shell (default: the room's)")
    parser.add_argument("--selections", type=int, default=2, metavar="K",
                        help="different selections of directions per scan (default: 2)")  # fmt: skip
    parser.add_argument("--draws", type=int, default=DRAWS, metavar="K",
                        help="samples of each diffusion model, whose mean is an arm beside the model that is asked "
                        f"once (default: {DRAWS}; 0: none)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="trainings at a time; on GPUs, one on each in turn (default: 1)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="arithmetic of the networks"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random number (default: 0)")
    learnt = [name for name in REGISTRY if spec_of(name).needs_weights]
    add_options(parser.add_argument_group("options of the methods"), learnt, of_weights=True)
    parser.set_defaults(run=run)


def run(args) -> None:
    """List the arms, or train, score and write.

    Raises
    ------
    ValueError
        Where an arm is not in the room or makes no finer voxels with --coarser, --out is missing, --scans has no
        series, or (after all others were scored) an arm could not be trained.
    """
    names = arms_of(args.room, args.arms)
    if args.list:
        _list(names)
        return
    if args.out is None:
        raise ValueError("--out: give a folder for the results")
    _check_coarser(args.coarser, names)
    from ..workflow.settings import weights_by_method
    from .dense import image_files, scan_names

    images = scan_names(image_files(args.scans))  # before hours of training
    args.out.mkdir(parents=True, exist_ok=True)
    given = {name: Path(path) for name, path in weights_by_method(args.weights).items()}
    learnt = [name for name in names if spec_of(name).needs_weights]
    weights = train_all(args, learnt, given)
    names = [name for name in names if name in weights or name not in learnt]
    from ..diffusion.numerics import policy
    from ..qc.benchmark_page import write_benchmark
    from .scoring import score_all

    with policy(deterministic=True):
        rows = score_all(args, names, weights, images)
    print(f"\n{write_benchmark(args.out, args.room, rows, _costs(names, weights, rows), _settings(args))}")
    failed = [name for name in learnt if name not in weights]
    if failed:
        raise ValueError(LEFT_OUT.format(names=", ".join(failed)))


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


def _check_coarser(edge: int, names: Sequence[str]) -> None:
    from ..methods.enhance.task import VOXEL_SIZE

    if edge < 1:
        raise ValueError(f"--coarser {edge}: expected 1 or more")
    without = [name for name in names if VOXEL_SIZE not in spec_of(name).options]
    if edge > 1 and without:
        raise ValueError(NO_FINER.format(edge=edge, names=", ".join(without)))


def train_all(args, names: Sequence[str], given: dict[str, Path]) -> dict[str, Path]:
    """Train the arms whose weights are neither given nor there, each in a process of its own; return all weights.

    Weights that an earlier call trained in another way are trained again. An arm whose training fails is left out, with
    a message.
    """
    from ..diffusion.weights import default_name, find_weights

    own = {name: spec_of(name).weights_from or name for name in names}
    given = {own.get(name, name): path for name, path in given.items()}
    folders = {maker: args.out / "arms" / maker for maker in dict.fromkeys(own.values())}
    files = {maker: folder / f"{default_name(maker, 'small')}.safetensors" for maker, folder in folders.items()}
    files |= {name: find_weights(str(path)) for name, path in given.items()}
    missing = [maker for maker in folders if maker not in given and not _is_trained(args, maker, files[maker])]
    _say_what_is_not_used(args, missing)
    with ThreadPoolExecutor(max(args.jobs, 1)) as pool:
        results = list(pool.map(lambda task: _train(args, *task), enumerate(missing)))
    failed = {maker for maker, status in zip(missing, results, strict=True) if status}
    for maker in failed:
        print(NO_TRAINING.format(name=maker, log=folders[maker] / "training.txt"), flush=True)
    return {name: files[maker] for name, maker in own.items() if maker not in failed}


def _is_trained(args, name: str, weights: Path) -> bool:
    """Return whether the weights are there, and were trained by the same call."""
    note = args.out / "arms" / name / "call.json"
    return weights.is_file() and note.is_file() and json.loads(note.read_text()) == _how(args, name)


def _say_what_is_not_used(args, missing: Sequence[str]) -> None:
    used = [word for name in missing for word in _how(args, name)]
    for flag in ("--data", "--anatomies"):
        if missing and getattr(args, flag[2:]) is not None and flag not in used:
            print(NOT_USED.format(flag=flag, room=args.room), flush=True)


def _how(args, name: str) -> list[str]:
    """Return the arguments of an arm's training that its weights depend on."""
    spec = spec_of(name)
    batch = args.batch or (SMALL_BATCH if spec.blocks else BATCH)
    call = [name, "--minutes", str(args.minutes), "--atlas", str(args.atlas), "--subjects", str(args.subjects)]
    call += ["--batch", str(batch), "--seed", str(args.seed), "--no-calibration"]
    # Pairs of scans are not prepared scans; scans in the template's space have no anatomies.
    if args.data is not None and not spec.paired:
        call += ["--data", str(args.data)]
    if args.anatomies is not None and not spec.in_template:
        call += ["--anatomies", str(args.anatomies)]
    if args.held_out and ("--data" in call or "--anatomies" in call):
        call += ["--held-out", *args.held_out]
    for option in spec.options:
        if option.name in given_options(args, name):
            call += [option.flag, str(given_options(args, name)[option.name])]
    return call


def _train(args, number: int, name: str) -> int:
    """Train one arm, note how, and return the exit status."""
    from ..diffusion.parallel import usable_gpus
    from ..diffusion.storage import write_text

    folder = args.out / "arms" / name
    folder.mkdir(parents=True, exist_ok=True)
    gpus = usable_gpus(args.device)
    device = f"cuda:{gpus[number % len(gpus)]}" if len(gpus) > 1 else args.device
    call = [sys.executable, "-m", "bids_dmrigen.cli.train", *_how(args, name), "--out", str(folder)]
    call += ["--device", device, "--precision", args.precision]
    # Each of several trainings on a CPU has its share of the cores, also the last one, which runs alone.
    threads = str(max(1, len(os.sched_getaffinity(0)) // args.jobs)) if args.jobs > 1 and not gpus else ""
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": threads} if threads else {})
    print(f"training {name} for {args.minutes:g} minutes", flush=True)
    with (folder / "training.txt").open("a") as log:
        status = subprocess.run(call, stdout=log, stderr=subprocess.STDOUT, check=False, env=environment).returncode
    if not status:
        write_text(folder / "call.json", json.dumps(_how(args, name)))
    return status


def _costs(names: Sequence[str], weights: dict[str, Path], rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each arm its number of parameters, and minutes and steps of its training."""
    from ..diffusion.weights import read_card

    costs: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        name = arm.partition(",")[0]  # an arm that is drawn has its method's network
        if name not in names:
            continue
        costs[arm] = {"parameters": _parameters(name)}
        if name in weights:
            card = read_card(weights[name])
            costs[arm] |= {"minutes": card.minutes, "steps": card.steps, "hardware": card.hardware}
    return costs


def _parameters(name: str) -> int | str:
    """Return the number of parameters of an arm's network; "-" where it is built for each run."""
    from ..methods import load
    from ..methods.at_once import n_parameters

    net = load(spec_of(name).weights_from or name).network("small")
    if net is None and spec_of(name).trains_on_run:
        return "-"
    return 0 if net is None else n_parameters(net)


def _list(names: Sequence[str]) -> None:
    """Print the arms, with how many parameters each has, and how often a network is asked for an image."""
    print(f"{'arm':<16}{'parameters':>12}  {'asked':<48}what it does")
    for name in names:
        spec = spec_of(name)
        asked = spec.sampler_name("fast")
        print(f"{name:<16}{_parameters(name):>12}  {asked[:46]:<48}{spec.line}")
    for name, text in ((name, text) for name, text in SIMPLE.items() if name not in names):
        print(f"{name:<16}{0:>12}  {'none':<48}{text}")


def _settings(args) -> dict[str, Any]:
    kept = {key: value for key, value in vars(args).items() if key not in ("run", "tool", "list", "out")}
    return {key: [p.name for p in value] if key == "scans" else value.name if isinstance(value, Path) else value
            for key, value in kept.items()}  # fmt: skip
