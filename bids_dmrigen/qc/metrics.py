"""Image-quality metrics against a reference, and their entries in JSON.

Every metric is computed in a mask. Reports, JSON files and the group table take labels, units, better directions and
definitions from `DEFINITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..dwi.tensor import anisotropic_part
from .definitions import DEFINITIONS, Definition

SSIM_SIGMA = 1.5  # standard deviation of the Gaussian window, voxels
SSIM_RADIUS = 5  # radius of the window, voxels, as in Wang et al. 2004
RANGE_PERCENTILE = 99.9
DIRECTION_FA_MIN = 0.2
TINY = 1e-9  # smallest standard deviation

SHAPE_MISMATCH = "estimate {estimate}, reference {reference} and mask {mask} are not on one grid"
EMPTY_MASK = "the mask is empty: no metric can be computed"


class MetricError(ValueError):
    """Arrays between which a metric is not defined."""


def describe(
    key: str, value: float, source: str | None = None, definitions: Mapping[str, Definition] = MappingProxyType({})
) -> dict[str, Any]:
    """Return a metric's entry in JSON: value, unit, label, definition and better direction.

    Parameters
    ----------
    key
        A key of `DEFINITIONS` or of `definitions`.
    value
        The number; NaN and infinity become null, as JSON has neither.
    source
        "preproc" or the method that the number belongs to; None for the run.
    definitions
        Definitions of the method's own checks; a check without a definition gets a general one.
    """
    definition = DEFINITIONS.get(key) or definitions.get(key)
    if definition is None:
        label = key.replace("_", " ").capitalize()
        definition = Definition(label, "", None, "check computed by the method itself; see its documentation")
    entry = {
        "value": float(value) if np.isfinite(value) else None,
        "unit": definition.unit,
        "label": definition.label,
        "definition": definition.text,
        "better": definition.better,
        "metric": key,
    }
    return entry if source is None else {**entry, "source": source}


def describe_all(
    values: Mapping[str, float], source: str | None = None, definitions: Mapping[str, Definition] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Return the JSON entries of several metrics; the source, if any, is appended to the keys."""
    tail = "" if source is None else f"_{source}"
    return {f"{key}{tail}": describe(key, value, source, definitions) for key, value in values.items()}


def data_range(reference: np.ndarray, mask: np.ndarray) -> float:
    """Return the 99.9th percentile of a (X, Y, Z[, C]) reference in the (X, Y, Z) mask."""
    return float(np.percentile(np.asarray(reference)[np.asarray(mask, bool)], RANGE_PERCENTILE))


def psnr(estimate, reference, mask, value_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio, dB.

    PSNR = 10 log10(R² / MSE), MSE the mean over the mask (and channels) of the squared difference.

    Parameters
    ----------
    estimate, reference
        (X, Y, Z) or (X, Y, Z, C) arrays on one grid.
    mask
        (X, Y, Z) bool.
    value_range
        R; None takes the 99.9th percentile of the reference in the mask.

    Returns
    -------
    float
        Infinity for equal arrays.
    """
    e, r = _inside(estimate, reference, mask)
    error = float(((e - r) ** 2).mean())
    top = data_range(reference, mask) if value_range is None else value_range
    return float("inf") if error == 0 else float(10 * np.log10(top**2 / error))


def nmse(estimate, reference, mask) -> float:
    """Return the normalised squared error, sum (e - r)² / sum r² over the mask; parameters as in `psnr`."""
    e, r = _inside(estimate, reference, mask)
    return float(((e - r) ** 2).sum() / (r**2).sum())


def mean_absolute_error(estimate, reference, mask) -> float:
    """Return the mean absolute difference over the mask (the FA error, for FA); parameters as in `psnr`."""
    e, r = _inside(estimate, reference, mask)
    return float(np.abs(e - r).mean())


def ssim(estimate, reference, mask, value_range: float | None = None, slice_axis: int | None = None) -> float:
    """Return the mean structural similarity over the mask (Wang et al. 2004, eq. 13).

    Local means, variances and covariance are taken with a Gaussian window of σ = 1.5 voxels cut at 3.5 σ,
    not bias-corrected, with reflected borders. Both images are set to 0 outside the mask first, so that
    voxels outside the brain have no effect; K1 = 0.01 and K2 = 0.03. Channels are averaged.

    Parameters
    ----------
    estimate, reference, mask, value_range
        As in `psnr`.
    slice_axis
        None for a three-dimensional window; 0, 1 or 2 for windows within the slices across that axis.

    Returns
    -------
    float
        In [-1, 1].
    """
    from skimage.metrics import structural_similarity

    _inside(estimate, reference, mask)
    mask = np.asarray(mask, bool)
    top = data_range(reference, mask) if value_range is None else value_range
    e = np.asarray(estimate, np.float64).reshape(*mask.shape, -1)
    r = np.asarray(reference, np.float64).reshape(*mask.shape, -1)
    # Reflected borders as wide as the window: scikit-image refuses an image that is smaller than the window.
    border = [(0, 0) if axis == slice_axis else (SSIM_RADIUS, SSIM_RADIUS) for axis in range(3)]
    inside = tuple(slice(low, low + n) for (low, _), n in zip(border, mask.shape, strict=True))
    channels = []
    for c in range(e.shape[3]):
        x, y = (np.pad(image[..., c] * mask, border, mode="symmetric") for image in (e, r))
        _, similarity = structural_similarity(
            x,
            y,
            data_range=top,
            channel_axis=slice_axis,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            full=True,
        )
        channels.append(similarity[inside][mask].mean())
    return float(np.mean(channels))


def direction_angle(estimate, reference, reference_fa, mask, fa_min: float = DIRECTION_FA_MIN) -> float:
    """Return the mean angle, degrees, between principal directions, their sign ignored.

    Parameters
    ----------
    estimate, reference
        (X, Y, Z, 3) directions, of any length above 0.
    reference_fa
        (X, Y, Z): voxels below `fa_min`, where a direction means little, are left out.
    mask, fa_min
        (X, Y, Z) bool; threshold in [0, 1].

    Returns
    -------
    float
        NaN where no voxel is left.
    """
    where = np.asarray(mask, bool) & (np.asarray(reference_fa) > fa_min)
    e, r = np.asarray(estimate, np.float64)[where], np.asarray(reference, np.float64)[where]
    lengths = np.linalg.norm(e, axis=1) * np.linalg.norm(r, axis=1)
    ok = lengths > 0
    if not ok.any():
        return float("nan")
    cosine = np.abs((e * r).sum(axis=1)[ok] / lengths[ok]).clip(0, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def scores(estimate, reference, mask) -> dict[str, float]:
    """Return PSNR, SSIM, NMSE and mean absolute error, under their keys in `DEFINITIONS`; parameters as in `psnr`."""
    return {
        "psnr": psnr(estimate, reference, mask),
        "ssim": ssim(estimate, reference, mask),
        "nmse": nmse(estimate, reference, mask),
        "mae": mean_absolute_error(estimate, reference, mask),
    }


def _inside(estimate, reference, mask) -> tuple[np.ndarray, np.ndarray]:
    estimate, reference, mask = np.asarray(estimate), np.asarray(reference), np.asarray(mask, bool)
    if estimate.shape != reference.shape or reference.shape[:3] != mask.shape:
        raise MetricError(SHAPE_MISMATCH.format(estimate=estimate.shape, reference=reference.shape, mask=mask.shape))
    if not mask.any():
        raise MetricError(EMPTY_MASK)
    return estimate[mask].astype(np.float64), reference[mask].astype(np.float64)


def tensor_snr(estimate: np.ndarray, first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Return the power of anisotropy over that of its error, in dB, free of the noise of the references.

    With D, A and B the anisotropic parts of the estimate and of two references of independent noise,
    10 log10(mean A:B / mean (D - A):(D - B)). The noise of a reference is in these means only as a product with that of
    the other. So the truth has an infinite value, and neither who keeps noise nor who removes it is favoured.

    Parameters
    ----------
    estimate, first, second
        (X, Y, Z, 6) tensors, lower triangles, mm²/s.
    mask
        (X, Y, Z) bool.

    Returns
    -------
    float
        NaN where noise leaves no power or no error.
    """
    d, a, b = (anisotropic_part(tensor[mask]) for tensor in (estimate, first, second))
    power, error = float((a * b).sum()), float(((d - a) * (d - b)).sum())
    return 10 * float(np.log10(power / error)) if power > 0 and error > 0 else float("nan")


def crps(best: np.ndarray, error: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean continuous ranked probability score of normal distributions; that of certain ones is the error.

    With z = (reference - best) / error: error (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), Gneiting & Raftery 2007.

    Parameters
    ----------
    best, error
        (V,) means and standard deviations.
    reference
        (V,) what was found.
    """
    from scipy.stats import norm

    sigma = np.maximum(np.asarray(error, np.float64), TINY)
    z = (np.asarray(reference, np.float64) - best) / sigma
    return float((sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5)).mean())


def energy_score(samples: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean energy score of samples of vectors: E|X - y| - E|X - X'| / 2 (Gneiting & Raftery 2007).

    Parameters
    ----------
    samples
        (K, V, C), K at least 2; pairs of a sample with itself do not count.
    reference
        (V, C).
    """
    k = len(samples)
    away = np.mean([np.linalg.norm(sample - reference, axis=1).mean() for sample in samples])
    apart = [np.linalg.norm(samples[i] - samples[j], axis=1).mean() for i in range(k) for j in range(i)]
    return float(away - np.mean(apart) / 2)
