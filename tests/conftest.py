"""Small BIDS datasets that tests build, break and run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions

# Notes its arguments, runs the job at once, and answers as SLURM does.
SBATCH = """#!/bin/bash
echo "$@" >> "$(dirname "$0")/asked"
for script; do [[ $script != --output=* ]] || log=${script#*=}; done
log=${log/\\%j/$$}
INSTEAD
bash "$script" > "$log" 2>&1
echo "Submitted batch job $$"
"""
# In the place of the package bm4d, which is for non-commercial use only: the mean with the six neighbours of a voxel.
BM4D = """
import numpy as np
def bm4d(z, sigma_psd):
    z = np.asarray(z, float)
    moved = [np.roll(z, step, axis) for axis in range(3) for step in (-1, 1)]
    return (z + sum(moved)) / 7 if sigma_psd > 0 else z
"""
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _numerics():
    """Compute by the policy that the app computes by."""
    from bids_dmrigen.diffusion.numerics import policy

    with policy(deterministic=False):
        yield


@pytest.fixture(scope="session", autouse=True)
def _bm4d(tmp_path_factory):
    """Let a stand-in be found in the place of the package bm4d, also by steps that run in processes of their own."""
    folder = tmp_path_factory.mktemp("bm4d")
    (folder / "bm4d.py").write_text(BM4D)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real scans, where they are."""
    if not REAL.is_dir():
        pytest.skip(f"the real scans are not here ({REAL.name})")
    return REAL


def tiny_gradients(n_directions: int = 12, n_b0: int = 2, bval: float = 1000.0) -> GradientTable:
    """Return b0s followed by one shell of even directions."""
    bvals = np.r_[np.zeros(n_b0), np.full(n_directions, bval)]
    return GradientTable(bvals, np.r_[np.zeros((n_b0, 3)), even_directions(n_directions)])


def tiny_series(gradients: GradientTable, shape=(20, 22, 16), noise: float = 8.0, seed: int = 0) -> np.ndarray:
    """Return an ellipsoid with two crossing slabs of prolate tensors and Rician noise, float32."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    axis = np.where(np.abs(grid[1]) < 0.3, 0, 1)
    axial, radial = 1.5e-3, 0.4e-3
    squared = gradients.bvecs**2  # (N, 3)
    diffusivity = radial + (axial - radial) * squared[:, axis]  # (N, X, Y, Z)
    clean = 500 * inside * (1.2 + 0.3 * grid[2]) * np.exp(-gradients.bvals[:, None, None, None] * diffusivity)
    real, imaginary = clean + noise * rng.standard_normal((2, *clean.shape))
    return np.moveaxis(np.hypot(real, imaginary), 0, -1).astype(np.float32)


def write_run(folder: Path, stem: str, data, gradients, affine=None, sidecar: dict | None = None) -> Path:
    """Write one diffusion run with its text files."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-3.0, 3, 3, 1]) if affine is None else affine
    path = folder / f"{stem}_dwi.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    np.savetxt(folder / f"{stem}_dwi.bval", gradients.bvals[None], fmt="%g")
    np.savetxt(folder / f"{stem}_dwi.bvec", gradients.bvecs.T, fmt="%.6f")
    (folder / f"{stem}_dwi.json").write_text(json.dumps(sidecar or {}))
    return path


def write_dataset(root: Path, subjects=("01", "02"), **series) -> Path:
    """Write a dataset with one tiny run per subject."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "tiny", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    )
    (root / "README").write_text("A tiny dataset.\n")
    gradients = tiny_gradients()
    for number, subject in enumerate(subjects):
        data = tiny_series(gradients, seed=number, **series)
        write_run(root / f"sub-{subject}" / "dwi", f"sub-{subject}", data, gradients)
    return root


def diffdti_weights(folder: Path) -> Path:
    """Write weights of Diff-DTI that were never trained but make something, and return their file."""
    import torch

    from bids_dmrigen.diffusion.weights import Card, save_weights
    from bids_dmrigen.methods import load

    net = load("diffdti").network("small")
    torch.nn.init.normal_(net.head[-1].weight, std=0.05, generator=torch.Generator().manual_seed(1))
    card = Card("diffdti", "small", {}, {}, 1, 0.1, 0, "a test", {}, "Apache-2.0")
    return save_weights(folder, "diffdti-small", net, card)


def neighbours_weights(folder: Path) -> Path:
    """Write weights of neighbour attention that were never trained, and return their file."""
    from bids_dmrigen.diffusion.weights import Card, save_weights
    from bids_dmrigen.methods import load

    card = Card("neighbours", "small", {}, {}, 1, 0.1, 0, "a test", {}, "Apache-2.0")
    return save_weights(folder, "neighbours-small", load("neighbours").network("small"), card)


def rishldm_weights(folder: Path, ratios=(1.0, 1.0, 1.0)) -> Path:
    """Write weights of RISH latent diffusion that were never trained, with these ratios, and return their file."""
    import torch

    from bids_dmrigen.diffusion.weights import Card, save_weights
    from bids_dmrigen.methods import load

    net = load("rishldm").network("small")
    net.ratios.copy_(torch.tensor(ratios))
    card = Card("rishldm", "small", {}, {}, 1, 0.1, 0, "a test", {}, "Apache-2.0")
    return save_weights(folder, "rishldm-small", net, card)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Two subjects, one tiny run each."""
    return write_dataset(tmp_path / "data")


def stand_in(folder: Path, name: str, script: str) -> None:
    """Write a command that stands in for one that is not here."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def slurm_stand_ins(folder: Path, step: str = "", instead: str = "", squeue: str = "") -> Path:
    """Write stand-ins for SLURM's commands; `instead` is what becomes of the job of a step. Return their folder."""
    instead = f"if [[ $script == *{step}.sh ]]; then {instead}; fi" if instead else ""
    stand_in(folder, "sbatch", SBATCH.replace("INSTEAD", instead))
    stand_in(folder, "squeue", f"#!/bin/sh\n{squeue}\n")
    return folder
