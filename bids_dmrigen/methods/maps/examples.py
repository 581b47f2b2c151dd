"""Training examples for maps: slices along few directions, and the true maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...diffusion.processes import VarianceExploding
from ...dwi.gradients import even_directions, even_subset
from ...dwi.noise import rician_mean
from ...simulate.examples import SimulatedSubjects, numbers_from
from ...simulate.imaging import Imaging, measure
from .inputs import Condition, condition_of, fitted_maps, noise_levels
from .task import BVALS, LEAST, MOST, SCHEME_DEGREES, SCHEMES, nearest_to_scheme

SIDE = {"small": (64, 64), "paper": (145, 174)}  # of training slices
PADDED = 192  # height and width to which zeros bring slices of size `paper`
# In the plane. The simulated anatomies are smooth: with smaller voxels a network would learn to smooth real detail. The
# paper's voxels are 1.25 mm.
VOXEL_MM = {"small": (2.0, 5.0), "paper": (1.25, 2.5)}
IMAGING = Imaging(acquired=(0.75, 1.0), noise_alone=True)
UNEVEN = {"small": 0.25, "paper": 0.05}  # how far directions stray from even ones, and from the paper's scheme
SIGMA_ERROR = 0.1  # relative, in addition to the variation of a slice's noise estimate
TRUTH_DIRECTIONS = 12  # without noise their FA differs by less than 1e-3 from that of 90
MEASURED_DIRECTIONS = 12  # fewest directions of a measured shell, for its true maps

NOT_OF_SCHEME = (
    "{name}: its directions differ by {apart:.0f} degrees from the scheme that networks of size paper are trained for, "
    "expected at most {most:.0f}; leave the scan out, or train size small"
)

PROCESS = VarianceExploding()
NOISE_ONLY_SIGMA = 30.0  # noise in x_t from which x_t counts as noise alone; images have about unit variance
FIRST_NOISE_ONLY = 1 + int((PROCESS.marginal(torch.arange(PROCESS.steps + 1))[1] < NOISE_ONLY_SIGMA).sum())


class Batch(NamedTuple):
    """A batch of training examples."""

    condition: Condition
    x0: Tensor  # (B, 5, H, W) the maps to predict
    weight: Tensor  # (B, 5, H, W), 0 outside the brain
    t: Tensor  # (B,)
    noise: Tensor  # (B, 5, H, W)


class Acquisition(NamedTuple):
    """Slices along few directions, and their true maps."""

    b0: Tensor  # (B, H, W, 3) the slice and its two neighbours
    dwis: Tensor  # (B, n, H, W, 3)
    bvecs: Tensor  # (B, n, 3) world RAS+
    bval: Tensor  # (B,)
    sigma: Tensor  # (B,) noise level, for slices with too little brain to estimate it
    mask: Tensor  # (B, H, W)
    truth: Tensor  # (B, 5, H, W) as `fitted_maps`


def simulated(subjects: SimulatedSubjects, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of simulated subjects; the true maps are fitted to mean magnitudes along even directions."""
    device = subjects.device
    uniform, normal = numbers_from(generator)
    n = _number(size, uniform)
    bval = BVALS[0] * (BVALS[1] / BVALS[0]) ** uniform(batch)
    if size == "paper":
        even = torch.tensor(SCHEMES[n], dtype=torch.float32, device=device)
    else:
        even = _even(n, device) @ torch.linalg.qr(normal(batch, 3, 3)).Q
    bvecs = F.normalize(even + UNEVEN[size] * uniform(batch, 1, 1) * normal(batch, n, 3), dim=2)
    nothing = torch.zeros_like(bvecs[:, :1])
    slices = subjects.slices(generator, batch, (*SIDE[size], 3), VOXEL_MM[size])
    clean = slices.signal(F.pad(bval[:, None].expand(-1, n), (1, 0)), torch.cat([nothing, bvecs], dim=1))
    middle = slices.layer(1)
    dense = _even(TRUTH_DIRECTIONS, device)
    wanted = torch.cat([nothing, dense.expand(batch, -1, -1)], dim=1)
    noiseless = middle.signal(F.pad(bval[:, None].expand(-1, TRUTH_DIRECTIONS), (1, 0)), wanted)
    measured = measure(clean, torch.ones_like(bval), generator, IMAGING, noiseless[..., None])
    # Mean magnitudes, so that the true maps have the noise floor of this scanner.
    assert measured.expected is not None  # because `noiseless` was given
    expected = rician_mean(measured.expected[..., 0], measured.sigma[:, None, None, None])
    truth = fitted_maps(expected, bval, dense)
    return Acquisition(measured.signal[:, 0], measured.signal[:, 1:], bvecs, bval, measured.sigma, middle.mask(), truth)


def measured(scans: Prepared, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of a measured shell: few of its directions, and the least-squares maps of all directions.

    Raises
    ------
    ValueError
        Where no scan has a shell in range with enough directions, or (`paper`) a scan lacks those of the scheme.
    """
    uniform, _ = numbers_from(generator)
    views, b0s, volumes = scans.shell_slices(generator, batch, (*SIDE[size], 3), MEASURED_DIRECTIONS, BVALS)
    n, directions = _number(size, uniform), views.directions[volumes].cpu().numpy()
    if size == "paper":
        chosen, apart = nearest_to_scheme(directions, n)
        if apart > SCHEME_DEGREES:
            name = scans.about[views.scan]["name"]
            raise ValueError(NOT_OF_SCHEME.format(name=name, apart=apart, most=SCHEME_DEGREES))
    else:
        chosen = even_subset(directions, n)
    few = volumes[chosen]
    ones = torch.ones(batch, device=scans.device)
    bval = views.bvals[volumes].mean() * ones
    b0 = views.signal[:, b0s].mean(dim=1)
    dense = torch.cat([b0[:, None], views.signal[:, volumes]], dim=1)[..., 1]
    return Acquisition(
        b0, views.signal[:, few], views.directions[few].expand(batch, -1, -1), bval, views.sigma * ones,
        views.mask[..., 1], fitted_maps(dense, bval, views.directions[volumes]),
    )  # fmt: skip


def examples(source: SimulatedSubjects | Prepared, size: str, batch: int, generator: torch.Generator) -> Batch:
    """Return a batch of training examples.

    Parameters
    ----------
    source
        Simulated subjects or measured scans.
    size
        Size of the network.
    batch
        Number of slices.
    generator
        The only source of random numbers.
    """
    if isinstance(source, SimulatedSubjects):
        a = simulated(source, size, batch, generator)
    else:
        a = measured(source, size, batch, generator)
    if size == "paper":
        a = _padded(a)
    uniform, normal = numbers_from(generator)
    unit = ((a.b0[..., 1] * a.mask).sum(dim=(1, 2)) / a.mask.sum(dim=(1, 2)).clamp_min(1)).clamp_min(1e-3)
    unit = unit * torch.exp(0.2 * normal(batch))  # at generation the unit is of a whole brain, not of a slice
    noise = noise_levels(a.dwis[..., 1], a.mask)
    noise = torch.where(noise.isfinite(), noise, a.sigma[:, None]) * torch.exp(SIGMA_ERROR * normal(batch, 1))
    condition = condition_of(a.b0, a.dwis, a.bvecs, a.bval, noise, unit, size)
    # Errors have equal weight within a slice. Between slices they are relative to the expected error of the fit, so
    # that bad scans do not outweigh good ones.
    expected, voxels = a.mask[:, None] * condition.scale.square(), a.mask.sum(dim=(1, 2)).clamp_min(1)
    weight = expected / (expected.sum(dim=(2, 3)) / voxels[:, None]).clamp_min(1e-12)[:, :, None, None]
    # Outside the brain the target is the fit itself: no correction, and the loss has weight 0 there.
    x0 = (
        (torch.where(a.mask[:, None], a.truth, condition.centre) - condition.centre).div(condition.scale).clamp(-10, 10)
    )
    # The most frequent use is the mean, predicted from noise alone: half of all slices train it.
    first = torch.where((uniform(batch) < 0.5) & condition.with_fit, FIRST_NOISE_ONLY, 1)
    t = first + (uniform(batch) * (PROCESS.steps + 1 - first)).long()
    return Batch(condition, x0, weight, t, normal(*x0.shape))


def _number(size: str, uniform: Callable[..., Tensor]) -> int:
    """Return the number of directions of a batch: three to six, or (`paper`) that of a scheme."""
    numbers = sorted(SCHEMES) if size == "paper" else range(LEAST, MOST + 1)
    return numbers[int(uniform(1) * len(numbers))]


def _padded(a: Acquisition) -> Acquisition:
    """Return slices with zeros around them, so that they are `PADDED` voxels high and wide."""
    height, width = a.mask.shape[1:]
    around = zeros_around(height, width)
    return a._replace(
        b0=F.pad(a.b0, (0, 0, *around)), dwis=F.pad(a.dwis, (0, 0, *around)), mask=F.pad(a.mask, around),
        truth=F.pad(a.truth, around),
    )  # fmt: skip


def zeros_around(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the padding, as for `F.pad`, that brings slices to `PADDED`; zero where they are larger."""
    rows, columns = (max(PADDED - n, 0) for n in (height, width))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


@cache
def _even(n: int, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(even_directions(n)), dtype=torch.float32, device=device)
