"""One file per method, and the registry of them: name on the command line to class."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Method

# Names only: importing a method imports torch, which `--help` must not wait for.
REGISTRY = {
    "difusion": ("difusion", "DiFusion"),
}

UNKNOWN_METHOD = "unknown method {name!r}; choose from {names}"


def load(name: str) -> Method:
    """Return the method of this name; `ValueError` where there is none."""
    if name not in REGISTRY:
        raise ValueError(UNKNOWN_METHOD.format(name=name, names=", ".join(REGISTRY)))
    module, cls = REGISTRY[name]
    return getattr(import_module(f".{module}", __name__), cls)()


def check_weights(name: str, size: str, weights: str | None = None, weights_dir: Path | None = None) -> Path | None:
    """Find, verify and try the weights that a method would use, so that a fault shows before anything runs.

    Parameters
    ----------
    name, size
        Of the method.
    weights
        Name or path; None for those named METHOD-SIZE, where the method needs any.
    weights_dir
        Folder searched before the package.

    Returns
    -------
    Path
        Their file; None for a method that uses none.

    Raises
    ------
    WeightsError
        Where they are missing, damaged or of something else.
    """
    from ..diffusion.weights import default_name, load_weights

    method = load(name)
    if weights is None and not method.spec.needs_weights:
        return None
    path, _ = load_weights(method.network(size), weights or default_name(name, size), name, size, weights_dir)
    return path.resolve()
