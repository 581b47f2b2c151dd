"""The standard grid of a template, the same for every run, and maps of a run on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..methods.synthesis.task import GRID_MM
from .ants_tools import to_ants, warp


def standard_grid(shape, affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of a grid of cubes over a template's field of view, along the world axes.

    Voxels have edges of `GRID_MM`, as methods use them in the template. The grid depends only on the template. Its
    voxel centres are at multiples of the edge and include those of `TemplateSpace`.
    """
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij"), axis=-1).reshape(-1, 3)
    world = ends @ affine[:3, :3].T + affine[:3, 3]
    low = np.ceil(world.min(axis=0) / GRID_MM - 1e-3) * GRID_MM
    n = np.floor((world.max(axis=0) - low) / GRID_MM + 1e-3).astype(int) + 1
    grid = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    grid[:3, 3] = low
    return (int(n[0]), int(n[1]), int(n[2])), grid


def placed(volume: np.ndarray, affine: np.ndarray, shape, grid: np.ndarray) -> np.ndarray:
    """Return an image (X, Y, Z, ...) on another grid, shifted by whole voxels; 0 outside the image."""
    shift = np.rint((affine[:3, 3] - grid[:3, 3]) / np.diag(grid)[:3]).astype(int)  # of the image's first voxel
    out = np.zeros((*shape, *volume.shape[3:]), volume.dtype)
    target = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(shift, volume.shape, shape, strict=False))
    source = tuple(slice(i.start - s, i.stop - s) for i, s in zip(target, shift, strict=True))
    out[target] = volume[source]
    return out


def maps_on_standard_grid(
    maps: Iterable[np.ndarray],
    mask: np.ndarray,
    affine: np.ndarray,
    grid: tuple[tuple[int, int, int], np.ndarray],
    to_template: str | Path,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return a run's maps and brain mask on a grid of the template; maps are 0 outside the mask.

    Values outside the brain do not enter the averages.

    Parameters
    ----------
    maps
        (X, Y, Z) each, on the scan's grid.
    mask
        (X, Y, Z) bool, brain on the scan's grid.
    affine
        (4, 4) of the scan's grid.
    grid
        Shape and affine of the template grid, from `standard_grid`.
    to_template
        Transform file that resamples the scan onto the template.
    """
    reference = to_ants(np.zeros(grid[0], np.float32), grid[1])

    def moved(volume: np.ndarray) -> np.ndarray:
        return warp(to_ants(volume.astype(np.float32), affine), reference, [to_template]).numpy()

    share = moved(mask)
    brain = share > 0.5
    return [np.where(brain, moved(values * mask) / np.maximum(share, 0.5), 0) for values in maps], brain
