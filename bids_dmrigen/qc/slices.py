"""Slice mosaics: volumes in RAS order, cut in anatomical planes, drawn in labelled rows, saved as small files."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from contourpy import contour_generator
from matplotlib import rc_context
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..diffusion.storage import write_atomically, write_text

AXIAL, CORONAL, SAGITTAL = 2, 1, 0
SIDES = {AXIAL: ("L", "R"), CORONAL: ("L", "R"), SAGITTAL: ("P", "A")}  # left and right edge of a panel
WIDTH_IN = 11.0
LABEL_IN, BAR_IN, GAP_IN = 1.45, 0.95, 0.04
MARGIN_MM = 10.0  # shown around the mask
PALETTE_COLOURS = 128  # for images inside an SVG; 256 would double their size and look the same
LIGHT_MAPS = ("RdBu_r",)  # their zero is white: labels on them are dark
ACQUIRED, GENERATED, DERIVED = "acquired", "generated", "derived"
PROVENANCE_COLOURS = {ACQUIRED: "#1b5e9b", GENERATED: "#b3470a", DERIVED: "#444444"}

STYLE: dict[Any, Any] = {  # Any: matplotlib's type lists every setting by name
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "bids_dmrigen",
    "svg.fonttype": "path",
    "path.simplify_threshold": 0.5,  # pixels at 72 per inch
}


@dataclass(frozen=True)
class Row:
    """One row of a mosaic: the same volume in several slices.

    Parameters
    ----------
    label
        Name of what is shown, left of the panels; may contain line breaks.
    volume
        (X, Y, Z) values or (X, Y, Z, 3) colours in [0, 1], in the scan's own voxel order.
    vmin, vmax, cmap, unit
        Scale. `unit` is the label of the colour bar; if it is empty, there is no colour bar.
    contours
        (mask, colour) pairs drawn as outlines.
    provenance
        "acquired", "generated" or "derived": written above the label, in its own colour.
    plane
        AXIAL, CORONAL or SAGITTAL.
    """

    label: str
    volume: np.ndarray
    vmin: float = 0.0
    vmax: float = 1.0
    cmap: str = "gray"
    unit: str = ""
    contours: tuple[tuple[np.ndarray, str], ...] = ()
    provenance: str = ""
    plane: int = AXIAL


@dataclass(frozen=True)
class Geometry:
    """How a grid is shown: reordered to the nearest RAS axes and cropped to the mask.

    Build it with `Geometry.of(affine, mask)`.
    """

    orientation: np.ndarray  # nibabel's (3, 2) orientation of the scan's voxel axes
    affine: np.ndarray  # of the reordered, cropped grid
    box: tuple[slice, slice, slice]
    mask: np.ndarray  # reordered and cropped

    @classmethod
    def of(cls, affine: np.ndarray, mask: np.ndarray) -> Geometry:
        """Return the geometry of a grid with this (4, 4) affine and (X, Y, Z) mask."""
        orientation = nib.orientations.io_orientation(affine)
        turned = nib.orientations.apply_orientation(np.asarray(mask, bool), orientation)
        ras = affine @ nib.orientations.inv_ornt_aff(orientation, mask.shape)
        if not turned.any():
            turned = np.ones_like(turned)
        pad = np.ceil(MARGIN_MM / nib.affines.voxel_sizes(ras)).astype(int)
        box: list[slice] = []
        for axis in range(3):
            inside = np.flatnonzero(turned.any(axis=tuple(a for a in range(3) if a != axis)))
            box.append(slice(max(inside[0] - pad[axis], 0), min(inside[-1] + pad[axis] + 1, turned.shape[axis])))
        cropped = ras.copy()
        cropped[:3, 3] = nib.affines.apply_affine(ras, [s.start for s in box])
        return cls(orientation, cropped, (box[0], box[1], box[2]), turned[tuple(box)])

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """Return an (X, Y, Z, ...) array in RAS order, cropped."""
        return nib.orientations.apply_orientation(np.asarray(volume), self.orientation)[self.box]

    def positions(self, plane: int, n: int) -> np.ndarray:
        """Return up to `n` slice indices spread over the inner 80 % of the mask along a plane's normal."""
        inside = np.flatnonzero(self.mask.any(axis=tuple(a for a in range(3) if a != plane)))
        span = inside[-1] - inside[0]
        wanted = np.linspace(inside[0] + 0.1 * span, inside[-1] - 0.1 * span, n)
        return np.unique(np.round(wanted).astype(int))

    def position_mm(self, plane: int, index: int) -> float:
        """Return the world coordinate, mm, of the centre of a slice along its normal."""
        centre = [(size - 1) / 2 for size in self.mask.shape]
        centre[plane] = index
        return float(nib.affines.apply_affine(self.affine, centre)[plane])

    def panel_ratio(self, plane: int) -> float:
        """Return height over width of a panel, in millimetres."""
        across, up = (axis for axis in range(3) if axis != plane)
        zooms = nib.affines.voxel_sizes(self.affine)
        return self.mask.shape[up] * zooms[up] / (self.mask.shape[across] * zooms[across])


def mosaic(rows: list[Row], affine: np.ndarray, mask: np.ndarray, title: str, n_slices: int = 7) -> Figure:
    """Return a figure of rows of slices, left of the picture = left of the subject (neurological).

    Parameters
    ----------
    rows
        Rows from top to bottom, all on the grid of `affine` and `mask`.
    affine, mask
        (4, 4) voxel to world RAS+ mm; (X, Y, Z) bool that decides the crop and the slices.
    title
        Above the figure.
    n_slices
        Panels per row.
    """
    with rc_context(STYLE):
        geometry = Geometry.of(affine, mask)
        cuts = [geometry.positions(row.plane, n_slices) for row in rows]
        bar_in = BAR_IN if any(row.unit for row in rows) else 0.0
        width = (WIDTH_IN - LABEL_IN - bar_in) / n_slices
        heights = [width * geometry.panel_ratio(row.plane) for row in rows]
        total = sum(heights) + GAP_IN * (len(rows) + 1) + 0.4
        figure = Figure(figsize=(WIDTH_IN, total))
        figure.text(0.05 / WIDTH_IN, 1 - 0.2 / total, title, fontsize=11, fontweight="bold", va="center")
        top = total - 0.4
        for row, cut, height in zip(rows, cuts, heights, strict=True):
            _draw_row(figure, row, cut, geometry, (top - height) / total, height / total, width)
            top -= height + GAP_IN
    return figure


def _draw_row(figure, row, cut, geometry, bottom, height, width):
    middle = bottom + height / 2
    tag = row.provenance.upper() if row.provenance != DERIVED else ""
    colour = PROVENANCE_COLOURS.get(row.provenance, "black")
    figure.text(
        0.05 / WIDTH_IN, middle, f"{tag}\n{row.label}" if tag else row.label,
        va="center", ha="left", fontsize=8, color=colour, linespacing=1.4,
    )  # fmt: skip
    volume = geometry.turn(row.volume)
    light = row.cmap in LIGHT_MAPS
    ink, paper, side_ink = ("black", "white", "#7a4b00") if light else ("white", "black", "#ffd54f")
    outlines = [(geometry.turn(np.asarray(m, np.float32)), c) for m, c in row.contours]
    for column, index in enumerate(cut):
        left = (LABEL_IN + column * width) / WIDTH_IN
        axes = figure.add_axes((left, bottom, (width - GAP_IN) / WIDTH_IN, height))
        picture = _draw_slice(axes, volume, index, row, geometry)
        for outline, line in outlines:
            plane = np.take(outline, index, axis=row.plane).T
            for points in contour_generator(z=plane).lines(0.5) if min(plane.shape) > 1 else []:
                axes.plot(*np.asarray(points).T, color=line, linewidth=0.9, scalex=False, scaley=False)
        axes.text(
            0.5, 0.01, f"{geometry.position_mm(row.plane, index):.0f} mm",
            transform=axes.transAxes, color=ink, fontsize=6.5, ha="center", va="bottom",
            bbox={"facecolor": paper, "alpha": 0.55, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        if column == 0:
            for x, side, align in zip((0.02, 0.98), SIDES[row.plane], ("left", "right"), strict=True):
                axes.text(
                    x, 0.98, side, transform=axes.transAxes, color=side_ink, fontsize=8,
                    fontweight="bold", ha=align, va="top",
                        )  # fmt: skip
    if row.unit:
        left = (WIDTH_IN - BAR_IN + 0.05) / WIDTH_IN
        bar_axes = figure.add_axes((left, bottom + 0.08 * height, 0.1 / WIDTH_IN, 0.84 * height))
        bar = figure.colorbar(picture, cax=bar_axes)
        bar.ax.tick_params(labelsize=7, length=2, pad=1.5)
        bar.ax.locator_params(nbins=5)
        bar.set_label(row.unit, fontsize=7.5, labelpad=2)
        bar.outline.set_linewidth(0.4)


def _draw_slice(axes, volume, index, row, geometry):
    across, up = (axis for axis in range(3) if axis != row.plane)
    zooms = nib.affines.voxel_sizes(geometry.affine)
    picture = np.take(volume, index, axis=row.plane).swapaxes(0, 1)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    extra = {} if picture.ndim == 3 else {"cmap": row.cmap, "norm": Normalize(row.vmin, row.vmax)}
    picture = np.nan_to_num(picture)
    if picture.ndim == 3:
        picture = picture.clip(0, 1)
    return axes.imshow(picture, origin="lower", interpolation="none", aspect=zooms[up] / zooms[across], **extra)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as SVG (images in it with a small palette) or, by its suffix, PNG; return the path."""
    if Path(path).suffix == ".svg":
        return write_text(path, _svg_text(figure))
    with rc_context(STYLE):
        return write_atomically(path, lambda part: figure.savefig(part, dpi=110))


def save_flicker(first: Figure, second: Figure, path: str | Path) -> Path:
    """Write two figures of one size as an SVG that alternates between them while the pointer is on it."""
    frames = [_svg_text(figure) for figure in (first, second)]
    view_box = re.findall(r'viewBox="([^"]+)"', frames[0])[0]
    bodies = []
    for k, frame in enumerate(frames):
        # A size in points would be scaled against the outer picture's own units.
        tag, rest = frame[frame.index("<svg") :].split(">", 1)
        tag = re.sub(r' (width|height)="[^"]*"', "", tag)
        bodies.append(tag.replace("<svg", f'<svg class="frame-{k}"') + ">" + rest)
    style = (
        ".frame-1{opacity:0}"
        "svg:hover>.frame-1{animation:flick 2.4s infinite}"
        "@keyframes flick{0%,45%{opacity:0}55%,95%{opacity:1}100%{opacity:0}}"
    )
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box}" preserveAspectRatio="xMidYMid meet">\n'
        f"<style>{style}</style>\n{bodies[0]}\n{bodies[1]}\n</svg>\n"
    )
    return write_text(path, text)


def _svg_text(figure: Figure) -> str:
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # A tenth of a point is enough for any screen; with more digits, outlines would be half of the file.
    text = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d)\d+", r"\1", m.group(0)), buffer.getvalue())
    return re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", _smaller_png, text)


def _smaller_png(match: re.Match) -> str:
    from PIL import Image

    original = base64.b64decode(match.group(1))
    image = Image.open(io.BytesIO(original)).convert("RGBA")
    if np.asarray(image)[..., 3].min() == 255:
        # Error diffusion would add noise that is not in the scan.
        image = image.convert("RGB").quantize(PALETTE_COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    smaller = min(buffer.getvalue(), original, key=len)
    return "data:image/png;base64," + base64.b64encode(smaller).decode()
