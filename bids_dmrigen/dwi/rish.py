"""Rotation-invariant spherical-harmonic (RISH) features of a series, as maps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .gradients import LEAST_DIRECTIONS, GradientError, GradientTable, distinct
from .harmonics import order_for, rish, undamped_weights
from .series import Scan

TARGET_B = 1000.0  # s/mm²
LEAST_B0 = 0.05  # share of the brain's mean b0 to which lower b0 signals are raised

NO_SHELL = "RISH features need a shell with at least {least} different directions"


class RishShell(NamedTuple):
    """The shell that features are read from."""

    bval: float  # s/mm²
    volumes: np.ndarray
    order: int  # highest degree that its directions determine, at most 4

    @property
    def degrees(self) -> range:
        """Degrees 0, 2 and, where the directions determine it, 4."""
        return range(0, self.order + 1, 2)


def rish_shell(gradients: GradientTable) -> RishShell:
    """Return the shell nearest to `TARGET_B` among those with enough different directions.

    Raises
    ------
    GradientError
        Where there is no such shell.
    """
    shells = []
    for bval, volumes in gradients.shells():
        n = len(distinct(gradients.bvecs[volumes]))
        if n >= LEAST_DIRECTIONS:
            shells.append(RishShell(bval, volumes, order_for(n)))
    if not shells:
        raise GradientError(NO_SHELL.format(least=LEAST_DIRECTIONS))
    return min(shells, key=lambda shell: abs(shell.bval - TARGET_B))


def rish_maps(scan: Scan) -> dict[int, np.ndarray]:
    """Return |C_l|² of S / S0 of one shell of a series (`rish_shell`), by degree (Mirzaalian et al. 2016).

    C are the coefficients of the regularised fit of `harmonics.undamped_weights`, S0 is the mean b0.

    Parameters
    ----------
    scan
        The series; voxels outside its mask are zero in every map.

    Returns
    -------
    dict
        Degree l -> (X, Y, Z) float32, without unit; at l = 0 it is 4 pi times the squared mean of S / S0.
    """
    shell = rish_shell(scan.gradients)
    b0 = scan.mean_b0()[scan.mask]
    s0 = np.maximum(b0, max(LEAST_B0 * b0.mean(), np.finfo(np.float32).tiny) if b0.size else 0)
    signal = np.asarray(scan.data[scan.mask][:, shell.volumes], np.float32) / s0[:, None]
    fit = undamped_weights(torch.tensor(scan.gradients.bvecs[shell.volumes]), shell.order).float()
    features = rish(torch.from_numpy(signal) @ fit.T, shell.order).numpy()
    maps = {}
    for degree, values in zip(shell.degrees, features.T, strict=True):
        maps[degree] = np.zeros(scan.mask.shape, np.float32)
        maps[degree][scan.mask] = values
    return maps
