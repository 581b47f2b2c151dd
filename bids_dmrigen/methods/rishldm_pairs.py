"""Measured pairs for RISH latent diffusion: a poor and a good scan of the same people, in the same place."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.arrays import Prepared
from ..dwi.gradients import distinct
from ..dwi.harmonics import order_for
from ..simulate.examples import numbers_from
from .rishldm_examples import BVALS, DIRECTIONS, SIDE, ZOOMS, Pair
from .rishldm_inputs import ORDER, fitted

SAME_B = 0.1  # relative: shells that belong to each other
KEPT = 32  # good scans' features in memory
OVERLAP = 0.7  # of a poor scan's brain, which the good scan's has to hold

NO_PAIRS = "no subject is in both {poor} and {good}: pairs are scans of the same subject, prepared from both datasets"
NO_SHELL = "{name}: the good scan has no shell within a tenth of b = {bval:.0f} s/mm² that determines degree 4"
APART = (
    "{poor} and {good}: {share:.0%} of the first one's brain lies in the second one's; expected are scans of a pair in "
    "one place: register the good one to the poor one, with its b-vectors turned, before preparing it"
)


class MeasuredPairs:
    """Pairs of the scans in two files of prepared ones, by subject; of a subject the first good scan is taken.

    Parameters
    ----------
    poor
        What is trained from, all or part of its scans.
    good
        What is trained to; in the same place in the world.

    Raises
    ------
    ValueError
        Where there is no pair, or the scans of one lie apart.
    """

    def __init__(self, poor: Prepared, good: Prepared):
        self.poor, self.good, self.device = poor, good, poor.device
        there = {about["subject"]: index for index, about in reversed(list(enumerate(good.about)))}
        self.partner = {k: there[a["subject"]] for k, a in enumerate(poor.about) if a["subject"] in there}
        if not any(poor.counts[k].any() for k in self.partner):
            raise ValueError(NO_PAIRS.format(poor=poor.path, good=good.path))
        self._features = lru_cache(KEPT)(self._features_of)
        for k, other in self.partner.items():
            self._check_place(k, other)

    def pair(
        self, batch: int, generator: torch.Generator, both: bool = True, side: tuple[int, int, int] = SIDE
    ) -> Pair:
        """Return blocks of one poor scan along some of a shell's directions, and the good scan's features there.

        Parameters are those of `rishldm_examples.simulated`.
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
        true, affine = self._features(self.partner[views.scan], round(float(low.bval[0])))
        coarse = fine = self._there(true, affine, views.affine, side, side) * low.mask[:, None]
        if both:
            zoom = ZOOMS[int(uniform(1) * len(ZOOMS))]
            finer = tuple(round(z * n) for z, n in zip(zoom, side, strict=True))
            fine = self._there(true, affine, views.affine, side, finer)
        return Pair(low, coarse, fine)

    def _there(self, true: Tensor, affine: Tensor, views: Tensor, side: tuple[int, ...], shape: tuple[int, ...]):
        """Return features (B, 3, *shape) at voxels that share each block's extent evenly, 0 outside the good scan."""
        axes = [(torch.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(shape, side, strict=True)]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(self.device)
        to_good = torch.linalg.inv(affine) @ views
        points = torch.einsum("bij,xyzj->bxyzi", to_good[:, :3, :3], voxels) + to_good[:, None, None, None, :3, 3]
        size = torch.tensor(true.shape[1:], device=self.device)
        grid = (2 * points + 1) / size - 1  # as `grid_sample` has it without aligned corners
        return F.grid_sample(true.float().expand(len(views), -1, -1, -1, -1), grid.flip(-1), align_corners=False)

    def _features_of(self, index: int, bval: int) -> tuple[Tensor, Tensor]:
        """Return the features (3, X, Y, Z), half precision, of a good scan's shell, and its affine (4, 4)."""
        scan = self.good.scan(index)
        table = scan.gradients
        b, volumes = min(table.shells(), key=lambda shell: abs(shell[0] - bval))
        if abs(b - bval) > SAME_B * bval or order_for(len(distinct(table.bvecs[volumes])), ORDER) < ORDER:
            raise ValueError(NO_SHELL.format(name=self.good.about[index]["name"], bval=bval))
        world = torch.as_tensor(table.world_directions(scan.affine)[volumes], dtype=torch.float32)[None]
        one = torch.ones(1)
        dwis = torch.from_numpy(scan.data[..., volumes]).permute(3, 0, 1, 2)[None]
        b0, mask = torch.from_numpy(scan.mean_b0())[None], torch.from_numpy(scan.mask)[None]
        size = torch.as_tensor(scan.zooms_mm, dtype=torch.float32)[None]
        found = fitted(b0, dwis, world, b * one, 0 * one, one, mask, size, ORDER).features[0]
        return found.half().to(self.device), torch.as_tensor(scan.affine, dtype=torch.float32, device=self.device)

    def _check_place(self, k: int, other: int) -> None:
        poor, good = self.poor.scan(k), self.good.scan(other)
        true = torch.from_numpy(good.mask.astype("float32"))[None]
        to_good = torch.linalg.inv(torch.as_tensor(good.affine)) @ torch.as_tensor(poor.affine)
        voxels = torch.as_tensor(poor.mask).nonzero().double()
        nearest = (voxels @ to_good[:3, :3].T + to_good[:3, 3]).round().long()
        inside = ((nearest >= 0) & (nearest < torch.tensor(true.shape[1:]))).all(dim=1)
        held = true[0][tuple(nearest[inside].T)].sum() / max(len(voxels), 1)
        if held < OVERLAP:
            names = self.poor.about[k]["name"], self.good.about[other]["name"]
            raise ValueError(APART.format(poor=names[0], good=names[1], share=float(held)))
