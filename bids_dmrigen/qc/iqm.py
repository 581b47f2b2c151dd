"""Quality of one run without a reference: SNR, contrast, neighbour correlation, dropout, residuals.

`qc.metrics.DEFINITIONS` describes the numbers, under the keys that the functions return.
"""

from __future__ import annotations

import numpy as np

from ..dwi.gradients import GradientTable
from ..spatial.similarity import pearson
from .metrics import psnr

DROPOUT_Z = 4.0
DROPOUT_LOSS = 0.10  # share of the signal; a smaller loss is harmless even if it is an outlier
MIN_SLICE_VOXELS = 20
MIN_SHELL_VOLUMES = 4
BESIDE = (-2, -1, 1, 2)  # neighbouring slices
MAD_TO_SD = 1.4826
TENSOR_PARAMETERS = 7
DARK = 0.2  # of the median signal
TRIMMED_PERCENT = 5.0


def acquisition(gradients: GradientTable, affine: np.ndarray) -> dict[str, float]:
    """Return counts of volumes, b0s, shells and directions, the largest b-value and the voxel volume."""
    return {
        "n_volumes": len(gradients),
        "n_b0": int(gradients.is_b0.sum()),
        "n_shells": len(gradients.shells()),
        "n_directions": int((~gradients.is_b0).sum()),
        "max_bval": float(gradients.bvals.max()),
        "voxel_volume": float(abs(np.linalg.det(affine[:3, :3]))),
    }


def signal_to_noise(data: np.ndarray, gradients: GradientTable, mask: np.ndarray, sigma) -> dict[str, float]:
    """Return b0 SNR and DWI SNR (highest shell).

    Parameters
    ----------
    data
        (X, Y, Z, N) series.
    gradients
        N entries.
    mask
        (X, Y, Z) bool.
    sigma
        Noise standard deviation in signal units: one number or an (X, Y, Z) map.

    Returns
    -------
    dict
        Keys `b0_snr` and `dwi_snr`; each only if the series has such volumes.
    """
    mask = np.asarray(mask, bool)
    noise = np.broadcast_to(np.asarray(sigma, np.float64), mask.shape)[mask]
    noise = np.where(noise > 0, noise, np.nan)
    values = {}
    if gradients.is_b0.any():
        values["b0_snr"] = float(np.nanmedian(data[..., gradients.is_b0][mask].mean(axis=1) / noise))
    shells = gradients.shells()
    if shells:
        values["dwi_snr"] = float(np.nanmedian(data[..., shells[-1][1]][mask].mean(axis=1) / noise))
    return values


def direction_signal(
    data: np.ndarray, predicted: np.ndarray, gradients: GradientTable, mask: np.ndarray
) -> tuple[float, float]:
    """Return how much the signal varies with the direction, and its mean, both in signal units.

    The direction explains the variance of the signal over the directions of a shell, minus the variance of the
    residual of a tensor fit (7 parameters removed from the count). Noise cancels in the difference, so that noisy,
    denoised and generated series can be compared. The difference is averaged over the mask, without dark voxels and
    the 5 % with the largest variance or residual (eyes, vessels, edges, where a tensor does not fit). Then the root
    is taken, and shells are averaged.

    Parameters
    ----------
    data, predicted
        (X, Y, Z, N) series and the signal of the tensor fitted to it.
    gradients, mask
        N entries; (X, Y, Z) bool.

    Returns
    -------
    tuple
        Explained standard deviation and root-mean-square of the voxels' mean signal; NaN without a shell of
        two volumes or with no more than 7 volumes.
    """
    mask, count = np.asarray(mask, bool), data.shape[3]
    shells = [members for _, members in gradients.shells() if len(members) > 1]
    if count <= TENSOR_PARAMETERS or not shells or not mask.any():
        return float("nan"), float("nan")
    inflation = count / (count - TENSOR_PARAMETERS)
    explained, means = [], []
    for members in shells:
        values = np.asarray(data[..., members][mask], np.float64)
        mean = values.mean(axis=1)
        total = values.var(axis=1, ddof=1)
        residual = inflation * ((values - predicted[..., members][mask]) ** 2).mean(axis=1)
        keep = (mean >= DARK * np.median(mean)) & np.isfinite(residual)
        for variance in (total, residual):
            keep &= variance <= np.nanpercentile(variance, 100 - TRIMMED_PERCENT)
        if keep.any():
            explained.append(np.sqrt(max((total - residual)[keep].mean(), 0.0)))
            means.append(np.sqrt((mean[keep] ** 2).mean()))
    return (float(np.mean(explained)), float(np.mean(means))) if means else (float("nan"), float("nan"))


def neighbour_correlation(data: np.ndarray, gradients: GradientTable, mask: np.ndarray) -> float:
    """Return the neighbouring-DWI correlation (Yeh et al. 2019), NaN below two diffusion-weighted volumes.

    Each diffusion-weighted volume is paired with the nearest other one in q-space, q = √b g, where g and -g
    are the same; the Pearson correlations over the mask are averaged.
    """
    dwi = np.flatnonzero(~gradients.is_b0)
    if len(dwi) < 2:
        return float("nan")
    q = np.sqrt(gradients.bvals[dwi])[:, None] * gradients.bvecs[dwi]
    distance = np.minimum(np.linalg.norm(q[:, None] - q[None], axis=2), np.linalg.norm(q[:, None] + q[None], axis=2))
    np.fill_diagonal(distance, np.inf)
    values = np.asarray(data[..., dwi][np.asarray(mask, bool)], np.float64)
    values -= values.mean(axis=0)
    values /= np.linalg.norm(values, axis=0) + 1e-12
    return float((values * values[:, distance.argmin(axis=1)]).sum(axis=0).mean())


def slice_scores(data: np.ndarray, gradients: GradientTable, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the signal of each slice of each volume deviates, and which are dropouts.

    r(s, v) is the log of the masked mean signal of slice s in volume v, minus its median over the volumes of
    the shell, minus the median of that over the four slices beside it: effects of the direction on anatomy
    vary slowly from slice to slice, dropouts do not. z = r / spread. The spread is 1.4826 MAD, of the slice
    in its shell or of all slices of the shell, whichever is larger.

    Parameters
    ----------
    data
        (X, Y, Z, N) series; slices are taken across the third axis.
    gradients, mask
        N entries; (X, Y, Z) bool.

    Returns
    -------
    scores
        (Z, N) z, NaN where the slice has fewer than 20 mask voxels or the shell fewer than 4 volumes.
    dropouts
        (Z, N) bool: z < -4 and more than 10 % of the signal lost.
    """
    mask = np.asarray(mask, bool)
    counts = mask.sum(axis=(0, 1))
    sums = np.stack([np.asarray(data[:, :, z], np.float64)[mask[:, :, z]].sum(axis=0) for z in range(mask.shape[2])])
    mean = np.where(counts[:, None] >= MIN_SLICE_VOXELS, sums / np.maximum(counts, 1)[:, None], np.nan)
    log = np.log(np.where(mean > 0, mean, np.nan))
    scores, excess = np.full(log.shape, np.nan), np.full(log.shape, np.nan)
    rows = np.flatnonzero(np.isfinite(log).all(axis=1))
    for members in gradients.groups():
        if len(members) < MIN_SHELL_VOLUMES or len(rows) <= len(BESIDE):
            continue
        r = log[np.ix_(rows, members)]
        r = r - np.median(r, axis=1, keepdims=True)
        padded = np.pad(r, ((2, 2), (0, 0)), mode="reflect")
        r = r - np.median([padded[2 + k : len(r) + 2 + k] for k in BESIDE], axis=0)
        spread = np.maximum(np.median(np.abs(r), axis=1, keepdims=True), np.median(np.abs(r)))
        excess[np.ix_(rows, members)] = r
        scores[np.ix_(rows, members)] = r / (MAD_TO_SD * spread + 1e-12)
    with np.errstate(invalid="ignore"):
        return scores, (scores < -DROPOUT_Z) & (excess < np.log(1 - DROPOUT_LOSS))


def dropout_fraction(scores: np.ndarray, dropouts: np.ndarray) -> float:
    """Return the percentage of slice × volume pairs with a score that are dropouts; NaN without any score."""
    judged = np.isfinite(scores).sum()
    return float(100 * dropouts.sum() / judged) if judged else float("nan")


def tensor_residual(data: np.ndarray, predicted: np.ndarray, s0: np.ndarray, mask: np.ndarray) -> float:
    """Return the tensor fit's residual, % of the fitted b0: median over the mask of sqrt(SSE / (N - 7)) / S0.

    Parameters
    ----------
    data, predicted
        (X, Y, Z, N) series and the signal of the tensor fitted to it.
    s0
        (X, Y, Z) fitted b0.
    mask
        (X, Y, Z) bool.

    Returns
    -------
    float
        NaN with no more than 7 volumes, which a tensor fits exactly.
    """
    freedom = data.shape[3] - TENSOR_PARAMETERS
    if freedom < 1:
        return float("nan")
    inside = np.asarray(mask, bool) & (np.asarray(s0) > 0)
    error = ((np.asarray(data[inside], np.float64) - predicted[inside]) ** 2).sum(axis=1)
    return float(100 * np.median(np.sqrt(error / freedom) / s0[inside])) if inside.any() else float("nan")


def left_out_checks(
    acquired: np.ndarray, generated: np.ndarray, mask: np.ndarray, sigma: float | None = None
) -> dict[str, float]:
    """Return how near a method's predictions are to acquired volumes that it did not see.

    Parameters
    ----------
    acquired, generated
        (X, Y, Z, K) signal.
    mask
        (X, Y, Z) bool.
    sigma
        Noise standard deviation, signal units.

    Returns
    -------
    dict
        `left_out_psnr` and, with `sigma`, `left_out_error`.
    """
    psnrs = [psnr(generated[..., k], acquired[..., k], mask) for k in range(generated.shape[3])]
    values = {"left_out_psnr": np.mean(psnrs)}
    if sigma:
        values["left_out_error"] = np.sqrt(((generated - acquired)[mask].astype(np.float64) ** 2).mean()) / sigma
    return {key: float(value) for key, value in values.items()}


def residual_checks(
    difference: np.ndarray, b0: np.ndarray, mask: np.ndarray, sigma: float | None = None
) -> dict[str, float]:
    """Return how much like noise the residual of a method looks.

    Parameters
    ----------
    difference
        (X, Y, Z, N) input minus output, for volumes that are in both.
    b0
        (X, Y, Z) mean b0: its gradient magnitude marks the anatomical edges.
    mask
        (X, Y, Z) bool.
    sigma
        Noise standard deviation, signal units.

    Returns
    -------
    dict
        `residual_edge_correlation`, `residual_autocorrelation` and, with `sigma`, `residual_std`; empty for
        a residual that is 0.
    """
    mask = np.asarray(mask, bool)
    difference = np.asarray(difference, np.float64)
    rms = np.sqrt((difference**2).mean(axis=3))
    if not rms[mask].any():
        return {}
    thick = [axis for axis in range(3) if b0.shape[axis] > 1]
    slopes = (np.gradient(np.asarray(b0, np.float64), axis=axis) for axis in thick)
    edges = np.sqrt(sum(slope**2 for slope in slopes))
    values = {"residual_edge_correlation": pearson(rms, edges, mask)}
    centred = difference - difference[mask].mean(axis=0)
    lags = []
    for axis in range(3):
        lower, upper = [slice(None)] * 3, [slice(None)] * 3
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        both = mask[tuple(lower)] & mask[tuple(upper)]
        if both.any():
            a, b = centred[tuple(lower)][both], centred[tuple(upper)][both]
            scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
            lags.append(np.mean((a * b).sum(axis=0)[scale > 0] / scale[scale > 0]))
    values["residual_autocorrelation"] = float(np.mean(lags)) if lags else float("nan")
    if sigma:
        values["residual_std"] = float(difference[mask].std() / sigma)
    return values


def mask_volume(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the mask's volume in ml."""
    return float(np.asarray(mask, bool).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
