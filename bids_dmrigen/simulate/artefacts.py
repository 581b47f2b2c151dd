"""Artefacts of a scanner, with their true values: truncated k-space, eddy currents, signal drop-out, ghosts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..dwi.gradients import GradientTable
from .fields import stream

EDDY_SHIFT = 0.3  # mm of shift for a field that displaces by 1 mm at EDDY_RADIUS_MM
EDDY_RADIUS_MM = 100.0
OUT_OF_RANGE = "{name}: expected a number from {low:g} to {high:g}, found {found:g}"


@dataclass(frozen=True)
class Artefacts:
    """Artefacts of one scan; by default it has none.

    Parameters
    ----------
    acquired
        Share of k-space that is acquired along both in-plane axes, in (0, 1]; zeros fill the rest, so that
        edges ring and the noise is correlated.
    eddy_mm
        Displacement along the phase axis in the volume with the highest b-value, at 100 mm from the centre of
        the image along the diffusion gradient.
    dropout
        Chance that a slice of a diffusion-weighted volume loses signal to motion, in [0, 1].
    ghost
        Amplitude of the copy half a field of view away along the phase axis, in [0, 1].
    """

    acquired: float = 1.0
    eddy_mm: float = 0.0
    dropout: float = 0.0
    ghost: float = 0.0

    def __post_init__(self):
        for name, low in (("acquired", 1e-3), ("dropout", 0.0), ("ghost", 0.0)):
            if not low <= (value := getattr(self, name)) <= 1:
                raise ValueError(OUT_OF_RANGE.format(name=name, low=low, high=1, found=value))


def eddy_coefficients(gradients: GradientTable, eddy_mm: float) -> np.ndarray:
    """Return (N, 4) of each volume: shift in mm, and slopes (mm/mm) along the three axes of the image.

    The field of an eddy current is proportional to the gradient that caused it: it grows along the direction of
    the diffusion weighting and with the square root of the b-value. Its slope along the phase axis scales the
    image, its slope along the other in-plane axis shears it, and its slope along the slice axis shifts every slice.
    """
    strength = np.sqrt(gradients.bvals / max(gradients.bvals.max(), 1e-12))[:, None]
    slopes = eddy_mm / EDDY_RADIUS_MM * strength * gradients.bvecs
    shift = EDDY_SHIFT * eddy_mm * strength[:, 0] * gradients.bvecs.sum(axis=1) / 3**0.5
    return np.column_stack([shift, slopes])


def eddy_displacement(coefficients: np.ndarray, shape, zooms_mm: np.ndarray) -> np.ndarray:
    """Return the displacement (X, Y, Z), mm along the phase axis, of one volume's coefficients (4,)."""
    axes = [(np.arange(n) - (n - 1) / 2) * zoom for n, zoom in zip(shape, zooms_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    shift, *slopes = coefficients
    return (shift + slopes[0] * x + slopes[1] * y + slopes[2] * z).astype(np.float32)


def slice_gains(seed: int, gradients: GradientTable, n_slices: int, dropout: float) -> np.ndarray:
    """Return (Z, N) factors on the signal of every slice: 1, or at most 0.5 where the signal dropped out."""
    rng = stream(seed, 23)
    lost = (rng.random((n_slices, len(gradients))) < dropout) & ~gradients.is_b0
    return np.where(lost, rng.uniform(0, 0.5, lost.shape), 1.0).astype(np.float32)


def ghosted(signal: np.ndarray, amplitude: float, phase_axis: int) -> np.ndarray:
    """Return signals (X, Y, Z, N) with a ghost, a copy half a field of view away (odd and even lines differ)."""
    return signal + np.float32(amplitude) * np.roll(signal, signal.shape[phase_axis] // 2, axis=phase_axis)


def k_space_window(shape, acquired: float) -> np.ndarray:
    """Return (X, Y) float32: one where in-plane k-space is acquired, in the order of the FFT."""
    x, y = (np.abs(np.fft.fftfreq(n)) <= acquired / 2 for n in shape[:2])
    return (x[:, None] & y[None]).astype(np.float32)


def truncated(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return complex images (X, Y, ...) of which only part of k-space was acquired."""
    spectrum = np.fft.fft2(image, axes=(0, 1)) * window.reshape(*window.shape, *[1] * (image.ndim - 2))
    return np.fft.ifft2(spectrum, axes=(0, 1)).astype(np.complex64)
