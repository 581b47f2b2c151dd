"""Training examples without end: random slices of many simulated subjects, simulated on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .anatomy import deform
from .atlas import Atlas
from .individual import Variation
from .lesions import MOST, Lesions, random_lesions
from .medium import MIXTURE, Medium
from .signal import Tissue, anatomy_maps

HELD_OUT = 1 << 20  # subjects with this seed or a higher one are never trained on
N_TISSUES = 512  # random tissues that examples choose from
SUPERSAMPLE = (2, 2, 2)  # points per voxel along the slice's axes and through it
VOXEL_MM, THICKNESS_MM = (1.5, 4.0), (2.0, 5.0)
TILT_DEGREES, OFF_CENTRE_MM = 10.0, 8.0
HEAD_MM = 180.0  # views smaller than this lie anywhere in the brain, larger ones at its centre
OTHER_PLANE = 0.1  # share of examples that are sagittal or coronal
LESIONED = 0.3  # share of the examples of trainings that have lesions
NO_SUBJECTS = "subjects: expected at least one seed, found none"


@dataclass(frozen=True, eq=False)
class Slices:
    """A batch of views (slices or blocks) of simulated subjects, ready to be measured with any gradient table.

    Parameters
    ----------
    points
        (B, C, P) tissue at those voxels of the anatomy that the views touch, as `medium` takes it; the sum of the first
        three channels is 1 in the brain.
    places
        (B, P, 3) their world places, mm.
    inside
        (B, V, K) indices of the K points in each of the V voxels.
    shape
        (H, W) or (H, W, D) of the views, V = H W D.
    tissue
        (B, K) microstructure of every example.
    affine
        (B, 4, 4) voxel indices (H, W, D) to world, mm; for a slice D has one index, 0.
    subject
        (B,) number of each view's subject among the `SimulatedSubjects`.
    medium
        What the channels of the points mean.
    lesions
        The lesions that were planted in the points; None where there are none.
    """

    points: torch.Tensor
    places: torch.Tensor
    inside: torch.Tensor
    shape: tuple[int, ...]
    tissue: torch.Tensor
    affine: torch.Tensor
    subject: torch.Tensor
    medium: Medium = MIXTURE
    lesions: Lesions | None = None

    def signal(self, bvals: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Return the noise-free signals (B, N, *shape): the mean over the points in each voxel.

        White matter without diffusion weighting has a signal of about one, air zero.

        Parameters
        ----------
        bvals
            (B, N) in s/mm²: every example may have its own.
        directions
            (B, N, 3) unit vectors in world axes, or zero.
        """
        return self._averaged(self.medium.signal(self.points, self.tissue, bvals, directions))

    def fractions(self) -> torch.Tensor:
        """Return (B, 3, *shape) fractions of white matter, grey matter and CSF; their sum is 0 in air."""
        return self._averaged(self.points[:, :3])

    def mask(self) -> torch.Tensor:
        """Return (B, *shape) bool: more brain than air."""
        return self.fractions().sum(dim=1) > 0.5

    def axes(self) -> torch.Tensor:
        """Return (B, 3, 3): columns are the world directions of the view's axes."""
        return F.normalize(self.affine[:, :3, :3], dim=1)

    def layer(self, k: int) -> Slices:
        """Return slice k of a block, with only the points that lie in it."""
        batch, per_voxel = len(self.inside), self.inside.shape[2]
        indices = self.inside.unflatten(1, self.shape)[:, :, :, k].reshape(batch, -1)
        kept, inside = _compact(indices, self.points.shape[2])
        points = self.points.gather(2, kept[:, None].expand(-1, self.points.shape[1], -1))
        affine = self.affine.clone()
        affine[:, :, 3] += k * self.affine[:, :, 2]
        places = self.places.gather(1, kept[..., None].expand(-1, -1, 3))
        inside = inside.reshape(batch, -1, per_voxel)
        return replace(self, points=points, places=places, inside=inside, shape=self.shape[:2], affine=affine)

    def planted(self, lesions: Lesions | None) -> Slices:
        """Return the views with lesions in their tissue."""
        if lesions is None or not lesions.present.any():
            return self
        points, amounts = self.points, lesions.amounts(self.places)
        for amount, effect in zip(amounts.unbind(dim=1), lesions.effects.unbind(dim=1), strict=True):
            points = self.medium.with_lesion(points, amount, effect)
        return replace(self, points=points, lesions=lesions)

    def with_random_lesions(self, share: float, generator: torch.Generator) -> Slices:
        """Return the views with random lesions in a share of them, in white matter that they show."""
        if not share:
            return self
        white = self.medium.white(self.points) + 1e-6
        chosen = torch.multinomial(white, MOST, replacement=True, generator=generator)  # (B, L)
        centres = self.places.gather(1, chosen[..., None].expand(-1, -1, 3))
        points = self.points.gather(2, chosen[:, None].expand(-1, self.points.shape[1], -1))
        return self.planted(random_lesions(centres, self.medium.fibres(points), share, generator))

    def _averaged(self, values: torch.Tensor) -> torch.Tensor:
        """Return (B, C, *shape) means over the points in every voxel of values (B, C, P)."""
        batch, channels, n_points = values.shape
        rows = values.transpose(1, 2).reshape(-1, channels)
        start = n_points * torch.arange(batch, device=values.device)[:, None, None]
        means = F.embedding_bag((self.inside + start).flatten(0, 1), rows, mode="mean")
        return means.reshape(batch, -1, channels).transpose(1, 2).reshape(batch, channels, *self.shape)


class Deformed:
    """Simulated subjects of one atlas, by number. Each is simulated when it is requested, which takes seconds.

    Parameters
    ----------
    atlas
        Atlas, on the device of the simulation.
    seeds
        Seed of `deform` for each subject.
    variation
        How much subjects differ; None for the defaults.
    """

    def __init__(self, atlas: Atlas, seeds: Sequence[int], variation: Variation | None = None):
        self.atlas, self.seeds, self.variation = atlas, seeds, variation

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, number: int) -> Atlas:
        return deform(self.atlas, self.seeds[number], self.variation)


class SimulatedSubject(NamedTuple):
    """One anatomy, stored only in the brain: row 0 of the tables is air."""

    table: torch.Tensor  # (rows, C) tissue, as `Slices.medium` takes it
    places: torch.Tensor  # (rows, 3) positions of the voxels in world space, mm
    voxels: torch.Tensor  # row of every voxel; the grid has a layer of air around it for points outside
    centre: torch.Tensor  # (3,) centre of the brain in world space, mm
    affine: torch.Tensor  # (4, 4) voxel indices to world space, mm

    @classmethod
    def of(cls, maps: torch.Tensor, brain: torch.Tensor, affine: torch.Tensor) -> SimulatedSubject:
        """Return the anatomy with maps (C, V) in the V voxels of a brain (X, Y, Z)."""
        voxels = brain.nonzero().to(maps.device)
        places = voxels.float() @ affine[:3, :3].T + affine[:3, 3]
        index = torch.zeros([n + 2 for n in brain.shape], dtype=torch.int32, device=maps.device)
        index[tuple((voxels + 1).T)] = torch.arange(1, len(voxels) + 1, device=maps.device).int()
        return cls(F.pad(maps.T, (0, 0, 1, 0)), F.pad(places, (0, 0, 1, 0)), index, places.mean(dim=0), affine)


class SimulatedSubjects:
    """Simulated subjects on one device, whose slices are the training examples.

    Parameters
    ----------
    subjects
        Anatomies on one grid, from `deform`. Each is taken from the sequence when it is first drawn, so that training
        can begin before all of them are simulated.
    tissues
        Tissues that examples choose from; None for `N_TISSUES` random ones.
    device
        Device of data and computations: about 20 MB per subject on a 2 mm grid.
    lesioned
        Share of the views with lesions.

    Raises
    ------
    ValueError
        Where there is no subject.
    """

    medium = MIXTURE

    def __init__(
        self,
        subjects: Sequence[Atlas] | Deformed,
        tissues: Sequence[Tissue] | None = None,
        device="cpu",
        lesioned: float = 0.0,
    ):
        if not len(subjects):
            raise ValueError(NO_SUBJECTS)
        self.lesioned = lesioned
        tissues = [Tissue.random(seed) for seed in range(N_TISSUES)] if tissues is None else tissues
        self.device = torch.device(device)
        self.tissues = torch.as_tensor(np.stack([t.numbers() for t in tissues]), device=self.device)
        self._sequence = subjects
        self._taken: dict[int, SimulatedSubject] = {}

    @classmethod
    def from_atlas(
        cls, atlas: Atlas, n: int, held_out: bool = False, variation: Variation | None = None, device="cpu", first=0
    ) -> SimulatedSubjects:
        """Return subjects number `first` to `first + n - 1` of the training subjects or of the held-out ones.

        A share of `LESIONED` of their views has lesions.
        """
        first = first + HELD_OUT * held_out
        return cls(Deformed(atlas.to(device), range(first, first + n), variation), device=device, lesioned=LESIONED)

    def __len__(self) -> int:
        return len(self._sequence)

    def subject(self, number: int) -> SimulatedSubject:
        """Return one of the subjects."""
        if number not in self._taken:
            anatomy = self._sequence[number]
            affine = torch.as_tensor(anatomy.affine, dtype=torch.float32, device=self.device)
            maps = torch.cat([m.flatten(0, -4)[:, anatomy.brain] for m in anatomy_maps(anatomy)])
            self._taken[number] = SimulatedSubject.of(maps.to(self.device), anatomy.brain, affine)
        return self._taken[number]

    def least_mm(self, subject: torch.Tensor) -> torch.Tensor:
        """Return the smallest edges (B, 3) of voxels, in the plane and across, that show the subjects' detail, mm."""
        return torch.zeros((len(subject), 3), device=self.device)

    def centres(self, subject: torch.Tensor) -> torch.Tensor:
        """Return the centres (B, 3) of the brains of subjects (B,), mm."""
        return torch.stack([self.subject(number).centre for number in subject.tolist()])

    def places(self, subject: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """Return a position (B, 3) in the brain of each of the subjects (B,), mm, chosen by `chance` (B,) in [0, 1)."""
        everywhere = [self.subject(number).places for number in subject.tolist()]
        counts = torch.tensor([len(places) - 1 for places in everywhere], device=self.device)
        rows = 1 + (chance * counts).long()
        return torch.stack([places[row] for places, row in zip(everywhere, rows, strict=True)])

    def slices(
        self,
        generator: torch.Generator,
        batch: int,
        size: tuple[int, ...] = (96, 96),
        voxel_mm: tuple[float, float] = VOXEL_MM,
        thickness_mm: tuple[float, float] = THICKNESS_MM,
    ) -> Slices:
        """Return random views of random subjects: axial, a little oblique, with random voxels, some with lesions.

        Parameters
        ----------
        generator
            On the same device; see `numbers_of_step`.
        batch
            Number of examples.
        size
            (H, W) for slices, (H, W, D) for blocks of D slices.
        voxel_mm, thickness_mm
            Smallest and largest edge of the voxels in the plane, and across.
        """

        def uniform(*shape):
            return torch.rand(shape, generator=generator, device=self.device)

        subject = torch.randint(len(self), (batch,), generator=generator, device=self.device)
        in_plane = voxel_mm[0] * (voxel_mm[1] / voxel_mm[0]) ** uniform(batch)
        thick = thickness_mm[0] * (thickness_mm[1] / thickness_mm[0]) ** uniform(batch)
        zooms = torch.maximum(torch.stack([in_plane, in_plane, thick], dim=1), self.least_mm(subject))
        flips = torch.where(uniform(batch, 3) < 0.5, -1.0, 1.0)
        frames = self._random_frames(generator, batch)
        linear = frames * (zooms * flips)[:, None]
        # The view lies at the height of a random brain voxel. In the plane, the centre of a small view is near that
        # voxel, and the centre of a large view is near the centre of the brain.
        shape = (*size, 1)[:3]
        centres = self.centres(subject)
        offset = torch.einsum("bij,bi->bj", frames, self.places(subject, uniform(batch)) - centres)
        extent = zooms[:, :2] * torch.tensor(shape[:2], device=self.device) / HEAD_MM
        offset[:, :2] *= (1 - extent).clamp_min(0)
        offset[:, :2] += OFF_CENTRE_MM * torch.randn((batch, 2), generator=generator, device=self.device)
        centre = centres + torch.einsum("bij,bj->bi", frames, offset)
        half = (torch.tensor(shape, device=self.device) - 1) / 2
        affine = torch.eye(4, device=self.device).repeat(batch, 1, 1)
        affine[:, :3, :3] = linear
        affine[:, :3, 3] = centre - linear @ half
        kind = torch.randint(len(self.tissues), (batch,), generator=generator, device=self.device)
        views = self.view(subject, affine, size, self.tissues[kind], generator)
        return views.with_random_lesions(self.lesioned, generator)

    def view(
        self,
        subject: torch.Tensor,
        affine: torch.Tensor,
        size: tuple[int, ...],
        tissue: torch.Tensor,
        generator: torch.Generator,
        supersample: tuple[int, int, int] = SUPERSAMPLE,
    ) -> Slices:
        """Return given subjects on given grids: subject (B,), affine (B, 4, 4), tissue (B, 13).

        A voxel contains the points of a jittered lattice. Each point has the tissue of the anatomy's voxel that it
        lies in. So edges stay as sharp as in the anatomy, and averaging the signals gives partial volume.
        """
        shape = (*size, 1)[:3]
        points = _jittered_lattice(shape, supersample, generator)  # (3, V * K)
        subjects = [self.subject(number) for number in subject.tolist()]
        to_anatomy = torch.linalg.inv(torch.stack([one.affine for one in subjects])) @ affine
        voxels = torch.baddbmm(to_anatomy[:, :3, 3:] + 1, to_anatomy[:, :3, :3], points.expand(len(subject), -1, -1))
        # Single precision is exact for every index of a grid of up to 16 million voxels.
        flat = torch.zeros((), device=voxels.device)
        sizes = torch.tensor([one.voxels.shape for one in subjects], device=voxels.device)
        for axis, n in enumerate(sizes.T[:, :, None]):
            flat = flat * n + voxels[:, axis].round_().clamp_min_(0).minimum(n - 1)
        rows = torch.stack([one.voxels.flatten()[at] for one, at in zip(subjects, flat.long(), strict=True)]).long()
        kept, inside = _compact(rows, max(len(one.table) for one in subjects))
        inside = inside.reshape(len(subject), int(np.prod(shape)), -1)
        tissues = torch.stack([one.table[at].T for one, at in zip(subjects, kept, strict=True)])
        places = torch.stack([one.places[at] for one, at in zip(subjects, kept, strict=True)])
        return Slices(tissues, places, inside, tuple(size), tissue, affine, subject, self.medium)

    def finer(self, blocks: Slices, size: tuple[int, int, int], generator: torch.Generator) -> Slices:
        """Return views of the same subjects, tissues and lesions, of the same extent as blocks, with `size` voxels."""
        scale = torch.tensor([n / m for n, m in zip(blocks.shape, size, strict=True)], device=self.device)
        affine = blocks.affine.clone()
        affine[:, :3, :3] *= scale  # the edges of the extent stay, and so does the centre
        affine[:, :3, 3] += blocks.affine[:, :3, :3] @ ((scale - 1) / 2)
        return self.view(blocks.subject, affine, size, blocks.tissue, generator).planted(blocks.lesions)

    def _random_frames(self, generator: torch.Generator, batch: int) -> torch.Tensor:
        """Return (B, 3, 3) rotations whose columns are the view's axes in world space; most are nearly axial."""
        angles = np.deg2rad(TILT_DEGREES) * torch.randn((batch, 3), generator=generator, device=self.device)
        rotation = torch.matrix_exp(torch.linalg.cross(angles[:, None], torch.eye(3, device=self.device)[None]))
        planes = torch.eye(3, device=self.device)[torch.tensor([[0, 1, 2], [1, 2, 0], [0, 2, 1]], device=self.device)]
        chance = torch.rand(batch, generator=generator, device=self.device) / OTHER_PLANE
        return rotation @ planes[torch.where(chance < 1, 1 + (2 * chance).long(), 0)].mT


def numbers_of_step(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the random numbers of one training step; they depend on seed and step alone, so training can resume."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> 1))


def numbers_from(generator: torch.Generator):
    """Return functions of a shape that draw from the uniform and the normal distribution."""
    device = generator.device
    return (
        lambda *shape: torch.rand(shape, generator=generator, device=device),
        lambda *shape: torch.randn(shape, generator=generator, device=device),
    )


def _compact(rows: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return those of n rows that occur in (B, M) rows, as a list (B, P), and the place of each row in that list.

    The list is in the order of the rows, so that neighbours stay neighbours; shorter lists are filled with zeros.
    """
    present = torch.zeros((len(rows), n), dtype=torch.bool, device=rows.device)
    present.scatter_(1, rows, True)
    rank = present.cumsum(dim=1, dtype=torch.int32) - 1
    example, row = present.nonzero(as_tuple=True)
    kept = torch.zeros((len(rows), int(rank[:, -1].max()) + 1), dtype=torch.long, device=rows.device)
    kept[example, rank[example, row].long()] = row
    return kept, rank.gather(1, rows).long()


def _jittered_lattice(shape, supersample, generator: torch.Generator) -> torch.Tensor:
    """Return (3, V * K) voxel coordinates: K points in every voxel, one random point in each of its K parts."""
    device = generator.device
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in shape), indexing="ij")
    voxels = torch.stack([axis.flatten() for axis in axes])[:, :, None]  # (3, V, 1)
    parts = torch.tensor(supersample, device=device)[:, None]
    steps = torch.meshgrid(*(torch.arange(n, device=device) for n in supersample), indexing="ij")
    corners = torch.stack([step.flatten() for step in steps])[:, None]  # (3, 1, K)
    jitter = torch.rand((3, voxels.shape[1], corners.shape[2]), generator=generator, device=device)
    return (voxels - 0.5 + (corners + jitter) / parts[..., None]).flatten(1)
