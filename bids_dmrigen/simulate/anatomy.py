"""New subjects from one atlas by random pose and deformation; resampling of an atlas onto other grids."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .atlas import Atlas, dyadic, principal_directions, unit
from .fields import random_field, sample, sample_mean, stream
from .individual import Variation, individual

COARSE = 2  # the warp is smooth, and so is integrated on a grid this many times coarser
N_CHANNELS = 29  # 3 fractions, 3 weights, 3 textures, t1w, brain, 3 x 6 dyadic products
SQUARINGS = 5  # the velocity is integrated in 2**5 steps
FOLDS = "the deformation folds: lower its amplitude (largest local stretch found: {worst:.2f}, needed > 0)"


def deform(atlas: Atlas, seed: int, variation: Variation | None = None) -> Atlas:
    """Return a new subject on the atlas's grid: random pose, smooth invertible warp, tissue edges and texture.

    The warp is the flow of a stationary random velocity field (scaling and squaring), hence invertible.
    Fibre directions are carried by the inverse of its Jacobian and normalised (preservation of principal
    direction, Alexander et al. 2001).

    Parameters
    ----------
    atlas
        Atlas on any device; the result is on the same device.
    seed
        The same seed gives the same subject.
    variation
        Amplitudes; None for the defaults.
    """
    variation = variation or Variation()
    pose = _random_pose(stream(seed, 0), atlas, variation)
    warp_mm = _random_warp(stream(seed, 1), atlas.affine, atlas.shape, variation)
    moved = warped(atlas, pose, warp_mm)
    return individual(moved, stream(seed, 2), variation)


def warped(atlas: Atlas, pose: np.ndarray, warp_mm: torch.Tensor | None = None) -> Atlas:
    """Return the atlas pulled through x -> pose · (x + warp(x)), world mm, on its own grid.

    Parameters
    ----------
    pose
        (4, 4) world RAS+ map from the new anatomy to the old one.
    warp_mm
        (3, X, Y, Z) displacement in world RAS+, mm, or None.

    Raises
    ------
    ValueError
        Where the map folds (its Jacobian determinant is not positive).
    """
    device = atlas.brain.device
    affine = torch.as_tensor(atlas.affine, dtype=torch.float32, device=device)
    moved = torch.as_tensor(pose, dtype=torch.float32, device=device)
    world = world_grid(atlas.affine, atlas.shape, device)  # (3, X, Y, Z)
    jacobian = torch.eye(3, device=device).expand(*atlas.shape, 3, 3)
    if warp_mm is not None:
        warp_mm = warp_mm.to(device)
        world = world + warp_mm
        slope = torch.stack(torch.gradient(warp_mm, dim=(1, 2, 3)))  # (voxel axis, component, X, Y, Z)
        jacobian = jacobian + torch.einsum("vcxyz,vw->xyzcw", slope, torch.linalg.inv(affine[:3, :3]))
    source = torch.einsum("ij,jxyz->ixyz", moved[:3, :3], world) + moved[:3, 3, None, None, None]
    jacobian = moved[:3, :3] @ jacobian
    adjugate, determinant = _adjugate(jacobian)
    if not (determinant > 0).all():
        raise ValueError(FOLDS.format(worst=float(determinant.min())))

    points = voxel_coordinates(source.flatten(1), atlas.affine)  # (3, V)
    values = sample_mean(_table(atlas), atlas.shape, points[None]).T.reshape(-1, *atlas.shape)
    return _from_channels(values, atlas.affine, lambda vectors: torch.einsum("xyzij,kjxyz->kixyz", adjugate, vectors))


def resample(atlas: Atlas, affine: np.ndarray, shape, supersample: int = 2) -> Atlas:
    """Return the atlas on another grid, every voxel the average of supersample³ points inside it.

    Fractions, weights and texture are averaged; directions through the average of their dyadic products.

    Parameters
    ----------
    affine, shape
        Affine and shape of the new grid: any voxel size, obliqueness and handedness.
    supersample
        Points per axis; more for voxels much larger than the atlas's own.
    """
    world = torch.stack(
        [world_grid(affine, shape, atlas.brain.device, offset).flatten(1) for offset in subvoxels(supersample)]
    )
    points = voxel_coordinates(world, atlas.affine)
    touched = touches(atlas.brain, points)
    values = torch.zeros((N_CHANNELS, points.shape[2]), device=points.device)
    values[:, touched] = sample_mean(_table(atlas), atlas.shape, points[:, :, touched]).T
    return _from_channels(values.reshape(-1, *shape), affine)


def touches(brain: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return (V,) True where any of the points (K, 3, V) lies in or beside the brain (X, Y, Z)."""
    present = brain[None].float()
    return torch.stack([sample(present, p)[0] > 0 for p in points]).any(dim=0)


def world_grid(affine: np.ndarray, shape, device="cpu", offset=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """Return world RAS+ coordinates (3, X, Y, Z) of voxel centres, or of points `offset` voxels away."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) + float(o) for n, o in zip(shape, offset, strict=True)]
    matrix = torch.as_tensor(np.asarray(affine), dtype=torch.float32, device=device)
    x, y, z = (axis.reshape([-1 if a == i else 1 for a in range(3)]) for i, axis in enumerate(axes))
    return torch.stack([m[0] * x + m[1] * y + m[2] * z + m[3] for m in matrix[:3]])


def voxel_coordinates(world: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    """Return the voxel coordinates (..., 3, V) in a grid with this affine of world points (..., 3, V)."""
    inverse = torch.as_tensor(np.linalg.inv(affine), dtype=torch.float32, device=world.device)
    return inverse[:3, :3] @ world + inverse[:3, 3:]


def subvoxels(n: int) -> list[np.ndarray]:
    """Return the n³ offsets (3,), in voxels, that divide a voxel evenly."""
    steps = (np.arange(n) + 0.5) / n - 0.5
    return list(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3))


def _table(atlas: Atlas) -> torch.Tensor:
    """Return all maps of an atlas as rows (X * Y * Z, N_CHANNELS) of numbers that may be averaged.

    Dyads are weighted by the tissue that follows them, so that a strong fibre outweighs a faint one.
    """
    solid = atlas.fractions[:2].sum(dim=0)
    dyads = dyadic(atlas.directions) * (atlas.weights * solid)[:, None]
    maps = [
        atlas.fractions,
        atlas.weights * solid,
        atlas.texture * atlas.brain,
        atlas.t1w[None],
        atlas.brain[None].float(),
        dyads.flatten(0, 1),
    ]
    return torch.cat(maps).flatten(1).T.contiguous()


def _from_channels(values: torch.Tensor, affine: np.ndarray, turn=lambda vectors: vectors) -> Atlas:
    """Return the atlas whose averaged maps these are; `turn` acts on the direction vectors."""
    fractions, weights, texture = values[0:3], values[3:6], values[6:9]
    occupied = fractions.sum(dim=0)
    brain = occupied > 0.5
    # Voxels at the edge are partly outside the brain: fractions are divided by the part inside, so that they sum to 1.
    fractions = fractions * brain / occupied.clamp(min=1e-6)
    weights = weights * brain / values[:2].sum(dim=0).clamp(min=1e-6)
    dyads = values[11:].reshape(3, 6, -1)
    directions = torch.zeros((3, 3, *brain.shape), device=values.device)
    directions[:, :, brain] = principal_directions(dyads[:, :, brain.flatten()])
    directions = turn(directions)
    directions = unit(directions)
    texture = texture / values[10].clamp(min=1e-6) * brain
    return Atlas(
        fractions,
        directions,
        weights,
        values[9].clamp(0, 1),
        brain,
        np.array(affine, dtype=np.float64),
        texture,
    )


def _random_pose(rng: np.random.Generator, atlas: Atlas, variation: Variation) -> np.ndarray:
    """Return a random (4, 4) world map about the grid's centre."""
    centre = atlas.affine @ [*((np.array(atlas.shape) - 1) / 2), 1]
    parameters = np.r_[rng.normal(0, variation.translation_mm, 3), rng.normal(0, variation.rotation_degrees, 3)]
    pose = rigid(parameters, centre[:3])
    pose[:3, :3] = pose[:3, :3] @ np.diag(np.exp(rng.normal(0, variation.scale, 3)))
    pose[:3, 3] = centre[:3] + parameters[:3] - pose[:3, :3] @ centre[:3]
    return pose


def rigid(parameters, centre_mm) -> np.ndarray:
    """Return the (4, 4) world map of a rotation about a point and a translation.

    Parameters
    ----------
    parameters
        (6,) translation x, y, z in mm, then rotation about x, y, z in degrees, applied in this order.
    centre_mm
        (3,) fixed point of the rotation.
    """
    shift, angles = np.asarray(parameters[:3], dtype=np.float64), np.deg2rad(parameters[3:])
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = np.asarray(centre_mm) + shift - matrix[:3, :3] @ centre_mm
    return matrix


def _random_warp(rng: np.random.Generator, affine: np.ndarray, shape, variation: Variation) -> torch.Tensor:
    """Return a diffeomorphic displacement (3, X, Y, Z) in world RAS+, mm.

    Each octave is the flow of its own stationary velocity (Arsigny et al. 2006), integrated in voxel units.
    """
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    coarse = tuple(-(-n // COARSE) + 1 for n in shape)
    identity = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in coarse), indexing="ij"))
    per_voxel = torch.as_tensor(1 / (zooms * COARSE), dtype=torch.float32)[:, None, None, None]
    total = torch.zeros((3, *coarse))
    for amplitude, length in zip(variation.warp_mm, variation.warp_length_mm, strict=True):
        flow = amplitude * per_voxel * random_field(rng, 3, coarse, length / (zooms * COARSE)) / 2**SQUARINGS
        for _ in range(SQUARINGS):
            flow = flow + sample(flow, (identity + flow).flatten(1)).reshape(flow.shape)
        total = flow + sample(total, (identity + flow).flatten(1)).reshape(flow.shape)
    linear = torch.as_tensor(affine[:3, :3] * COARSE, dtype=torch.float32)
    world = torch.einsum("ij,jxyz->ixyz", linear, total)
    fine = F.interpolate(world[None], scale_factor=COARSE, mode="trilinear", align_corners=False)[0]
    return fine[:, : shape[0], : shape[1], : shape[2]]


def _adjugate(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return adjugates (..., 3, 3), which are inverses times determinants, and determinants."""
    a, b, c = matrix.unbind(dim=-1)  # columns
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-2)
    return rows, (rows[..., 0, :] * a).sum(dim=-1)
