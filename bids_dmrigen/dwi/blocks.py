"""A scan with larger voxels, each of them a block of the scan's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .series import Scan, ScanError

SAME_MM = 1e-3  # edges of voxels that differ by less are equal
NOT_CUBES = "larger voxels are made of cubes, found voxels of {zooms} mm; resample the scan first"
TOO_FEW = "{edge} voxels along each axis make a larger one, found a scan of {shape} voxels"


def whole_blocks(scan: Scan, edge: int) -> Scan:
    """Return a scan without the last voxels of each axis that fill no block of edge x edge x edge voxels.

    Raises
    ------
    ScanError
        Where its voxels are no cubes, or an axis has no block.
    """
    shape, zooms = scan.mask.shape, scan.zooms_mm
    if np.ptp(zooms) > SAME_MM:
        raise ScanError(NOT_CUBES.format(zooms=" x ".join(f"{z:g}" for z in zooms)))
    if min(shape) < edge:
        raise ScanError(TOO_FEW.format(edge=edge, shape=" x ".join(map(str, shape))))
    x, y, z = (n // edge * edge for n in shape)
    return replace(scan, data=scan.data[:x, :y, :z], mask=scan.mask[:x, :y, :z])


def in_blocks(scan: Scan, edge: int) -> Scan:
    """Return a scan whose voxels are the means of blocks of edge x edge x edge voxels.

    A block is in the mask where at least half of it is.

    Parameters
    ----------
    scan
        As `whole_blocks` returns it.
    edge
        Voxels along each axis.
    """
    x, y, z = (n // edge for n in scan.mask.shape)

    def means(volumes: np.ndarray) -> np.ndarray:
        blocks = np.asarray(volumes, np.float32).reshape(x, edge, y, edge, z, edge, *volumes.shape[3:])
        return np.asarray(blocks.mean(axis=(1, 3, 5)))

    return Scan(means(scan.data), block_affine(scan.affine, edge), scan.gradients, means(scan.mask) >= 0.5)


def finer_affine(affine: np.ndarray, edge: int) -> np.ndarray:
    """Return the affine (4, 4) of a grid of which the voxels of another are the blocks."""
    finer = np.array(affine, dtype=np.float64)
    finer[:3, :3] /= edge
    finer[:3, 3] -= finer[:3, :3] @ np.full(3, (edge - 1) / 2)
    return finer


def block_affine(affine: np.ndarray, edge: int) -> np.ndarray:
    """Return the affine (4, 4) of a grid of blocks; the first block has the first voxel in its corner."""
    larger = np.array(affine, dtype=np.float64)
    larger[:3, 3] += larger[:3, :3] @ np.full(3, (edge - 1) / 2)
    larger[:3, :3] *= edge
    return larger
