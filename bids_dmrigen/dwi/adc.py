"""The apparent diffusion coefficient of a shell, and its mean over runs and subjects."""

from __future__ import annotations

import numpy as np

FREE_WATER_MM2_PER_S = 3.0e-3  # at 37 °C: nothing in a brain diffuses faster


def apparent_diffusion(b0: np.ndarray, dwi: np.ndarray, bvals: np.ndarray | float) -> np.ndarray:
    """Return ln(S0 / S) / b, the mean over volumes, each held between 0 and free water's diffusivity.

    Noise, flow or a signal of zero can give values beyond these bounds; tissue cannot.

    Parameters
    ----------
    b0
        (...) signal without diffusion weighting; where it is not positive the result is 0.
    dwi
        (..., N) diffusion-weighted signals.
    bvals
        (N,) or one for all, s/mm², positive.

    Returns
    -------
    (...) float32, mm²/s.
    """
    signal, b0 = np.asarray(dwi, dtype=np.float32), np.asarray(b0, dtype=np.float32)
    present = b0 > 0
    ratio = signal / np.where(present, b0, 1)[..., None]
    # Clipped before the logarithm, which a signal of zero does not have.
    ratio = np.clip(ratio, np.exp(-np.asarray(bvals, np.float64) * FREE_WATER_MM2_PER_S), 1)
    mean: np.ndarray = (-np.log(ratio) / bvals).mean(axis=-1)
    return (mean * present).astype(np.float32)


class MeanOverBrains:
    """Mean of maps on one grid: in each voxel over the maps with brain there; 0 where fewer than half have brain."""

    def __init__(self) -> None:
        self.n = 0  # maps that were added
        self._sum, self._brains = np.zeros(()), np.zeros((), np.int64)

    def add(self, values: np.ndarray, brain: np.ndarray) -> None:
        """Add the maps of one subject or run: values (X, Y, Z) or (X, Y, Z, K), and brain (X, Y, Z) bool."""
        inside = brain.reshape(*brain.shape, *[1] * (values.ndim - brain.ndim))
        self._sum = self._sum + np.where(inside, values, 0.0)
        self._brains = self._brains + inside
        self.n += 1

    def mean(self) -> np.ndarray:
        """Return the mean, float32, in the shape of the maps."""
        return np.where(self._common(), self._sum / np.maximum(self._brains, 1), 0.0).astype(np.float32)

    def brain(self) -> np.ndarray:
        """Return where there is brain in at least half of the maps, (X, Y, Z) bool."""
        common = self._common()
        return common if common.ndim == 3 else common[..., 0]

    def _common(self) -> np.ndarray:
        return np.asarray(2 * self._brains >= max(self.n, 1))
