"""Head motion and eddy currents: the error for a simulated motion, and the estimates on real scans.

Usage: python benchmarks/motion.py [DATA_BIDS_DIRECTORY]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # before ants is imported

import numpy as np

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.simulate.anatomy import rigid
from bids_dmrigen.simulate.artefacts import Artefacts
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.scanner import acquire, protocol, scan_grid
from bids_dmrigen.spatial.brain_mask import brain_mask
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.spatial.motion import estimate_motion, framewise_displacement
from bids_dmrigen.spatial.resample import resample_series
from bids_dmrigen.spatial.rigid import field_of_view_center, motion_parameters, rigid_part
from bids_dmrigen.spatial.templates import embedded_mni

REAL = {
    "prisma b2500": "sub-prisma/dwi/sub-prisma_dir-AP_dwi",
    "slab b1000": "sub-slab/dwi/sub-slab_dwi",
    "uih b930": "sub-uih/dwi/sub-uih_dir-AP_dwi",
}


def simulated(bval: float, voxel_mm: float, shape, move: float, n_directions: int = 10) -> None:
    """Print the error of the estimate for motion of up to `move` mm and `move` degrees, SNR 20."""
    arrays, atlas_affine = embedded_mni(2)
    atlas = procedural_atlas(**arrays, affine=atlas_affine)
    affine = scan_grid(atlas, voxel_mm, shape)
    gradients = protocol(affine, n_directions, 2, bval)
    center = field_of_view_center(affine, shape)
    rng = np.random.default_rng(3)
    poses = rng.uniform(-1, 1, (len(gradients), 6)) * move / np.sqrt(3)  # so that the norm is at most `move`
    poses[0] = 0
    truth = np.stack([rigid(pose, center) for pose in poses])
    scan = acquire(atlas, gradients, affine, shape, snr=20, seed=1, motion=truth).scan
    for axis in (None, 1):
        started = time.process_time()
        estimate = estimate_motion(scan.data, affine, gradients, scan.mask, axis=axis)
        cost = (time.process_time() - started) / len(gradients)
        # Truth and estimate are both relative to the first b0, in which the head is at rest.
        error = np.linalg.inv(truth) @ rigid_part(estimate, affine, axis, center)
        shift = np.linalg.norm(motion_parameters(error, center)[:, :3], axis=1)
        angle = angle_degrees(error[:, :3, :3])
        points = np.argwhere(scan.mask)[::101]
        points = np.column_stack([points, np.ones(len(points))]) @ affine.T
        whole = np.linalg.norm((points @ (estimate - truth).transpose(0, 2, 1))[..., :3], axis=2).mean(axis=1)
        turned = resample_series(scan, estimate, axis=axis).gradients.world_directions(affine)
        true = np.linalg.inv(truth)[:, :3, :3] @ gradients.world_directions(affine)[..., None]
        cosine = np.abs((turned * true[..., 0]).sum(axis=1))[~gradients.is_b0]
        bvec = np.degrees(np.arccos(np.clip(cosine, 0, 1)))
        print(
            f"simulated b={bval:g} {voxel_mm} mm, up to {move:g} mm/deg, "
            f"{'rigid' if axis is None else 'rigid + eddy'}: "
            f"centre {shift.mean():.3f} (max {shift.max():.3f}) mm, angle {angle.mean():.3f} (max {angle.max():.3f}) "
            f"deg, brain voxels {whole.mean():.3f} (max {whole.max():.3f}) mm, b-vectors {bvec.mean():.3f} "
            f"(max {bvec.max():.3f}) deg, {cost:.2f} CPU s per volume",
            flush=True,
        )


def eddy(bval: float, voxel_mm: float, shape, eddy_mm: float, n_directions: int = 20) -> None:
    """Print the error for simulated eddy currents and head motion of up to 2 mm and 2 degrees, SNR 20.

    `eddy_mm` is the displacement in the strongest volume, 100 mm from the centre along its gradient.
    """
    arrays, atlas_affine = embedded_mni(2)
    atlas = procedural_atlas(**arrays, affine=atlas_affine)
    affine = scan_grid(atlas, voxel_mm, shape)
    gradients = protocol(affine, n_directions, 2, bval)
    center = field_of_view_center(affine, shape)
    poses = np.random.default_rng(5).uniform(-1, 1, (len(gradients), 6)) * 2 / np.sqrt(3)
    poses[0] = 0
    truth = np.stack([rigid(pose, center) for pose in poses])
    simulated = acquire(
        atlas, gradients, affine, shape, snr=20, seed=1, motion=truth, artefacts=Artefacts(eddy_mm=eddy_mm)
    )
    scan = simulated.scan
    points = np.argwhere(scan.mask)[::101]
    world = np.column_stack([points, np.ones(len(points))]) @ affine.T
    moved = world @ truth.transpose(0, 2, 1)  # (N, P, 4)
    index_mm = (moved @ np.linalg.inv(affine).T)[..., :3] - (np.array(shape) - 1) / 2
    field = simulated.truth["eddy"]
    along = field[:, :1] + np.einsum("npk,nk->np", index_mm * voxel_mm, field[:, 1:])
    moved[..., :3] += along[..., None] * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    weighted = ~gradients.is_b0
    print(
        f"eddy currents of up to {eddy_mm:g} mm at 100 mm, b={bval:g} {voxel_mm} mm: displacement in the brain "
        f"{np.abs(along[weighted]).mean():.2f} mm",
        end="",
    )
    for name, axis in (("rigid alone", None), ("with eddy correction", 1)):
        estimate = estimate_motion(scan.data, affine, gradients, scan.mask, axis=axis)
        error = np.linalg.norm((world @ estimate.transpose(0, 2, 1) - moved)[..., :3], axis=2)[weighted].mean(axis=1)
        print(f"; error {name} {error.mean():.2f} (worst volume {error.max():.2f}) mm", end="", flush=True)
    print()


def angle_degrees(rotations: np.ndarray) -> np.ndarray:
    """Return the angle (N,) of rotations (N, 3, 3)."""
    return np.degrees(np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1)))


def real(name: str, path: Path) -> None:
    """Print the estimates on a real scan, and the tensor residual before and after the correction."""
    scan, _ = read_scan(f"{path}.nii.gz", f"{path}.bval", f"{path}.bvec")
    mask = brain_mask(scan.mean_b0(), scan.zooms_mm)
    started = time.process_time()
    estimate = estimate_motion(scan.data, scan.affine, scan.gradients, mask, axis=1)
    cost = (time.process_time() - started) / len(scan.gradients)
    center = field_of_view_center(scan.affine, mask.shape)
    parameters = motion_parameters(rigid_part(estimate, scan.affine, 1, center), center)
    moved = resample_series(scan, estimate, axis=1)
    print(
        f"{name}: largest translation {np.abs(parameters[:, :3]).max():.2f} mm, rotation "
        f"{np.degrees(np.abs(parameters[:, 3:])).max():.2f} deg, mean framewise displacement "
        f"{framewise_displacement(parameters[:, :3], parameters[:, 3:])[1:].mean():.2f} mm, log-linear tensor residual "
        f"{residual(scan.data, scan.gradients, mask):.4f} -> {residual(moved.data, moved.gradients, mask):.4f}, "
        f"{cost:.2f} CPU s per volume",
        flush=True,
    )


def residual(data: np.ndarray, gradients: GradientTable, mask: np.ndarray) -> float:
    """Return the median over voxels of the tensor fit's root mean square residual, relative to the b0."""
    v, b = gradients.bvecs, gradients.bvals
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    design = np.column_stack([-b[:, None] * np.stack([v[:, i] * v[:, j] for i, j in pairs], 1), np.ones(len(b))])
    signal = np.maximum(data[mask], 1e-3 * data[mask].max())
    fitted = np.exp(np.log(signal) @ (design @ np.linalg.pinv(design)).T)
    rms = np.sqrt(((signal - fitted) ** 2).mean(axis=1))
    return float(np.median(rms / signal[:, gradients.is_b0].mean(axis=1)))


if __name__ == "__main__":
    simulated(1000, 2.5, (64, 80, 54), 6)
    simulated(2500, 3.0, (60, 72, 50), 6)
    simulated(1000, 2.5, (64, 80, 54), 1)
    eddy(1000, 2.5, (64, 80, 54), 4)
    eddy(2500, 3.0, (60, 72, 50), 4)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/bids")
    for name, path in REAL.items():
        if Path(f"{folder / path}.nii.gz").exists():
            real(name, folder / path)
