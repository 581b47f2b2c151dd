"""The command line, built from the settings. Each option is defined once, so help, TOML and code agree."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..methods import REGISTRY, options, spec_of
from ..methods.spec import Directions, Option
from ..workflow.settings import (
    ANALYSIS_LEVELS,
    GROUPS,
    METHODS_GROUP,
    Settings,
    SettingsError,
    read_toml,
    settings_of,
)

EPILOG = """\
exit status: 0 all done; 1 a run, method, label or report failed and is named, the rest is complete; 2 usage;
3 input dataset unusable; 4 weights or template missing or wrong; 17 analysis level not supported
"""


class UnsupportedLevel(SettingsError):
    """An analysis level that this app does not have."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; its result contains only the options that were given on the command line."""
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
        group = parser.add_argument_group(name, title + _method_lines() * (name == METHODS_GROUP))
        for spec in settings_of(name):
            group.add_argument(*flags(spec), dest=spec.name, help=spec.metadata["help"], **arguments(spec))
        if name == METHODS_GROUP:
            add_options(group, REGISTRY)
    return parser


def _method_lines() -> str:
    """Return a line about each method."""
    width = max(map(len, REGISTRY))
    return "\n" + "\n".join(f"  {name:{width}}  {spec_of(name).line}" for name in REGISTRY)


def add_options(parser: argparse._ActionsContainer, methods: Iterable[str], of_weights: bool = False) -> None:
    """Add the options of methods, each once, with the names of the methods that have it.

    With `of_weights`, add only the options that weights are trained for.
    """
    for option in dict.fromkeys(option for name in methods for option in spec_of(name).options):
        if option.of_weights or not of_weights:
            names = dict.fromkeys([option.flag, f"--{option.name}"])
            parser.add_argument(*names, dest=option.name, help=option_help(option), **option_arguments(option))


def given_options(args: argparse.Namespace, method: str) -> dict[str, Any]:
    """Return the values that were given for the options of a method, by name."""
    given = {option.name: getattr(args, option.name, None) for option in spec_of(method).options}
    return {name: value for name, value in given.items() if value is not None}


def option_help(option: Option) -> str:
    """Return the help of a method's option, with the names of the methods that have it."""
    owners = [name for name in REGISTRY if option in spec_of(name).options]
    return f"{', '.join(owners)}: {option.text}"


def option_arguments(option: Option) -> dict[str, Any]:
    """Return the arguments of argparse for a method's option, without its name and help."""
    extra: dict[str, Any] = {"metavar": option.metavar} if option.metavar else {}
    if option.kind not in (str, Directions):
        extra["type"] = option.kind
    if option.choices:
        extra["choices"] = option.choices
    if option.many:
        extra["nargs"] = "+"
    return extra


def take_method_options(given: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of methods from the given arguments, and return them."""
    return {o.name: tuple(given.pop(o.name)) if o.many else given.pop(o.name) for o in options() if o.name in given}


def flags(spec) -> list[str]:
    """Return an option's spellings: short, with hyphens, with underscores."""
    name = spec.metadata["flag"] or spec.name.replace("_", "-")
    short = spec.metadata["argparse"].get("short")
    spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
    return ([short] if short else []) + list(spellings)


def arguments(spec) -> dict[str, Any]:
    """Return the arguments of argparse for an option, without its name and help."""
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
    """Return the settings of a command line, with those of a TOML file where the command line gives none.

    Raises
    ------
    SettingsError
        Where a value is not valid.
    UnsupportedLevel
        Where the app does not have this analysis level.
    SystemExit
        With status 2 from argparse, or 0 after --help and --version.
    """
    given = vars(build_parser().parse_args(argv))
    level = given["analysis_level"]
    if level not in ANALYSIS_LEVELS:
        raise UnsupportedLevel(f"analysis level {level!r} is not supported; expected {' or '.join(ANALYSIS_LEVELS)}")
    method_options = take_method_options(given)
    if given.get("config_file"):
        stored = read_toml(given["config_file"])
        method_options = stored.pop("method_options", {}) | method_options
        given = {**stored, **given}
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    values: dict[str, Any] = {**defaults, **given, "method_options": method_options}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Settings(**values)
