"""The scanner: the measured signal of an anatomy on a grid, with noise, coil bias, motion and distortion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..dwi.gradients import GradientTable, even_directions
from ..dwi.series import Scan
from .anatomy import resample, subvoxels, touches, voxel_coordinates, world_grid
from .artefacts import (
    Artefacts,
    eddy_coefficients,
    eddy_displacement,
    ghosted,
    k_space_window,
    slice_gains,
    truncated,
)
from .atlas import Atlas
from .fields import random_field, sample, sample_mean, stream
from .signal import Tissue, simulate_signal

WHITE_SIGNAL = 1000.0  # scanner units, of white matter on b0
BIAS_LENGTH_MM = 60.0
INVERSION_STEPS = 40
STEEPEST = 0.8  # largest slope of the displacement, voxel per voxel, at which the inversion converges
NOT_INVERTIBLE = (
    "the displacement field folds: its slope along the phase-encoding axis reaches {worst:.2f} "
    "voxel per voxel, less than 0.8 is needed; make it smoother or weaker"
)


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """A simulated scan and its true values.

    Parameters
    ----------
    scan
        The noisy series with the scanner's gradient table; its mask is the brain of the unmoved,
        undistorted head.
    clean
        (X, Y, Z, N) float32: the series without noise, motion and distortion; coil bias included.
    truth
        `fractions` (3, X, Y, Z), `directions` (3, 3, X, Y, Z), `weights` (3, X, Y, Z), `sigma` (noise in
        scanner units), `bias` (X, Y, Z), `motion` (N, 4, 4), `displacement_mm` (X, Y, Z), `noise_free`
        (X, Y, Z, N), the series with motion and distortion but before drop-out, ghost and truncation, `eddy`
        (N, 4) and `slice_gains` (Z, N).
    """

    scan: Scan
    clean: np.ndarray
    truth: dict[str, Any] = field(default_factory=dict)


def acquire(
    atlas: Atlas,
    gradients: GradientTable,
    affine: np.ndarray,
    shape,
    snr: float,
    seed: int,
    motion: np.ndarray | None = None,
    displacement: np.ndarray | None = None,
    phase_axis: int = 1,
    bias: float = 0.1,
    coils: int = 1,
    tissue: Tissue | None = None,
    supersample: int = 2,
    artefacts: Artefacts | None = None,
) -> SimulatedScan:
    """Return the scan of an anatomy.

    The signal is computed on the atlas's grid and then averaged over each of the scanner's voxels, as in a
    scanner. So partial volume, motion and distortion act on the signal, not on tissue parameters.

    Parameters
    ----------
    atlas
        Anatomy of the subject.
    gradients
        N volumes, in the voxel axes of the scan.
    affine, shape
        (4, 4) and (X, Y, Z) of the scan: any voxel size, obliqueness and handedness.
    snr
        Mean b0 signal of white matter over the noise's standard deviation in one channel; inf for no noise.
    seed
        Seed of noise and bias: the same seed gives the same data.
    motion
        (N, 4, 4) rigid maps in world space, from the head at rest to the head in each volume. The gradient table
        is that of the scanner, so relative to the head the gradients turn too.
    displacement
        (X, Y, Z) mm along `phase_axis` (positive towards higher index) by which the signal of each true
        position is shifted; compressed signal is brighter. A reverse-phase partner has the negative field.
    phase_axis
        Phase-encoding axis of the scan, 0, 1 or 2.
    bias
        Standard deviation of the logarithm of the smooth coil sensitivity; 0 for none.
    coils
        Channels of equal noise combined by sum of squares: Rician noise for 1, non-central chi for more.
    tissue
        Microstructure; None for the default.
    supersample
        Points per axis over which a voxel's signal is averaged.
    artefacts
        Artefacts of the scan; None for a scan without them.
    """
    affine = np.asarray(affine, dtype=np.float64)
    shape, artefacts = tuple(int(s) for s in shape), artefacts or Artefacts()
    anatomy = resample(atlas, affine, shape, supersample)
    bias_field = coil_bias(seed, affine, shape, bias)
    eddy = eddy_coefficients(gradients, artefacts.eddy_mm)
    shift = _displacements(displacement, eddy, shape, np.linalg.norm(affine[:3, :3], axis=0))
    poses = None if motion is None else np.asarray(motion, dtype=np.float64)
    common, gain = (atlas, gradients, affine, shape, tissue, phase_axis, supersample), bias_field.numpy()[..., None]
    clean = _noise_free(*common, None, None) * gain
    noise_free = clean if motion is None and shift is None else _noise_free(*common, poses, shift) * gain
    sigma = _noise_level(clean, anatomy, gradients, snr)
    gains = slice_gains(seed, gradients, shape[2], artefacts.dropout)
    received = ghosted(noise_free * gains, artefacts.ghost, phase_axis)
    noisy = add_noise(received, sigma, seed, coils, artefacts.acquired)
    truth = _truth(anatomy, len(gradients), poses, displacement)
    truth |= {"sigma": sigma, "bias": bias_field.numpy(), "noise_free": noise_free, "eddy": eddy, "slice_gains": gains}
    return SimulatedScan(Scan(noisy, affine, gradients, anatomy.brain.cpu().numpy()), clean, truth)


def _noise_free(atlas, gradients, affine, shape, tissue, phase_axis, supersample, poses, shift) -> np.ndarray:
    """Return the signals (X, Y, Z, N) of a head in these poses (or at rest) with these displacements (or none)."""
    turns = None if poses is None else np.broadcast_to(poses[:, :3, :3], (len(gradients), 3, 3))
    signal = simulate_signal(atlas, gradients, affine, tissue, turns, WHITE_SIGNAL)
    poses = np.eye(4)[None] if poses is None else poses
    return _measure(signal, atlas, affine, shape, poses, shift, phase_axis, supersample)


def _truth(anatomy: Atlas, n: int, poses: np.ndarray | None, displacement: np.ndarray | None) -> dict[str, Any]:
    """Return the true anatomy on the scan's grid, the pose of the head in each of n volumes, and the displacement."""
    truth = {name: getattr(anatomy, name).cpu().numpy() for name in ("fractions", "directions", "weights")}
    truth["motion"] = np.broadcast_to(np.eye(4) if poses is None else poses, (n, 4, 4))
    truth["displacement_mm"] = (
        np.zeros(anatomy.shape, np.float32) if displacement is None else np.array(displacement, np.float32)
    )
    return truth


def _displacements(field: np.ndarray | None, eddy: np.ndarray, shape, zooms: np.ndarray) -> list[torch.Tensor] | None:
    """Return displacements (X, Y, Z) in mm: one for all volumes, or one each where there are eddy currents."""
    if not eddy.any():
        return None if field is None else [torch.as_tensor(np.array(field, dtype=np.float32))]
    fixed = 0 if field is None else np.asarray(field, dtype=np.float32)
    return [torch.as_tensor(fixed + eddy_displacement(coefficients, shape, zooms)) for coefficients in eddy]


def add_noise(signal: np.ndarray, sigma: float, seed: int, coils: int = 1, acquired: float = 1.0) -> np.ndarray:
    """Return the magnitude of (X, Y, Z, N) signals with complex Gaussian noise in each of the coils.

    Signal and noise keep only the share `acquired` of k-space, along both in-plane axes; `sigma` is the standard
    deviation of the noise in the resulting images.

    For one coil the result is Rician, for n the root of a non-central chi-square with 2 n degrees of freedom.
    The random numbers depend on seed, volume and coil alone: the noise of a volume does not depend on how many
    volumes there are.
    """
    window = k_space_window(signal.shape, acquired) if acquired < 1 else None
    if sigma == 0 and window is None:
        return signal.copy()
    noisy = np.empty_like(signal)
    before = np.float32(sigma if window is None else sigma / np.sqrt(window.mean()))
    amplitude = signal / np.float32(np.sqrt(coils))
    for volume in range(signal.shape[3]):
        power = np.zeros(signal.shape[:3], np.float32)
        for coil in range(coils):
            rng = stream(seed, 20, volume, coil)
            real, imaginary = before * rng.standard_normal((2, *power.shape), dtype=np.float32)
            real += amplitude[..., volume]
            if window is not None:
                image = truncated(real + 1j * imaginary, window)
                real, imaginary = image.real, image.imag
            power += real**2 + imaginary**2
        noisy[..., volume] = np.sqrt(power)
    return noisy


def coil_bias(seed: int, affine: np.ndarray, shape, strength: float) -> torch.Tensor:
    """Return a smooth multiplicative field (X, Y, Z) with mean logarithm 0 and this standard deviation."""
    if strength == 0:
        return torch.ones(tuple(shape))
    zooms = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return torch.exp(strength * random_field(stream(seed, 21), 1, tuple(shape), BIAS_LENGTH_MM / zooms)[0])


def random_poses(seed: int, n: int, translation_mm: float = 0.5, rotation_degrees: float = 0.5) -> np.ndarray:
    """Return (n, 6) head poses, as `rigid` takes them: a slow drift with jitter that starts at rest.

    `translation_mm` and `rotation_degrees` are standard deviations of the drift at the end, per axis.
    """
    rng = stream(seed, 22)
    steps = rng.normal(size=(n, 6)).cumsum(axis=0) / max(n, 1) ** 0.5 + 0.3 * rng.normal(size=(n, 6))
    return (steps - steps[0]) * np.r_[np.full(3, translation_mm), np.full(3, rotation_degrees)]


def susceptibility(affine: np.ndarray, shape, strength_mm: float = 8.0) -> np.ndarray:
    """Return a displacement (X, Y, Z), mm, as air causes it: strongest above the sinuses and the ear canals.

    The positions are those in a head in MNI space; every source is a Gaussian, 15 to 22 mm wide.
    """
    world = world_grid(affine, shape)
    total = torch.zeros(tuple(shape))
    for centre, width, weight in (
        ((0, 46, -24), 22.0, 1.0),
        ((48, -22, -26), 15.0, -0.6),
        ((-48, -22, -26), 15.0, -0.6),
    ):
        distance = ((world - torch.tensor(centre, dtype=torch.float32)[:, None, None, None]) ** 2).sum(dim=0)
        total += weight * torch.exp(-distance / (2 * width**2))
    return (strength_mm * total).numpy()


def scan_grid(atlas: Atlas, voxel_mm, shape, rotation: np.ndarray | None = None) -> np.ndarray:
    """Return the affine (4, 4) of a grid of this size centred on the brain; RAS, or turned by a rotation."""
    linear = np.diag(np.broadcast_to(np.asarray(voxel_mm, dtype=np.float64), 3))
    if rotation is not None:
        linear = rotation @ linear
    inside = atlas.brain.nonzero().double()
    middle = ((inside.amin(dim=0) + inside.amax(dim=0)) / 2).cpu().numpy()
    centre = atlas.affine[:3, :3] @ middle + atlas.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = centre - linear @ ((np.array(shape) - 1) / 2)
    return affine


def protocol(
    affine: np.ndarray, n_directions: int | Sequence[int], n_b0: int, bval: float | Sequence[float]
) -> GradientTable:
    """Return a table of b0s, then even directions on each shell (s/mm²), for an image with this affine."""
    shells = list(zip(np.atleast_1d(n_directions), np.atleast_1d(bval), strict=True))
    directions = np.concatenate([np.zeros((n_b0, 3)), *(even_directions(int(n)) for n, _ in shells)])
    bvals = np.concatenate([np.zeros(n_b0), *(np.full(int(n), float(b)) for n, b in shells)])
    return GradientTable.from_world(bvals, directions, affine)


def demo_like(
    atlas: Atlas,
    n_directions: int = 30,
    n_b0: int = 3,
    bval: float = 1000,
    snr: float = 20,
    seed: int = 0,
    shape=(96, 112, 72),
    voxel_mm: float = 2.0,
    **artefacts,
) -> SimulatedScan:
    """Return a single-shell scan with a common protocol; `artefacts` are further arguments of `acquire`."""
    affine = scan_grid(atlas, voxel_mm, shape)
    return acquire(atlas, protocol(affine, n_directions, n_b0, bval), affine, shape, snr, seed, **artefacts)


def _measure(
    signal: torch.Tensor,
    atlas: Atlas,
    affine: np.ndarray,
    shape,
    motion: np.ndarray,
    shifts_mm: list[torch.Tensor] | None,
    phase_axis: int,
    supersample: int,
) -> np.ndarray:
    """Return signals (X, Y, Z, N) on the scan's grid: each voxel is the mean of points inside it.

    `signal` (X', Y', Z', N) is on the atlas's grid; `motion` has one pose or N, `shifts_mm` one field or N.
    """
    device = signal.device
    voxel = torch.stack([world_grid(np.eye(4), shape, device, o).flatten(1) for o in subvoxels(supersample)])
    matrix = torch.as_tensor(affine, dtype=torch.float32, device=device)
    out = torch.zeros((voxel.shape[2], signal.shape[3]), device=device)
    if len(motion) == 1 and shifts_mm is None:  # all volumes at once
        points = voxel_coordinates(matrix[:3, :3] @ voxel + matrix[:3, 3:], motion[0] @ atlas.affine)
        touched = touches(atlas.brain, points)
        table = signal.flatten(0, 2).contiguous()
        out[touched] = sample_mean(table, atlas.shape, points[:, :, touched])
        return out.reshape(*shape, -1).cpu().numpy()
    seen, density = voxel, torch.ones(voxel.shape[::2], device=device)  # (K, V)
    zoom = float(np.linalg.norm(affine[:3, phase_axis]))
    for volume in range(signal.shape[3]):
        if shifts_mm is not None and volume < len(shifts_mm):
            seen, density = _undistorted(voxel, shifts_mm[volume].to(device) / zoom, phase_axis)
        world = matrix[:3, :3] @ seen + matrix[:3, 3:]  # (K, 3, V)
        points = voxel_coordinates(world, motion[volume % len(motion)] @ atlas.affine)
        maps = signal[..., volume][None].contiguous()
        for at, weight in zip(points, density, strict=True):
            out[:, volume] += weight * sample(maps, at)[0] / len(points)
    return out.reshape(*shape, -1).cpu().numpy()


def _undistorted(seen: torch.Tensor, shift: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the true positions (K, 3, V) of the signal seen at these voxels, and its density (K, V).

    Solves r + d(r) = x along one axis by fixed-point iteration at the voxel centres, with d in voxels; the
    signal of a true stretch dr is seen over dx = (1 + d') dr, so its density is 1 / (1 + d').
    """
    slope = torch.gradient(shift, dim=axis)[0]
    if float(slope.abs().max()) >= STEEPEST:
        raise ValueError(NOT_INVERTIBLE.format(worst=float(slope.abs().max())))
    centres = world_grid(np.eye(4), shift.shape, shift.device).flatten(1)
    back = torch.zeros(centres.shape[1], device=shift.device)
    for _ in range(INVERSION_STEPS):
        moved = centres.clone()
        moved[axis] += back
        back = -sample(shift[None], moved)[0]
    back = back.reshape(shift.shape)
    maps = torch.stack([back, 1 + torch.gradient(back, dim=axis)[0]])  # dr / dx = 1 / (1 + d')
    true, density = seen.clone(), torch.ones(seen.shape[::2], device=shift.device)
    for k, points in enumerate(seen):
        inside = points.clone()  # beyond the outermost voxel centres the field continues
        for a, n in enumerate(shift.shape):
            inside[a].clamp_(0, n - 1)
        moved_by, density[k] = sample(maps, inside)
        true[k, axis] += moved_by
    return true, density


def _noise_level(clean: np.ndarray, atlas: Atlas, gradients: GradientTable, snr: float) -> float:
    """Return sigma for which white matter's mean b0 signal is snr times as large."""
    if not np.isfinite(snr):
        return 0.0
    white = (atlas.fractions[0] > 0.8).cpu().numpy()
    b0 = clean[white][:, gradients.is_b0]
    return (float(b0.mean()) if b0.size else WHITE_SIGNAL) / snr
