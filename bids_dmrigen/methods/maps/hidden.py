"""Learning from acquired volumes that the network was not shown: their noise is not that of its input.

What the network says is a tensor. It has to predict hidden volumes of the same shell; no map is called true.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...dwi.gradients import even_directions, even_subset
from ...dwi.noise import sigma_of_few
from ...dwi.tensor import WELL_CONDITIONED, condition
from ...nets.attention_fit import Fields
from ...nets.direction_unet import dyadic_features
from ...simulate.examples import SimulatedSubjects, numbers_from
from ...simulate.imaging import Imaging, measure
from .fields import Block, diffusivities, fields_of
from .task import BVALS, LEAST, MOST, best_conditioned

SIDES = (30, 30, 8)  # voxels of a block
SIX = 0.6  # share of the examples with six directions
THIN = 0.25  # share of the examples with one or two slices, as some scans have
NOISY = 0.4  # share of the examples with noise added to what the network sees
MOST_NOISE = 1.0  # of the scan's own
COARSE = 0.2  # share of the examples whose voxels are joined, two by two along two axes
SIGMA_ERROR = 0.15  # relative: at generation the noise level is estimated from few volumes
LEAST_HIDDEN = 4
SIMULATED_HIDDEN = 9
SIMULATED_MM, SIMULATED_THICK_MM = (1.8, 3.5), (1.8, 5.0)
UNEVEN = 0.25  # how far simulated directions stray from even ones
IMAGING = Imaging(acquired=(0.75, 1.0), noise_alone=True)


class Example(NamedTuple):
    """What the network sees, and what it has to predict: V voxels, H hidden directions."""

    fields: Fields
    hidden: Tensor  # (V, H) apparent diffusion coefficients, in units of `fields.DIFFUSIVITY`
    bvecs: Tensor  # (H, 3) unit vectors in world RAS+


def examples(source: SimulatedSubjects | Prepared, batch: int, generator: torch.Generator) -> Example:
    """Return an example of `batch` blocks with the same directions.

    Raises
    ------
    ValueError
        Where no scan has a shell with enough directions.
    """
    uniform, _ = numbers_from(generator)
    while True:
        n = MOST if uniform(1) < SIX else LEAST + int(uniform(1) * (MOST - LEAST))
        if isinstance(source, SimulatedSubjects):
            block, hidden, bvecs = _simulated(source, n, batch, generator)
        else:
            block, hidden, bvecs = _measured(source, n, batch, generator)
        if block.mask.any():
            break
    fields = fields_of(block)
    b0 = block.b0s.movedim(1, 4)[block.mask].mean(dim=1)
    wanted = diffusivities(b0, hidden.movedim(1, 4)[block.mask], block.bval)
    return Example(fields, wanted, bvecs)


def loss(example: Example, mean: Tensor, power: Tensor) -> Tensor:
    """Return the error of predicted hidden volumes, and that of the power of what remains unknown.

    With r_i the difference of a hidden volume from its prediction, less the mean of these differences: the first part
    is the mean of r_i² relative to that of the denoised fit. Of a tensor whose unknown part has the power v in no
    preferred direction, E[r_i r_j] = v/5 ((g_i·g_j)² - 1/3) for two volumes, whatever their noise is. The second part
    is the error of v, found from such products.

    Parameters
    ----------
    example
        An example of V voxels.
    mean, power
        (V, 6) and (V,), what the network says.
    """
    features = dyadic_features(example.bvecs)
    wanted = example.hidden
    noise = example.fields.noise.square()
    weight = 1 / (noise + noise.median())

    def rest(tensor: Tensor) -> Tensor:
        difference = wanted - tensor @ features.T
        return difference - difference.mean(dim=1, keepdim=True)

    found, simple = rest(mean), rest(example.fields.clean)
    first = (found.square().mean(dim=1) * weight).sum() / (simple.square().mean(dim=1) * weight).sum()
    alike = (features @ features.T - 1 / 3) * (1 - torch.eye(len(features), device=features.device))
    pairs = len(features) * (len(features) - 1)
    alike = (alike - alike.sum() / pairs) * (1 - torch.eye(len(features), device=features.device))
    products = torch.einsum("vi,ij,vj->v", found, alike, found).detach()
    measured = 5 * products / alike.square().sum()
    # A single voxel's value is noisier than it is large: weights keep dark voxels from ruling.
    second = ((measured - power).square() * weight.square()).sum() / (measured.square() * weight.square()).sum()
    return first + second


def _measured(scans: Prepared, n: int, batch: int, generator: torch.Generator) -> tuple[Block, Tensor, Tensor]:
    """Return blocks of a measured shell along n of its directions, and its hidden volumes (B, H, X, Y, Z)."""
    uniform, normal = numbers_from(generator)
    coarse = bool(uniform(1) < COARSE)
    sides = _sides(uniform(1), uniform(1))
    if coarse:
        sides = (2 * sides[0], 2 * sides[1], sides[2])
    # Each scan as often as any other: large ones are noisy, and would decide how much is smoothed.
    usable = [k for k, shells in enumerate(scans.shells) if scans.counts[k].any() and _has(shells, n + LEAST_HIDDEN)]
    among = [usable[int(uniform(1) * len(usable))]] if usable else None
    views, b0s, volumes = scans.shell_slices(generator, batch, sides, n + LEAST_HIDDEN, BVALS, among)
    directions = views.directions[volumes].cpu().numpy()
    # An even selection starts from the first of the volumes, which are in random order. It may lie on a cone.
    chosen = even_subset(directions, n)
    if n == MOST and condition(directions[chosen]) > WELL_CONDITIONED:
        chosen = best_conditioned(directions, n)
    hidden = np.setdiff1d(np.arange(len(volumes)), chosen)
    few, others = volumes[chosen], volumes[torch.as_tensor(hidden, device=volumes.device)]
    signal, mask = views.signal, views.mask
    used = torch.cat([b0s, volumes])
    mask = mask & (signal[:, used] > 0).all(dim=1)
    edges = views.affine[:, :3, :3].norm(dim=1)
    if coarse:
        signal, mask, edges = _joined(signal, mask, edges)
    seen, sigma = signal, _level(scans, views.scan) / (2 if coarse else 1)
    if uniform(1) < NOISY:
        level = sigma * MOST_NOISE * float(uniform(1))
        sigma = float(np.hypot(sigma, level))
        seen = torch.hypot(signal + level * normal(*signal.shape), level * normal(*signal.shape))
    bval = float(views.bvals[volumes].mean())
    sigma *= float(torch.exp(SIGMA_ERROR * normal(1)))
    block = Block(
        seen[:, b0s], seen[:, few], views.directions[few], bval, mask, edges, torch.full((batch,), sigma).to(signal)
    )
    return block, signal[:, others], views.directions[others]


@cache
def _level(scans: Prepared, index: int) -> float:
    """Return the noise level of a scan, estimated from as few directions as in use, in units of its median b0."""
    scan = scans.scan(index)
    _, volumes = max(scan.gradients.shells(), key=lambda shell: len(shell[1]))
    few = volumes[even_subset(scan.gradients.bvecs[volumes], min(MOST, len(volumes)))]
    return sigma_of_few(scan, few) / float(scans.about[index]["scale"])


def _has(shells: list[tuple[float, np.ndarray]], needed: int) -> bool:
    return any(len(volumes) >= needed and BVALS[0] <= bval <= BVALS[1] for bval, volumes in shells)


def _simulated(
    subjects: SimulatedSubjects, n: int, batch: int, generator: torch.Generator
) -> tuple[Block, Tensor, Tensor]:
    """Return blocks of simulated subjects along n directions, and hidden volumes (B, H, X, Y, Z)."""
    uniform, normal = numbers_from(generator)
    device = subjects.device
    bval = float(BVALS[0] * (BVALS[1] / BVALS[0]) ** uniform(1))
    parts = []
    for count in (n, SIMULATED_HIDDEN):
        even = torch.as_tensor(np.asarray(even_directions(count)), dtype=torch.float32, device=device)
        turned = even @ torch.linalg.qr(normal(3, 3)).Q
        parts.append(F.normalize(turned + UNEVEN * float(uniform(1)) * normal(count, 3), dim=1))
    bvecs = torch.cat([torch.zeros((1, 3), device=device), *parts])
    bvals = bval * bvecs.norm(dim=1).round()
    blocks = subjects.slices(generator, batch, _sides(uniform(1), uniform(1)), SIMULATED_MM, SIMULATED_THICK_MM)
    clean = blocks.signal(bvals.expand(batch, -1), bvecs.expand(batch, -1, -1))
    if clean.ndim == 4:
        clean = clean[..., None]
    noisy = measure(clean, torch.ones(batch, device=device), generator, IMAGING)
    sigma = noisy.sigma * torch.exp(SIGMA_ERROR * normal(batch))
    measured = noisy.signal
    mask = blocks.mask().reshape(batch, *clean.shape[2:])
    edges = blocks.affine[:, :3, :3].norm(dim=1)
    block = Block(measured[:, :1], measured[:, 1 : 1 + n], parts[0], bval, mask, edges, sigma)
    return block, measured[:, 1 + n :], parts[1]


def _sides(chance: Tensor, which: Tensor) -> tuple[int, int, int]:
    """Return the sides of a block: some have one slice or two, and are wider."""
    if chance >= THIN:
        return SIDES
    return (2 * SIDES[0], SIDES[1], 1 + int(2 * which))


def _joined(signal: Tensor, mask: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return signals (B, N, X, Y, Z), mask and edges with two by two voxels of the first two axes as one."""
    joined = F.avg_pool3d(signal, (2, 2, 1))
    whole = F.avg_pool3d(mask[:, None].float(), (2, 2, 1))[:, 0] > 0.99
    return joined, whole, edges * edges.new_tensor([2.0, 2.0, 1.0])
