"""One file per method, and the registry of them: name on the command line to class."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Method

# Names only: importing a method imports torch, which `--help` must not wait for.
REGISTRY = {
    "difusion": ("denoise.difusion", "DiFusion"),
    "qid2": ("directions.qid2", "QID2"),
    "diffdti": ("maps.diffdti", "DiffDTI"),
    "phydiff": ("synthesis.phydiff", "PhyDiff"),
    "rishldm": ("enhance.rishldm", "RishLatentDiffusion"),
    "interp": ("directions.interpolation", "LinearInterpolation"),
    "sh": ("directions.interpolation", "HarmonicInterpolation"),
    "atlas": ("synthesis.atlas", "AtlasPrediction"),
    "bspline": ("enhance.rish_arms", "SplineUpsampling"),
    "rish": ("enhance.rish_arms", "LinearHarmonisation"),
}

UNKNOWN_METHOD = "unknown method {name!r}; choose from {names}"


def load(name: str) -> Method:
    """Return the method of this name; `ValueError` where there is none."""
    if name not in REGISTRY:
        raise ValueError(UNKNOWN_METHOD.format(name=name, names=", ".join(REGISTRY)))
    module, cls = REGISTRY[name]
    return getattr(import_module(f".{module}", __name__), cls)()


def weights_of(name: str, size: str, weights: str | None = None, weights_dir: Path | None = None) -> Path | None:
    """Return the file of weights that a method would use.

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
        Absolute; None for a method that uses none.

    Raises
    ------
    WeightsError
        Where there is no such file.
    """
    from ..diffusion.weights import default_name, find_weights

    spec = load(name).spec
    if weights is None and not spec.needs_weights:
        return None
    return find_weights(weights or default_name(spec.weights_from or name, size), weights_dir).resolve()


def given_weights(name: str, given: Mapping[str, str]) -> str | None:
    """Return which of the weights given by method are for this one: its own, or those of the one it takes them from."""
    return given.get(name) or given.get(load(name).spec.weights_from)


def check_weights(name: str, size: str, weights: str | None = None, weights_dir: Path | None = None) -> None:
    """Verify and try the weights that a method would use, so that a fault shows before anything runs.

    Parameters are those of `weights_of`; `WeightsError` where they are missing, damaged or of something else.
    """
    from ..diffusion.weights import load_weights

    path = weights_of(name, size, weights, weights_dir)
    if path is not None:
        load_weights(load(name).network(size), path, load(name).spec.weights_from or name, size)
