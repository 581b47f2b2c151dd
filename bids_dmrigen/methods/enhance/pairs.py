"""Measured pairs for RISH latent diffusion: a poor and a good scan of the same subjects, in the same place."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...dwi.gradients import distinct
from ...dwi.harmonics import order_for
from ...simulate.examples import numbers_from
from .examples import DIRECTIONS, SIDE, ZOOMS, Pair
from .inputs import ORDER, features, fitted
from .task import BVALS

SAME_B = 0.1  # relative difference between the b-values of matching shells
KEPT = 16  # shells of good scans kept in memory
OVERLAP = 0.7  # least share of a poor scan's brain that lies in the good scan's brain

NO_PAIRS = "no subject is in both {poor} and {good}: pairs are scans of the same subject, prepared from both datasets"
NO_SHELL = "{name}: the good scan has no shell within a tenth of b = {bval:.0f} s/mm² that determines degree 4"
APART = (
    "{poor} and {good}: {share:.0%} of the first one's brain lies in the second one's; expected are scans of a pair in "
    "one place: register the good one to the poor one, with its b-vectors turned, before preparing it"
)


class GoodShell(NamedTuple):
    """A shell of a good scan, in units of its median b0."""

    images: Tensor  # (17, X, Y, Z) half precision: S as harmonics, S0, the brain; 0 outside
    noise_power: Tensor  # (3,) bias of the squared features by noise, where S0 is 1
    affine: Tensor  # (4, 4)


class MeasuredPairs:
    """Pairs of scans from two files of prepared scans, by subject; each subject's first good scan is used.

    Parameters
    ----------
    poor
        The inputs of training; all or some of its scans.
    good
        The targets of training; in the same position in the world.

    Raises
    ------
    ValueError
        Where there is no pair, or the scans of a pair do not overlap.
    """

    def __init__(self, poor: Prepared, good: Prepared):
        self.poor, self.good, self.device = poor, good, poor.device
        good_scans = {about["subject"]: index for index, about in reversed(list(enumerate(good.about)))}
        used = [k for k, count in enumerate(poor.counts) if count.any() and poor.about[k]["subject"] in good_scans]
        self.partner = {k: good_scans[poor.about[k]["subject"]] for k in used}
        if not self.partner:
            raise ValueError(NO_PAIRS.format(poor=poor.path, good=good.path))
        self._shell = lru_cache(KEPT)(self._shell_of)
        for k, other in self.partner.items():
            self._check_place(k, other)

    def pair(
        self, batch: int, generator: torch.Generator, both: bool = True, side: tuple[int, int, int] = SIDE["small"]
    ) -> Pair:
        """Return blocks of one poor scan with some of a shell's directions, and the good scan's features there.

        Parameters are those of `examples.simulated`.
        """
        uniform, _ = numbers_from(generator)
        views, b0s, volumes = self.poor.shell_slices(generator, batch, side, min(DIRECTIONS), BVALS, list(self.partner))
        fewer = [n for n in DIRECTIONS if n < len(volumes)]
        if fewer and uniform(1) < 0.5:
            volumes = volumes[: fewer[int(uniform(1) * len(fewer))]]
        one = torch.ones(batch, device=self.device)
        order = order_for(len(distinct(views.directions[volumes].cpu().numpy())), ORDER)
        low = fitted(
            views.signal[:, b0s].mean(dim=1), views.signal[:, volumes], views.directions[volumes].expand(batch, -1, -1),
            views.bvals[volumes].mean() * one, views.sigma * one, len(b0s) * one, views.mask,
            views.affine[:, :3, :3].norm(dim=1), order,
        )  # fmt: skip
        good = self._shell(self.partner[views.scan], round(float(low.bval[0])))
        coarse, coarse_mask = fine, fine_mask = self._good_features(good, views.affine, side, side)
        if both:
            zoom = ZOOMS[int(uniform(1) * len(ZOOMS))]
            finer = tuple(round(z * n) for z, n in zip(zoom, side, strict=True))
            fine, fine_mask = self._good_features(good, views.affine, side, finer)
        return Pair(low, coarse * low.mask[:, None], fine, coarse_mask, fine_mask)

    def _good_features(
        self, good: GoodShell, views: Tensor, side: tuple[int, ...], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return features (B, 3, *shape) on a grid of `shape` over each block, and the brain mask.

        A voxel's signal is the mean over the good voxels that it covers along each axis, interpolated linearly at its
        centre. The remaining bias of the squared features by noise is subtracted.
        """
        edges = [m / n for n, m in zip(shape, side, strict=True)]
        axes = [(torch.arange(n) + 0.5) * edge - 0.5 for n, edge in zip(shape, edges, strict=True)]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(self.device)
        to_good = torch.linalg.inv(good.affine) @ views
        covered = (to_good[0, :3, :3] * torch.tensor(edges, device=self.device)).norm(dim=1).round().int().clamp_min(1)
        box = covered.tolist()
        means = F.avg_pool3d(good.images.float(), box, stride=1, padding=[n // 2 for n in box])
        points = torch.einsum("bij,xyzj->bxyzi", to_good[:, :3, :3], voxels) + to_good[:, None, None, None, :3, 3]
        points = points + (covered % 2 == 0) / 2  # the mean of an even number of voxels lies between two voxels
        grid = (2 * points + 1) / torch.tensor(means.shape[1:], device=self.device) - 1  # align_corners=False
        sampled = F.grid_sample(means.expand(len(views), -1, -1, -1, -1), grid.flip(-1), align_corners=False)
        signal, s0, brain = sampled.split([len(means) - 2, 1, 1], dim=1)
        s0, between = s0.clamp_min(1e-6), points - points.floor()
        # The sum of the squared weights of the good voxels in a mean.
        squares = ((between.square() + (1 - between).square() + covered - 1) / covered.square()).prod(dim=-1)
        noise = good.noise_power.reshape(-1, 1, 1, 1) * (squares[:, None] * brain / s0.square())
        inside = brain > 0.5
        return (features(signal / s0).square() - noise).clamp_min(0).sqrt() * inside, inside[:, 0]

    def _shell_of(self, index: int, bval: int) -> GoodShell:
        """Return the shell of a good scan that matches a b-value."""
        scan, about = self.good.scan(index), self.good.about[index]
        table = scan.gradients
        b, volumes = min(table.shells(), key=lambda shell: abs(shell[0] - bval))
        if abs(b - bval) > SAME_B * bval or order_for(len(distinct(table.bvecs[volumes])), ORDER) < ORDER:
            raise ValueError(NO_SHELL.format(name=about["name"], bval=bval))
        world = torch.as_tensor(table.world_directions(scan.affine)[volumes], dtype=torch.float32)[None]
        one = torch.ones(1)
        dwis = torch.from_numpy(scan.data[..., volumes]).permute(3, 0, 1, 2)[None]
        b0, mask = torch.from_numpy(scan.mean_b0())[None], torch.from_numpy(scan.mask)[None]
        size = torch.as_tensor(scan.zooms_mm, dtype=torch.float32)[None]
        shell = fitted(b0, dwis, world, b * one, about["sigma"] * one, one, mask, size, ORDER)
        s0 = shell.s0[0] / about["scale"]
        images = (torch.cat([shell.coefficients[0] * s0, s0, torch.ones_like(s0)]) * mask).half()
        noise_power = shell.variance[0] * shell.sigma.square()
        affine = torch.as_tensor(scan.affine, dtype=torch.float32)
        return GoodShell(*(tensor.to(self.device) for tensor in (images, noise_power, affine)))

    def _check_place(self, k: int, other: int) -> None:
        (poor, from_poor), (good, from_good) = self.poor.place(k), self.good.place(other)
        voxels = np.argwhere(poor)
        to_good = np.linalg.inv(from_good) @ from_poor
        nearest = np.rint(voxels @ to_good[:3, :3].T + to_good[:3, 3]).astype(int)
        nearest = nearest[((nearest >= 0) & (nearest < good.shape)).all(axis=1)]
        held = good[tuple(nearest.T)].sum() / max(len(voxels), 1)
        if held < OVERLAP:
            names = self.poor.about[k]["name"], self.good.about[other]["name"]
            raise ValueError(APART.format(poor=names[0], good=names[1], share=float(held)))
