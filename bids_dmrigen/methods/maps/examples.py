"""What methods of this room are trained on: slices along few directions, and the maps that they should give."""

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
from .inputs import Known, fitted_maps, known_of, noise_levels
from .task import BVALS, LEAST, MOST, SCHEME_DEGREES, SCHEMES, nearest_to_scheme

SIDE = {"small": (64, 64), "paper": (145, 174)}  # of training slices
PADDED = 192  # height and width to which zeros bring slices of size `paper`
# In the plane. Smaller voxels show how smooth the anatomies are, and a network learns to smooth real detail; those of
# the paper are 1.25 mm.
VOXEL_MM = {"small": (2.0, 5.0), "paper": (1.25, 2.5)}
IMAGING = Imaging(acquired=(0.75, 1.0), noise_alone=True)
UNEVEN = {"small": 0.25, "paper": 0.05}  # how far directions stray from even ones, and from the paper's scheme
SIGMA_ERROR = 0.1  # relative, beyond what a slice's reading of its noise varies
TRUTH_DIRECTIONS = 12  # without random noise their FA is within 1e-3 of that of 90
MEASURED_DIRECTIONS = 12  # at least, of a measured shell whose maps are to be made

NOT_OF_SCHEME = (
    "{name}: its directions differ by {apart:.0f} degrees from the scheme that networks of size paper are trained for, "
    "expected at most {most:.0f}; leave the scan out, or train size small"
)

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


class Acquisition(NamedTuple):
    """Slices along few directions, and the maps that they should give."""

    b0: Tensor  # (B, H, W, 3) the slice between its neighbours
    dwis: Tensor  # (B, n, H, W, 3)
    bvecs: Tensor  # (B, n, 3) world RAS+
    bval: Tensor  # (B,)
    sigma: Tensor  # (B,) noise level, where slices show too little to read it
    mask: Tensor  # (B, H, W)
    truth: Tensor  # (B, 5, H, W) as `fitted_maps`


def simulated(subjects: SimulatedSubjects, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of simulated subjects; the maps are those of even directions' mean magnitudes, by least squares."""
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
    # Of magnitudes, as many more directions of this scanner would show them, noise floor and all.
    assert measured.expected is not None  # it was asked for: `noiseless`
    expected = rician_mean(measured.expected[..., 0], measured.sigma[:, None, None, None])
    truth = fitted_maps(expected, bval, dense)
    return Acquisition(measured.signal[:, 0], measured.signal[:, 1:], bvecs, bval, measured.sigma, middle.mask(), truth)


def measured(scans: Prepared, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of a measured shell: few of its directions, and the least-squares maps of all of them.

    Raises
    ------
    ValueError
        Where no scan has a shell in range with enough directions, or (`paper`) one has not those of the scheme.
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
        Of the network.
    batch
        Slices.
    generator
        The only source of chance.
    """
    if isinstance(source, SimulatedSubjects):
        a = simulated(source, size, batch, generator)
    else:
        a = measured(source, size, batch, generator)
    if size == "paper":
        a = _padded(a)
    uniform, normal = numbers_from(generator)
    unit = ((a.b0[..., 1] * a.mask).sum(dim=(1, 2)) / a.mask.sum(dim=(1, 2)).clamp_min(1)).clamp_min(1e-3)
    unit = unit * torch.exp(0.2 * normal(batch))  # of a whole brain it would be another than of the slice
    noise = noise_levels(a.dwis[..., 1], a.mask)
    noise = torch.where(noise.isfinite(), noise, a.sigma[:, None]) * torch.exp(SIGMA_ERROR * normal(batch, 1))
    known = known_of(a.b0, a.dwis, a.bvecs, a.bval, noise, unit, size)
    # Within a slice errors count as they are; from slice to slice relative to what was to be expected of the fit, so
    # that good scans are not outweighed by bad ones.
    expected, voxels = a.mask[:, None] * known.scale.square(), a.mask.sum(dim=(1, 2)).clamp_min(1)
    weight = expected / (expected.sum(dim=(2, 3)) / voxels[:, None]).clamp_min(1e-12)[:, :, None, None]
    # Outside the brain small networks' examples show the fit, and nothing is asked there.
    x0 = (torch.where(a.mask[:, None], a.truth, known.centre) - known.centre).div(known.scale).clamp(-10, 10)
    # What is wanted most often is the mean, which is made from x_t that tells nothing: half of all slices aim at it.
    first = torch.where((uniform(batch) < 0.5) & known.with_fit, FIRST_UNTOLD, 1)
    t = first + (uniform(batch) * (PROCESS.steps + 1 - first)).long()
    return Batch(known, x0, weight, t, normal(*x0.shape))


def _number(size: str, uniform: Callable[..., Tensor]) -> int:
    """Return how many directions a batch has: three to six, or (`paper`) those of one of the schemes."""
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
    """Return as `F.pad` takes it how many zeros bring slices to `PADDED`; none where they are larger."""
    rows, columns = (max(PADDED - n, 0) for n in (height, width))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


@cache
def _even(n: int, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(even_directions(n)), dtype=torch.float32, device=device)
