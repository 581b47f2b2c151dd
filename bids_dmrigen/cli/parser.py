"""The command line, made from the settings: one place per option, so that help, TOML and code agree."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..workflow.settings import ANALYSIS_LEVELS, GROUPS, Settings, SettingsError, read_toml, settings_of

EPILOG = """\
exit status: 0 all done; 1 a run, method, label or report failed and is named, the rest is complete; 2 usage;
3 input dataset unusable; 4 weights or template missing or wrong; 17 analysis level not supported
"""


class UnsupportedLevel(SettingsError):
    """An analysis level this app does not have."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; options not given on the command line are absent from its result."""
    parser = argparse.ArgumentParser(
        prog="bids_dmrigen",
        description="Diffusion models for diffusion MRI, as a BIDS App.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="root of the input BIDS dataset")
    parser.add_argument("out_dir", type=Path, help="derivative dataset to write")
    parser.add_argument(
        "analysis_level",
        metavar="{" + ",".join(ANALYSIS_LEVELS) + "}",
        help="participant: every selected run; group: a table and a page over all finished runs",
    )
    parser.add_argument("--version", action="version", version=f"bids_dmrigen {__version__}")
    for name, title in GROUPS.items():
        group = parser.add_argument_group(name, title)
        for spec in settings_of(name):
            group.add_argument(*flags(spec), dest=spec.name, help=spec.metadata["help"], **arguments(spec))
    return parser


def flags(spec) -> list[str]:
    """Return an option's spellings: short, with hyphens, with underscores."""
    name = spec.metadata["flag"] or spec.name.replace("_", "-")
    short = spec.metadata["argparse"].get("short")
    both = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
    return ([short] if short else []) + list(both)


def arguments(spec) -> dict[str, Any]:
    """Return what argparse needs to know about an option beyond its name and help."""
    extra = {k: v for k, v in spec.metadata["argparse"].items() if k != "short"}
    kind = str(spec.type)
    if kind == "bool":
        return {"action": "store_false" if spec.default is True else "store_true"}
    if "action" in extra:
        return extra
    for python in (Path, int, float):
        if python.__name__ in kind:
            return {"type": python, **extra}
    return extra


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings of a command line, a TOML file behind it.

    Raises
    ------
    SettingsError
        Where a value makes no sense.
    SystemExit
        With status 2 from argparse, or 0 after --help and --version.
    """
    given = vars(build_parser().parse_args(argv))
    level = given["analysis_level"]
    if level not in ANALYSIS_LEVELS:
        raise UnsupportedLevel(f"analysis level {level!r} is not supported; expected {' or '.join(ANALYSIS_LEVELS)}")
    if given.get("config_file"):
        given = {**read_toml(given["config_file"]), **given}
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    values = {**defaults, **given}
    return Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
