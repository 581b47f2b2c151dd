"""What Diff-DTI is trained on: slices of simulated people, measured along few directions, and their true maps."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.processes import VarianceExploding
from ..dwi.gradients import even_directions
from ..simulate.examples import People
from ..simulate.imaging import measure
from .diffdti_inputs import LEAST, MOST, Known, fit_error, fitted_maps, known_of, noise_levels

SIDE = 64  # of training slices
BVALS = (600.0, 3200.0)  # s/mm²
UNEVEN = 0.25  # how far directions stray from even ones
TYPICAL = 0.1  # uncertainty of an apparent diffusion coefficient, in units of `DIFFUSIVITY`
SIGMA_ERROR = 0.1  # relative, beyond what a slice's reading of its noise varies
TRUTH_DIRECTIONS = 12  # noise-free: their FA is within 1e-3 of that of 90

PROCESS = VarianceExploding()
UNTOLD_SIGMA = 30.0  # noise in x_t beside which an image of about unit variance does not show
FIRST_UNTOLD = 1 + int((PROCESS.marginal(torch.arange(PROCESS.steps + 1))[1] < UNTOLD_SIGMA).sum())


class Batch(NamedTuple):
    """A batch of training examples."""

    known: Known
    x0: Tensor  # (B, 5, H, W) what the network has to make
    weight: Tensor  # (B, 5, H, W), 0 outside the brain
    t: Tensor  # (B,)
    noise: Tensor  # (B, 5, H, W)


def examples(people: People, size: str, batch: int, generator: torch.Generator) -> Batch:
    """Return a batch of training examples.

    The maps are those of a least-squares fit to even directions without noise, at the b-value of the example.

    Parameters
    ----------
    people
        Whom to measure.
    size
        Of the network.
    batch
        Slices.
    generator
        The only source of chance.
    """
    device = people.device

    def uniform(*shape):
        return torch.rand(shape, generator=generator, device=device)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device)

    n = LEAST + int(uniform(1) * (MOST - LEAST + 1))
    bval = BVALS[0] * (BVALS[1] / BVALS[0]) ** uniform(batch)
    turn = torch.linalg.qr(normal(batch, 3, 3)).Q
    bvecs = F.normalize(_even(n, device) @ turn + UNEVEN * uniform(batch, 1, 1) * normal(batch, n, 3), dim=2)
    dense = _even(TRUTH_DIRECTIONS, device)
    nothing = torch.zeros_like(bvecs[:, :1])
    slices = people.slices(generator, batch, (SIDE, SIDE, 3))
    clean = slices.signal(F.pad(bval[:, None].expand(-1, n), (1, 0)), torch.cat([nothing, bvecs], dim=1))
    middle = slices.layer(1)
    dense = _even(TRUTH_DIRECTIONS, device)
    wanted = torch.cat([nothing, dense.expand(batch, -1, -1)], dim=1)
    noiseless = middle.signal(F.pad(bval[:, None].expand(-1, TRUTH_DIRECTIONS), (1, 0)), wanted)
    measured = measure(clean, torch.ones_like(bval), generator, noiseless=noiseless[..., None])
    b0, dwis = measured.signal[:, 0], measured.signal[:, 1:]
    mask = middle.mask()
    truth = fitted_maps(measured.expected[..., 0], bval, dense)
    unit = ((b0[..., 1] * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1)).clamp_min(1e-3)
    unit = unit * torch.exp(0.2 * normal(batch))  # of a whole brain it would be another than of the slice
    noise = noise_levels(dwis[..., 1], mask)
    noise = torch.where(noise.isfinite(), noise, measured.sigma[:, None]) * torch.exp(SIGMA_ERROR * normal(batch, 1))
    known = known_of(b0, dwis, bvecs, bval, noise, unit, size)
    # Between errors relative to what was to be expected of the fit, all of the same weight, and absolute ones.
    weight = mask[:, None] * known.scale / fit_error(torch.full((1, 1, 1), TYPICAL, device=device), MOST)
    # Outside the brain small networks' examples show the fit, and nothing is asked there.
    x0 = (torch.where(mask[:, None], truth, known.centre) - known.centre).div(known.scale).clamp(-10, 10)
    # What is wanted most often is the mean, which is made from x_t that tells nothing: half of all slices aim at it.
    first = torch.where((uniform(batch) < 0.5) & known.with_fit, FIRST_UNTOLD, 1)
    t = first + (uniform(batch) * (PROCESS.steps + 1 - first)).long()
    return Batch(known, x0, weight, t, normal(*x0.shape))


@cache
def _even(n: int, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(even_directions(n)), dtype=torch.float32, device=device)
