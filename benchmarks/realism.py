"""Simulated scans beside real ones: tensor maps, signal, correlations and noise, for the same protocol.

python benchmarks/realism.py DATA_DIR [--atlas FOLDER] [--figure docs/figures/realism.png]
python benchmarks/realism.py DATA_DIR --widths [--atlas FOLDER] [--displaced VOXELS]

Every real scan (one run per subject of DATA_DIR/bids, and the dense reference) has a simulated partner with the same
grid, b-values, directions and noise level. Each partner is another simulated subject with another tissue.

With --widths, only scans of roles train and choose: how much it helps to smooth the directional contrast, for several
widths, when left-out directions are predicted from six. Where simulated scans want wider smoothing, networks learn to
blur.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scenes import roles

from bids_dmrigen.dwi.noise import estimate_sigma
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.smoothing import smooth_contrast
from bids_dmrigen.dwi.tensor import design_matrix, fit_maps
from bids_dmrigen.methods import rivals
from bids_dmrigen.qc.evaluation import contrast_error, kept_volumes, scored_voxels
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import fibre_atlas, procedural_atlas
from bids_dmrigen.simulate.examples import HELD_OUT, SimulatedSubjects, numbers_of_step
from bids_dmrigen.simulate.imaging import Imaging, measure
from bids_dmrigen.spatial.brain_mask import brain_of, erode
from bids_dmrigen.spatial.io import read_image, read_scan
from bids_dmrigen.spatial.templates import embedded_mni, read_fibre_atlas

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LAGS = (1, 2, 3)
WIDTHS = np.arange(0, 1.51, 0.15)  # voxels of the finest edge
SHOWN, SELECTIONS = 6, 3  # directions that the others are predicted from, and how often they are chosen
BLOCK = 8  # slices simulated at a time


def real_scans(root: Path) -> dict[str, Scan]:
    """Return one run per subject, and the dense reference, with brain masks as in the app."""
    scans = {}
    for folder in sorted((root / "bids").glob("sub-*")):
        path = sorted(folder.glob("dwi/*_dwi.nii.gz"))[0]
        scans[folder.name[4:]] = _with_mask(path)
    path = root / "reference" / "sub-canon_desc-merged_dwi.nii.gz"
    mask, _ = read_image(root / "reference" / "sub-canon_desc-merged_mask.nii.gz")
    scans["merged"] = _with_mask(path, mask > 0)
    return scans


def _with_mask(path: Path, mask: np.ndarray | None = None) -> Scan:
    stem = str(path).removesuffix(".nii.gz")
    scan, _ = read_scan(path, stem + ".bval", stem + ".bvec")
    if mask is None:
        mask = brain_of(scan)
    return Scan(np.asarray(scan.data, np.float32), scan.affine, scan.gradients, mask)


def partner(scan: Scan, subjects: SimulatedSubjects, subject: int, imaging: Imaging) -> Scan:
    """Return a simulated scan of one subject on the grid of a real scan, with the brains at the same place."""
    generator = numbers_of_step(subject, 0, subjects.device)
    affine = np.array(scan.affine, dtype=np.float64)
    middle = affine[:3, :3] @ np.argwhere(scan.mask).mean(axis=0)
    affine[:3, 3] = subjects.subject(int(subject)).centre.cpu().numpy() - middle
    bvals = torch.as_tensor(scan.gradients.bvals, dtype=torch.float32)[None]
    directions = torch.as_tensor(scan.gradients.world_directions(scan.affine), dtype=torch.float32)[None]
    tissue = subjects.tissues[subject % len(subjects.tissues)][None]
    series, mask = [], []
    for start in range(0, scan.mask.shape[2], BLOCK):
        shape = (*scan.mask.shape[:2], min(BLOCK, scan.mask.shape[2] - start))
        moved = torch.as_tensor(affine, dtype=torch.float32)[None].clone()
        moved[:, :3, 3] += start * moved[:, :3, 2]
        view = subjects.view(torch.tensor([subject]), moved, shape, tissue, generator)
        series.append(view.signal(bvals, directions))
        mask.append(view.mask())
    clean, mask = torch.cat(series, dim=-1), torch.cat(mask, dim=-1)[0].numpy()
    b0 = clean[0, torch.as_tensor(scan.gradients.is_b0)].mean(dim=0)
    level = b0[torch.as_tensor(mask)].median()[None]  # the estimated SNR is that of the median b0
    noisy = measure(clean, level, generator, imaging).signal[0]
    return Scan(1000 * noisy.permute(1, 2, 3, 0).numpy(), affine, scan.gradients, mask)


def describe(scan: Scan) -> dict[str, np.ndarray]:
    """Return the compared properties in the mask eroded by a voxel; spatial ones along the two finest axes."""
    plane = np.sort(np.argsort(scan.zooms_mm, kind="stable")[:2])
    mask = erode(scan.mask, float(scan.zooms_mm[plane].max()), scan.zooms_mm) & (scan.data > 0).all(axis=3)
    maps = fit_maps(scan, names=("fa", "md"))
    fa, md = maps["fa"], 1e3 * maps["md"]
    white, grey = mask & (fa > 0.3) & (md < 1.0), mask & (fa < 0.2) & (md < 1.2)
    b0 = scan.mean_b0()
    noise = estimate_sigma(scan)
    result = {"mean FA": np.array([fa[mask].mean()]), "sigma / b0": np.array([1 / noise.b0_snr])}
    result["white, grey share"] = np.array([white.sum(), grey.sum()]) / mask.sum()
    for name, where in (("", mask), (" white", white), (" grey", grey)):
        result[f"FA{name}"] = np.quantile(fa[where], QUANTILES)
        result[f"MD{name}"] = np.quantile(md[where], QUANTILES)
    result["b0 / median"] = np.quantile(b0[mask] / np.median(b0[mask]), QUANTILES)
    for b, volumes in scan.gradients.shells():
        ratio = scan.data[mask][:, volumes] / b0[mask][:, None]
        result[f"S/S0 b={b:.0f}"] = np.quantile(ratio, QUANTILES)
    result["neighbouring directions"] = np.array([neighbour_correlation(scan, mask)])
    for name, image in (("FA", fa), ("MD", md), ("b0", b0)):
        result[f"{name} at lags 1 2 3"] = np.array([autocorrelation(image, mask, plane, lag) for lag in LAGS])
        result[f"{name} edges"] = np.quantile(slopes(image, mask, plane), (0.5, 0.95)) / image[mask].std()
    return result


def neighbour_correlation(scan: Scan, mask: np.ndarray) -> float:
    """Return the mean correlation, over the brain, of every volume with the volume of the nearest direction."""
    nearest = scan.gradients.neighbours(1)[:, 0]
    pairs = [(i, j) for i, j in enumerate(nearest) if j >= 0 and not scan.gradients.is_b0[i]]
    data = scan.data[mask]
    return float(np.mean([np.corrcoef(data[:, i], data[:, j])[0, 1] for i, j in pairs]))


def autocorrelation(image: np.ndarray, mask: np.ndarray, plane, lag: int) -> float:
    """Return the correlation of a map with itself `lag` voxels along, mean over two axes, both ends in the mask."""
    return float(np.mean([np.corrcoef(*_pairs(image, mask, axis, lag))[0, 1] for axis in plane]))


def slopes(image: np.ndarray, mask: np.ndarray, plane) -> np.ndarray:
    """Return absolute differences between neighbouring voxels."""
    return np.concatenate([np.abs(np.subtract(*_pairs(image, mask, axis, 1))) for axis in plane])


def _pairs(image: np.ndarray, mask: np.ndarray, axis: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
    values, inside = (np.moveaxis(a, axis, 0) for a in (image, mask))
    both = inside[lag:] & inside[:-lag]
    return values[lag:][both], values[:-lag][both]


def table(real: dict[str, dict], simulated: dict[str, dict]) -> str:
    """Return one line per property and scan, real beside simulated, and their means."""
    lines = []
    for name in next(iter(real.values())):
        key = name.split(" b=")[0]
        lines.append(f"\n{key}")
        pairs = []
        for label in real:
            values = [[v for k, v in side[label].items() if k.split(" b=")[0] == key] for side in (real, simulated)]
            pairs.extend(zip([label] * len(values[0]), *values, strict=True))
        pairs.append(("mean", *(np.mean([pair[side] for pair in pairs], axis=0) for side in (1, 2))))
        for label, *sides in pairs:
            numbers = ["  ".join(f"{x:5.2f}" for x in values) for values in sides]
            lines.append(f"  {label:9s} real {numbers[0]}   simulated {numbers[1]}")
    return "\n".join(lines)


def gains(scan: Scan) -> np.ndarray:
    """Return for every width how much smaller the error of predicted left-out directions is than without smoothing.

    The error is the mean squared one of the directional contrast (`qc.evaluation.contrast_error`), its noise included.
    """
    mask, _ = scored_voxels(scan)
    errors = np.zeros((SELECTIONS, len(WIDTHS)))
    for k in range(SELECTIONS):
        kept = kept_volumes(scan.gradients, SHOWN, k, SELECTIONS)
        few = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
        hidden, others = scan.data[..., ~kept], scan.gradients[~kept]
        design = design_matrix(others.bvals, others.world_directions(scan.affine))[:, :6]
        predicted = np.zeros(hidden.shape, np.float32)
        for j, width in enumerate(WIDTHS):
            tensor = rivals.ols(smooth_contrast(few, float(width))).fit.tensor.numpy()
            predicted[scan.mask] = np.exp(np.minimum(tensor @ design.T, 0))  # S / S0
            errors[k, j] = contrast_error(predicted, hidden, others, mask)
    return (1 - errors / errors[:, :1]).mean(axis=0)


def show_gains(scans: dict[str, Scan], partners: dict[str, Scan]) -> None:
    """Print the gains of every scan and of its partner, in %, and the width that is best."""
    print(f"{'width':22s}" + "".join(f"{width:6.2f}" for width in WIDTHS) + "   best")
    best = []
    for label in scans:
        curves = [gains(side[label]) for side in (scans, partners)]
        best.append([WIDTHS[curve.argmax()] for curve in curves])
        for kind, curve, width in zip(("real", "simulated"), curves, best[-1], strict=True):
            print(
                f"{label:12s}{kind:10s}" + "".join(f"{100 * gain:6.1f}" for gain in curve) + f"{width:7.2f}", flush=True
            )
    real, simulated = np.mean(best, axis=0)
    print(f"mean of the best widths: real {real:.2f}, simulated {simulated:.2f}")


def draw(path: Path, pairs: dict[str, tuple[Scan, Scan]], real: dict[str, dict], simulated: dict[str, dict]) -> None:
    """Write the figure: FA maps of three pairs, then every property, real in black and simulated in red."""
    import matplotlib.pyplot as plt

    spreads = ("FA", "MD", "b0 / median", "S/S0")
    points = ("neighbouring directions", "FA at lags 1 2 3", "MD at lags 1 2 3", "FA edges")
    figure = plt.figure(figsize=(11, 8.6), layout="constrained")
    grid = figure.add_gridspec(3, 12)
    for column, label in enumerate(("canon", "elition", "prisma")):
        for k, scan in enumerate(pairs[label]):
            axes = figure.add_subplot(grid[0, 4 * column + 2 * k : 4 * column + 2 * k + 2])
            middle = scan.mask.shape[2] // 2
            axes.imshow(np.rot90(fit_maps(scan, names=("fa",))["fa"][:, :, middle]), cmap="gray", vmin=0, vmax=0.9)
            axes.set_title(f"FA {label}, {('real', 'simulated')[k]}", fontsize=8)
            axes.axis("off")
    for panel, name in enumerate((*spreads, *points)):
        axes = figure.add_subplot(grid[1 + panel // 4, 3 * (panel % 4) : 3 * (panel % 4) + 3])
        for side, colour, shift in ((real, "black", -0.15), (simulated, "tab:red", 0.15)):
            for x, label in enumerate(side):
                values = next(v for k, v in side[label].items() if k.split(" b=")[0] == name)
                at = np.full(len(values), x + shift)
                if name in spreads:
                    axes.plot(at[:2], values[[0, 4]], color=colour, linewidth=0.7)
                    axes.plot(at[:2], values[[1, 3]], color=colour, linewidth=3)
                    axes.plot(at[0], values[2], "_", color=colour, markersize=8)
                else:
                    axes.plot(at, values, ".", color=colour, markersize=5)
        axes.set_title(name + (" (10⁻³ mm²/s)" if name == "MD" else ""), fontsize=8)
        axes.set_xticks(range(len(real)), list(real), rotation=60, fontsize=6)
        axes.tick_params(axis="y", labelsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--atlas", type=Path, help="folder of an atlas with measured fibre directions")
    parser.add_argument("--widths", action="store_true", help="gain of smoothing, real and simulated")
    parser.add_argument("--displaced", type=float, default=Imaging.displaced, help="see `simulate.imaging.Imaging`")
    args = parser.parse_args()
    scans = real_scans(args.data)
    if args.widths:
        training = {subject for subject, role in roles().items() if role != "report"}
        scans = {label: scan for label, scan in scans.items() if label in training}
    real = {label: describe(scan) for label, scan in scans.items()}
    if args.atlas:
        arrays, affine = read_fibre_atlas(args.atlas)
        atlas = fibre_atlas(**arrays, affine=affine)
    else:
        arrays, affine = embedded_mni(2)
        atlas = procedural_atlas(**arrays, affine=affine)
    subjects = SimulatedSubjects([deform(atlas, HELD_OUT + k) for k in range(len(scans))])
    partners = {}
    for k, (label, scan) in enumerate(scans.items()):
        snr = 1 / float(real[label]["sigma / b0"][0])
        partners[label] = partner(scan, subjects, k, Imaging(snr=(snr, snr), displaced=args.displaced))
    if args.widths:
        show_gains(scans, partners)
        return
    simulated = {label: describe(scan) for label, scan in partners.items()}
    print(table(real, simulated))
    if args.figure:
        draw(args.figure, {label: (scans[label], partners[label]) for label in scans}, real, simulated)


if __name__ == "__main__":
    main()
