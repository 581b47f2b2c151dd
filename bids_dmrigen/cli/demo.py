"""A synthetic BIDS dataset with known truth, to try the app on and to test it with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..simulate.atlas import Atlas
    from ..simulate.scanner import SimulatedScan

READOUT_S = 0.05
PHASE_AXIS = 1  # j
SNR = 25.0
DISTORTION_MM = 8.0
NOT_EMPTY = "{path}: exists and is not empty; name a new directory for the demo dataset"
README = """\
Synthetic diffusion MRI dataset

Made by `dmrigen demo` (seed {seed}): brains simulated from the MNI152NLin2009aSym tissue maps with analytic
fibre bundles, a multi-compartment diffusion signal and Rician noise. No person was scanned.

sub-01  T1w, DWI ({n} volumes) and a reverse-phase b0 in fmap/; oblique slices, susceptibility distortion
sub-02  DWI only

The head moves slightly during every DWI run. What is known about each run (noise-free series, tensor maps,
motion, displacement) lies in derivatives/truth.
"""
TRUTH_README = """\
What is known about the simulated scans

desc-clean_dwi              the series without noise, motion and distortion (coil bias included)
param-*_desc-clean_dwimap   tensor maps of that series, in world RAS+ axes
desc-brain_mask             brain of the unmoved, undistorted head
desc-confounds_timeseries   head pose per volume: rotation in radians about world x, then y, then z through
                            the centre of the grid, then translation in mm
desc-displacement_dwimap    shift of the signal along j, mm, towards higher index in the DWI run
"""


@dataclass(frozen=True)
class Protocol:
    """How the demo runs are acquired: volumes, b-value (s/mm²), grid, voxel sizes (mm)."""

    n_directions: int = 24
    n_b0: int = 3
    bval: float = 1000.0
    shape: tuple[int, int, int] = (54, 66, 50)
    voxel_mm: float = 3.2
    t1w_mm: float = 1.5
    atlas_mm: int = 2  # the grid on which the brains are made


def write_demo(out_dir: str | Path, seed: int = 0, protocol: Protocol | None = None) -> Path:
    """Write a synthetic BIDS dataset of two subjects, with its truth as a derivative dataset.

    Parameters
    ----------
    out_dir
        Directory to make; it may exist if it is empty.
    seed
        The same seed gives the same dataset.
    protocol
        What to acquire; None for a small ordinary run.

    Returns
    -------
    Path
        The dataset's root.

    Raises
    ------
    FileExistsError
        Where `out_dir` holds anything.
    """
    from ..interfaces.templates import embedded_mni
    from ..simulate.anatomy import deform
    from ..simulate.atlas import procedural_atlas

    root, protocol = Path(out_dir), protocol or Protocol()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(NOT_EMPTY.format(path=root))
    _write_descriptions(root, seed, protocol)
    arrays, affine = embedded_mni(protocol.atlas_mm)
    atlas = procedural_atlas(**arrays, affine=affine)
    for number, label in enumerate(("01", "02")):
        person = deform(atlas, seed=2 * seed + number)
        _write_subject(root, label, person, seed=2 * seed + number, full=number == 0, protocol=protocol)
    return root


def _write_subject(root: Path, label: str, person: Atlas, seed: int, full: bool, protocol: Protocol) -> None:
    """Simulate and write one subject; `full` adds distortion, a reverse-phase b0, T1w, oblique slices."""
    from ..dwi.gradients import GradientTable
    from ..simulate import scanner
    from ..simulate.anatomy import rigid

    linear = rigid([0, 0, 0, 12, -4, 3], np.zeros(3))[:3, :3] @ np.diag([-1.0, 1, 1]) if full else None
    affine = scanner.scan_grid(person, protocol.voxel_mm, protocol.shape, linear)
    gradients = scanner.protocol(affine, protocol.n_directions, protocol.n_b0, protocol.bval)
    centre = (affine @ [*((np.array(protocol.shape) - 1) / 2), 1])[:3]
    poses = scanner.random_poses(seed, len(gradients), translation_mm=0.6, rotation_degrees=0.6)
    motion = np.stack([rigid(pose, centre) for pose in poses])
    field = scanner.susceptibility(affine, protocol.shape, DISTORTION_MM) if full else None
    result = scanner.acquire(
        person, gradients, affine, protocol.shape, SNR, seed, motion=motion, displacement=field,
        phase_axis=PHASE_AXIS,
    )  # fmt: skip
    dwi = root / f"sub-{label}" / "dwi" / f"sub-{label}_dwi.nii.gz"
    _write_image(dwi, result.scan.data, affine, np.int16)
    _write_gradients(dwi, gradients)
    sidecar = _sidecar("j") | ({"B0FieldSource": "reverse"} if full else {})
    _write_json(dwi.with_name(f"sub-{label}_dwi.json"), sidecar)
    _write_truth(root / "derivatives" / "truth", label, result, poses, field)
    if not full:
        return
    b0 = GradientTable(np.zeros(1), np.zeros((1, 3)))
    reverse = scanner.acquire(
        person, b0, affine, protocol.shape, SNR, seed + 1000, displacement=-field, phase_axis=PHASE_AXIS
    )
    epi = root / f"sub-{label}" / "fmap" / f"sub-{label}_dir-AP_epi"
    _write_image(epi.with_suffix(".nii.gz"), reverse.scan.data[..., 0], affine, np.int16)
    links = {"B0FieldIdentifier": "reverse", "IntendedFor": [f"bids::sub-{label}/dwi/{dwi.name}"]}
    _write_json(epi.with_suffix(".json"), _sidecar("j-") | links)
    _write_t1w(root / f"sub-{label}" / "anat" / f"sub-{label}_T1w", person, seed, protocol.t1w_mm)


def _write_t1w(stem: Path, person: Atlas, seed: int, voxel_mm: float) -> None:
    """Write a T1-weighted image of the head at rest, with noise and coil bias; brain only."""
    from ..simulate import scanner
    from ..simulate.anatomy import resample

    shape = tuple(int(np.ceil(extent / voxel_mm)) for extent in (160, 200, 170))
    affine = scanner.scan_grid(person, voxel_mm, shape)
    image = resample(person, affine, shape, supersample=1).t1w.numpy()
    image = 1000 * image * scanner.coil_bias(seed + 2000, affine, shape, 0.1).numpy()
    noisy = scanner.add_noise(image[..., None], 20.0, seed + 2000)[..., 0]
    _write_image(stem.with_suffix(".nii.gz"), noisy, affine, np.int16)
    timing = {"RepetitionTime": 2.3, "EchoTime": 0.003, "InversionTime": 0.9, "FlipAngle": 8}
    _write_json(stem.with_suffix(".json"), _scanner_fields() | timing)


def _write_truth(root: Path, label: str, result: SimulatedScan, poses: np.ndarray, field: np.ndarray | None) -> None:
    """Write what is known about one run."""
    from ..bids import names
    from ..bids.sidecars import CONFOUNDS, MAPS
    from ..dwi.series import Scan
    from ..dwi.tensor import fit_maps

    affine, gradients, entities = result.scan.affine, result.scan.gradients, {"subject": label}

    def path(key: str, **fields: str) -> Path:
        return root / names.output_path(entities, key, **fields)

    def write(target: Path, data: np.ndarray, description: str, **metadata) -> None:
        _write_image(target, data, affine, np.float32 if data.dtype != bool else np.uint8)
        _write_json(names.sidecar_path(target), {"Description": description} | metadata)

    clean = path("generated", method="clean")
    write(clean, result.clean, "Series without noise, motion and distortion", SkullStripped=True)
    _write_gradients(clean, gradients)
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
    _write_json(names.sidecar_path(confounds), {name: CONFOUNDS[name] for name in columns})


def _write_descriptions(root: Path, seed: int, protocol: Protocol) -> None:
    """Write the files at the top of both datasets."""
    from .. import __version__
    from ..bids import names
    from ..bids.sidecars import BIDS_VERSION, CODE_URL

    truth = root / "derivatives" / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    maker = [{"Name": "bids_dmrigen", "Version": __version__, "CodeURL": CODE_URL}]
    common = {
        "BIDSVersion": BIDS_VERSION,
        "License": "CC0",
        "Authors": ["bids_dmrigen"],
        "GeneratedBy": maker,
    }
    _write_json(
        root / "dataset_description.json",
        {"Name": "Synthetic diffusion MRI with known truth", "DatasetType": "raw"} | common,
    )
    _write_json(
        truth / "dataset_description.json",
        {"Name": "Truth of the simulation", "DatasetType": "derivative"} | common,
    )
    (root / "README").write_text(README.format(seed=seed, n=protocol.n_b0 + protocol.n_directions))
    (truth / "README").write_text(TRUTH_README)
    (truth / ".bidsignore").write_text("\n".join(names.BIDSIGNORE) + "\n")
    (root / "participants.tsv").write_text("participant_id\torigin\nsub-01\tsimulated\nsub-02\tsimulated\n")
    _write_json(
        root / "participants.json",
        {"origin": {"Description": "Simulated: these are no people", "Levels": {"simulated": "a program"}}},
    )


def _scanner_fields() -> dict:
    return {"Manufacturer": "Simulated", "ManufacturersModelName": "bids_dmrigen", "MagneticFieldStrength": 3}


def _sidecar(phase_encoding: str) -> dict:
    """Return the metadata of an EPI acquisition."""
    timing = {"RepetitionTime": 5.0, "EchoTime": 0.08, "FlipAngle": 90}
    phase = {"PhaseEncodingDirection": phase_encoding, "TotalReadoutTime": READOUT_S}
    return _scanner_fields() | timing | phase


def _write_image(path: Path, data: np.ndarray, affine: np.ndarray, dtype) -> None:
    """Write an array as NIfTI in scanner coordinates, mm and seconds; integers are rounded."""
    import nibabel as nib

    from ..interfaces.io import write_image

    like = nib.Nifti1Image(np.zeros((1,) * data.ndim, np.float32), affine)
    like.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        like.header["pixdim"][4] = 5.0
    write_image(path, np.rint(data) if np.issubdtype(dtype, np.integer) else data, like, dtype)


def _write_gradients(image: Path, gradients) -> None:
    from ..interfaces.io import write_gradients

    stem = image.name.removesuffix(".nii.gz")
    write_gradients(gradients, image.with_name(f"{stem}.bval"), image.with_name(f"{stem}.bvec"))


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
