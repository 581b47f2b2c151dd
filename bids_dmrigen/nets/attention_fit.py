"""A network that chooses, for every voxel, which neighbours tell about its tensor, and how much remains unknown.

Its result is a weighted mean of tensors that were fitted around the voxel. The weights depend on what does not change
with the axes: sizes, inner products, distances. So the result turns with the directions, and the network never adds an
orientation that no voxel nearby has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 24
ROUNDS = 2
SCALARS = 9  # that describe a voxel
RELATIONS = 7  # that describe a voxel and a neighbour
AT_ONCE = 2**14  # voxels
# How far training may go from the best simple estimate. Scans differ more than any few to learn from.
NARROWER, STRONGER, LONGER = 0.7, 1.0, 0.25  # largest logarithms: of 1 / width², of a weight, of a length


@dataclass(frozen=True, eq=False)
class Fields:
    """What is known of the voxels of blocks that lie in the mask, one after another, V in all.

    Tensors are Dxx, Dyy, Dzz, √2 Dxy, √2 Dxz, √2 Dyz. Diffusivities are in 1e-3 mm²/s.

    Parameters
    ----------
    mask
        (B, X, Y, Z) bool, the place of the voxels.
    raw, clean
        (V, 6) anisotropic parts (trace 0) of the tensors fitted to the volumes as acquired, and to those that MP-PCA
        denoised.
    md_raw, md
        (V,) mean diffusivities of these fits.
    log_b0
        (V,) logarithm of the mean b0.
    noise
        (V,) standard deviation of the noise of each of the five numbers of an anisotropic part.
    directions
        Share of six directions. Nothing else describes all voxels together: a network would learn what each of the few
        scans of its training needs.
    neighbours
        (V, J) places of the voxels around each voxel in this list, itself among them; V where there is none.
    distances
        (V, J) distances to them, in edges of the finest axis.
    width
        Standard deviation, in such edges, of the Gaussian that an untrained network smooths by.
    """

    mask: Tensor
    raw: Tensor
    clean: Tensor
    md_raw: Tensor
    md: Tensor
    log_b0: Tensor
    noise: Tensor
    directions: float
    neighbours: Tensor
    distances: Tensor
    width: float

    def volume(self, values: Tensor) -> Tensor:
        """Return values (V,) or (V, C) on the grid of the blocks: (B, X, Y, Z) or (B, C, X, Y, Z); 0 elsewhere."""
        grid = values.new_zeros((*self.mask.shape, *values.shape[1:]))
        grid[self.mask] = values
        return grid if values.ndim == 1 else grid.movedim(4, 1)


class Round(nn.Module):
    """One round of weighted means over the neighbours.

    Parameters
    ----------
    kinds
        How many tensors of each neighbour there are to choose from.
    """

    def __init__(self, kinds: int):
        super().__init__()
        self.here, self.there = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.relation = nn.Linear(RELATIONS, WIDTH)
        self.weight = nn.Linear(WIDTH, kinds)
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)
        self.narrow = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)
        self.carry = nn.Sequential(nn.Linear(2 * WIDTH + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, state: Tensor, kinds: Tensor, basis: Tensor, fields: Fields) -> tuple[Tensor, Tensor]:
        """Return the next state (V, WIDTH) and the means (V, 6).

        Parameters
        ----------
        state
            (V, WIDTH) description of the voxels.
        kinds
            (V, K, 6) tensors to choose from.
        basis
            (V, 6) the best tensor so far, which neighbours are compared with.
        fields
            What is known of the voxels.
        """
        there = F.pad(self.there(state), (0, 0, 0, 1))
        tensors = F.pad(kinds, (0, 0, 0, 0, 0, 1))
        scalars = F.pad(torch.stack([fields.log_b0, fields.md, fields.noise.log()], dim=1), (0, 0, 0, 1))
        here, parts = self.here(state), []
        narrow = within(self.narrow(state), NARROWER).exp() * ROUNDS / (2 * fields.width**2)
        for part in torch.arange(len(state), device=state.device).split(AT_ONCE):
            around = fields.neighbours[part]
            others = tensors[around]  # (v, J, K, 6)
            relation = _relations(basis[part], fields.noise[part], others, scalars[part], scalars[around])
            distance = fields.distances[part]
            hidden = here[part, None] + there[around] + self.relation(torch.cat([relation, distance[..., None]], dim=2))
            logits = within(self.weight(F.silu(hidden)), STRONGER) - (narrow[part] * distance.square())[..., None]
            logits = logits.masked_fill((around == len(state))[..., None], -torch.inf)
            weights = logits.flatten(1).softmax(dim=1).unflatten(1, logits.shape[1:])
            mean = torch.einsum("vjk,vjkc->vc", weights, others)
            size = torch.einsum("vjk,vjk->v", weights, others.square().sum(dim=3))
            agreement = mean.square().sum(dim=1) / size.clamp_min(1e-6)
            message = torch.einsum("vj,vjw->vw", weights.sum(dim=2), there[around])
            change = self.carry(torch.cat([state[part], message, agreement[:, None]], dim=1))
            parts.append((state[part] + change, mean))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


class AttentionFit(nn.Module):
    """Weighted means of tensors in `ROUNDS` rounds, a factor for their size, and the power of what remains unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(SCALARS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.rounds = nn.ModuleList([Round(2 + k) for k in range(ROUNDS)])
        self.share, self.unknown = _head(), _head()

    def forward(self, fields: Fields) -> tuple[Tensor, Tensor]:
        """Return the expected anisotropic part of the tensor, and the power of its error.

        Parameters
        ----------
        fields
            What is known of V voxels.

        Returns
        -------
        tuple
            (V, 6), trace 0, and (V,) the expected squared size of the difference from it, in squared units of tensors.
        """
        state = self.embed(_scalars(fields))
        kinds, basis = [fields.raw, fields.clean], fields.clean
        for step in self.rounds:
            state, basis = step(state, torch.stack(kinds, dim=1), basis, fields)
            kinds.append(basis)
        size = basis.square().sum(dim=1) / fields.noise.square()
        known = torch.stack([size.log1p(), fields.noise.log()], dim=1)
        mean = within(self.share(torch.cat([state, known], dim=1)), LONGER).exp() * basis
        # Products of residuals are far noisier than residuals: they must not decide what the mean is made of.
        unknown = self.unknown(torch.cat([state, known], dim=1).detach())[:, 0]
        return mean, fields.noise.square() * unknown.clamp(-8, 8).exp()


def within(value: Tensor, limit: float) -> Tensor:
    """Return values that are almost unchanged where they are small, and stay within the limit."""
    return limit * torch.tanh(value / limit)


def _head() -> nn.Sequential:
    """Return a network of one number for each voxel, which is 0 before training."""
    last = nn.Linear(WIDTH, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(WIDTH + 2, WIDTH), nn.SiLU(), last)


def _scalars(fields: Fields) -> Tensor:
    """Return (V, SCALARS) what describes a voxel and does not change with the axes."""
    noise = fields.noise
    raw, clean = fields.raw.norm(dim=1), fields.clean.norm(dim=1)
    apart = (fields.raw - fields.clean).norm(dim=1)
    columns = [
        (raw / noise).log1p(), (clean / noise).log1p(), (apart / noise).log1p(), noise.log(), fields.md,
        fields.log_b0, clean / (clean + fields.md.abs() + 0.05), (fields.md_raw - fields.md) / noise.clamp_min(0.05),
        torch.full_like(noise, fields.directions),
    ]  # fmt: skip
    return torch.stack(columns, dim=1)


def _relations(basis: Tensor, noise: Tensor, others: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Return (v, J, RELATIONS - 1) what relates voxels to their neighbours and does not change with the axes."""
    inner = torch.einsum("vc,vjkc->vjk", basis, others[:, :, :2]) / noise.square()[:, None, None]
    last = others[:, :, -1]
    cosine = torch.einsum("vc,vjc->vj", basis, last) / (basis.norm(dim=1)[:, None] * last.norm(dim=2)).clamp_min(1e-4)
    difference = there - here[:, None]
    return torch.cat([torch.asinh(inner), cosine[..., None], difference], dim=2)
