"""Training examples for maps: slices along few directions, and what the network has to say about them.

Size `small` says the tensor. It has to predict the diffusivities along further directions: noiseless ones of simulated
subjects, and of measured scans acquired volumes that it was not shown, whose noise is not that of its input. Size
`paper` says the paper's maps, and learns from those of all directions.
"""

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
from ...dwi.smoothing import WIDEST, smooth_slices
from ...simulate.examples import SimulatedSubjects, numbers_from
from ...simulate.imaging import Imaging, measure
from .fields import diffusivities, ridge_fit
from .inputs import Condition, along, condition_of, fitted_maps, noise_levels, numbers_of
from .task import BVALS, LEAST, MOST, SCHEME_DEGREES, SCHEMES, nearest_to_scheme

SIDE = {"small": (64, 64), "paper": (145, 174)}  # of training slices
PADDED = 192  # height and width to which zeros bring slices of size `paper`
# In the plane. The simulated anatomies are smooth: with smaller voxels a network would learn to smooth real detail. The
# paper's voxels are 1.25 mm.
VOXEL_MM = {"small": (2.0, 5.0), "paper": (1.25, 2.5)}
IMAGING = Imaging(acquired=(0.75, 1.0), noise_alone=True)
UNEVEN = {"small": 0.25, "paper": 0.05}  # how far directions stray from even ones, and from the paper's scheme
SIX = 0.5  # share of the examples with six directions
SMOOTHED = 0.75  # share of the examples that are smoothed, as in the series that the network starts from (`starts`)
NOISY, MOST_NOISE = 0.4, 1.0  # share of measured examples with noise added, and most noise in units of the scan's own
COARSE = 0.2  # share of measured examples whose voxels are joined, two by two
SIGMA_ERROR = 0.1  # relative, in addition to the variation of a slice's noise estimate
LEAST_ERROR = 0.02  # of diffusivities, in units of `fields.DIFFUSIVITY`: slices are not better than this
LARGEST = 10.0  # in units of the expected error: corrections beyond it do not occur
TRUTH_DIRECTIONS = 12  # without noise their FA differs by less than 1e-3 from that of 90
MEASURED_DIRECTIONS = 12  # fewest directions of a measured shell, for its true maps (`paper`)
LEAST_HIDDEN = 4  # fewest directions of a measured shell beyond those that the network sees (`small`)

NOT_OF_SCHEME = (
    "{name}: its directions differ by {apart:.0f} degrees from the scheme that networks of size paper are trained for, "
    "expected at most {most:.0f}; leave the scan out, or train size small"
)

PROCESS = VarianceExploding()
NOISE_ONLY_SIGMA = 30.0  # noise in x_t from which x_t counts as noise alone; images have about unit variance
FIRST_NOISE_ONLY = 1 + int((PROCESS.marginal(torch.arange(PROCESS.steps + 1))[1] < NOISE_ONLY_SIGMA).sum())


class Batch(NamedTuple):
    """A batch of training examples; C is 7 numbers of a tensor (`small`) or 5 maps (`paper`)."""

    condition: Condition
    x0: Tensor  # (B, C, H, W) the result to predict, in the network's units
    weight: Tensor  # (B, C, H, W) or (`small`) (B, 1, H, W), 0 outside the brain
    t: Tensor  # (B,)
    noise: Tensor  # (B, C, H, W)
    hidden: Tensor  # (B, N, H, W) diffusivities along other directions, in units of `fields.DIFFUSIVITY`
    hidden_bvecs: Tensor  # (N, 3)
    with_length: bool  # whether the seventh number is known: noisy volumes would make it too large


class Acquisition(NamedTuple):
    """Slices along few directions, and along others from which the truth follows."""

    b0: Tensor  # (B, H, W, 3) the slice and its two neighbours
    dwis: Tensor  # (B, n, H, W, 3)
    bvecs: Tensor  # (B, n, 3) world RAS+
    bval: Tensor  # (B,)
    sigma: Tensor  # (B,) noise level, for slices with too little brain to estimate it
    mask: Tensor  # (B, H, W)
    dense: Tensor  # (B, 1 + N, H, W) b0 and images along many directions
    dense_bvecs: Tensor  # (N, 3) world RAS+
    noiseless: bool  # whether `dense` is


def simulated(subjects: SimulatedSubjects, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of simulated subjects; the truth is mean magnitudes along even directions."""
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
    return Acquisition(
        measured.signal[:, 0], measured.signal[:, 1:], bvecs, bval, measured.sigma, middle.mask(), expected, dense, True
    )


def measured(scans: Prepared, size: str, batch: int, generator: torch.Generator) -> Acquisition:
    """Return slices of a measured shell: few of its directions, and the others; with `paper`, all of them.

    What the network sees of size `small` is turned, mirrored, made noisier or coarser. What it has to predict has the
    same orientation and voxels, and no noise added.

    Raises
    ------
    ValueError
        Where no scan has a shell in range with enough directions, or (`paper`) a scan lacks those of the scheme.
    """
    uniform, _ = numbers_from(generator)
    n = _number(size, uniform)
    coarse = size == "small" and bool(uniform(1) < COARSE)
    height, width = (side * (2 if coarse else 1) for side in SIDE[size])
    needed = MEASURED_DIRECTIONS if size == "paper" else n + LEAST_HIDDEN
    views, b0s, volumes = scans.shell_slices(generator, batch, (height, width, 3), needed, BVALS)
    directions = views.directions[volumes].cpu().numpy()
    if size == "paper":
        chosen, apart = nearest_to_scheme(directions, n)
        if apart > SCHEME_DEGREES:
            name = scans.about[views.scan]["name"]
            raise ValueError(NOT_OF_SCHEME.format(name=name, apart=apart, most=SCHEME_DEGREES))
        rest, b0s_of_others = np.arange(len(volumes)), b0s
    else:
        # An even selection starts from the first of the volumes, which are in random order.
        chosen = even_subset(directions, n)
        rest = np.setdiff1d(np.arange(len(volumes)), chosen)
        b0s, b0s_of_others = _shared(b0s, uniform)
    few, others = volumes[chosen], volumes[rest]
    bval = views.bvals[volumes].mean() * torch.ones(batch, device=scans.device)
    a = Acquisition(
        views.signal[:, b0s].mean(dim=1), views.signal[:, few], views.directions[few].expand(batch, -1, -1), bval,
        views.sigma * torch.ones_like(bval), views.mask[..., 1],
        torch.cat([views.signal[:, b0s_of_others].mean(dim=1, keepdim=True), views.signal[:, others]], dim=1)[..., 1],
        views.directions[others], False,
    )  # fmt: skip
    if size == "paper":
        return a
    present = (views.signal[:, torch.cat([b0s, b0s_of_others, volumes])] > 0).all(dim=1)[..., 1]
    return _varied(a._replace(mask=a.mask & present), coarse, generator)


def _shared(b0s: Tensor, uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Return the b0s that the network sees, and those of what it has to predict; both the same where there is one."""
    if len(b0s) == 1:
        return b0s, b0s
    seen = 1 + int(uniform(1) * (len(b0s) - 1))
    return b0s[:seen], b0s[seen:]


def _varied(a: Acquisition, coarse: bool, generator: torch.Generator) -> Acquisition:
    """Return an acquisition with other axes, voxels and noise: one scan serves as several."""
    uniform, normal = numbers_from(generator)
    images = torch.cat([a.b0[:, None], a.dwis], dim=1)
    dense, mask, sigma = a.dense, a.mask, a.sigma
    if coarse:
        images, dense = F.avg_pool3d(images, (2, 2, 1)), F.avg_pool2d(dense, 2)
        mask, sigma = F.avg_pool2d(mask[:, None].float(), 2)[:, 0] > 0.99, sigma / 2
    for axis in (1, 2):
        if uniform(1) < 0.5:
            images, dense, mask = images.flip(1 + axis), dense.flip(1 + axis), mask.flip(axis)
    if uniform(1) < 0.5:
        images, dense, mask = images.transpose(2, 3), dense.transpose(2, 3), mask.transpose(1, 2)
    # The grid's axes have no place in the network, so the world may be turned and the grid stay.
    turn = torch.linalg.qr(normal(3, 3)).Q
    if uniform(1) < NOISY:
        level = MOST_NOISE * uniform(1) * sigma
        noise = level[:, None, None, None, None]
        images = torch.hypot(images + noise * normal(*images.shape), noise * normal(*images.shape))
        sigma = torch.hypot(sigma, level)
    return a._replace(b0=images[:, 0], dwis=images[:, 1:], bvecs=a.bvecs @ turn, sigma=sigma, mask=mask, dense=dense,
                      dense_bvecs=a.dense_bvecs @ turn)  # fmt: skip


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
    uniform, normal = numbers_from(generator)
    if size == "paper":
        a = _padded(a)
    else:
        widths = uniform(batch) * (uniform(batch) < SMOOTHED) * WIDEST
        a = a._replace(dwis=smooth_slices(a.dwis, a.mask, a.sigma, widths))
    unit = ((a.b0[..., 1] * a.mask).sum(dim=(1, 2)) / a.mask.sum(dim=(1, 2)).clamp_min(1)).clamp_min(1e-3)
    unit = unit * torch.exp(0.2 * normal(batch))  # at generation the unit is of a whole brain, not of a slice
    noise = noise_levels(a.dwis[..., 1], a.mask)
    noise = torch.where(noise.isfinite(), noise, a.sigma[:, None]) * torch.exp(SIGMA_ERROR * normal(batch, 1))
    condition = condition_of(a.b0, a.dwis, a.bvecs, a.bval, noise, unit, size)
    hidden = _hidden(a)
    truth = fitted_maps(a.dense, a.bval, a.dense_bvecs) if size == "paper" else _tensor(hidden, a.dense_bvecs)
    # Outside the brain the target is the fit itself: no correction, and the loss has weight 0 there.
    x0 = torch.where(a.mask[:, None], truth, condition.centre) - condition.centre
    x0 = x0.div(condition.scale).clamp(-LARGEST, LARGEST)
    if a.noiseless and condition.with_fit:  # what differs from it is no tensor, which nobody asks for
        hidden = along(condition.centre + condition.scale * x0, a.dense_bvecs)
    weight = _weight(condition, a.mask, hidden, a.dense_bvecs)
    # The most frequent use is the mean, predicted from noise alone: half of all slices train it. Noisy volumes can
    # train nothing else, because their noise would count as part of what is possible.
    alone = (uniform(batch) < 0.5) if a.noiseless else torch.ones_like(a.bval, dtype=torch.bool)
    first = torch.where(alone & condition.with_fit, FIRST_NOISE_ONLY, 1)
    t = first + (uniform(batch) * (PROCESS.steps + 1 - first)).long()
    return Batch(condition, x0, weight, t, normal(*x0.shape), hidden, a.dense_bvecs, a.noiseless)


def _hidden(a: Acquisition) -> Tensor:
    """Return the diffusivities (B, N, H, W) along the directions of `Acquisition.dense`."""
    signal = a.dense.movedim(1, 3)  # (B, H, W, 1 + N)
    found = [
        diffusivities(image[..., 0].flatten(), image[..., 1:].flatten(0, 1), float(bval)).unflatten(0, image.shape[:2])
        for image, bval in zip(signal, a.bval, strict=True)
    ]
    return torch.stack(found).movedim(3, 1)


def _tensor(hidden: Tensor, bvecs: Tensor) -> Tensor:
    """Return the numbers (B, 7, H, W) of the tensors that have some diffusivities."""
    gain, _ = ridge_fit(bvecs)
    mean = hidden.mean(dim=1, keepdim=True)
    tensor = torch.einsum("kn,bnhw->bkhw", gain, hidden - mean)
    tensor[:, :3] += mean
    return numbers_of(tensor)


def _weight(condition: Condition, mask: Tensor, hidden: Tensor, bvecs: Tensor) -> Tensor:
    """Return weights of errors, as `Batch.weight`: equal within a slice, and between slices so that none outweighs.

    Between slices they are relative to the error of the fit (`small`), or to its expected error.
    """
    voxels = mask.sum(dim=(1, 2)).clamp_min(1)
    if condition.with_fit:  # of diffusivities
        inside = (mask * condition.weight)[:, None]
        error = (along(condition.centre, bvecs) - hidden).square().mean(dim=1, keepdim=True) + LEAST_ERROR**2
    else:
        inside = mask[:, None] * condition.scale.square()
        error = torch.ones_like(inside)
    return inside / ((inside * error).sum(dim=(2, 3)) / voxels[:, None]).clamp_min(1e-12)[:, :, None, None]


def _number(size: str, uniform: Callable[..., Tensor]) -> int:
    """Return the number of directions of a batch: three to six, often six, or (`paper`) that of a scheme."""
    if size == "paper":
        numbers = sorted(SCHEMES)
        return numbers[int(uniform(1) * len(numbers))]
    return MOST if uniform(1) < SIX else LEAST + int(uniform(1) * (MOST - LEAST))


def _padded(a: Acquisition) -> Acquisition:
    """Return slices with zeros around them, so that they are `PADDED` voxels high and wide."""
    height, width = a.mask.shape[1:]
    around = zeros_around(height, width)
    return a._replace(
        b0=F.pad(a.b0, (0, 0, *around)), dwis=F.pad(a.dwis, (0, 0, *around)), mask=F.pad(a.mask, around),
        dense=F.pad(a.dense, around),
    )  # fmt: skip


def zeros_around(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the padding, as for `F.pad`, that brings slices to `PADDED`; zero where they are larger."""
    rows, columns = (max(PADDED - n, 0) for n in (height, width))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


@cache
def _even(n: int, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(even_directions(n)), dtype=torch.float32, device=device)
