"""`dmrigen train`: train a method's network on simulated subjects or on prepared scans, alone or under torchrun.

`python -m bids_dmrigen.cli.train` does the same. If the atlas is an array file, it needs only torch, numpy and
safetensors.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..methods import REGISTRY, options, spec_of
from ..methods.spec import OptionError
from .atlases import EMBEDDED, HELP
from .parser import add_options

if TYPE_CHECKING:  # it imports torch
    from ..diffusion.training import Trained
    from ..methods.base import Training

DESCRIPTION = (
    "Train a method's network on simulated subjects, or on scans that `dmrigen prepare` wrote, and write its weights "
    "with their card. Called again with the same folder, it continues where it stopped. Several GPUs: "
    "torchrun --nproc-per-node N -m bids_dmrigen.cli.train METHOD ..."
)
SUBJECTS, HELD_OUT_SUBJECTS = 100, 10
REPORT_EVERY_S = 20.0
SIMULATED = "simulated"
FOR_PLACED = "--adc-atlas and --xtract are for methods that work in the template's space ({names}); leave them out"
CALIBRATE_WHAT = "--calibrate-only: name the weights to calibrate with --init"
TRACTS_ALONE = "--xtract trains the adapter for tracts of a trained network: give that network with --init"
TRACTS_WITH_SIMULATED = "--xtract goes with an ADC atlas from a file; leave --adc-atlas simulated out"
NO_IMAGES = "an ADC atlas is read with {module}, which is not installed; install it, or give --adc-atlas simulated"
IN_TEMPLATE = (
    "{path}: {name} is trained on scans on the template's grid, and these are on their own; make them with "
    "`dmrigen prepare --in-template`"
)
NOT_IN_TEMPLATE = (
    "{path}: {name} is trained on scans on their own grid, and these are on that of a template; make them with "
    "`dmrigen prepare` without --in-template"
)
NOT_ON_ANATOMIES = "--anatomies: {name} is trained on subjects in the template's space; leave it out"
PAIRS = "{name} is trained on pairs: give the good scans of the subjects in --data with --good"
FOR_PAIRED = "--good goes with --data and is for methods that are trained on pairs ({names}); leave it out"
ANEW = "{name}: its training data have changed; it is trained again, starting from its last weights"
UNKNOWN_OPTION = "{flag}: {name} has no such option; leave it out"
NOT_TRAINABLE = "{name} has nothing to train beforehand: it needs no weights, or trains on each run itself"

_PLACED = [name for name in REGISTRY if spec_of(name).needs_weights and spec_of(name).in_template]
_PAIRED = [name for name in REGISTRY if spec_of(name).paired]


def _named(names: list[str]) -> str:
    return ", ".join(spec_of(name).title for name in names)


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    add_arguments(tools.add_parser("train", help="train a method's network", description=DESCRIPTION))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments to a parser."""
    placed, paired = _named(_PLACED), _named(_PAIRED)
    parser.add_argument("method", choices=tuple(REGISTRY), help="what to train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the weights, log.csv and the checkpoint")  # fmt: skip
    parser.add_argument("--name", help="of the weights (default: METHOD-SIZE, which is what the app looks for)")
    parser.add_argument("--size", choices=("small", "paper"), default="small", help="network size (default: small)")
    parser.add_argument("--minutes", type=float, metavar="M", help="longest training (default: no limit)")
    parser.add_argument("--steps", type=int, metavar="N", help="most optimiser steps (default: the method's own)")
    parser.add_argument("--keep-every", type=int, default=0, metavar="N",
                        help="keep the averaged weights every N steps, for a curve of what they are worth")  # fmt: skip
    parser.add_argument("--batch", type=int, metavar="B",
                        help="examples per step (default: 32; with --size paper the method's own)")  # fmt: skip
    parser.add_argument("--subjects", type=int, metavar="K",
                        help=f"simulated subjects (default: {SUBJECTS}, or none beside other examples)")  # fmt: skip
    parser.add_argument("--atlas", default=EMBEDDED, metavar="DIR_OR_FILE", help=HELP)
    parser.add_argument("--xtract", type=Path, metavar="DIR_OR_FILE",
                        help=f"{placed}: XTRACT's tracts, FSL's folder or a 4-D file with labels; then only the "
                        "adapter for tracts is trained, beside the network of --init, which stays fixed")  # fmt: skip
    parser.add_argument("--adc-atlas", metavar="FILE",
                        help=f"{placed}: the ADC atlas that its weights will be used with, which `dmrigen prepare "
                        f"--adc-atlas` wrote, or {SIMULATED}: of subjects of --atlas (default: packaged)")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FILE",
                        help="prepared scans to train on; with --subjects on both, in turn")  # fmt: skip
    parser.add_argument("--anatomies", type=Path, metavar="FILE",
                        help="anatomies of real scans, which `dmrigen prepare --anatomies` wrote, to simulate scans "
                        "of; with --data or --subjects in turn")  # fmt: skip
    parser.add_argument("--held-out", nargs="+", metavar="LABEL",
                        help="subjects of --data and --anatomies to score on (default: every tenth)")  # fmt: skip
    parser.add_argument("--good", type=Path, metavar="FILE",
                        help=f"{paired}: prepared scans of the same subjects by a better scanner, at the "
                        "same positions as those of --data: the target of the training")  # fmt: skip
    parser.add_argument("--init", metavar="NAME_OR_PATH", help="weights to start from: fine-tuning")
    parser.add_argument("--weights-dir", type=Path, metavar="DIR", help="folder searched for --init before the package")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random number (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="arithmetic (default: auto, the faster one)")  # fmt: skip
    parser.add_argument("--no-calibration", dest="calibration", action="store_false",
                        help="leave the spread of samples as it is drawn: calibrating it takes minutes, and a single "
                        "result has none")  # fmt: skip
    parser.add_argument("--calibrate-only", action="store_true",
                        help="train nothing: set anew what the spread of the samples of --init is multiplied by, from "
                        "subjects that are held out")  # fmt: skip
    parser.add_argument("--half", action="store_true", help="store the weights as 16-bit numbers: half the file")
    learnt = [name for name in REGISTRY if spec_of(name).needs_weights]
    add_options(parser.add_argument_group("options of the methods"), learnt, of_weights=True)
    parser.set_defaults(run=run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this tool without the others; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bids_dmrigen.cli.train", description=DESCRIPTION)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def run(args) -> None:
    """Train and write the weights."""
    from ..diffusion.numerics import policy
    from ..diffusion.parallel import choose_device, process_group, rank

    with policy(deterministic=True, strict=True), process_group(choose_device(args.device)) as device:
        path = _train(args, device)
        if rank() == 0:
            print(path)


def _train(args, device) -> Path | None:
    import torch

    from ..diffusion.parallel import rank
    from ..diffusion.weights import default_name, load_weights, save_weights
    from ..methods import load
    from ..methods.base import Trainable
    from ..simulate.examples import SimulatedSubjects

    spec = spec_of(args.method)
    trained_for = _options_of_weights(args, spec)
    method = load(args.method).configured(trained_for)
    if not isinstance(method, Trainable):
        raise ValueError(NOT_TRAINABLE.format(name=args.method))
    if args.batch is None:
        args.batch = method.batch(args.size)
    if (
        args.batch < 1
        or (args.subjects is not None and args.subjects < 1)
        or (args.steps is not None and args.steps < 1)
    ):
        raise ValueError("--batch, --subjects and --steps: expected at least 1")
    if (args.xtract, args.adc_atlas) != (None, None) and not method.spec.in_template:
        raise ValueError(FOR_PLACED.format(names=", ".join(_PLACED)))
    if args.good is not None and (not method.spec.paired or args.data is None):
        raise ValueError(FOR_PAIRED.format(names=", ".join(_PAIRED)))
    if args.xtract is not None and args.init is None:
        raise ValueError(TRACTS_ALONE)
    if args.calibrate_only and args.init is None:
        raise ValueError(CALIBRATE_WHAT)
    net, start = method.network(args.size), {}
    if args.init is not None:  # before the slow steps, so that an error shows early
        path, card = load_weights(net, args.init, args.method, args.size, args.weights_dir, trained_for)
        origin = {"steps": card.steps, "minutes": card.minutes, "trained_on": card.trained_on}
        start = {"started_from": {"name": path.stem, "sha256": card.sha256, **origin}}
    net = net.to(device)
    sources, held_out, trained_on = _sources(args, method, device)
    known = [source for source in held_out if isinstance(source, SimulatedSubjects)] or held_out[-1:]
    if args.calibrate_only:
        method.calibrate(net, known, args.size, args.seed)
        card = replace(card, trained_on=card.trained_on | {"calibrated_on": {"code": __version__} | trained_on})
        name, dtype = args.name or card.name, getattr(torch, card.precision)
        return save_weights(args.out, name, net, card, dtype) if rank() == 0 else None
    method.freeze(net, sources[0])
    trained: dict[str, Trained] = {}
    earlier: list[Training] = []
    for training in method.trainings(net):
        trained[training.name] = _run_training(args, training, earlier, net, sources, held_out, device)
        earlier.append(training)
    if rank() != 0:
        return None
    if args.calibration:
        method.calibrate(net, known, args.size, args.seed)
    card = _card(args, method, trained, device, trained_on | start)
    name, dtype = args.name or default_name(args.method, args.size), torch.float16 if args.half else torch.float32
    return save_weights(args.out, name, net, card, dtype)


def _options_of_weights(args, spec) -> dict[str, Any]:
    """Return the method's options that its weights are trained for, by key; refuse those of other methods."""
    given = {}
    for option in options():
        value = getattr(args, option.name, None)
        if value is not None and option not in spec.options:
            raise OptionError(UNKNOWN_OPTION.format(flag=option.flag, name=spec.name))
        if value is not None:
            given[option.key or option.name] = option.checked(value)
    return spec.options_of_weights(given)


def _run_training(args, training: Training, earlier: Sequence[Training], net, sources, held_out, device):
    """Train the network, or a part of it; return the result of the training."""
    from ..diffusion.numerics import resolve_precision
    from ..diffusion.parallel import rank
    from ..diffusion.training import train

    name = f"-{training.name}" if training.name else ""
    checkpoint = args.out / f"checkpoint{name}.safetensors"
    before = None
    if name:
        training.begin(sources[0], args.batch, args.seed)
        if checkpoint.exists():
            before = _restore(training, earlier, net, checkpoint)
        if before is not None and rank() == 0:
            print(ANEW.format(name=training.name), flush=True)
    plan = replace(
        training.training_plan(args.size), minutes=args.minutes and args.minutes * training.share(args.size),
        precision=resolve_precision(args.precision, device), keep_every=args.keep_every,
        **({} if args.steps is None else {"steps": args.steps}),
    )  # fmt: skip
    trained = train(
        net,
        _in_turn([training.examples(source, args.size, args.batch, args.seed) for source in sources]),
        training.loss,
        _mean([training.held_out(source, args.size, args.seed) for source in held_out]),
        plan,
        checkpoint=checkpoint,
        log=args.out / f"log{name}.csv",
        progress=_progress() if rank() == 0 else None,
        before=before,
    )
    if rank() == 0:
        gain = f"held-out loss {trained.start_loss:.5g} at the start, {trained.held_out_loss:.5g} at best"
        minutes = f"{trained.minutes:.1f} min ({trained.stopped_because})"
        print(f"{training.name or 'training'} ended after {trained.steps} steps, {minutes}; {gain}", flush=True)
    return trained


def _restore(training: Training, earlier: Sequence[Training], net, checkpoint: Path):
    """Restore the part of the network that a training trains from its checkpoint.

    Its examples depend on the parts that were trained earlier. Where one of these has changed, the training has to
    start again: its constants keep their new values, and its earlier progress is returned. Otherwise None is returned.
    """
    import torch

    from ..diffusion.checkpoints import best_weights

    def names(*trainings: Training, constants: bool = True) -> list[str]:
        parts = {part for t in trainings for part in (t.name, *(t.constants if constants else ()))}
        return [name for name in current if name.split(".")[0] in parts]

    (weights, progress), current = best_weights(checkpoint, net), net.state_dict()
    changed = any(not torch.equal(weights[name], current[name].cpu()) for name in names(*earlier))
    net.load_state_dict(current | {name: weights[name] for name in names(training, constants=not changed)})
    return progress if changed else None


def _sources(args, method, device) -> tuple[list, list, dict[str, Any]]:
    """Return the sources of training and of held-out examples, and a description of both for the card."""
    from ..simulate.examples import LESIONED
    from .atlases import load_atlas

    sources: list[Any] = []
    held_out: list[Any] = []
    description: dict[str, Any] = {"batch": args.batch}
    with_subjects = (args.data, args.anatomies) == (None, None) or args.subjects is not None
    atlas = load_atlas(args.atlas) if with_subjects or method.spec.in_template else None
    population = _population(args, atlas) if method.spec.in_template else None
    if args.data is not None:
        parts, description = _prepared(args, method, device)
        for found, (part, good) in zip((sources, held_out), parts, strict=True):
            placed = method.spec.in_template
            found.append(method.placed(part, atlas, population) if placed else method.measured(part, good))
    if args.anatomies is not None:
        from ..simulate.measured import MeasuredAnatomies

        if method.spec.in_template:
            raise ValueError(NOT_ON_ANATOMIES.format(name=args.method))
        for found, part in ((sources, "train"), (held_out, "held out")):
            found.append(MeasuredAnatomies(args.anatomies, part, device, args.held_out))
        anatomies = {"train": sources[-1].names, "held out": held_out[-1].names}
        description |= {"anatomies": {"file": args.anatomies.name} | anatomies}
    if method.spec.in_template:
        description |= {"adc_atlas": _adc_atlas_name(args)} | ({"tracts": args.xtract.name} if args.xtract else {})
    if with_subjects:
        n = args.subjects or SUBJECTS
        description |= {"atlas": args.atlas if args.atlas == EMBEDDED else Path(args.atlas).name, "subjects": n}
        sources.append(method.subjects(atlas, n, device=device, population=population))
        n_held_out = min(n, HELD_OUT_SUBJECTS)
        held_out.append(method.subjects(atlas, n_held_out, held_out=True, device=device, population=population))
    given = {"prepared scans": "file", "anatomies of scans": "anatomies", "simulated subjects": "subjects"}
    kinds = [kind for kind, key in given.items() if key in description]
    if {"anatomies", "subjects"} & description.keys():
        description |= {"lesioned": LESIONED}
    return sources, held_out, {"examples": " and ".join(kinds), **description}


def _prepared(args, method, device) -> tuple[list[tuple], dict[str, Any]]:
    """Return prepared scans with their good ones, of training and held out, and a description for the card."""
    from ..diffusion.arrays import Prepared

    if method.spec.paired and args.good is None:
        raise ValueError(PAIRS.format(name=args.method))
    good = Prepared(args.good, device) if args.good is not None else None
    subjects = {about["subject"] for about in good.about} if good is not None else None
    parts = [Prepared(args.data, device, part, subjects, args.held_out) for part in ("train", "held out")]
    if method.spec.in_template != (parts[0].template is not None):
        wrong = IN_TEMPLATE if method.spec.in_template else NOT_IN_TEMPLATE
        raise ValueError(wrong.format(path=args.data, name=args.method))
    scans = {p.part: [a["name"] for a, c in zip(p.about, p.counts, strict=True) if c.any()] for p in parts}
    description = {"file": args.data.name, **scans, "batch": args.batch}
    if good is not None:
        description["good"] = args.good.name
    return [(part, good) for part in parts], description


def _population(args, atlas):
    """Return the population maps on the atlas's grid; None where they are simulated."""
    if args.adc_atlas == SIMULATED:
        if args.xtract is not None:
            raise ValueError(TRACTS_WITH_SIMULATED)
        return None
    try:
        from ..spatial.population import PACKAGED_ADC_ATLAS, population_on
    except ImportError as error:
        raise ValueError(NO_IMAGES.format(module=error.name)) from None
    return population_on(atlas.shape, atlas.affine, args.adc_atlas or PACKAGED_ADC_ATLAS, args.xtract)


def _adc_atlas_name(args) -> str:
    return "packaged" if args.adc_atlas is None else Path(args.adc_atlas).name


def _in_turn(examples: list[Callable[[int], Any]]) -> Callable[[int], Any]:
    """Return index -> batch, with batches from each of several such functions in turn."""
    return lambda index: examples[index % len(examples)](index // len(examples))


def _mean(scores: list[Callable[[Any], float]]) -> Callable[[Any], float]:
    """Return a score that is the mean of several scores."""
    return lambda net: sum(score(net) for score in scores) / len(scores)


def _card(args, method, trained: dict[str, Any], device, trained_on: dict[str, Any]):
    """Return the card of the weights; `trained` are the results of the trainings, by name."""
    from ..diffusion import numerics
    from ..diffusion.parallel import world_size
    from ..diffusion.weights import Card

    hardware = f"{world_size()} x {_hardware(device)}"
    scores: dict[str, float] = {}
    for name, part in trained.items():
        scores |= {f"{name} start".strip(): part.start_loss, f"{name} best".strip(): part.held_out_loss}
    steps, minutes = sum(part.steps for part in trained.values()), sum(part.minutes for part in trained.values())
    precision = numerics.resolve_precision(args.precision, device)
    trained_on = trained_on | {"numerics": numerics.record(device, precision)}
    return Card(args.method, args.size, method.configuration(args.size), trained_on, steps, round(minutes, 2),
                args.seed, hardware, scores, "Apache-2.0")  # fmt: skip


def _hardware(device) -> str:
    """Return the name of the GPU or of the processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _progress() -> Callable[[int, int, float], None]:
    last = time.monotonic()

    def report(done: int, planned: int, seconds_left: float) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_EVERY_S:
            last = time.monotonic()
            print(f"step {done} of at most {planned}, about {seconds_left / 60:.0f} min left", flush=True)

    return report


if __name__ == "__main__":
    sys.exit(main())
