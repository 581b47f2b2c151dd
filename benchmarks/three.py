"""What three to five directions allow without learning: estimates that evidence.py sets beside a method.

Such directions determine no tensor. `ridge` is the tensor nearest to a sphere that agrees with them. `smooth` is the
same after the directional contrast was smoothed. n directions show n - 1 of the five numbers of anisotropy: `scaled`
and `smooth scaled` are larger by the root of 5 / (n - 1). `constant` has the mean diffusivity of the scan and one FA
everywhere, that of the scans of role train. `atlas` has the shape of a registered population's tensors.

python benchmarks/three.py FOLDER

prints that FA. FOLDER holds the scans of role train, preprocessed by this app with --denoise none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scenes import scans_of_roles

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.smoothing import smooth_contrast
from bids_dmrigen.dwi.tensor import TensorFit
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.maps.balance import parted
from bids_dmrigen.methods.maps.fields import tensors
from bids_dmrigen.methods.maps.outputs import from_lower_triangles, lower_triangles
from bids_dmrigen.methods.maps.task import choose_volumes
from bids_dmrigen.methods.rivals import RIVALS, Estimate, least_squares
from bids_dmrigen.spatial.in_template import TemplateFiles, generate_in_template
from bids_dmrigen.spatial.normalize import load_template, register_to_template

MEAN_FA = 0.22  # in the brains of the scans of role train, fitted by `smooth`; see `main`
ATLAS_DIRECTIONS = 30
LEAST_SLICES = 10  # fewer do not show where in the head they lie

TOO_THIN = "registration needs at least {least} slices, found {found}"


def ridge_parts(scan: Scan) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean diffusivities (V,) and anisotropic parts (V, 6) of the mask, in 1e-3 mm²/s."""
    bval, volumes, _ = choose_volumes(scan.gradients)
    bvecs = torch.as_tensor(scan.gradients.world_directions(scan.affine)[volumes], dtype=torch.float32)
    b0 = torch.from_numpy(scan.mean_b0()[scan.mask].astype(np.float32))
    dwis = torch.from_numpy(np.asarray(scan.data[scan.mask][:, volumes], dtype=np.float32))
    unit = float(b0.mean())
    return tensors(b0 / unit, dwis / unit, bvecs, bval)


def estimate(scan: Scan, mean: torch.Tensor, anisotropic: torch.Tensor) -> Estimate:
    """Return the estimate with these tensors in its mask."""
    tensor = anisotropic.clone()
    tensor[:, :3] += mean[:, None]
    rows = lower_triangles(tensor)
    return Estimate(TensorFit(rows, rows[:, 0], 1e-6), scan)


def ridge(scan: Scan) -> Estimate:
    """Return the tensors nearest to a sphere that agree with the directions."""
    return estimate(scan, *ridge_parts(scan))


def scaled(scan: Scan) -> Estimate:
    """Return `ridge` with as much anisotropy as the numbers that the directions do not show would add."""
    mean, anisotropic = ridge_parts(scan)
    n = len(choose_volumes(scan.gradients)[1])
    return estimate(scan, mean, anisotropic * (5 / (n - 1)) ** 0.5)


def constant(scan: Scan) -> Estimate:
    """Return tensors of one FA with the main directions of `ridge`."""
    mean, anisotropic = ridge_parts(scan)
    mean = mean.clamp_min(0.01)
    share = MEAN_FA**2 * 3 / (1.5 - MEAN_FA**2)  # |anisotropic|² / MD²
    size = anisotropic.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return estimate(scan, mean, anisotropic / size * share**0.5 * mean[:, None])


class Atlas:
    """The estimate from a registered population; each scan is registered once.

    Parameters
    ----------
    fibres
        Folder of the population's anatomy and fibre directions.
    work
        Where transforms are kept.
    """

    def __init__(self, fibres: Path, work: Path):
        self.fibres, self.work = fibres, work

    def __call__(self, scan: Scan) -> Estimate:
        """Return the population's tensors with the mean diffusivity of the scan.

        Raises
        ------
        ScanError
            Where the scan has too few slices to be registered.
        """
        if scan.mask.shape[2] < LEAST_SLICES:
            raise ScanError(TOO_THIN.format(least=LEAST_SLICES, found=scan.mask.shape[2]))
        files, mean = self._registered(scan), ridge_parts(scan)[0]
        options = {"bvalues": [1000.0], "directions": ATLAS_DIRECTIONS}
        made = generate_in_template(load("atlas"), scan, Request(options=options), files)
        new = np.flatnonzero(~made.acquired)
        used = np.r_[np.flatnonzero(made.gradients.is_b0), new]
        series = Scan(made.mean[..., used], scan.affine, made.gradients[used], scan.mask)
        tensor = from_lower_triangles(least_squares(series, "ols").fit.tensor)
        own, anisotropic = parted(tensor)
        mean = mean.clamp_min(0.01)
        return estimate(scan, mean, anisotropic * (mean / own.clamp_min(0.05))[:, None])

    def _registered(self, scan: Scan) -> TemplateFiles:
        b0, template = scan.mean_b0(), load_template()
        folder = self.work / f"{hash(b0.tobytes()):x}"
        to, back = folder / "template-InverseComposite.h5", folder / "template-Composite.h5"
        if not to.exists():
            folder.mkdir(parents=True, exist_ok=True)
            fa = ridge(smooth_contrast(scan)).maps()["fa"]
            register_to_template({"b0": b0, "fa": fa}, scan.affine, scan.mask, template, folder)
            nib.save(nib.Nifti1Image(template.mask.astype(np.uint8), template.affine), folder / "brain.nii")
        return TemplateFiles(folder / "brain.nii", to, back, fibres=self.fibres)


def estimates(fibres: Path, work: Path) -> dict[str, Callable[[Scan, GradientTable], Estimate]]:
    """Return the estimates as arms of `qc.evaluation`, by name."""
    atlas = Atlas(fibres, work)
    return {
        "ridge": lambda kept, wanted: ridge(kept),
        "smooth": lambda kept, wanted: ridge(smooth_contrast(kept)),
        "scaled": lambda kept, wanted: scaled(kept),
        "smooth scaled": lambda kept, wanted: scaled(smooth_contrast(kept)),
        "constant": lambda kept, wanted: constant(kept),
        "atlas": lambda kept, wanted: atlas(kept),
    }


def main() -> None:
    """Print the mean FA in the brains of the scans of role train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    means = []
    for name, scan in scans_of_roles(parser.parse_args().folder, "train"):
        means.append(float(RIVALS["smooth"](scan).maps()["fa"][scan.mask].mean()))
        print(f"{name:>28s} {means[-1]:.3f}", flush=True)
    print(f"mean {np.mean(means):.3f}")


if __name__ == "__main__":
    main()
