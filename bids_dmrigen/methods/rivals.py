"""Simple estimates that every method has to beat: what anyone can do with a scan in three lines.

A gain is a gain over the best of these, never over ordinary least squares alone. They have no options: what could be
tuned was tuned on the scans to choose on, and is fixed (`training/roles.tsv`, `benchmarks/rivals.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..dwi.gradients import LEAST_DIRECTIONS, GradientTable
from ..dwi.harmonics import order_for, prediction_weights
from ..dwi.noise import estimate_sigma
from ..dwi.series import Scan
from ..dwi.smoothing import smooth_contrast
from ..dwi.spline import even_points, resampled
from ..dwi.tensor import TensorFit, design_matrix, fit_tensor, noise_power, tensor_maps, tensor_volumes

SAME_BVAL = 0.05  # relative difference of b-values within one shell
SHRINKAGE = 0.2  # share of the noise's power that `shrink` takes away, see `benchmarks/rivals.py`
ROUNDS = 3  # of the correction for the noise floor


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a simple estimate says about a scan.

    Parameters
    ----------
    fit
        Tensor of every voxel of the mask, in world RAS+ axes, from the b0s and the shells of `tensor_volumes`.
    series
        The series after its denoising or smoothing, or as acquired.
    """

    fit: TensorFit
    series: Scan

    def maps(self) -> dict[str, np.ndarray]:
        """Return `fa`, `md`, `ad`, `rd`, `dec`, `direction` and `tensor`, 0 outside the mask.

        They are (X, Y, Z), mm²/s; (X, Y, Z, 3), world RAS+; and (X, Y, Z, 6), lower triangles in mm²/s.
        """
        maps = tensor_maps(self.fit) | {"tensor": self.fit.tensor}
        maps["direction"] = maps["eigenvectors"][:, :, 0]
        mask, volumes = self.series.mask, {}
        for name in ("fa", "md", "ad", "rd", "dec", "direction", "tensor"):
            values = maps[name].numpy()
            volumes[name] = np.zeros(mask.shape + values.shape[1:], dtype=np.float32)
            volumes[name][mask] = values
        return volumes

    def volumes(self, wanted: GradientTable) -> np.ndarray | None:
        """Return (X, Y, Z, K) volumes for K other directions, by harmonics fitted to each shell of the series.

        None where a wanted volume belongs to no shell with `LEAST_DIRECTIONS`.
        """
        shells = [(b, v) for b, v in self.series.gradients.shells() if len(v) >= LEAST_DIRECTIONS]
        out = np.zeros((*self.series.mask.shape, len(wanted)), np.float32)
        done = np.zeros(len(wanted), bool)
        for bval, volumes in shells:
            chosen = np.abs(wanted.bvals - bval) <= SAME_BVAL * bval
            acquired, others = self.series.gradients.bvecs[volumes], wanted.bvecs[chosen]
            order = order_for(len(volumes))
            weights = prediction_weights(torch.from_numpy(acquired), torch.from_numpy(others), order).float().numpy()
            signal = np.asarray(self.series.data[self.series.mask][:, volumes], dtype=np.float32)
            part = np.zeros((*self.series.mask.shape, int(chosen.sum())), np.float32)
            part[self.series.mask] = np.maximum(signal @ weights.T, 0)
            out[..., chosen] = part
            done |= chosen
        return out if done.all() and len(wanted) else None

    def on_finer(self, like: Scan) -> Estimate:
        """Return the estimate on the voxels of a finer scan, of which each voxel of this one is a block.

        Tensor, S0 and series by cubic splines; outside the mask, tensor and S0 are those of the nearest voxel in it.

        Parameters
        ----------
        like
            The finer scan, with its mask.
        """
        from scipy.ndimage import distance_transform_edt

        coarse = self.series.mask
        points = [even_points(n, wanted) for n, wanted in zip(coarse.shape, like.mask.shape, strict=True)]
        values = torch.cat([self.fit.tensor, self.fit.s0[:, None]], dim=1).float().numpy()
        whole = np.zeros((*coarse.shape, values.shape[1]), np.float32)
        whole[coarse] = values
        whole = whole[tuple(distance_transform_edt(~coarse, return_distances=False, return_indices=True))]
        fine = resampled(torch.from_numpy(whole).movedim(3, 0), points).movedim(0, 3)[torch.from_numpy(like.mask)]
        series = resampled(torch.from_numpy(np.array(self.series.data, np.float32)).movedim(3, 0), points)
        return Estimate(
            TensorFit(fine[:, :6], fine[:, 6].clamp_min(0), self.fit.min_diffusivity),
            Scan(series.clamp_min(0).movedim(0, 3).numpy(), like.affine, self.series.gradients, like.mask),
        )


def least_squares(scan: Scan, method: str) -> Estimate:
    """Return the tensor fitted by `ols` or `wls` to the b0s and the shells of `tensor_volumes`.

    Raises
    ------
    GradientError
        Where the table cannot determine a tensor.
    """
    used = tensor_volumes(scan.gradients)
    table, signal = scan.gradients[used], np.asarray(scan.data[scan.mask][:, used], dtype=np.float32)
    return Estimate(
        fit_tensor(torch.from_numpy(signal), table.bvals, table.world_directions(scan.affine), method), scan
    )


def ols(scan: Scan) -> Estimate:
    """Return ordinary least squares on the logarithms."""
    return least_squares(scan, "ols")


def wls(scan: Scan) -> Estimate:
    """Return weighted least squares on the logarithms (Chung et al. 2006)."""
    return least_squares(scan, "wls")


def rician(scan: Scan) -> Estimate:
    """Return weighted least squares with the noise floor taken out of the volumes that the tensor is fitted to.

    The fit predicts the signal A. The logarithm of a magnitude M in Rician noise is larger than ln A on average:
    E[ln M] = ln A + E1(A² / 2 sigma²) / 2, E1 the exponential integral. This is taken from the logarithms of the
    samples, and they are fitted again, `ROUNDS` times.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    from scipy.special import exp1

    sigma, used = estimate_sigma(scan).sigma, tensor_volumes(scan.gradients)
    table, data = scan.gradients[used], np.array(scan.data, dtype=np.float32)
    design = torch.as_tensor(design_matrix(table.bvals, table.world_directions(scan.affine)), dtype=torch.float32)
    estimate = wls(scan)
    for _ in range(ROUNDS):
        fit = estimate.fit
        signal = torch.exp(fit.tensor @ design[:, :6].T + fit.s0.clamp_min(1e-30).log()[:, None])
        raised = exp1(np.square(signal.clamp_min(0.1 * sigma).numpy() / sigma) / 2) / 2
        inside = np.asarray(scan.data[scan.mask], dtype=np.float32)
        inside[:, used] *= np.exp(-raised)
        data[scan.mask] = inside
        estimate = wls(replace(scan, data=data))
    return estimate


def smoothed(scan: Scan) -> Estimate:
    """Return weighted least squares after the directional contrast was smoothed; see `dwi.smoothing`.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    return wls(smooth_contrast(scan))


def shrunk(scan: Scan, taken: float = SHRINKAGE) -> Estimate:
    """Return the weighted fit with its anisotropic part shrunk by the share of it that is noise.

    With D the tensor less its mean diffusivity and v the power that noise alone would give it, the factor is
    max(1 - taken median(v) / median(|D|²), 0), the same in the whole mask: that of the linear estimate with the
    smallest error, where `taken` is 1.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    fit = wls(scan).fit
    used = tensor_volumes(scan.gradients)
    signal = torch.from_numpy(np.asarray(scan.data[scan.mask][:, used], dtype=np.float32))
    table = scan.gradients[used]
    power = noise_power(signal, table.bvals, table.world_directions(scan.affine), estimate_sigma(scan).sigma)
    size = fit.tensor.new_tensor([1, 2, 1, 2, 2, 1])
    mean = fit.tensor[:, [0, 2, 5]].mean(dim=1, keepdim=True) * size.new_tensor([1, 0, 1, 0, 0, 1])
    deviator = fit.tensor - mean
    share = 1 - taken * power.median() / (deviator.square() @ size).median().clamp_min(1e-30)
    return Estimate(replace(fit, tensor=mean + deviator * share.clamp_min(0)), scan)


def mppca(scan: Scan) -> Estimate:
    """Return weighted least squares after MP-PCA (Veraart et al. 2016), by DIPY."""
    from .denoise.classical import denoise

    return wls(replace(scan, data=denoise(scan, "mppca")[0]))


def nlm(scan: Scan) -> Estimate:
    """Return weighted least squares after non-local means (Coupé et al. 2008), by DIPY.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    from .denoise.nlm import build

    return wls(replace(scan, data=build().denoised(scan)))


# The names are those of `methods.SIMPLE`, which says what each does.
RIVALS: dict[str, Callable[[Scan], Estimate]] = {
    "ols": ols,
    "wls": wls,
    "rician": rician,
    "smooth": smoothed,
    "shrink": shrunk,
    "mppca": mppca,
    "nlm": nlm,
}
