"""The report's figures of generated data beside acquired data: arrays in, one SVG or PNG file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..dwi.gradients import GradientTable
from .figures import display_range
from .slices import ACQUIRED, DERIVED, GENERATED, STYLE, WIDTH_IN, Row, mosaic, save
from .tensor_check import TensorCheck

FA_MAX = 1.0
MOST_LEFT_OUT = 2
FA_DIFFERENCE_MIN, FA_DIFFERENCE_MAX = 0.05, 0.3  # full scale of the difference maps
SOURCE_COLOURS = ("#1b5e9b", "#b3470a", "#2e7d32", "#6a1b9a", "#00838f", "#ad1457")


def nearest_pair(acquired: GradientTable, generated: GradientTable, is_generated: np.ndarray) -> tuple[int, int, float]:
    """Return (acquired volume, generated volume, angle in degrees) of the closest pair worth showing.

    Parameters
    ----------
    acquired, generated
        Tables of the two series, in the same voxel axes.
    is_generated
        (N,) bool: volumes of the second series that were generated.

    Raises
    ------
    ValueError
        Where either series has no diffusion-weighted volume to show.
    """
    ours, theirs = np.flatnonzero(~acquired.is_b0), np.flatnonzero(~generated.is_b0 & is_generated)
    if not len(ours) or not len(theirs):
        raise ValueError("no diffusion-weighted pair to compare")
    cosine = np.abs(acquired.bvecs[ours] @ generated.bvecs[theirs].T).clip(0, 1)
    apart = np.abs(acquired.bvals[ours][:, None] - generated.bvals[theirs]) / max(acquired.bvals.max(), 1)
    cost = np.degrees(np.arccos(cosine)) + 90 * apart
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    return int(ours[row]), int(theirs[column]), float(np.degrees(np.arccos(cosine[row, column])))


def input_output(
    acquired: np.ndarray,
    acquired_gradients: GradientTable,
    generated: np.ndarray,
    generated_gradients: GradientTable,
    is_generated: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    method: str,
    path: str | Path,
    provenance: str = ACQUIRED,
) -> Path:
    """Draw an acquired and a generated volume of (nearly) one direction, and the mean of each series' DWIs.

    Parameters
    ----------
    acquired, generated
        (X, Y, Z, N) and (X, Y, Z, M) series on one grid.
    acquired_gradients, generated_gradients
        Their tables.
    is_generated
        (M,) bool: volumes that were generated; the others are acquired volumes.
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    provenance
        Origin of the first series: ACQUIRED, or GENERATED where a generative method denoised it before.
    """
    ours, theirs, angle = nearest_pair(acquired_gradients, generated_gradients, is_generated)
    one, other = np.asarray(acquired[..., ours]), np.asarray(generated[..., theirs])
    b_in, b_out = acquired_gradients.bvals[ours], generated_gradients.bvals[theirs]
    mean_in = acquired[..., ~acquired_gradients.is_b0].mean(axis=3)
    mean_out = generated[..., ~generated_gradients.is_b0 & is_generated].mean(axis=3)
    scale, mean_scale = display_range(one, mask), display_range(mean_in, mask)
    n_in, n_out = int((~acquired_gradients.is_b0).sum()), int((~generated_gradients.is_b0 & is_generated).sum())
    rows = [
        Row(f"volume {ours}\nb = {b_in:.0f}", one, *scale, unit="signal", provenance=provenance),
        Row(
            f"{method}\nvolume {theirs}\nb = {b_out:.0f}\n{angle:.0f}° apart",
            other,
            *scale,
            unit="signal",
            provenance=GENERATED,
        ),
        Row(f"mean of\n{n_in} DWIs", mean_in, *mean_scale, unit="signal", provenance=provenance),
        Row(f"{method}\nmean of\n{n_out} DWIs", mean_out, *mean_scale, unit="signal", provenance=GENERATED),
    ]
    return save(mosaic(rows, affine, mask, f"{method}: acquired against generated (synthetic) signal"), path)


def left_out(
    acquired: np.ndarray,
    generated: np.ndarray,
    names: Sequence[str],
    affine: np.ndarray,
    mask: np.ndarray,
    method: str,
    path: str | Path,
) -> Path:
    """Draw acquired volumes, a method's prediction of them without seeing them, and the difference.

    Parameters
    ----------
    acquired, generated
        (X, Y, Z, K) volumes; at most `MOST_LEFT_OUT` are shown.
    names
        (K,) what each volume is, such as its b-value.
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    """
    rows = []
    for k in range(min(acquired.shape[3], MOST_LEFT_OUT)):
        low, high = display_range(acquired[..., k], mask)
        limit = (high - low) / 4
        difference = (generated[..., k] - acquired[..., k]) * mask
        rows += [
            Row(f"left out:\n{names[k]}", acquired[..., k], low, high, unit="signal", provenance=ACQUIRED),
            Row(f"{method},\nunseen", generated[..., k], low, high, unit="signal", provenance=GENERATED),
            Row(f"{method}\n- left out", difference, -limit, limit, "RdBu_r", "signal", provenance=DERIVED),
        ]
    return save(mosaic(rows, affine, mask, f"{method}: acquired directions that it did not see"), path)


def residual(
    difference: np.ndarray, sigma: float, affine: np.ndarray, mask: np.ndarray, method: str, path: str | Path
) -> Path:
    """Draw what a method removed, in units of the noise level: one volume, and the RMS over volumes.

    Removed noise shows no anatomy and has a standard deviation of about one.

    Parameters
    ----------
    difference
        (X, Y, Z, N) input minus output, for volumes that are in both.
    sigma
        Noise standard deviation, signal units.
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    """
    scaled = np.asarray(difference, np.float32) / sigma
    middle = scaled.shape[3] // 2
    rms = np.sqrt((scaled**2).mean(axis=3))
    rows = [
        Row(f"residual of\nvolume {middle}", scaled[..., middle], -3, 3, "RdBu_r", "σ", provenance=DERIVED),
        Row(
            "RMS over\nvolumes",
            rms,
            0,
            max(2.0, display_range(rms, mask)[1]),
            "inferno",
            "σ",
            provenance=DERIVED,
        ),
    ]
    figure = mosaic(rows, affine, mask, f"{method}: input minus output, in units of the noise level σ = {sigma:.3g}")
    return save(figure, path)


def residual_histogram(difference: np.ndarray, sigma: float, mask: np.ndarray, method: str, path: str | Path) -> Path:
    """Draw the residual's distribution in units of σ beside the normal one; parameters as in `residual`."""
    values = (np.asarray(difference)[np.asarray(mask, bool)] / sigma).ravel()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN / 2, 2.8))
        axes = figure.add_axes((0.12, 0.19, 0.84, 0.66))
        edges = np.linspace(-5, 5, 81)
        axes.hist(
            values.clip(-5, 5), edges.tolist(), density=True, color=SOURCE_COLOURS[1], alpha=0.6, label="residual"
        )
        axes.plot(edges, np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi), color="black", linewidth=1, label="N(0, 1)")
        axes.set(
            xlabel="(input - output) / σ",
            ylabel="density",
            title=f"{method}: standard deviation {values.std():.2f} σ",
        )
        axes.legend(frameon=False)
    return save(figure, path)


def fractional_anisotropy(
    fa: Mapping[str, np.ndarray],
    dec: Mapping[str, np.ndarray],
    affine: np.ndarray,
    mask: np.ndarray,
    path: str | Path,
    generated_sources: frozenset[str] = frozenset(),
    reference: str = "preproc",
) -> Path:
    """Draw FA and colour FA of every source, and the FA differences from the reference source.

    Parameters
    ----------
    fa
        Source name -> (X, Y, Z) FA.
    dec
        Source name -> (X, Y, Z, 3) colour FA, world axes (red R-L, green A-P, blue S-I), in [0, 1].
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    path
        SVG or PNG to write.
    generated_sources
        Sources that were generated.
    reference
        The source that the others are compared with, usually the classical fit.
    """
    rows = []
    for source, volume in fa.items():
        provenance = GENERATED if source in generated_sources else ACQUIRED
        rows.append(Row(f"FA, {source}", volume, 0, FA_MAX, unit="FA", provenance=provenance))
        if source in dec:
            rows.append(Row(f"colour FA,\n{source}", dec[source], provenance=provenance))
    others = [source for source in fa if source != reference and reference in fa]
    differences = {f"FA difference,\n{source}\n- {reference}": fa[source] - fa[reference] for source in others}
    # One scale for all differences, with a minimum so that irrelevant ones stay pale.
    limits = [display_range(np.abs(volume), mask, high=99)[1] for volume in differences.values()]
    limit = min(max([FA_DIFFERENCE_MIN, *limits]), FA_DIFFERENCE_MAX)
    for label, volume in differences.items():
        rows.append(Row(label, volume, -limit, limit, "RdBu_r", "ΔFA", provenance=DERIVED))
    title = "Fractional anisotropy; colours: red right-left, green front-back, blue up-down"
    return save(mosaic(rows, affine, mask, title), path)


def tensor_check(
    check: TensorCheck, sigma: float, affine: np.ndarray, mask: np.ndarray, method: str, path: str | Path
) -> Path:
    """Draw maps of the residuals of the acquired signal, for the tensor of generated maps and for the fitted one.

    Parameters
    ----------
    check
        The residuals.
    sigma
        Noise standard deviation, signal units.
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    """
    rms = {name: np.sqrt((left**2).mean(axis=3)) / sigma for name, left in _both_residuals(check, method)}
    high = max(2.0, *(display_range(volume, mask)[1] for volume in rms.values()))
    rows = [
        Row(f"RMS residual,\n{name}", volume, 0, high, "inferno", "σ", provenance=DERIVED)
        for name, volume in rms.items()
    ]
    title = f"{method}: acquired volumes minus the signal of its maps' tensor, in units of the noise level σ"
    return save(mosaic(rows, affine, mask, title), path)


def volume_check(
    check: TensorCheck, sigma: float, bvals: np.ndarray, mask: np.ndarray, method: str, path: str | Path
) -> Path:
    """Draw the RMS of the residuals over the mask for each volume; `bvals` (N,) are those of the series."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.8))
        axes = figure.add_axes((0.07, 0.19, 0.74, 0.66))
        for (name, left), colour in zip(_both_residuals(check, method), SOURCE_COLOURS, strict=False):
            rms = np.sqrt((left[np.asarray(mask, bool)].astype(np.float64) ** 2).mean(axis=0)) / sigma
            axes.plot(check.volumes, rms, "o", color=colour, markersize=4, label=name)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="noise alone")
        axes.set(xlabel="volume of the preprocessed series", ylabel="RMS residual / σ",
                 title=f"Each acquired volume at b = {np.mean(bvals[check.volumes]):.0f} s/mm²")  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return save(figure, path)


def _both_residuals(check: TensorCheck, method: str) -> list[tuple[str, np.ndarray]]:
    return [("classical fit", check.fitted), (method, check.generated)]


def uncertainty(
    images: Mapping[str, tuple[np.ndarray, np.ndarray, str]],
    affine: np.ndarray,
    mask: np.ndarray,
    method: str,
    path: str | Path,
) -> Path:
    """Draw the standard error of every map below its best estimate.

    Parameters
    ----------
    images
        Name -> (X, Y, Z) best estimate and standard error, and their unit.
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    """
    rows = []
    for name, (best, error, unit) in images.items():
        low, high = display_range(best, mask)
        most = display_range(error, mask)[1]
        rows += [
            Row(f"{name}:\nbest\nestimate", best, low, high, unit=unit, provenance=GENERATED),
            Row(f"{name}:\nstandard\nerror", error, 0, most, "inferno", unit, provenance=GENERATED),
        ]
    return save(mosaic(rows, affine, mask, f"{method}: how uncertain the maps are"), path)


def rish(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    affine: np.ndarray,
    mask: np.ndarray,
    method: str,
    path: str | Path,
    provenance: str = ACQUIRED,
) -> Path:
    """Draw the RISH features of each degree, of a method's input and output, on one scale.

    Parameters
    ----------
    before, after
        (X, Y, Z) |C_l|² for l = 0, 2, ...
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    provenance
        Origin of the input: ACQUIRED, or GENERATED where a generative method denoised it before.
    """
    rows = []
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        scale, name = display_range(one, mask), f"|C|², l = {2 * number}"
        rows += [
            Row(f"{name}\npreproc", one, *scale, unit=name, provenance=provenance),
            Row(f"{name}\n{method}", other, *scale, unit=name, provenance=GENERATED),
        ]
    return save(mosaic(rows, affine, mask, f"{method}: strength of the spherical harmonics of each degree"), path)


def extra(
    images: Mapping[str, np.ndarray], affine: np.ndarray, mask: np.ndarray, method: str, path: str | Path
) -> Path:
    """Draw the maps that a method generated in addition to its series or tensor maps, each on its own scale.

    Parameters
    ----------
    images
        Title -> (X, Y, Z).
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid.
    method, path
        Name of the method; SVG or PNG to write.
    """
    rows = [
        Row(title, image, *display_range(image, mask), "viridis", unit=title, provenance=GENERATED)
        for title, image in images.items()
    ]
    return save(mosaic(rows, affine, mask, f"{method}: further maps"), path)


def fa_histogram(fa: Mapping[str, np.ndarray], mask: np.ndarray, path: str | Path) -> Path:
    """Draw the FA distribution of every source in the mask; `fa` maps a source's name to (X, Y, Z)."""
    inside = np.asarray(mask, bool)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.8))
        axes = figure.add_axes((0.07, 0.19, 0.74, 0.66))
        edges = np.linspace(0, 1, 101)
        for source, colour in zip(fa, SOURCE_COLOURS * 3, strict=False):
            values = np.asarray(fa[source])[inside]
            values = values[np.isfinite(values)].clip(0, 1)
            label = f"{source} (median {np.median(values):.3f})"
            axes.hist(values, edges.tolist(), density=True, histtype="step", color=colour, linewidth=1.3, label=label)
        axes.set(xlabel="FA", ylabel="density", xlim=(0, 1), title="FA of all voxels in the mask")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return save(figure, path)


def against_reference(
    reference: np.ndarray,
    estimates: Mapping[str, np.ndarray],
    affine: np.ndarray,
    mask: np.ndarray,
    title: str,
    path: str | Path,
    generated_estimates: frozenset[str] = frozenset(),
    full: tuple[float, float, str] = (FA_MAX, FA_DIFFERENCE_MAX, "FA"),
) -> Path:
    """Draw a map from all acquired volumes, then each estimate of it with its difference below.

    Parameters
    ----------
    reference
        (X, Y, Z) FA or another image, or (X, Y, Z, 3) colour FA in [0, 1].
    estimates
        Name -> the same map from fewer volumes.
    affine, mask
        (4, 4) and (X, Y, Z) bool of the grid; maps are shown within the mask.
    title, path
        Heading; SVG or PNG to write.
    generated_estimates
        Estimates from generated volumes.
    full
        Full scale of the image and of the differences, and the unit; of colour FA, the second alone is used.
    """
    coloured = reference.ndim == 4
    inside = mask[..., None] if coloured else mask
    style: dict[str, Any] = {} if coloured else {"vmin": 0, "vmax": full[0], "unit": full[2]}
    limit = full[1]
    rows = [Row("reference:\nall volumes", reference * inside, provenance=ACQUIRED, **style)]
    for name, estimate in estimates.items():
        provenance = GENERATED if name in generated_estimates else ACQUIRED
        rows.append(Row(name, estimate * inside, provenance=provenance, **style))
        difference, label = (estimate - reference) * inside, f"{name}\n- reference"
        if coloured:
            label = f"{name},\n|difference|,\nfull at {limit}"
            rows.append(Row(label, np.abs(difference) / limit, provenance=DERIVED))
        else:
            rows.append(Row(label, difference, -limit, limit, "RdBu_r", f"Δ{full[2]}", provenance=DERIVED))
    return save(mosaic(rows, affine, mask, title), path)
