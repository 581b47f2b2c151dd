"""A synthetic BIDS dataset whose true values are known, to try and to test the app."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .simulated import (
    scanner_fields,
    sidecar,
    write_descriptions,
    write_gradients,
    write_image,
    write_json,
    write_truth,
)

if TYPE_CHECKING:
    from ..simulate.atlas import Atlas

PHASE_AXIS = 1  # j
SNR = 25.0
DISTORTION_MM = 8.0
NOT_EMPTY = "{path}: exists and is not empty; give a new folder for the demo dataset"
README = """\
Synthetic diffusion MRI dataset

Made by `dmrigen demo` (seed {seed}): brains simulated from the MNI152NLin2009aSym tissue maps with analytic
fibre bundles, a multi-compartment diffusion signal and Rician noise. No subject was scanned.

sub-01  T1w, DWI ({n} volumes) and a reverse-phase b0 in fmap/; oblique slices, susceptibility distortion
sub-02  DWI only

The head moves slightly during every DWI run. The true values of each run (noise-free series, tensor maps,
motion, displacement) are in derivatives/truth.
"""


@dataclass(frozen=True)
class Protocol:
    """The acquisition of the demo runs: volumes, b-value (s/mm²), grid, voxel sizes (mm)."""

    n_directions: int = 24
    n_b0: int = 3
    bval: float = 1000.0
    shape: tuple[int, int, int] = (54, 66, 50)
    voxel_mm: float = 3.2
    t1w_mm: float = 1.5
    atlas_mm: int = 2  # voxel size of the simulated anatomy


def write_demo(out_dir: str | Path, seed: int = 0, protocol: Protocol | None = None) -> Path:
    """Write a synthetic BIDS dataset of two subjects, with the true values as a derivative dataset.

    Parameters
    ----------
    out_dir
        Folder to create; it may exist if it is empty.
    seed
        The same seed gives the same dataset.
    protocol
        Acquisition protocol; None for the default, a small run.

    Returns
    -------
    Path
        The dataset's root.

    Raises
    ------
    FileExistsError
        Where `out_dir` is not empty.
    """
    from ..simulate.anatomy import deform
    from .atlases import EMBEDDED, load_atlas

    root, protocol = Path(out_dir), protocol or Protocol()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(NOT_EMPTY.format(path=root))
    readme = README.format(seed=seed, n=protocol.n_b0 + protocol.n_directions)
    write_descriptions(root, readme, ("01", "02"))
    atlas = load_atlas(EMBEDDED, protocol.atlas_mm)
    for number, label in enumerate(("01", "02")):
        subject = deform(atlas, seed=2 * seed + number)
        _write_subject(root, label, subject, seed=2 * seed + number, full=number == 0, protocol=protocol)
    return root


def _write_subject(root: Path, label: str, subject: Atlas, seed: int, full: bool, protocol: Protocol) -> None:
    """Simulate and write one subject; `full` adds distortion, a reverse-phase b0, T1w, oblique slices."""
    from ..dwi.gradients import GradientTable
    from ..simulate import scanner
    from ..simulate.anatomy import rigid

    linear = rigid([0, 0, 0, 12, -4, 3], np.zeros(3))[:3, :3] @ np.diag([-1.0, 1, 1]) if full else None
    affine = scanner.scan_grid(subject, protocol.voxel_mm, protocol.shape, linear)
    gradients = scanner.protocol(affine, protocol.n_directions, protocol.n_b0, protocol.bval)
    centre = (affine @ [*((np.array(protocol.shape) - 1) / 2), 1])[:3]
    poses = scanner.random_poses(seed, len(gradients), translation_mm=0.6, rotation_degrees=0.6)
    motion = np.stack([rigid(pose, centre) for pose in poses])
    field = scanner.susceptibility(affine, protocol.shape, DISTORTION_MM) if full else None
    result = scanner.acquire(
        subject, gradients, affine, protocol.shape, SNR, seed, motion=motion, displacement=field,
        phase_axis=PHASE_AXIS,
    )  # fmt: skip
    dwi = root / f"sub-{label}" / "dwi" / f"sub-{label}_dwi.nii.gz"
    write_image(dwi, result.scan.data, affine, np.int16)
    write_gradients(dwi, gradients)
    source = {"B0FieldSource": "reverse"} if full else {}
    write_json(dwi.with_name(f"sub-{label}_dwi.json"), sidecar("j") | source)
    write_truth(root / "derivatives" / "truth", label, result, poses, field)
    if not full:
        return
    b0 = GradientTable(np.zeros(1), np.zeros((1, 3)))
    reverse = scanner.acquire(
        subject,
        b0,
        affine,
        protocol.shape,
        SNR,
        seed + 1000,
        displacement=None if field is None else -field,
        phase_axis=PHASE_AXIS,
    )
    epi = root / f"sub-{label}" / "fmap" / f"sub-{label}_dir-AP_epi"
    write_image(epi.with_suffix(".nii.gz"), reverse.scan.data[..., 0], affine, np.int16)
    links = {"B0FieldIdentifier": "reverse", "IntendedFor": [f"bids::sub-{label}/dwi/{dwi.name}"]}
    write_json(epi.with_suffix(".json"), sidecar("j-") | links)
    _write_t1w(root / f"sub-{label}" / "anat" / f"sub-{label}_T1w", subject, seed, protocol.t1w_mm)


def _write_t1w(stem: Path, subject: Atlas, seed: int, voxel_mm: float) -> None:
    """Write a T1-weighted image of the head at rest, with noise and coil bias; brain only."""
    from ..simulate import scanner
    from ..simulate.anatomy import resample

    shape = tuple(int(np.ceil(extent / voxel_mm)) for extent in (160, 200, 170))
    affine = scanner.scan_grid(subject, voxel_mm, shape)
    image = resample(subject, affine, shape, supersample=1).t1w.numpy()
    image = 1000 * image * scanner.coil_bias(seed + 2000, affine, shape, 0.1).numpy()
    noisy = scanner.add_noise(image[..., None], 20.0, seed + 2000)[..., 0]
    write_image(stem.with_suffix(".nii.gz"), noisy, affine, np.int16)
    timing = {"RepetitionTime": 2.3, "EchoTime": 0.003, "InversionTime": 0.9, "FlipAngle": 8}
    write_json(stem.with_suffix(".json"), scanner_fields() | timing)
