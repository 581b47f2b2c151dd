"""Predict each volume of a series from all others, so that its own noise cannot enter the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .gradients import GradientTable
from .tensor import design_matrix

RIDGE = 1e-6  # share of the mean squared signal; without it an exact duplicate of a volume makes the system singular
NEIGHBOURS = 4
CHANNELS = 6 + NEIGHBOURS  # of `conditions`
LOG_FLOOR = 1e-2  # signals are raised to this share of the b0 before the logarithm


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Predictors of volume j that never look at volume j.

    Parameters
    ----------
    linear
        (N, N + 1) weights on the other volumes and a constant: least squares over the brain (Patch2Self).
    log_tensor
        (N, N) weights on the logarithms of the other volumes: the tensor fit without volume j.
    mean
        (N, N) weights of the mean of j's shell without j.
    nearest
        (N, k) the nearest other volumes of the shell, -1 where there are fewer.
    b0
        (N, N) weights of the mean b0 without j.
    """

    linear: Tensor
    log_tensor: Tensor
    mean: Tensor
    nearest: np.ndarray
    b0: Tensor

    def to(self, device: torch.device) -> LeaveOneOut:
        """Return the predictors with their weights on this device."""
        return LeaveOneOut(
            self.linear.to(device),
            self.log_tensor.to(device),
            self.mean.to(device),
            self.nearest,
            self.b0.to(device),
        )


def leave_one_out(signal: Tensor, gradients: GradientTable) -> LeaveOneOut:
    """Fit the predictors of a run.

    Parameters
    ----------
    signal
        (V, N) signals of the brain's voxels, in units of the b0.
    gradients
        N entries.
    """
    return LeaveOneOut(
        linear=_regression(signal),
        log_tensor=_log_tensor(gradients),
        mean=_shell_means(gradients),
        nearest=gradients.neighbours(NEIGHBOURS),
        b0=_others_mean(gradients.is_b0, np.ones(len(gradients), bool)),
    )


def conditions(predictors: LeaveOneOut, block: Tensor, volumes: np.ndarray, unit: float) -> tuple[Tensor, Tensor]:
    """Return images that describe volumes but are computed from other volumes alone, and the linear prediction.

    The noise of each volume is independent of all that is returned for it, which makes the acquired volume a
    valid target for a network that is given these images (Noise2Noise, Lehtinen et al. 2018).

    Parameters
    ----------
    known
        The predictors.
    block
        (3, N, h, w) signals in units of the b0: the slice below, the slice itself, the slice above.
    volumes
        (J,) volume indices.
    unit
        Typical error of the prediction, by which differences from the prediction are divided.

    Returns
    -------
    images
        (J, CHANNELS, h, w): the prediction and the mean b0 without j; then as differences from the
        prediction: the prediction in the slice below and above, the tensor's prediction, the mean of the shell,
        the nearest directions (zero where there are fewer).
    prediction
        (J, h, w) linear prediction.
    """
    here, weights = block[1], predictors.linear[volumes]
    around = torch.einsum("jn,znhw->zjhw", weights[:, :-1], block) + weights[None, :, -1, None, None]
    p = around[1]
    log = torch.einsum("jn,nhw->jhw", predictors.log_tensor[volumes], here.clamp_min(LOG_FLOOR).log())
    mean = torch.einsum("jn,nhw->jhw", predictors.mean[volumes], here)
    b0 = torch.einsum("jn,nhw->jhw", predictors.b0[volumes], here)
    tensor = log.clamp_max(1.0).exp()
    differences = torch.stack([around[0], around[2], tensor, mean], dim=1) - p[:, None]
    near = torch.from_numpy(predictors.nearest[volumes]).to(p.device)  # (J, k), -1 where there is none
    neighbours = (here[near.clamp_min(0)] - p[:, None]) * (near >= 0)[:, :, None, None]
    return torch.cat([torch.stack([p, b0], dim=1), differences / unit, neighbours / unit], dim=1), p


def _regression(signal: Tensor) -> Tensor:
    """Least squares of every volume on all others at once: -P_ij / P_jj of the inverse Gram matrix P."""
    v = signal.double()
    mean = v.mean(dim=0)
    v = v - mean
    gram = v.T @ v / len(v)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    precision = torch.linalg.inv(gram)
    weights = -precision / precision.diagonal()[:, None]
    weights.fill_diagonal_(0.0)
    constant = mean - weights @ mean
    return torch.cat([weights, constant[:, None]], dim=1).float()


def _log_tensor(gradients: GradientTable) -> Tensor:
    """Weights that predict each log signal by the tensor fitted to the others."""
    design = design_matrix(gradients.bvals / 1000, gradients.bvecs)  # ms/µm²: well-conditioned
    weights = np.zeros((len(design), len(design)))
    for j in range(len(design)):
        rest = np.delete(np.arange(len(design)), j)
        weights[j, rest] = design[j] @ np.linalg.pinv(design[rest])
    return torch.from_numpy(weights).float()


def _shell_means(gradients: GradientTable) -> Tensor:
    total = torch.zeros(len(gradients), len(gradients))
    for members in gradients.groups():
        inside = np.isin(np.arange(len(gradients)), members)
        total += _others_mean(inside, inside)
    return total


def _others_mean(of: np.ndarray, rows: np.ndarray) -> Tensor:
    """Weights of the mean of the volumes `of` without j, for each row j in `rows`; 0 where none is left."""
    weights = np.outer(rows, of).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return torch.from_numpy(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1))
