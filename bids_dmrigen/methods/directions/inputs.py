"""The condition of the network: references and other inputs for an image along a new direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...dwi.harmonics import harmonics, order_for, undamped_weights
from ...dwi.series import Scan
from .task import REFERENCES, Shell

EXTRA = 5  # channels: prediction, its slices below and above, mean of the shell, b0
LEAST_SCALE = 0.03  # share of the shell's mean signal: the error of a prediction without noise


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of B images, and the conversion of the network's output: image = centre + scale * output.

    Parameters
    ----------
    images
        (B, C, H, W) references and the `EXTRA` channels.
    centre, scale
        (B, 1, H, W) and (B, 1, 1, 1), signal units.
    bvecs, bvals
        (B, R + 1, 3) in the slice's voxel axes and (B, R + 1) s/mm²: references, then target.
    log_sigma
        (B,) logarithm of the references' noise level, in units of the shell's mean signal.
    """

    images: Tensor
    centre: Tensor
    scale: Tensor
    bvecs: Tensor
    bvals: Tensor
    log_sigma: Tensor

    def part(self, rows: Tensor) -> Condition:
        """Return the condition of some of the images."""
        return Condition(**{name: value[rows.to(value.device)] for name, value in vars(self).items()})

    @property
    def with_prediction(self) -> bool:
        """Whether there are more channels than references: then the output is the image, else (`paper`) the noise."""
        return self.images.shape[1] > self.bvecs.shape[1] - 1


def condition_of(
    b0: Tensor,
    shell: Tensor,
    acquired: Tensor,
    wanted: Tensor,
    bval: Tensor,
    sigma: Tensor,
    unit: Tensor,
    size: str,
    references: int = REFERENCES.default,
) -> Condition:
    """Return the condition of T wanted directions in each of S slices; B = S T.

    Parameters
    ----------
    b0
        (S, H, W, 3) mean b0 of the slice and its two neighbours.
    shell
        (S, N, H, W, 3) the series that the network starts from: acquired volumes (`paper`), or those after
        `starts.mean_start`.
    acquired, wanted
        (S, N, 3) and (S, T, 3) unit vectors in the slice's voxel axes.
    bval, sigma, unit
        (S,) b-value, noise level, and the shell's mean signal in the brain, the unit of all images.
    size, references
        Size of the network, and the number of references that it sees.
    """
    n_slices = len(acquired)
    n_wanted = wanted.shape[1]
    near = nearest_references(acquired, wanted, references)  # (S, T, R)
    each = torch.arange(n_slices, device=near.device)[:, None, None]
    beside = shell[each, near, :, :, 1]  # (S, T, R, H, W)
    bvecs = torch.cat([acquired[each, near], wanted[:, :, None]], dim=2)
    unit5 = unit.reshape(-1, 1, 1, 1, 1)
    if size == "paper":
        images = beside / unit5 - 1
        centre = unit5.expand(-1, n_wanted, 1, *beside.shape[3:])
        scale = unit5.expand(-1, n_wanted, 1, 1, 1)
    else:
        weights = start_weights(acquired, wanted)  # (S, T, N)
        predicted = torch.einsum("stn,snhwz->sthwz", weights, shell)
        spread = (sigma[:, None] * weights.norm(dim=2)).square() + (LEAST_SCALE * unit[:, None]).square()
        scale = spread.sqrt()[:, :, None, None, None]  # (S, T, 1, 1, 1)
        centre = predicted[..., 1][:, :, None]  # (S, T, 1, H, W)
        layers = predicted[..., [0, 2]].permute(0, 1, 4, 2, 3)  # below and above
        shared = torch.stack([shell[..., 1].mean(dim=1), b0[..., 1] / 4], dim=1) / unit5[:, 0]  # (S, 2, H, W)
        shared = shared[:, None].expand(-1, n_wanted, -1, -1, -1)
        images = torch.cat([(beside - centre) / scale, centre / unit5, (layers - centre) / scale, shared], dim=2)
    batch = n_slices * n_wanted
    return Condition(
        images.reshape(batch, *images.shape[2:]).contiguous(memory_format=torch.channels_last),
        centre.reshape(batch, *centre.shape[2:]),
        scale.reshape(batch, 1, 1, 1),
        bvecs.reshape(batch, references + 1, 3),
        bval.repeat_interleave(n_wanted)[:, None].expand(-1, references + 1),
        (sigma / unit).clamp_min(1e-3).log().repeat_interleave(n_wanted),
    )


def start_weights(acquired: Tensor, wanted: Tensor) -> Tensor:
    """Return the weights (..., T, N) with which signals along (..., N, 3) predict those along (..., T, 3).

    They are those of a fit of spherical harmonics, without the shrinkage of degree 2 by its penalty: what is generated
    is to have as much anisotropy as what was acquired.
    """
    order = order_for(acquired.shape[-2])
    return harmonics(wanted, order) @ undamped_weights(acquired, order, highest=2)


def nearest_references(acquired: Tensor, wanted: Tensor, n: int) -> Tensor:
    """Return (..., T, n) indices of the acquired directions nearest to each wanted one, by |dot|, nearest first."""
    return (wanted @ acquired.mT).abs().topk(n, dim=-1).indices


def shell_signal(scan: Scan, shell: Shell) -> Tensor:
    """Return a shell's acquired volumes (X, Y, Z, N), float32."""
    return torch.from_numpy(np.ascontiguousarray(scan.data[..., shell.volumes], dtype=np.float32))
