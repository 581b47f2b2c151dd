"""Check generated tensor maps against the data: the signal of their tensor and every acquired volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..dwi.gradients import GradientError
from ..dwi.series import Scan
from ..dwi.tensor import TensorFit, check_table, design_matrix, fit_tensor, tensor_maps

LEAST_DIRECTIONS = 6
TOO_FEW = "fewer than six directions on the shell: they determine no tensor to compare with"


@dataclass(frozen=True)
class TensorCheck:
    """Residuals of the acquired signal for two tensors, in signal units.

    Parameters
    ----------
    volumes
        (K,) indices of volumes of the series.
    generated, fitted
        (X, Y, Z, K) acquired minus predicted signal, for the tensor of the generated maps and for the tensor fitted to
        these volumes; 0 outside the mask.
    """

    volumes: np.ndarray
    generated: np.ndarray
    fitted: np.ndarray


def check_maps(scan: Scan, bval: float, fa: np.ndarray, md: np.ndarray, dec: np.ndarray) -> TensorCheck:
    """Predict every volume of a shell, S = S0 exp(-b g^T D g), from generated maps and from the classical fit.

    Both use the mean b0 as S0. If D is the true tensor, the residual is noise, including that of the b0. For six
    directions the residual of the classical fit is almost 0: it fits the noise, which does not make it right.

    Parameters
    ----------
    scan
        The acquired series with its mask.
    bval
        b-value of the shell that the maps were generated from, s/mm².
    fa, md, dec
        (X, Y, Z), (X, Y, Z) in mm²/s and (X, Y, Z, 3) in world axes.

    Raises
    ------
    GradientError
        Where the shell determines no tensor.
    """
    shells = dict(scan.gradients.shells())
    volumes = shells[min(shells, key=lambda b: abs(b - bval))] if shells else np.zeros(0, int)
    if len(volumes) < LEAST_DIRECTIONS:
        raise GradientError(TOO_FEW)
    inside = scan.mask
    bvals, directions = scan.gradients.bvals[volumes], scan.gradients.world_directions(scan.affine)[volumes]
    with_b0 = np.r_[0.0, bvals], np.concatenate([np.zeros((1, 3)), directions])
    check_table(*with_b0)
    b0, signal = scan.mean_b0()[inside], np.asarray(scan.data[inside][:, volumes], np.float32)
    series = torch.from_numpy(np.concatenate([b0[:, None], signal], axis=1).astype(np.float32))
    fit = fit_tensor(series, *with_b0)
    maps = (torch.from_numpy(np.ascontiguousarray(m[inside], dtype=np.float32)) for m in (fa, md, dec))
    design = torch.as_tensor(design_matrix(bvals, directions)[:, :6], dtype=torch.float32)
    left = []
    for tensor in (tensor_of_maps(fit, *maps), fit.tensor):
        # A fit to noise may have negative eigenvalues; the predicted signal is limited to the b0.
        predicted = b0[:, None] * (tensor.float() @ design.T).clamp_max(0).exp().numpy()
        left.append(np.zeros((*inside.shape, len(volumes)), np.float32))
        left[-1][inside] = signal - predicted
    return TensorCheck(volumes, *left)


def tensor_of_maps(fit: TensorFit, fa: torch.Tensor, md: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
    """Return tensors (V, 6), lower triangles, that have the given maps; the fit determines the rest.

    The maps give the mean of the eigenvalues, the anisotropy and the principal axis without signs. The signs, the
    relative position of the middle eigenvalue and the other axes come from the fit. With the deviations d of its
    eigenvalues from their mean, the eigenvalues are md + q d / |d|, q² = 3 md² fa² / (3/2 - fa²).

    Parameters
    ----------
    fit
        Fit of V voxels.
    fa, md, dec
        (V,), (V,) in mm²/s and (V, 3).
    """
    fitted = tensor_maps(fit)
    values, vectors = fitted["eigenvalues"], fitted["eigenvectors"]  # (V, 3), (V, 3, 3)
    # d / |d| is an angle, from 0 for a stick (2, -1, -1) to 60 degrees for a disc (1, 1, -2). Flat shapes of this mean
    # and anisotropy may have a negative eigenvalue; then the angle is reduced until the eigenvalue is 0.
    stick = values.new_tensor([2.0, -1, -1]) / 6**0.5
    across = values.new_tensor([0.0, 1, -1]) / 2**0.5
    angle = torch.atan2(values @ across, values @ stick).clamp(0, math.pi / 3)
    far = md * fa * (3 / (1.5 - fa.square())).sqrt()
    room = (md / (far * (2 / 3) ** 0.5).clamp_min(1e-12)).clamp_max(1)  # cosine from the disc's angle
    angle = torch.minimum(angle, (math.pi / 3 - torch.acos(room)).clamp_min(0))[:, None]
    shape = torch.cos(angle) * stick + torch.sin(angle) * across
    values = md[:, None] + far[:, None] * shape
    first, second = vectors[:, :, 0], vectors[:, :, 1]
    length = dec.norm(dim=1, keepdim=True)
    axis = torch.where(first < 0, -dec, dec) / length.clamp_min(1e-12)
    axis = torch.where(length > 0, axis, first)
    across = second - (second * axis).sum(dim=1, keepdim=True) * axis
    size = across.norm(dim=1, keepdim=True)
    third = torch.linalg.cross(axis, vectors[:, :, 2])  # used where the axis is the second axis of the fit
    across = torch.where(size > 1e-3, across / size.clamp_min(1e-12), third / third.norm(dim=1, keepdim=True))
    frame = torch.stack([axis, across, torch.linalg.cross(axis, across)], dim=2)
    tensor = frame @ (values[:, :, None] * frame.mT)
    row, column = torch.tril_indices(3, 3)
    return tensor[:, row, column]
