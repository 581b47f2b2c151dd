"""Neighbour attention: its training and the maps of a scan; see `neighbours`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.arrays import Prepared
from ...diffusion.training import Plan
from ...dwi.noise import sigma_of_few
from ...dwi.series import Scan
from ...nets.attention_fit import ROUNDS, WIDTH, AttentionFit
from ...simulate.examples import SimulatedSubjects, numbers_of_step
from ..base import Generated, Request, TrainedAtOnce
from ..making import Making
from . import hidden
from .estimator import estimate_scan
from .fields import DIFFUSIVITY, Block
from .neighbours import SPEC, UNKNOWN
from .outputs import one_after_another
from .task import BVALS, LEAST, MOST, TENSOR_MAPS, choose_volumes

MARGIN = 2  # voxels around the brain


class Neighbours(TrainedAtOnce):
    """Neighbour attention."""

    spec = SPEC

    def network(self, size: str) -> AttentionFit:
        """Return an untrained network, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AttentionFit()

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture and the range of the training data."""
        return {"width": WIDTH, "rounds": ROUNDS, "bvals": list(BVALS), "directions": [LEAST, MOST]}

    def batch(self, size: str) -> int:
        """Return the blocks per step."""
        return 2

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return the number of fixed examples, and of blocks in each."""
        return 24, 2

    def training_plan(self, size: str) -> Plan:
        """Return the default budget and settings."""
        return Plan(steps=20_000, learning_rate=3e-3, warmup=50, evaluate_every=100, patience=1000, save_every=100,
                    ema=0.99)  # fmt: skip

    def examples(
        self, source: SimulatedSubjects | Prepared, size: str, batch: int, seed: int
    ) -> Callable[[int], hidden.Example]:
        """Return index -> example on the source's device."""
        return lambda index: hidden.examples(source, batch, numbers_of_step(seed, index, source.device))

    def loss(self, net: nn.Module, batch: hidden.Example) -> Tensor:
        """Return the error of hidden volumes; see `hidden.loss`."""
        return hidden.loss(batch, *net(batch.fields))

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Estimate the maps of a scan with `net`, or with stored weights where `net` is None."""
        # Precision fp32: the network is small, and its inner products span several orders of magnitude.
        making: Making[AttentionFit] = Making(self, net, request, (1, 1, 1), "fp32")
        warnings = self.spec.check(scan)
        bval, volumes, _ = choose_volumes(scan.gradients)
        box, slices = scan.brain_window(MARGIN)
        tensor, spread = estimate_scan(making.net, block_of(scan, box, bval, volumes, request.device))
        mask = scan.mask[box]
        maps = one_after_another(tensor.cpu()[:, torch.from_numpy(mask)].T).numpy()
        mean = np.zeros((*scan.mask.shape, maps.shape[1]), np.float32)
        mean[box][mask] = maps
        unknown = np.zeros(scan.mask.shape, np.float32)
        unknown[box] = spread.cpu().numpy() * DIFFUSIVITY * mask
        if request.progress is not None:
            request.progress("slices", len(slices), len(slices))
        record = making.record(
            1, Volumes={"b0": np.flatnonzero(scan.gradients.is_b0).tolist(), f"b={bval:.0f}": volumes.tolist()}
        )
        return Generated(
            mean,
            None,
            None,
            TENSOR_MAPS,
            np.zeros(maps.shape[1], bool),
            record,
            {},
            tuple(warnings),
            extra={UNKNOWN.param: unknown},
        )


def block_of(scan: Scan, box: tuple[slice, slice], bval: float, volumes: np.ndarray, device: torch.device) -> Block:
    """Return a scan's window as one block, in units of the brain's mean b0.

    Parameters
    ----------
    scan
        The series, with its brain mask.
    box
        Rows and columns of the window.
    bval, volumes
        b-value of the shell, s/mm², and the (n,) volumes that are used.
    device
        Where the block is made.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    unit = float(scan.mean_b0()[scan.mask].mean())

    def cut(which: np.ndarray) -> Tensor:  # (1, N, h, w, Z)
        data = np.asarray(scan.data[box][..., which], dtype=np.float32) / unit
        return torch.from_numpy(np.moveaxis(data, 3, 0).copy())[None].to(device)

    bvecs = torch.as_tensor(scan.gradients.world_directions(scan.affine)[volumes], dtype=torch.float32, device=device)
    mask = torch.from_numpy(np.ascontiguousarray(scan.mask[box]))[None].to(device)
    edges = torch.as_tensor(scan.zooms_mm, dtype=torch.float32, device=device)[None]
    sigma = torch.tensor([sigma_of_few(scan, volumes) / unit], dtype=torch.float32, device=device)
    return Block(cut(np.flatnonzero(scan.gradients.is_b0)), cut(volumes), bvecs, bval, mask, edges, sigma)


def build() -> Neighbours:
    """Return the method."""
    return Neighbours()
