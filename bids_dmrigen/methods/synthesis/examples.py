"""Training examples for synthesis: slices of simulated subjects or scans that are registered to the template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...simulate.examples import SimulatedSubjects, Slices, numbers_from
from ...simulate.imaging import measure
from .inputs import PROCESS, Condition, PopulationMaps, condition_of
from .task import GRID_MM

# Size of training slices; those of `paper` hold a whole brain of the template, with zeros around it.
SIDE = {"small": (64, 64), "paper": (112, 128)}
PADDED = 256  # height and width of slices of size `paper` with the zeros
TARGETS = 4  # directions per slice
BVALS = (500.0, 3200.0)  # s/mm²
RIM_GAIN, RIM_MM = 0.7, 10.0  # largest logarithm of the coils' gain at the brain's rim, and its depth
OUTSIDE = 0.02  # weight of voxels outside the brain in the loss
NOISE_ONLY_SHARE = 0.01  # share of the image in the variance of x_t; below it x_t counts as noise alone
FIRST_NOISE_ONLY = int((PROCESS.marginal(torch.arange(PROCESS.steps + 1))[0].square() >= NOISE_ONLY_SHARE).sum())


@dataclass(frozen=True, eq=False)
class Cohort:
    """Simulated subjects or scans in the template's space, and the population's maps."""

    subjects: SimulatedSubjects | Prepared
    maps: PopulationMaps

    @property
    def device(self) -> torch.device:
        """The device of the examples."""
        return self.subjects.device


class Batch(NamedTuple):
    """A batch of training examples."""

    condition: Condition
    x0: Tensor  # (B, 1, H, W) the image to predict
    weight: Tensor  # (B, 1, H, W)
    t: Tensor  # (B,)
    noise: Tensor  # (B, 1, H, W)


class Views(NamedTuple):
    """Slices in the template's space: what was measured, and images of the middle slice to predict."""

    b0: Tensor  # (B, H, W, 3) the slice and its two neighbours
    images: Tensor  # (B, T, H, W) in the units of the b0
    known: Tensor  # (B, T, H, W) bool: brain, and the image has a value
    mask: Tensor  # (B, H, W) bool, the brain
    places: Tensor  # (B, 3, H, W) mm
    bvals: Tensor  # (B, T) s/mm²
    bvecs: Tensor  # (B, T, 3) unit vectors in the template's world RAS+


def examples(cohort: Cohort, size: str, batch: int, generator: torch.Generator) -> Batch:
    """Return a batch of training examples: a measured b0, and images of some directions.

    Images of simulated subjects are free of noise. Those of scans are as acquired: their noise is independent of the
    b0's, so that the mean of what is possible is learnt from both.

    Parameters
    ----------
    cohort
        The subjects to measure.
    size
        Size of the network.
    batch
        Number of images, `TARGETS` of each slice.
    generator
        The only source of random numbers.
    """
    uniform, normal = numbers_from(generator)
    n = max(batch // TARGETS, 1)
    if isinstance(cohort.subjects, Prepared):
        views = measured(cohort.subjects, size, n, generator)
    else:
        views = simulated(cohort.subjects, size, n, generator)
    b0, mask, places, known = views.b0, views.mask, views.places, views.known
    unit = ((b0[..., 1] * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1)).clamp_min(1e-3)
    unit = unit * torch.exp(0.2 * normal(n))  # at generation the unit is of a whole brain, not of a slice
    image = views.images / unit[:, None, None, None]
    if size == "paper":
        around = zeros_around(*mask.shape[1:])
        b0, image, known = F.pad(b0, (0, 0, *around)), F.pad(image, around), F.pad(known, around)
        places = continued(places, around)

    def each(values: Tensor) -> Tensor:
        return values.repeat_interleave(TARGETS, dim=0)

    bvals, tracts = views.bvals.flatten(), cohort.maps.tracts_at(places)
    condition = condition_of(
        each(b0 / unit[:, None, None, None]), cohort.maps.adc_at(each(places), bvals), views.bvecs.flatten(0, 1), bvals,
        each(places), size, None if tracts is None else each(tracts),
    )  # fmt: skip
    x0 = ((image.flatten(0, 1)[:, None] - condition.centre) / condition.scale).clamp(-10, 10)
    inside = known.flatten(0, 1)[:, None]
    # Errors have equal weight within a slice; between slices they are relative to the expected error.
    expected, voxels = inside * condition.scale.square(), inside.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    weight = expected / (expected.sum(dim=(2, 3), keepdim=True) / voxels).clamp_min(1e-12) + OUTSIDE * ~inside
    # The most frequent use is the mean, predicted from noise alone: half of all images train it.
    first = torch.where(
        (uniform(len(x0)) < 0.5) & torch.tensor(size == "small", device=cohort.device), FIRST_NOISE_ONLY, 1
    )
    t = first + (uniform(len(x0)) * (PROCESS.steps + 1 - first)).long()
    return Batch(condition, x0, weight, t, normal(*x0.shape))


def simulated(subjects: SimulatedSubjects, size: str, n: int, generator: torch.Generator) -> Views:
    """Return `n` slices of simulated subjects, each with images of its own b-value."""
    uniform, normal = numbers_from(generator)
    bval = BVALS[0] * (BVALS[1] / BVALS[0]) ** uniform(n)
    bvecs = F.normalize(normal(n, TARGETS, 3), dim=2)
    slices, places = _views(subjects, size, n, generator)
    clean = slices.signal(torch.zeros(n, 1, device=subjects.device), torch.zeros(n, 1, 3, device=subjects.device))
    middle = slices.layer(1)
    bvals = bval[:, None].repeat(1, TARGETS)
    wanted = middle.signal(bvals, bvecs)
    mask = middle.mask()
    gain = rim_gain(mask, RIM_GAIN * uniform(n), generator)
    clean, wanted = clean * gain[..., None], wanted * gain
    acquired = measure(clean, torch.ones_like(bval), generator, noiseless=wanted[..., None])
    assert acquired.expected is not None  # because `noiseless` was given
    known = mask[:, None].expand(-1, TARGETS, -1, -1)
    return Views(acquired.signal[:, 0], acquired.expected[..., 0], known, mask, places, bvals, bvecs)


def measured(scans: Prepared, size: str, n: int, generator: torch.Generator) -> Views:
    """Return `n` slices of a scan in the template's space, each with images of other directions of a shell.

    Half of them are mirrored: left and right have the same tracts.

    Raises
    ------
    ValueError
        Where no scan has a shell of `TARGETS` directions between `BVALS`.
    """
    uniform, _ = numbers_from(generator)
    views, b0s, volumes = scans.shell_slices(generator, n, (*SIDE[size], 3), TARGETS, BVALS)
    chosen = volumes[uniform(n, len(volumes)).argsort(dim=1)[:, :TARGETS]]
    b0 = views.signal[:, b0s[: 1 + int(uniform(1) * len(b0s))]].mean(dim=1)
    images = views.signal[torch.arange(n, device=chosen.device)[:, None], chosen, :, :, 1]
    mask, bvecs, places = views.mask[..., 1], views.directions[chosen], places_of(views.affine, SIDE[size])
    mirrored = uniform(n) < 0.5
    across = torch.tensor([-1.0, 1, 1], device=bvecs.device)

    def turned(values: Tensor, axis: int) -> Tensor:
        return torch.where(mirrored.reshape(-1, *[1] * (values.ndim - 1)), values.flip(axis), values)

    b0, images, mask, places = turned(b0, 1), turned(images, 2), turned(mask, 1), turned(places, 2)
    bvecs = torch.where(mirrored[:, None, None], bvecs * across, bvecs)
    places = torch.where(mirrored[:, None, None, None], places * across[:, None, None], places)
    gain = rim_gain(mask, RIM_GAIN * uniform(n), generator)
    known = mask[:, None] & (b0[..., 1] > 0)[:, None] & (images > 0)  # a sample of 0 is one that is missing
    return Views(b0 * gain[:, 0, ..., None], images * gain, known, mask, places, views.bvals[chosen], bvecs)


def places_of(affine: Tensor, side: tuple[int, int]) -> Tensor:
    """Return the places (B, 3, H, W), mm, of the middle slice of blocks of three, from their affines (B, 4, 4)."""
    axes = (torch.arange(k, device=affine.device) for k in side)
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).float()
    index = torch.cat([index, torch.ones_like(index[:1])])
    return torch.einsum("bij,jhw->bihw", affine[:, :3, :3], index) + affine[:, :3, 3, None, None]


def rim_gain(mask: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Return gains (B, 1, H, W) of coils around the head: above 1 near the brain's rim, more on some sides.

    Without such examples the network takes a bright rim for fluid. Bias correction removes slow variation only, and
    leaves such a steep gain.

    Parameters
    ----------
    mask
        (B, H, W) bool, the brain.
    strength
        (B,) largest logarithm of the gain at the rim.
    generator
        Random numbers for the sides.
    """
    batch, height, width = mask.shape
    reach = int(RIM_MM / GRID_MM)
    kernel = torch.ones(1, 1, 2 * reach + 1, device=mask.device) / (2 * reach + 1)
    inside = mask[:, None].float()
    for _ in range(2):  # two box filters make a triangular one
        inside = F.conv2d(inside, kernel[..., None], padding=(reach, 0))
        inside = F.conv2d(inside, kernel[:, :, None], padding=(0, reach))
    sides = torch.rand((batch, 1, 3, 3), generator=generator, device=mask.device)
    sides = F.interpolate(sides, size=(height, width), mode="bilinear", align_corners=True)
    return torch.exp(strength[:, None, None, None] * sides * 2 * (1 - inside).clamp(0, 0.75))


def zeros_around(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the padding, as for `F.pad`, that brings slices to `PADDED`; zero where they are larger."""
    rows, columns = (max(PADDED - n, 0) for n in (height, width))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def continued(places: Tensor, around: tuple[int, int, int, int]) -> Tensor:
    """Return places (B, 3, H, W) of voxels, mm, extended by `around` voxels on each side, as for `F.pad`."""
    left, right, top, bottom = around
    height, width = places.shape[2:]
    rows = torch.arange(-top, height + bottom, device=places.device, dtype=places.dtype)[:, None]
    columns = torch.arange(-left, width + right, device=places.device, dtype=places.dtype)
    corner = places[:, :, :1, :1]
    down, across = places[:, :, 1:2, :1] - corner, places[:, :, :1, 1:2] - corner
    return corner + rows * down + columns * across


def _views(subjects: SimulatedSubjects, size: str, n: int, generator: torch.Generator) -> tuple[Slices, Tensor]:
    """Return axial blocks of three slices in the brain, and the places (n, 3, H, W), mm, of their middle slices."""
    device = subjects.device
    uniform, _ = numbers_from(generator)
    subject = torch.randint(len(subjects), (n,), generator=generator, device=device)
    corner = subjects.places(subject, uniform(n)) / GRID_MM
    side = torch.tensor(SIDE[size], device=device)
    if size == "paper":  # the template's middle in the middle
        corner[:, :2] = subjects.centres(subject)[:, :2] / GRID_MM - side / 2
    else:
        corner[:, :2] -= side * (0.3 + 0.4 * uniform(n, 2))  # not always in the middle
    corner[:, 2] -= 1
    affine = torch.eye(4, device=device).repeat(n, 1, 1)
    affine[:, :3, :3] *= GRID_MM
    affine[:, :3, 3] = GRID_MM * corner.round()
    kind = torch.randint(len(subjects.tissues), (n,), generator=generator, device=device)
    slices = subjects.view(subject, affine, (*SIDE[size], 3), subjects.tissues[kind], generator)
    return slices.with_random_lesions(subjects.lesioned, generator), places_of(affine, SIDE[size])
