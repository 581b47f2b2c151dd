"""`dmrigen weights`: list trained weights, show their cards, and verify their files."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they load torch, which the command line must not wait for
    from torch import nn

    from ..diffusion.weights import Card
    from ..methods.spec import MethodSpec

OTHER_CONFIGURATION = (
    "{path}: the configuration on its card is not one that this program makes ({other}); the card was changed or is of "
    "another version: copy it anew, or train again"
)
COLUMNS = ("name", "method", "size", "MB", "steps", "minutes", "held-out score", "licence")


def add(tools) -> None:
    """Add the tool to the parser of `dmrigen`."""
    parser = tools.add_parser("weights", help="list, show or verify trained weights")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text, run in (
        ("list", "one line per file of weights", _list),
        ("show", "show their card: how and on what they were trained", _show),
        ("verify", "check that they are whole, unchanged and fit their network", _verify),
    ):
        action = actions.add_parser(name, help=text, description=text)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="name, or path of a .safetensors file")
        action.add_argument(
            "--weights-dir", type=Path, metavar="DIR", help="folder searched before the package (default: none)"
        )
        action.set_defaults(run=run)


def _list(args) -> None:
    from ..diffusion.weights import list_weights

    skipped: list[str] = []
    cards = list_weights(args.weights_dir, skipped)
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    if not cards:
        print("no weights; train some with `dmrigen train`, or give a folder of weights with --weights-dir")
        return
    rows = [COLUMNS]
    for card in cards:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in card.held_out.items())
        size_mb = f"{card.bytes / 1e6:.1f}"
        rows.append((card.name, card.method, card.size, size_mb, str(card.steps), f"{card.minutes:.0f}", scores,
                     card.licence))  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show(args) -> None:
    from ..diffusion.weights import find_weights, read_card

    path = find_weights(args.name, args.weights_dir)
    print(path)
    print(json.dumps(asdict(read_card(path)), indent=2, ensure_ascii=False))


def _verify(args) -> None:
    from ..diffusion.weights import find_weights, load_weights, verify_weights

    path = find_weights(args.name, args.weights_dir)
    card = verify_weights(path)
    load_weights(_network_of(path, card), path, card.method, card.size)
    print(f"{path}: whole and unchanged, fits {card.method} {card.size}; SHA-256 {card.sha256}")


def _network_of(path: Path, card: Card) -> nn.Module:
    """Return the untrained network that a card describes.

    Raises
    ------
    WeightsError
        Where the method, the size or the configuration on the card is none of this program; said before a network of
        that configuration is made, as it may be of any size.
    """
    from ..diffusion.weights import WeightsError
    from ..methods import REGISTRY, load, spec_of
    from ..methods.base import Trainable

    if card.method not in REGISTRY:
        raise WeightsError(f"{path}: weights of method {card.method!r}, which is none of this program")
    spec = spec_of(card.method)
    if card.size not in spec.sizes:
        sizes = " or ".join(spec.sizes)
        raise WeightsError(f"{path}: its card says size {card.size!r}, expected {sizes}; train again")
    method = load(card.method).configured(_checked_options(path, card, spec))
    network = method.network(card.size)
    if network is None:
        raise WeightsError(f"{path}: {card.method} has no network")
    known = json.loads(json.dumps(method.configuration(card.size))) if isinstance(method, Trainable) else {}
    if known and (other := _differences(card.configuration, known)):
        raise WeightsError(OTHER_CONFIGURATION.format(path=path, other="; ".join(other)))
    return network


def _checked_options(path: Path, card: Card, spec: MethodSpec) -> dict[str, Any]:
    """Return the options that weights are trained for, by key, from their card; `WeightsError` where one is odd."""
    from ..diffusion.weights import WeightsError
    from ..methods.spec import OptionError

    options = {}
    for option in spec.options:
        key = option.key or option.name
        if not option.of_weights or key not in card.configuration:
            continue
        try:
            options[key] = option.checked(card.configuration[key])
        except OptionError as error:
            raise WeightsError(OTHER_CONFIGURATION.format(path=path, other=f"{key}: {error}")) from None
        if options[key] is None:
            raise WeightsError(OTHER_CONFIGURATION.format(path=path, other=f"{key} is null"))
    return options


def _differences(found: Any, known: Any, name: str = "") -> list[str]:
    """Return in words where a card's configuration differs; what it does not say is no difference.

    Cards of earlier versions lack settings that were added since, with defaults that leave the network as it was.

    >>> _differences({"base": 8, "unet": {"dims": 2, "x": 1}}, {"base": 8, "heads": 4, "unet": {"dims": 3}})
    ['unet.dims is 2, expected 3', 'unet.x is unknown']
    """
    if not (isinstance(found, dict) and isinstance(known, dict)):
        return [] if found == known else [f"{name} is {str(found)[:80]}, expected {str(known)[:80]}"]
    other = []
    for key, value in found.items():
        inner = f"{name}.{key}".lstrip(".")
        other += _differences(value, known[key], inner) if key in known else [f"{inner} is unknown"]
    return other
