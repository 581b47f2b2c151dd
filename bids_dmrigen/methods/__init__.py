"""One file per method, and the registry of them: name on the command line to class."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Method

# Names only: importing a method imports torch, which `--help` must not wait for.
REGISTRY = {
    "difusion": ("difusion", "DiFusion"),
    "qid2": ("qid2", "QID2"),
    "interp": ("interpolation", "LinearInterpolation"),
    "sh": ("interpolation", "HarmonicInterpolation"),
}

UNKNOWN_METHOD = "unknown method {name!r}; choose from {names}"


def load(name: str) -> Method:
    """Return the method of this name; `ValueError` where there is none."""
    if name not in REGISTRY:
        raise ValueError(UNKNOWN_METHOD.format(name=name, names=", ".join(REGISTRY)))
    module, cls = REGISTRY[name]
    return getattr(import_module(f".{module}", __name__), cls)()
