"""`dmrigen weights`: list trained weights, show their cards, and verify their files."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

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
    from ..methods import REGISTRY, load

    path = find_weights(args.name, args.weights_dir)
    card = verify_weights(path)
    if card.method not in REGISTRY:
        raise ValueError(f"{path}: weights of method {card.method!r}, which is none of this program")
    network = load(card.method).configured(card.configuration).network(card.size)
    if network is None:
        raise ValueError(f"{path}: {card.method} has no network")
    load_weights(network, path, card.method, card.size)
    print(f"{path}: whole and unchanged, fits {card.method} {card.size}; SHA-256 {card.sha256}")
