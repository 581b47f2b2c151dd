"""Trained weights: NAME.safetensors with NAME.json, its card; found by name, verified, then loaded."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from .. import __version__
from .storage import TextError, read_object, write_tensors, write_text

PACKAGED = Path(__file__).parents[1] / "methods" / "weights"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"

BAD_NAME = "weights cannot be named {name!r}: use letters, digits, '-', '_' and '.', starting with a letter or digit"
NOT_FOUND = "no weights {name!r} in {folders}; there are: {available}"
NO_CARD = "{path}: its card {card} is missing"
BAD_CARD = "{card}: not a card of weights ({reason})"
OTHER_FORMAT = "{card}: format version {found}, this program reads version {expected}; its code version is {code}"
TRUNCATED = "{path}: {found} bytes, its card says {expected}; the file is incomplete, copy it again"
CORRUPTED = "{path}: SHA-256 {found}, its card says {expected}; the file is damaged or not the card's, copy both again"
OTHER_USE = "{path}: weights of method {found_method!r}, size {found_size!r}; needed are {method!r}, {size!r}"
OTHER_SETTING = "{path}: its weights were trained for {key} = {found}, asked for is {key} = {wanted}"
OTHER_NETWORK = "{path}: weights made with {configuration} do not fit this {network}: {reason}"
TOO_LARGE = "weight {name} does not fit into {dtype}: its largest value is {largest:g}"
NOT_FINITE = "{path}: {n} of its tensors hold NaN or infinity, first {name}; the training failed: train again"
OTHER_KIND = "{path}: {name} is stored as {found}, which is another kind of number than the network's; train again"
OTHER_TYPE = (
    "{path}: {name} is stored as {found}, expected {expected}, the precision on its card, or whole numbers; "
    "store the weights anew with this program"
)
ALL_ZERO = "{path}: all of its numbers are 0; nothing was learnt or stored: train again"
ABSURD = (
    "{path}: {name} holds {largest:g}, expected at most {most:g}; the training failed or the file was changed: "
    "train again"
)
PRECISIONS = ("float32", "float16", "bfloat16")
WHOLE_NUMBERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST_MAGNITUDE = 1e9  # no network that works comes near: constants in s/mm² or scanner units are the largest
MOST_COUNT = 2**63  # Python's whole numbers have no end, but nothing else can hold longer ones


class WeightsError(ValueError):
    """Weights that are missing, damaged or made for something else."""


@dataclass(frozen=True)
class Card:
    """The card of a file of weights.

    Parameters
    ----------
    method, size
        The method of the weights and its size, "small" or "paper".
    configuration
        Settings that the network was built from.
    trained_on
        The training examples: simulator settings and version, data sets.
    steps, minutes, seed, hardware
        Length, seed and hardware of the training.
    held_out
        Scores on data that was not trained on, name to value.
    licence
        SPDX identifier.
    name, precision, code_version, format_version, bytes, sha256
        Facts about the file; `save_weights` fills them in. `precision` is that of the stored numbers, "float32",
        "float16" or "bfloat16".
    """

    method: str
    size: str
    configuration: dict[str, Any]
    trained_on: dict[str, Any]
    steps: int
    minutes: float
    seed: int
    hardware: str
    held_out: dict[str, float]
    licence: str
    name: str = ""
    precision: str = "float32"
    code_version: str = __version__
    format_version: int = FORMAT_VERSION
    bytes: int = 0
    sha256: str = ""

    def record(self) -> dict[str, Any]:
        """Return the description of the weights for the sidecar of a generated file."""
        return {"Name": self.name, "SHA256": self.sha256, "TrainedOn": self.trained_on, "License": self.licence}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_COUNT


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()  # it is printed: no control characters, no half of a pair


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


# field of a card -> whether a value fits, and what is expected
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("method", "size", "hardware", "licence", "name", "code_version", "sha256"),
                    (_is_text, "text in one line")),
    **dict.fromkeys(("configuration", "trained_on"), (_is_table, "an object")),
    **dict.fromkeys(("steps", "format_version", "bytes"), (_is_count, "a whole number")),
    "precision": (lambda value: value in PRECISIONS, " or ".join(PRECISIONS)),
    "seed": (_is_whole, "a whole number"),
    "minutes": (_is_number, "a number"),
    "held_out": (lambda value: _is_table(value) and all(map(_is_number, value.values())), "an object of numbers"),
}  # fmt: skip


def save_weights(folder: Path, name: str, net: nn.Module, card: Card, dtype: torch.dtype = torch.float32) -> Path:
    """Write a network's weights and their card; return the path of the weights.

    Parameters
    ----------
    folder, name
        Folder to write to, and the name of the weights.
    net
        The network; after `training.train` it holds the averaged weights.
    card
        Card with the fields that the caller knows.
    dtype
        Type of the stored floating-point numbers. float16 or bfloat16 halve the file; they are read back into the
        network's own precision.

    Raises
    ------
    WeightsError
        Where the name is unfit for a file, or a weight is not finite in this dtype.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise WeightsError(BAD_NAME.format(name=name))
    path = Path(folder) / f"{name}{SUFFIX}"
    write_tensors(path, {key: _stored(key, value, dtype) for key, value in net.state_dict().items()})
    data = path.read_bytes()
    filled = replace(
        card, name=name, precision=str(dtype).removeprefix("torch."), bytes=len(data), sha256=_digest(data)
    )
    write_text(path.with_suffix(".json"), json.dumps(asdict(filled), indent=2, allow_nan=False) + "\n")
    return path


def default_name(method: str, size: str) -> str:
    """Return the name of the weights that a method of this size takes where none are named."""
    return f"{method}-{size}"


def find_weights(name: str | Path, weights_dir: Path | None = None) -> Path:
    """Return the path of weights given by path, or by name in `weights_dir` and then in the package.

    Raises
    ------
    WeightsError
        Where there are no such weights; the message lists the available ones.
    """
    if str(name).endswith(SUFFIX):
        if Path(name).is_file():
            return Path(name)
        raise WeightsError(f"{name}: no such file of weights")
    for folder in _folders(weights_dir):
        path = folder / f"{name}{SUFFIX}"
        if path.is_file():
            return path
    available = ", ".join(card.name for card in list_weights(weights_dir)) or "none"
    folders = " or ".join(str(folder) for folder in _folders(weights_dir))
    raise WeightsError(NOT_FOUND.format(name=str(name), folders=folders, available=available))


def list_weights(weights_dir: Path | None = None, skipped: list[str] | None = None) -> list[Card]:
    """Return the cards in `weights_dir` and in the package, sorted by name.

    Weights in `weights_dir` hide packaged ones of the same name. Files are not verified here. Weights without a card
    that can be used are left out; why is added to `skipped`.
    """
    cards: dict[str, Card] = {}
    for path in _weight_files(weights_dir):
        try:
            cards.setdefault(path.stem, read_card(path))
        except WeightsError as error:
            if skipped is not None:
                skipped.append(str(error))
    return [cards[name] for name in sorted(cards)]


def read_card(path: Path) -> Card:
    """Return the card beside a file of weights; `WeightsError` where it is missing or of another format."""
    path = Path(path)
    card = path.with_suffix(".json")
    try:
        if not card.exists():
            raise WeightsError(NO_CARD.format(path=path, card=card.name))
        content = read_object(card)
        version = content["format_version"]
    except TextError as error:
        raise WeightsError(str(error)) from None
    except KeyError:
        raise WeightsError(BAD_CARD.format(card=card, reason="no format_version")) from None
    if not _is_count(version):
        reason = f"format_version is {_shown(version)}, expected a whole number"
        raise WeightsError(BAD_CARD.format(card=card, reason=reason))
    if version != FORMAT_VERSION:
        code = content.get("code_version", "not stated")
        raise WeightsError(OTHER_FORMAT.format(card=card, found=version, expected=FORMAT_VERSION, code=code))
    expected = {field.name for field in fields(Card)}
    if set(content) != expected:
        reason = f"missing {sorted(expected - set(content))}, unknown {sorted(set(content) - expected)}"
        raise WeightsError(BAD_CARD.format(card=card, reason=reason))
    wrong = [f"{name} is {_shown(content[name])}, expected {what}" for name, (fits, what) in KINDS.items()
             if not fits(content[name])]  # fmt: skip
    if wrong:
        raise WeightsError(BAD_CARD.format(card=card, reason="; ".join(wrong)))
    return Card(**content)


def verify_weights(path: Path) -> Card:
    """Return the card of weights that are whole and unchanged; `WeightsError` says what is wrong otherwise."""
    return _verified(Path(path))[0]


def load_weights(
    net: nn.Module,
    name: str | Path,
    method: str,
    size: str,
    weights_dir: Path | None = None,
    trained_for: Mapping[str, Any] | None = None,
) -> tuple[Path, Card]:
    """Verify weights and put them into a network; return their path and card.

    Parameters
    ----------
    net
        The network to fill, on any device and of any precision.
    name
        Name or path, see `find_weights`.
    method, size
        Method and size that the weights have to be of.
    weights_dir
        Folder that is searched before the package.
    trained_for
        Settings that must have the same values in the card's configuration.

    Raises
    ------
    WeightsError
        Where they are missing, damaged, of another method, size, setting or format, or do not fit the network.
    """
    path = find_weights(name, weights_dir)
    card, tensors = _verified(path)
    if (card.method, card.size) != (method, size):
        names = {"found_method": card.method, "found_size": card.size, "method": method, "size": size}
        raise WeightsError(OTHER_USE.format(path=path, **names))
    for key, wanted in (trained_for or {}).items():
        if (setting := card.configuration.get(key, wanted)) != wanted:
            raise WeightsError(OTHER_SETTING.format(path=path, key=key, found=setting, wanted=wanted))
    kinds = {name: value.is_floating_point() for name, value in net.state_dict().items()}
    odd = [n for n, value in tensors.items() if n in kinds and kinds[n] != value.is_floating_point()]
    if odd:
        raise WeightsError(OTHER_KIND.format(path=path, name=odd[0], found=tensors[odd[0]].dtype))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        about = {"configuration": card.configuration, "network": type(net).__name__}
        raise WeightsError(OTHER_NETWORK.format(path=path, reason=error, **about)) from None
    return path, card


def _verified(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Return card and tensors; the bytes that are checked are the bytes that are read."""
    card, data = read_card(path), path.read_bytes()
    if len(data) < card.bytes:
        raise WeightsError(TRUNCATED.format(path=path, found=len(data), expected=card.bytes))
    if _digest(data) != card.sha256:
        raise WeightsError(CORRUPTED.format(path=path, found=_digest(data), expected=card.sha256))
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from None
    _check_numbers(path, card, tensors)
    return card, tensors


def _check_numbers(path: Path, card: Card, tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that no training leaves, or of a type that this program does not write.

    Raises
    ------
    WeightsError
        Where a type is neither whole numbers nor the card's precision, or numbers are not finite, absurd or all 0.
    """
    expected = getattr(torch, card.precision)
    for name, value in tensors.items():
        if value.dtype not in (expected, *WHOLE_NUMBERS):
            found = str(value.dtype).removeprefix("torch.")
            raise WeightsError(OTHER_TYPE.format(path=path, name=name, found=found, expected=card.precision))
    numbers = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    broken = [name for name, value in numbers.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(NOT_FINITE.format(path=path, n=len(broken), name=broken[0]))
    largest = {name: float(value.abs().max()) for name, value in numbers.items()}
    absurd = [name for name, most in largest.items() if most > MOST_MAGNITUDE]
    if absurd:
        raise WeightsError(ABSURD.format(path=path, name=absurd[0], largest=largest[absurd[0]], most=MOST_MAGNITUDE))
    if largest and not any(largest.values()):
        raise WeightsError(ALL_ZERO.format(path=path))


def _shown(value: Any) -> str:
    """Return a value of a card for a message, shortened where it is long.

    >>> _shown("many"), len(_shown("x" * 5000))
    ("'many'", 80)
    """
    if isinstance(value, int) and abs(value) >= MOST_COUNT:  # Python refuses to print one of many digits
        return "a number beyond what can be stored"
    try:
        text = repr(value)
    except ValueError:  # such a number inside a list or an object
        return f"{type(value).__name__} with a number beyond what can be stored"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as it is stored: counts and indices as they are, numbers in this dtype."""
    if not value.is_floating_point():
        return value
    stored = value.to(dtype)
    if not torch.isfinite(stored).all():
        raise WeightsError(TOO_LARGE.format(name=name, dtype=dtype, largest=float(value.abs().max())))
    return stored


def _folders(weights_dir: Path | None) -> list[Path]:
    return [PACKAGED] if weights_dir is None else [Path(weights_dir), PACKAGED]


def _weight_files(weights_dir: Path | None) -> Iterator[Path]:
    for folder in _folders(weights_dir):
        yield from sorted(folder.glob(f"*{SUFFIX}"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
