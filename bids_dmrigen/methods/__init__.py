"""The methods: a package for each task, a module for each method, and the registry of all methods."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Method
    from .spec import MethodSpec, Option

# Name on the command line -> module with the specification, `SPEC`, and with `build()`, which returns the method.
# Where `build()` needs torch, it is in a second module, MODULE_model: the command line reads every specification and
# must not wait for torch. A module name that begins with a dot is relative to this package.
REGISTRY = {
    "difusion": ".denoise.difusion",
    "qid2": ".directions.qid2",
    "diffdti": ".maps.diffdti",
    "phydiff": ".synthesis.phydiff",
    "rishldm": ".enhance.rishldm",
    "neighbours": ".maps.neighbours",
    "lls": ".maps.lls",
    "wlls": ".maps.wlls",
    "bm4d": ".maps.bm4d",
    "mlp": ".maps.mlp",
    "superdti": ".maps.superdti",
    "deepdti": ".maps.deepdti",
    "cyclegan": ".maps.cyclegan",
    "diffdtidirect": ".maps.diffdtidirect",
    "interp": ".directions.interp",
    "sh": ".directions.sh",
    "gp": ".directions.gp",
    "cgan": ".directions.cgan",
    "qgan": ".directions.qgan",
    "qid2direct": ".directions.qid2direct",
    "atlas": ".synthesis.atlas",
    "qdl": ".synthesis.qdl",
    "qdl2d": ".synthesis.qdl2d",
    "unet2dwi": ".synthesis.unet2dwi",
    "unetpp": ".synthesis.unetpp",
    "smri2dwi": ".synthesis.smri2dwi",
    "latentdiffusion": ".synthesis.latentdiffusion",
    "ddpmhdit": ".synthesis.ddpmhdit",
    "phydiffdirect": ".synthesis.phydiffdirect",
    "bspline": ".enhance.bspline",
    "rish": ".enhance.rish",
    "refinement": ".enhance.refinement",
    "cnn7t": ".enhance.cnn7t",
    "gan7t": ".enhance.gan7t",
    "mppca": ".denoise.mppca",
    "patch2self": ".denoise.patch2self",
    "nlm": ".denoise.nlm",
    "ascm": ".denoise.ascm",
    "noisier2noise": ".denoise.noisier2noise",
    "dip": ".denoise.dip",
    "ddm2": ".denoise.ddm2",
}

# Simple estimates that every method has to beat (`rivals`), and what each does.
SIMPLE = {
    "ols": "ordinary least squares",
    "wls": "weighted least squares",
    "rician": "noise floor taken out of every sample, then weighted least squares",
    "smooth": "directional contrast smoothed, then weighted least squares",
    "shrink": "weighted least squares, anisotropy less what noise adds",
    "mppca": "MP-PCA, then weighted least squares",
    "nlm": "non-local means, then weighted least squares",
}

# Questions, each with a package of methods that answer it.
ROOMS = ("maps", "directions", "synthesis", "enhance", "denoise")

UNKNOWN_METHOD = "unknown method {name!r}; choose from {names}"


def spec_of(name: str) -> MethodSpec:
    """Return the specification of a method by its name; `ValueError` where there is no such method."""
    return _module(name).SPEC


def room_of(name: str) -> str:
    """Return the name of a method's package, of `ROOMS`; "" for a method from elsewhere."""
    first, room, *_ = f"{REGISTRY[name]}..".split(".")
    return room if not first and room in ROOMS else ""


def load(name: str) -> Method:
    """Return a method by its name, which imports torch; `ValueError` where there is no such method."""
    module = _module(name)
    if not hasattr(module, "build"):
        module = import_module(f"{module.__name__}_model")
    method: Method = module.build()
    return method


def options() -> list[Option]:
    """Return the options of all methods, each once, in the order of the registry."""
    return list(dict.fromkeys(option for name in REGISTRY for option in spec_of(name).options))


def weights_of(name: str, size: str, weights: str | None = None, weights_dir: Path | None = None) -> Path | None:
    """Return the file of weights that a method would use.

    Parameters
    ----------
    name, size
        Name of the method and size of its network.
    weights
        Name or path; None for the weights named METHOD-SIZE, where the method needs weights.
    weights_dir
        Folder searched before the package.

    Returns
    -------
    Path
        Absolute path; None for a method that uses no weights.

    Raises
    ------
    WeightsError
        Where there is no such file.
    """
    from ..diffusion.weights import default_name, find_weights

    spec = spec_of(name)
    if weights is None and not spec.needs_weights:
        return None
    return find_weights(weights or default_name(spec.weights_from or name, size), weights_dir).resolve()


def given_weights(name: str, given: Mapping[str, str]) -> str | None:
    """Return the weights for this method from `given`, method -> weights; or else those of its `weights_from`."""
    return given.get(name) or given.get(spec_of(name).weights_from)


def check_weights(
    name: str,
    size: str,
    weights: str | None = None,
    weights_dir: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Load the weights that a method would use as a test, so that an error shows before anything runs.

    Parameters are those of `weights_of`, and the method's options by key. Raises `WeightsError` where weights are
    missing, damaged, of another method or size, or trained for other values of the options.
    """
    from ..diffusion.weights import load_weights

    path = weights_of(name, size, weights, weights_dir)
    spec, options = spec_of(name), options or {}
    network = None if path is None else load(name).configured(options).network(size)
    if path is not None and network is not None:
        trained_for = spec.options_of_weights(options)
        load_weights(network, path, spec.weights_from or name, size, trained_for=trained_for)


def _module(name: str) -> ModuleType:
    if name not in REGISTRY:
        raise ValueError(UNKNOWN_METHOD.format(name=name, names=", ".join(REGISTRY)))
    return import_module(REGISTRY[name], __name__)
