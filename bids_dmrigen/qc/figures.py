"""The report's figures of acquisition, preprocessing and registration: arrays in, one SVG or PNG file out.

Volumes are given on their own voxel grid with its affine; `qc.slices` turns them to RAS. Figures of generated
data are in `qc.comparison`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..dwi.gradients import GradientTable
from .slices import (
    ACQUIRED,
    AXIAL,
    CORONAL,
    GENERATED,
    PROVENANCE_COLOURS,
    SAGITTAL,
    STYLE,
    WIDTH_IN,
    Row,
    mosaic,
    save,
    save_flicker,
)

CARPET_ROWS = 600  # voxels shown in the carpet
B0_COLOUR = "#888888"
MASK_COLOUR = "#e53935"
SPHERE_VIEWS = (("", (22, -60)), (", from above", (90, -90)))


def display_range(volume: np.ndarray, mask: np.ndarray, low: float = 0.0, high: float = 99.5) -> tuple[float, float]:
    """Return (vmin, vmax) for showing a volume: percentiles of its finite values in the mask."""
    inside = np.asarray(volume)[np.asarray(mask, bool)]
    inside = inside[np.isfinite(inside)]
    if not inside.size:
        return 0.0, 1.0
    vmin = 0.0 if low == 0 and inside.min() >= 0 else float(np.percentile(inside, low))
    vmax = float(np.percentile(inside, high))
    return vmin, vmax if vmax > vmin else vmin + (abs(vmin) or 1.0)


def shell_colours(gradients: GradientTable) -> list[str | tuple]:
    """Return one colour per volume: grey for b0, viridis by b-value for the shells."""
    colours: list = [B0_COLOUR] * len(gradients)
    shells = gradients.shells()
    for k, (_, members) in enumerate(shells):
        for volume in members:
            colours[volume] = colormaps["viridis"](0.15 + 0.7 * (k / max(len(shells) - 1, 1)))
    return colours


def acquisition(gradients: GradientTable, affine: np.ndarray, path: str | Path) -> Path:
    """Draw the sampling scheme: directions of each shell on a sphere (with antipodes), b-values by volume.

    Parameters
    ----------
    gradients
        N entries in the voxel axes of the image.
    affine
        (4, 4) of the image: directions are shown in world RAS+ axes.
    path
        SVG or PNG to write.
    """
    shells, colours = gradients.shells(), shell_colours(gradients)
    shown = shells if len(shells) <= 4 else [shells[k] for k in np.linspace(0, len(shells) - 1, 4).astype(int)]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.3))
        directions = gradients.world_directions(affine)
        views = [(b, members, "", (22, -60)) for b, members in shown]
        if len(shown) == 1:
            views.append((*shown[0], ", from above", (90, -90)))
        for k, (b, members, view, angles) in enumerate(views):
            axes = figure.add_axes((0.64 * k / len(views), 0.04, 0.64 / len(views), 0.80), projection="3d")
            _draw_sphere(axes, directions[members], colours[members[0]], angles)
            axes.set_title(f"b = {b:.0f} s/mm²: {len(members)} directions{view}", fontsize=9, pad=0)
        axes = figure.add_axes((0.70, 0.17, 0.28, 0.68))
        axes.bar(
            np.arange(len(gradients)),
            np.maximum(gradients.bvals, gradients.bvals.max() * 0.01),
            color=colours,
        )
        axes.set(xlabel="volume", ylabel="b-value (s/mm²)", title=f"{len(gradients)} volumes in order")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.text(0.005, 0.94, "Sampling scheme", fontsize=11, fontweight="bold")
        note = "filled: direction applied; hollow: its antipode (the same measurement)"
        if len(shown) < len(shells):
            note += f"; {len(shown)} of {len(shells)} shells shown"
        figure.text(0.005, 0.02, note, fontsize=8, color="#555555")
    return save(figure, path)


def added_directions(gradients: GradientTable, is_generated: np.ndarray, affine: np.ndarray, path: str | Path) -> Path:
    """Draw acquired and generated directions of each shell on a sphere, antipodes included.

    Parameters
    ----------
    gradients
        N entries in the voxel axes of the image.
    is_generated
        (N,) bool: volumes that were generated.
    affine
        (4, 4) of the image: directions are shown in world RAS+ axes.
    path
        SVG or PNG to write.
    """
    shells = gradients.shells()[:4]
    directions = gradients.world_directions(affine)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.3))
        shown = SPHERE_VIEWS[: 2 if len(shells) < 3 else 1]
        views = [(*shell, *view) for shell in shells for view in shown]
        for k, (b, members, view, angles) in enumerate(views):
            axes = figure.add_axes((k / len(views), 0.04, 1 / len(views), 0.74), projection="3d")
            theirs = is_generated[members]
            _draw_sphere(axes, directions[members[~theirs]], PROVENANCE_COLOURS[ACQUIRED], angles)
            _draw_sphere(axes, directions[members[theirs]], PROVENANCE_COLOURS[GENERATED], angles, size=10)
            title = f"b = {b:.0f} s/mm²{view}\n{(~theirs).sum()} acquired, {theirs.sum()} generated"
            axes.set_title(title, fontsize=9, pad=0)
        figure.text(0.005, 0.94, "Acquired and generated directions", fontsize=11, fontweight="bold")
        note = "large, blue: acquired; small, orange: generated; hollow: antipodes (the same measurement)"
        figure.text(0.005, 0.02, note, fontsize=8, color="#555555")
    return save(figure, path)


def _draw_sphere(axes, directions, colour, angles, size=22):
    angle = np.linspace(0, 2 * np.pi, 73)
    for plane in range(3):
        ring = np.zeros((3, angle.size))
        ring[(plane + 1) % 3], ring[(plane + 2) % 3] = np.cos(angle), np.sin(angle)
        axes.plot(*ring, color="#bbbbbb", linewidth=0.6)
    axes.scatter(*directions.T, color=colour, s=size, depthshade=False)
    axes.scatter(
        *(-directions.T), facecolors="none", edgecolors=[colour], s=0.64 * size, linewidths=0.7, depthshade=False
    )
    for name, position in zip("RAS", 1.25 * np.eye(3), strict=True):
        axes.text(*position, name, fontsize=8, color="#333333", ha="center", va="center")
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axes.set_box_aspect((1, 1, 1))
    axes.set_proj_type("ortho")
    axes.view_init(*angles)
    axes.set_axis_off()


def mask_contours(b0: np.ndarray, mask: np.ndarray, affine: np.ndarray, path: str | Path) -> Path:
    """Draw the brain mask's outline on the b0 in three planes.

    Parameters
    ----------
    b0
        (X, Y, Z) mean b0.
    mask
        (X, Y, Z) bool.
    affine, path
        (4, 4) of the image; SVG or PNG to write.
    """
    vmin, vmax = display_range(b0, mask)
    rows = [
        Row(name, b0, vmin, vmax, contours=((mask, MASK_COLOUR),), plane=plane)
        for name, plane in (("axial", AXIAL), ("coronal", CORONAL), ("sagittal", SAGITTAL))
    ]
    return save(mosaic(rows, affine, mask, "Brain mask (red) on the mean b0"), path)


def motion(
    translations_mm: np.ndarray, rotations_deg: np.ndarray, displacement_mm: np.ndarray, path: str | Path
) -> Path:
    """Draw the head-motion estimates over the volumes.

    Parameters
    ----------
    translations_mm, rotations_deg
        (N, 3) along and about the world x, y, z axes, relative to the reference.
    displacement_mm
        (N,) framewise displacement; the first entry may be NaN.
    path
        SVG or PNG to write.
    """
    volumes = np.arange(len(translations_mm))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.9))
        axes = figure.subplots(3, 1, sharex=True)
        figure.subplots_adjust(left=0.08, right=0.86, top=0.9, bottom=0.12, hspace=0.25)
        figure.text(0.005, 0.95, "Head motion relative to the reference", fontsize=11, fontweight="bold")
        styles = zip("xyz", ("R-L", "A-P", "S-I"), ("#d32f2f", "#388e3c", "#1976d2"), strict=True)
        for k, (letter, way, colour) in enumerate(styles):
            axes[0].plot(volumes, translations_mm[:, k], ".-", color=colour, label=f"{letter} ({way})", linewidth=1)
            axes[1].plot(volumes, rotations_deg[:, k], ".-", color=colour, label=f"about {letter}", linewidth=1)
        axes[2].bar(volumes, np.nan_to_num(displacement_mm), color="#555555")
        mean = np.nanmean(displacement_mm) if np.isfinite(displacement_mm).any() else 0.0
        axes[2].axhline(mean, color="#e65100", linewidth=1, linestyle="--", label=f"mean {mean:.2f} mm")
        for axis, label in zip(
            axes, ("translation\n(mm)", "rotation\n(degrees)", "framewise\ndisplacement\n(mm)"), strict=True
        ):
            axis.set_ylabel(label)
            axis.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False)
        axes[2].set_xlabel("volume")
        axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[2].set_xlim(-0.6, len(volumes) - 0.4)
    return save(figure, path)


def carpet(data: np.ndarray, gradients: GradientTable, mask: np.ndarray, path: str | Path, title: str = "") -> Path:
    """Draw every voxel's signal over the volumes, relative to the voxel's median in the shell.

    Parameters
    ----------
    data
        (X, Y, Z, N) series.
    gradients
        N entries.
    mask
        (X, Y, Z) bool; at most 600 of its voxels are drawn, in order of the third (slice) axis.
    path, title
        SVG or PNG to write; title of the figure.

    Raises
    ------
    ValueError
        Where the mask is empty.
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        raise ValueError("the brain mask is empty")
    voxels = voxels[np.argsort(voxels[:, 2], kind="stable")]
    voxels = voxels[np.linspace(0, len(voxels) - 1, min(CARPET_ROWS, len(voxels))).astype(int)]
    values = np.asarray(data[tuple(voxels.T)], np.float32)  # (voxels, N)
    for members in gradients.groups():
        middle = np.median(values[:, members], axis=1, keepdims=True)
        values[:, members] = 100 * (values[:, members] / np.where(middle > 0, middle, np.inf) - 1)
    limit = max(float(np.percentile(np.abs(values), 95)), 1.0)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.2))
        strip, slices, axes, bar = _heat_axes(figure)
        _draw_shell_strip(strip, gradients)
        slices.imshow(voxels[:, 2:3], aspect="auto", cmap="bone", interpolation="none")
        slices.set(xticks=[], yticks=[], ylabel="voxels, by slice (bottom = last)")
        picture = axes.imshow(
            values, aspect="auto", cmap="RdBu_r", norm=TwoSlopeNorm(0, -limit, limit), interpolation="none"
        )
        axes.set(yticks=[], xlabel="volume")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(picture, cax=bar, label="signal against the voxel's median in its shell (%)")
        figure.text(0.005, 0.955, title or "Signal of every voxel over the volumes", fontsize=11, fontweight="bold")
    return save(figure, path)


def slice_outliers(
    scores: np.ndarray, outliers: np.ndarray, gradients: GradientTable, path: str | Path, threshold: float
) -> Path:
    """Draw how far each slice of each volume deviates, with the outliers marked.

    Parameters
    ----------
    scores
        (Z, N) robust z of the slice's signal (`qc.iqm.slice_scores`); NaN where the slice holds no brain.
    outliers
        (Z, N) bool.
    gradients
        N entries.
    path, threshold
        SVG or PNG to write; the |z| that counts as an outlier.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.6))
        strip, unused, axes, bar = _heat_axes(figure)
        figure.delaxes(unused)
        _draw_shell_strip(strip, gradients)
        shade = colormaps["RdBu_r"].with_extremes(bad="#dddddd")
        limit = 1.5 * threshold
        picture = axes.imshow(
            scores,
            aspect="auto",
            cmap=shade,
            norm=Normalize(-limit, limit),
            interpolation="none",
            origin="lower",
        )
        where = np.argwhere(outliers)
        axes.plot(where[:, 1], where[:, 0], "s", markerfacecolor="none", markeredgecolor="black", markersize=5)
        axes.set(xlabel="volume", ylabel="slice (third voxel axis)")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(picture, cax=bar, label="robust z of the slice's signal")
        share = 100 * outliers.sum() / max(np.isfinite(scores).sum(), 1)
        title = f"Slice-wise signal: {int(outliers.sum())} slices below z = -{threshold:g} ({share:.1f} %), boxed"
        figure.text(0.005, 0.95, title, fontsize=11, fontweight="bold")
    return save(figure, path)


def _heat_axes(figure):
    strip = figure.add_axes((0.09, 0.855, 0.80, 0.04))
    slices = figure.add_axes((0.065, 0.13, 0.018, 0.71))
    return (
        strip,
        slices,
        figure.add_axes((0.09, 0.13, 0.80, 0.71), sharex=strip),
        figure.add_axes((0.905, 0.13, 0.012, 0.71)),
    )


def _draw_shell_strip(axes, gradients):
    axes.bar(np.arange(len(gradients)), 1.0, width=1.0, color=shell_colours(gradients))
    axes.set(xlim=(-0.5, len(gradients) - 0.5), ylim=(0, 1), yticks=[])
    axes.tick_params(labelbottom=False, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    names = ["grey: b0"] + [f"{b:.0f}" for b, _ in gradients.shells()]
    axes.text(1.005, 0.5, "b: " + ", ".join(names[1:4]), transform=axes.transAxes, fontsize=7, va="center")


def flicker(
    first: np.ndarray,
    second: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    names: tuple[str, str],
    title: str,
    path: str | Path,
    contour: np.ndarray | None = None,
    shared_scale: bool = False,
) -> Path:
    """Draw two volumes on one grid as an SVG that alternates between them under the pointer.

    Parameters
    ----------
    first, second
        (X, Y, Z) volumes to compare, e.g. moving and fixed image of a registration, or before and after.
    affine, mask
        (4, 4) and (X, Y, Z) bool of their grid.
    names
        Labels of the two.
    title, path
        Title; SVG to write.
    contour
        (X, Y, Z) mask outlined in both; None for the one that sets the crop.
    shared_scale
        True where intensities are comparable: one grey scale for both.
    """
    scales = [display_range(volume, mask) for volume in (first, second)]
    if shared_scale:
        scales = [(min(s[0] for s in scales), max(s[1] for s in scales))] * 2
    frames: list[Figure] = []
    for volume, name, (vmin, vmax) in zip((first, second), names, scales, strict=True):
        outline = ((mask if contour is None else contour, "#00e5ff"),)
        rows = [
            Row(f"{name}\n({word})", volume, vmin, vmax, contours=outline, plane=plane)
            for plane, word in ((AXIAL, "axial"), (CORONAL, "coronal"), (SAGITTAL, "sagittal"))
        ]
        frames.append(mosaic(rows, affine, mask, f"{title}: {name}"))
    return save_flicker(frames[0], frames[1], path)
