"""Write a BIDS dataset of simulated scans with their true values, for `dmrigen demo` and `dmrigen simulate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..dwi.gradients import GradientTable
    from ..simulate.scanner import SimulatedScan

READOUT_S = 0.05
TRUTH_README = """\
True values of the simulated scans

desc-clean_dwi              the series without noise, motion and distortion (coil bias included)
param-*_desc-clean_dwimap   tensor maps of that series, in world RAS+ axes
desc-brain_mask             brain of the unmoved, undistorted head
desc-confounds_timeseries   head pose per volume: rotation in radians about world x, then y, then z through
                            the centre of the grid, then translation in mm
desc-displacement_dwimap    shift of the signal along j, mm, towards higher index in the DWI run
"""


def write_descriptions(root: Path, readme: str, labels: Sequence[str]) -> None:
    """Write the files at the top of a dataset of these subjects, and at the top of the dataset of true values."""
    from .. import __version__
    from ..bids import names
    from ..bids.sidecars import BIDS_VERSION, CODE_URL

    truth = root / "derivatives" / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    generators = [{"Name": "bids_dmrigen", "Version": __version__, "CodeURL": CODE_URL}]
    common = {
        "BIDSVersion": BIDS_VERSION,
        "License": "CC0",
        "Authors": ["bids_dmrigen"],
        "GeneratedBy": generators,
    }
    write_json(
        root / "dataset_description.json",
        {"Name": "Synthetic diffusion MRI with known truth", "DatasetType": "raw"} | common,
    )
    write_json(
        truth / "dataset_description.json",
        {"Name": "Truth of the simulation", "DatasetType": "derivative"} | common,
    )
    (root / "README").write_text(readme)
    (truth / "README").write_text(TRUTH_README)
    (truth / ".bidsignore").write_text("\n".join(names.BIDSIGNORE) + "\n")
    rows = "".join(f"sub-{label}\tsimulated\n" for label in labels)
    (root / "participants.tsv").write_text(f"participant_id\torigin\n{rows}")
    write_json(
        root / "participants.json",
        {"origin": {"Description": "Simulated: no subject was scanned", "Levels": {"simulated": "a program"}}},
    )


def write_truth(root: Path, label: str, result: SimulatedScan, poses: np.ndarray, field: np.ndarray | None) -> None:
    """Write the true values of one run."""
    from ..bids import names
    from ..bids.sidecars import CONFOUNDS, MAPS
    from ..dwi.series import Scan
    from ..dwi.tensor import fit_maps

    affine, gradients, entities = result.scan.affine, result.scan.gradients, {"subject": label}

    def path(key: str, **fields: str) -> Path:
        return root / names.output_path(entities, key, **fields)

    def write(target: Path, data: np.ndarray, description: str, **metadata) -> None:
        write_image(target, data, affine, np.float32 if data.dtype != bool else np.uint8)
        write_json(names.sidecar_path(target), {"Description": description} | metadata)

    clean = path("generated", method="clean")
    write(clean, result.clean, "Series without noise, motion and distortion", SkullStripped=True)
    write_gradients(clean, gradients)
    write(path("mask"), result.scan.mask, "Brain of the unmoved, undistorted head", Type="Brain")
    maps = fit_maps(Scan(result.clean, affine, gradients, result.scan.mask), names=("fa", "md", "dec"))
    for param, values in maps.items():
        description, units = MAPS[param]
        write(path("map", param=param, source="clean"), values, description, Units=units, SkullStripped=True)
    if field is not None:
        target = path("mask").with_name(f"sub-{label}_desc-displacement_dwimap.nii.gz")
        write(target, np.asarray(field, np.float32), "Shift of the signal along j", Units="mm")
    confounds = path("confounds")
    columns = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    rows = poses * np.r_[np.ones(3), np.full(3, np.pi / 180)]
    lines = ["\t".join(columns), *("\t".join(f"{value:.6f}" for value in row) for row in rows)]
    confounds.write_text("\n".join(lines) + "\n")
    write_json(names.sidecar_path(confounds), {name: CONFOUNDS[name] for name in columns})


def scanner_fields() -> dict[str, Any]:
    """Return the fields of a sidecar that describe the scanner."""
    return {"Manufacturer": "Simulated", "ManufacturersModelName": "bids_dmrigen", "MagneticFieldStrength": 3}


def sidecar(phase_encoding: str) -> dict:
    """Return the metadata of an EPI acquisition."""
    timing = {"RepetitionTime": 5.0, "EchoTime": 0.08, "FlipAngle": 90}
    phase = {"PhaseEncodingDirection": phase_encoding, "TotalReadoutTime": READOUT_S}
    return scanner_fields() | timing | phase


def write_image(path: Path, data: np.ndarray, affine: np.ndarray, dtype) -> None:
    """Write an array as NIfTI in scanner coordinates, mm and seconds; integers are rounded."""
    import nibabel as nib

    from ..spatial import io

    like = nib.Nifti1Image(np.zeros((1,) * data.ndim, np.float32), affine)
    like.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        like.header["pixdim"][4] = 5.0
    io.write_image(path, np.rint(data) if np.issubdtype(dtype, np.integer) else data, like, dtype)


def write_gradients(image: Path, gradients: GradientTable) -> None:
    """Write b-values and b-vectors beside an image, under its name."""
    from ..bids import tables

    stem = image.name.removesuffix(".nii.gz")
    tables.write_gradients(gradients, image.with_name(f"{stem}.bval"), image.with_name(f"{stem}.bvec"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; create its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
