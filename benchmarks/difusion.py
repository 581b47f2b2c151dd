"""Di-Fusion against MP-PCA and Patch2Self (of DIPY), on simulated scans and on a real run with a dense reference.

python benchmarks/difusion.py [--snr 10 20] [--shape 96 112 16] [--real DATA] [--published] [--figure OUT.png]

Simulated: 3 b0 + 30 directions, b = 1000 s/mm². PSNR of the diffusion-weighted volumes against the noise-free
signal, and of the FA map against that of the noise-free signal. Real: FA of a run with 1 b0 + 12 directions against
that of seven runs of the same subject, in the whole mask and in the mask eroded twice. The data range of every PSNR is
the 99.9th percentile of the reference in the mask; tensors are fitted by weighted least squares.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from dipy.denoise.localpca import mppca
from scipy.ndimage import binary_erosion

from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import fit_maps
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.denoise.classical import denoise
from bids_dmrigen.methods.denoise.difusion_model import DiFusion
from bids_dmrigen.qc.metrics import psnr
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.scanner import demo_like
from bids_dmrigen.spatial.io import read_image, read_scan
from bids_dmrigen.spatial.templates import embedded_mni

REAL_RUN = "bids/sub-canon/dwi/sub-canon_acq-ortho_dir-PA_dwi"
REFERENCE = "reference/sub-canon_desc-merged"


def fa_map(scan: Scan, data: np.ndarray) -> np.ndarray:
    """Return the FA map of a series with the scan's gradients."""
    return fit_maps(replace(scan, data=data.astype(np.float32)), "wls")["fa"]


def with_difusion(scan: Scan, **settings) -> np.ndarray:
    """Return the series that Di-Fusion generates; print steps, loss and evaluations."""
    result = DiFusion().generate(None, scan, Request(**settings))
    training = result.record["Training"]
    print(
        f"    {training['Steps']} steps ({training['StoppedBecause']}), held-out loss "
        f"{training['HeldOutLossAtStart']:.3f} -> {training['HeldOutLoss']:.3f}, "
        f"{result.checks['difusion_evaluations']:.1f} evaluations, "
        f"direction contrast {result.checks['difusion_direction_contrast']:.2f}, "
        f"{result.record['Numerics']['Precision']}"
    )
    return result.mean


def denoisers(args) -> dict:
    """Return name -> function of a scan."""
    options = {} if args.steps is None else {"training_steps": args.steps}
    chosen = {
        "acquired": lambda scan: scan.data,
        "MP-PCA": lambda scan: mppca(scan.data, mask=scan.mask, patch_radius=2),
        "Patch2Self": lambda scan: denoise(scan, "patch2self")[0],
        "Di-Fusion": lambda scan: with_difusion(scan, options=options, precision=args.precision),
    }
    if args.published:
        chosen["Di-Fusion, published, fast"] = lambda scan: with_difusion(
            scan, options=options | {"variant": "published"}
        )
        chosen["Di-Fusion, published"] = lambda scan: with_difusion(
            scan, options=options | {"variant": "published"}, sampler="paper"
        )
    return chosen


def simulated(snr: float, shape, args) -> dict[str, np.ndarray]:
    """Print the scores on a simulated scan; return the series."""
    arrays, affine = embedded_mni(2)
    subject = deform(procedural_atlas(**arrays, affine=affine), seed=3)
    simulation = demo_like(subject, snr=snr, seed=1, shape=shape)
    scan, truth = simulation.scan, simulation.clean
    weighted, fa_truth = ~scan.gradients.is_b0, fa_map(scan, simulation.clean)
    print(f"simulated, SNR {snr:g}, {scan.data.shape}")
    series = {}
    for name, denoiser in denoisers(args).items():
        start = time.perf_counter()
        series[name] = np.nan_to_num(denoiser(scan)).astype(np.float32)
        seconds = time.perf_counter() - start
        print(
            f"  {name:26s} DWI {psnr(series[name][..., weighted], truth[..., weighted], scan.mask):6.2f} dB   "
            f"FA {psnr(fa_map(scan, series[name]), fa_truth, scan.mask):6.2f} dB   {seconds:5.0f} s",
            flush=True,
        )
    mixed = np.where(weighted, series["Di-Fusion"], scan.data)
    print(f"  {'Di-Fusion, acquired b0s':26s} {'':12s}   FA {psnr(fa_map(scan, mixed), fa_truth, scan.mask):6.2f} dB")
    return {"truth": truth} | series


def real(folder: Path, args) -> dict[str, np.ndarray]:
    """Print the scores on the real run; return the series."""
    reference, image = read_scan(
        *(folder / f"{REFERENCE}_dwi.{end}" for end in ("nii.gz", "bval", "bvec")), folder / f"{REFERENCE}_mask.nii.gz"
    )
    scan, run_image = read_scan(*(folder / f"{REAL_RUN}.{end}" for end in ("nii.gz", "bval", "bvec")))
    if not np.allclose(image.affine, run_image.affine, atol=1e-3):
        raise SystemExit("the run and its reference are not on one grid")
    scan = replace(scan, mask=read_image(folder / f"{REFERENCE}_mask.nii.gz")[0] > 0.5)
    target, inner = fa_map(reference, reference.data), binary_erosion(scan.mask, iterations=2)
    print(f"real, {Path(REAL_RUN).name}, {scan.data.shape}")
    series = {}
    for name, denoiser in denoisers(args).items():
        start = time.perf_counter()
        series[name] = np.nan_to_num(denoiser(scan)).astype(np.float32)
        seconds, fa = time.perf_counter() - start, fa_map(scan, series[name])
        error = (fa - target)[inner]
        print(
            f"  {name:26s} FA {psnr(fa, target, scan.mask):6.2f} dB, eroded mask {psnr(fa, target, inner):6.2f} dB, "
            f"RMSE {np.sqrt(np.mean(error**2)):.4f}, bias {error.mean():+.4f}   {seconds:5.0f} s",
            flush=True,
        )
    return series


def figure(series: dict[str, np.ndarray], path: Path, volume: int) -> None:
    """Write one slice of one volume of every series, and below it the part that was removed from the acquired one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in series if n != "truth"]
    acquired = series["acquired"][..., volume]
    z = acquired.shape[2] // 2
    top = np.percentile(acquired[:, :, z], 99.5)
    fig, axes = plt.subplots(2, len(names), figsize=(3 * len(names), 6.5), squeeze=False)
    for column, name in enumerate(names):
        image = series[name][:, :, z, volume]
        residual = acquired[:, :, z] - image
        axes[0, column].imshow(image.T, origin="lower", cmap="gray", vmin=0, vmax=top)
        axes[1, column].imshow(residual.T, origin="lower", cmap="gray", vmin=-top / 6, vmax=top / 6)
        axes[0, column].set_title(name)
    for axis in axes.flat:
        axis.set_axis_off()
    fig.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snr", type=float, nargs="*", default=[10, 20])
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 112, 16])
    parser.add_argument("--real", type=Path, help="folder with bids/ and reference/")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--published", action="store_true", help="also the variant of the paper")
    parser.add_argument("--figure", type=Path, help="PNG; the scan's name is added")
    args = parser.parse_args()
    for snr in args.snr:
        series = simulated(snr, args.shape, args)
        if args.figure:
            figure(series, args.figure.with_name(f"{args.figure.stem}_snr{snr:g}.png"), 8)
    if args.real:
        series = real(args.real, args)
        if args.figure:
            figure(series, args.figure.with_name(f"{args.figure.stem}_real.png"), 5)


if __name__ == "__main__":
    main()
