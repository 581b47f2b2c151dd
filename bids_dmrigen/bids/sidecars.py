"""JSON sidecars of the images: descriptions, sources, and how data were generated."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..dwi.uncertainty import TISSUES

if TYPE_CHECKING:
    from ..methods.base import Generated
    from ..methods.spec import MethodSpec

BIDS_VERSION = "1.10.0"
CODE_URL = "https://github.com/bids-dmrigen/bids_dmrigen"
PACKAGES = ("torch", "numpy", "nibabel", "dipy", "nipype", "antspyx", "pybids", "nilearn", "nireports")

TENSOR_URL = "https://doi.org/10.1016/S0006-3495(94)80775-1"
MAPS = {  # parameter -> (description, unit)
    "fa": ("Fractional anisotropy of the diffusion tensor", "arbitrary"),
    "md": ("Mean diffusivity", "mm^2/s"),
    "ad": ("Axial diffusivity: the largest eigenvalue", "mm^2/s"),
    "rd": ("Radial diffusivity: the mean of the two smaller eigenvalues", "mm^2/s"),
    "dec": ("Direction-encoded colour: FA times the absolute principal direction", "arbitrary"),
    "tensor": ("Diffusion tensor", "mm^2/s"),
}
RISH_URL = "https://doi.org/10.1016/j.neuroimage.2016.04.041"
RISH = "Rotation-invariant spherical-harmonic feature of degree {degree}, the sum of its squared coefficients in S / S0"
DESCRIPTIONS = {
    "preproc": "Diffusion-weighted series after preprocessing",
    "dwiref": "Mean b0 of the preprocessed series",
    "mask": "Brain mask on the preprocessed series' grid",
    "coverage": "Part of the brain mask where every volume of the preprocessed series has data; elsewhere tensors are "
    "fitted to the volumes that have, and methods generate nothing",
    "confounds": "Head motion per volume",
    "generated": "Diffusion-weighted series made by {title}",
    "sample": "Sample {number} of what the series made by {title} may be; acquired volumes are unchanged",
    "map_sample": "Sample {number} of what the tensor made by {title} may be",
    "map_std": "Standard error of {param} made by {title}, from samples: averaged over the nearest voxels and drawn "
    "towards the mean of its tissue, as far as so few samples are uncertain, and times ErrorFactors",
    "map_low": "5 % quantile of {param} made by {title}: of a normal distribution with the standard error",
    "map_high": "95 % quantile of {param} made by {title}: of a normal distribution with the standard error",
    "extra_map": "{description}, made by {title}",
    "template_mask": "Brain mask on a 2 mm grid over {template}",
    "template_generated": "Mean b0 and the volumes made by {title} where they were made, on a 2 mm grid over "
    "{template}",
    "to_t1w": "Rigid transform, preprocessed series to T1w",
    "from_t1w": "Rigid transform, T1w to preprocessed series",
    "to_template": "Composite transform, preprocessed series to {template}",
    "from_template": "Composite transform, {template} to preprocessed series",
}
TENSOR_ORDER = {
    "OrientationEncoding": {"Reference": "xyz", "EncodingAxis": 3, "Type": "tensor"},
    "ComponentOrder": ["Dxx", "Dxy", "Dyy", "Dxz", "Dyz", "Dzz"],
}
FINER_MASK = "Brain mask of the preprocessed series on a grid of {voxel_mm} mm over its extent"
RESOLUTION = "Cubes of {voxel_mm} mm over the extent of the preprocessed series, whose own voxels are larger"
CONFOUNDS = {
    **{f"trans_{a}": {"Description": f"Translation along {a} (world RAS+)", "Units": "mm"} for a in "xyz"},
    **{f"rot_{a}": {"Description": f"Rotation about {a} (world RAS+)", "Units": "rad"} for a in "xyz"},
    "framewise_displacement": {
        "Description": "Sum of absolute parameter changes to the volume before, rotations on a 50 mm sphere",
        "Units": "mm",
    },
}


def versions() -> dict[str, str]:
    """Return the versions of this app and of the packages that results depend on."""
    installed = {"bids_dmrigen": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def container() -> dict[str, str] | None:
    """Return type and tag of the container that the app runs in, or None."""
    for kind, variable in (("apptainer", "APPTAINER_CONTAINER"), ("singularity", "SINGULARITY_CONTAINER")):
        if os.environ.get(variable):
            return {"Type": kind, "Tag": os.environ[variable]}
    image = os.environ.get("BIDS_DMRIGEN_IMAGE")
    return {"Type": "docker", "Tag": image} if image else None


def dataset_description(
    bids_dir: Path, links: Mapping[str, Path], earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the derivative dataset's description; it keeps the links of the earlier one, which sidecars refer to."""
    generated_by: dict[str, Any] = {"Name": "bids_dmrigen", "Version": __version__, "CodeURL": CODE_URL}
    if container():
        generated_by["Container"] = container()
    name = "input"
    description = bids_dir / "dataset_description.json"
    if description.is_file():
        name = json.loads(description.read_text(encoding="utf-8-sig")).get("Name", name)
    stored = (earlier or {}).get("DatasetLinks")
    uris = {**(stored if isinstance(stored, dict) else {}), **{n: path.resolve().as_uri() for n, path in links.items()}}
    return {
        "Name": f"bids_dmrigen: {name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated_by],
        "SourceDatasets": [{"URL": uri} for uri in dict.fromkeys(uris.values())],
        "DatasetLinks": uris,
    }


def bids_uri(path: Path, links: Mapping[str, Path]) -> str:
    """Return the BIDS URI of a file of one of the linked datasets, e.g. `bids:raw:sub-01/dwi/...`."""
    for name, root in links.items():
        # Links are not resolved: a linked subject keeps its name in the dataset.
        try:
            return f"bids:{name}:{Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()}"
        except ValueError:
            continue
    return Path(path).resolve().as_uri()


def image_sidecar(key: str, sources: Sequence[str], voxel_mm: str = "", **fields: str) -> dict[str, Any]:
    """Return the sidecar of an output in the table of names; empty for files without one.

    `voxel_mm` is the edge of its voxels, for files on a finer grid than the preprocessed series.
    """
    if key.endswith(("_bval", "_bvec")):
        return {}
    sidecar = _base_sidecar(key, sources, **fields)
    if voxel_mm:  # BIDS requires it for files with a res- entity
        sidecar["Resolution"] = RESOLUTION.format(voxel_mm=voxel_mm)
        if key == "mask":
            sidecar["Description"] = FINER_MASK.format(voxel_mm=voxel_mm)
    return sidecar


def _base_sidecar(key: str, sources: Sequence[str], **fields: str) -> dict[str, Any]:
    if key in ("map", "template_map"):
        return _map_sidecar(sources, **fields)
    if key == "rish_map":
        return _rish_sidecar(sources, **fields)
    sidecar: dict[str, Any] = {
        "Description": DESCRIPTIONS[key].format(**fields),
        "Sources": list(sources),
    }
    if key == "confounds":
        return {**sidecar, **CONFOUNDS}
    if key in ("mask", "template_mask", "coverage"):
        sidecar["Type"] = "Brain"
    if key in ("template_mask", "template_generated"):
        sidecar["SpatialReference"] = fields["reference"]
    if key in ("preproc", "dwiref", "generated", "template_generated", "sample"):
        sidecar |= {"SkullStripped": False, "Units": "arbitrary"}
    if key == "extra_map":
        sidecar |= {"SkullStripped": True, "Units": fields["units"]}
    if key in ("map_std", "map_low", "map_high", "map_sample"):
        sidecar |= {"SkullStripped": True, "Units": MAPS[fields.get("param", "tensor")][1]}
    if key == "map_sample":
        sidecar |= TENSOR_ORDER
    return sidecar


def _map_sidecar(
    sources: Sequence[str], *, param: str, source: str, title: str = "", fitted: str = "", template: str = "",
    reference: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return the sidecar of a map: generated by the method `title`; without a title, fitted to the source's series.

    `fitted` is the b-value, s/mm², of the generated shell if only that shell was fitted. `template` is the name of the
    template that the map was resampled onto, and `reference` its address.
    """
    description, units = MAPS[param]
    model: dict[str, Any] = {"Description": "Diffusion tensor", "URL": TENSOR_URL}
    if title:
        origin = f"made by {title} from b0 and the directions that GenerativeModel names under Volumes"
        model["Description"] += "; its maps were generated, no tensor was fitted"
    else:
        origin = f"from the {source} series" + f": its b0s and the volumes generated at b = {fitted} s/mm²" * bool(
            fitted
        )
        model["Parameters"] = {"FitMethod": "wls"}
    origin += f"; resampled onto a 2 mm grid over {template}" * bool(template)
    sidecar: dict[str, Any] = {
        "Description": f"{description}, {origin}",
        "Sources": list(sources),
        "SkullStripped": True,
        "Units": units,
        "Model": model,
    }
    if reference:
        sidecar["SpatialReference"] = reference
    if param == "dec":
        sidecar["OrientationEncoding"] = {"Reference": "xyz", "EncodingAxis": 3, "Type": "dec"}
    return sidecar | TENSOR_ORDER if param == "tensor" else sidecar


def _rish_sidecar(sources: Sequence[str], *, param: str, source: str, shell: str, order: str) -> dict[str, Any]:
    """Return the sidecar of a RISH map; `shell` is the b-value, s/mm², and `order` that of the fit."""
    from ..dwi.harmonics import SMOOTHING  # this module loads torch

    described = RISH.format(degree=param.removeprefix("rish"))
    return {
        "Description": f"{described}, from the {source} series at b = {shell} s/mm²",
        "Sources": list(sources),
        "SkullStripped": True,
        "Units": "arbitrary",
        "Model": {
            "Description": "Spherical harmonics of the signal of one shell over the mean b0",
            "URL": RISH_URL,
            "Parameters": {
                "FitMethod": "Laplace-Beltrami regularised least squares, their mean damping of each degree undone",
                "LaplaceBeltramiWeight": SMOOTHING,
                "SphericalHarmonicBasis": "Descoteaux",
                "SphericalHarmonicDegree": int(order),
                "Shells": [int(shell)],
            },
        },
    }


def generative_model(
    spec: MethodSpec,
    generated: Generated,
    extra_warnings: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the entries of a sidecar that say how a result was generated.

    Parameters
    ----------
    spec
        Specification of the method.
    generated
        Result of the method.
    extra_warnings
        Warnings from the method's check of its input.
    source
        The same entries of the input's sidecar, where the input was generated; None where it was acquired. Volumes kept
        from a generated input are not listed as acquired. Maps list no volumes.
    """
    record = {"Method": spec.title, "Citation": spec.citation.text, **generated.record}
    if generated.maps:
        record["Maps"] = list(generated.maps)
    else:
        kept = [int(v) for v in generated.acquired.nonzero()[0]]
        record["AcquiredVolumes" if source is None else "InputVolumes"] = kept
        record["GeneratedVolumes"] = [v for v in range(len(generated.acquired)) if v not in set(kept)]
    if generated.grid is not None:
        columns = generated.grid.affine[:3, :3].T.tolist()
        record["VoxelSize"] = [round(math.hypot(*column), 6) for column in columns]  # mm
    record["Versions"] = versions()
    if source is not None:
        record["Input"] = source["GenerativeModel"]
    if generated.samples is not None and generated.samples.factors:
        record["ErrorFactors"] = {name: dict(zip(TISSUES, factors, strict=True))
                                  for name, factors in generated.samples.factors.items()}  # fmt: skip
    if generated.left_out is not None:
        record["LeftOutVolumes"] = [int(v) for v in generated.left_out.volumes]
    if generated.checks:
        record["Checks"] = generated.checks
    warnings = list(dict.fromkeys([*extra_warnings, *generated.warnings]))
    if warnings:
        record["Warnings"] = warnings
    return {"Synthetic": True, "GenerativeModel": record}


def template_record(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Return `generative_model` for the result in the template's space: a resampled b0 and the generated volumes."""
    record = dict(sidecar["GenerativeModel"])
    n_generated = len(record.pop("GeneratedVolumes"))
    for key in (
        "AcquiredVolumes",
        "InputVolumes",
        "LeftOutVolumes",
        "TensorVolumes",
    ):  # they refer to the series on the run's grid
        record.pop(key, None)
    volumes = {"ResampledVolumes": [0], "GeneratedVolumes": list(range(1, n_generated + 1))}
    return {**sidecar, "GenerativeModel": record | volumes}


def kept_volumes(record: Mapping[str, Any]) -> list[int]:
    """Return the volumes that a generated series kept unchanged from its input, from its `GenerativeModel`."""
    kept: list[int] = record.get("AcquiredVolumes", record.get("InputVolumes", []))
    return kept
