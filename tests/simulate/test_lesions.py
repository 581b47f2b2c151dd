"""Lesions: their shape, and what they do to tissue, against closed forms."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_of_step
from bids_dmrigen.simulate.lesions import KINDS, Lesions, random_lesions
from bids_dmrigen.simulate.medium import MIXTURE, TENSORS
from bids_dmrigen.simulate.signal import CSF_DIFFUSIVITY, Compartments, Tissue

PURE = Tissue(*[Compartments(0.0, 1.6e-3, 0.4e-3, 0.0, 0.7e-3, 1.0)] * 2, csf_b0=3.0)
CENTRE, FIBRE = torch.tensor([10.0, -20, 30]), F.normalize(torch.tensor([1.0, 2, -2]), dim=0)


def ellipsoid(halves, effect=(0.0, 0.0, 1.0, 1.0), edge=0.01) -> Lesions:
    """One smooth ellipsoid at CENTRE, whose first axis is along FIBRE."""
    second = F.normalize(torch.linalg.cross(FIBRE, torch.tensor([0.0, 0, 1])), dim=0)
    axes = torch.stack([FIBRE, second, torch.linalg.cross(FIBRE, second)])
    frame = axes / torch.tensor(halves)[:, None]
    waves = torch.zeros(1, 1, 4, 3)
    level = torch.full((1, 1, 4), torch.pi / 2)  # a cosine of zero: nothing is added to the surface
    one = torch.ones(1, 1)
    return Lesions(CENTRE[None, None], frame[None, None], waves, level, edge * one, torch.tensor([[effect]]), one > 0)


def whole(effect) -> tuple[torch.Tensor, torch.Tensor]:
    """Amounts and effects of a lesion that is everywhere."""
    return torch.ones(1, 1), torch.tensor([effect])


def test_an_ellipsoid_has_its_axes_in_world_space():
    lesions = ellipsoid([12.0, 3.0, 5.0])
    second = F.normalize(torch.linalg.cross(FIBRE, torch.tensor([0.0, 0, 1])), dim=0)
    third = torch.linalg.cross(FIBRE, second)
    for axis, half in ((FIBRE, 12.0), (second, 3.0), (third, 5.0)):
        places = CENTRE + torch.tensor([0.0, 0.9, 1.1])[:, None] * half * axis
        amounts = lesions.amounts(places[None])[0, 0]
        torch.testing.assert_close(amounts, torch.tensor([1.0, 1, 0]), atol=1e-3, rtol=0)
    on_the_surface = lesions.amounts((CENTRE + 12 * FIBRE)[None, None])
    assert float(on_the_surface) == pytest.approx(0.5, abs=1e-2)


def test_random_lesions_are_where_and_as_large_as_they_should_be():
    centres = torch.randn(200, 4, 3, generator=torch.Generator().manual_seed(0)) * 30
    fibres = F.normalize(torch.randn(200, 4, 3, generator=torch.Generator().manual_seed(1)), dim=2)
    lesions = random_lesions(centres, fibres, 0.5, torch.Generator().manual_seed(2))
    lesioned = lesions.present.any(dim=1)
    assert 0.35 < lesioned.float().mean() < 0.65
    assert set(lesions.present.sum(dim=1).tolist()) == {0, 1, 2, 3, 4}
    at_centre = torch.stack([lesions.amounts(centres[:, k : k + 1])[:, k, 0] for k in range(4)], dim=1)
    assert (at_centre[lesions.present] > 0.5).all()
    assert not at_centre[~lesions.present].any()
    halves = 1 / lesions.frames.norm(dim=3)
    assert 0.3 < halves.min() < 2
    assert 12 < halves.max() < 35
    rods = halves[..., 1] <= 2.0
    along = torch.einsum("bli,bli->bl", F.normalize(lesions.frames[..., 0, :], dim=2), fibres).abs()
    torch.testing.assert_close(along[rods], torch.ones(int(rods.sum())))
    low, high = (torch.tensor([getattr(k, end) for k in KINDS.values()]) for end in ("weakest", "strongest"))
    within = (lesions.effects[:, :, None] >= low - 1e-6) & (lesions.effects[:, :, None] <= high + 1e-6)
    assert within.all(dim=3).any(dim=2).all()


def test_water_and_diffusivity_of_a_mixture_against_the_closed_form():
    points = torch.zeros(1, 18, 1)
    points[0, 0] = 1  # white matter whose fibres have no direction
    bvals, directions = torch.tensor([[0.0, 800.0]]), torch.tensor([[[0.0, 0, 0], [0.6, 0, 0.8]]])
    tissue = torch.as_tensor(PURE.numbers())[None]
    lesioned = MIXTURE.with_lesion(points, *whole((0.3, 0.5, 0.6, 1.2)))
    found = MIXTURE.signal(lesioned, tissue, bvals, directions)[0, :, 0]
    # The brightness is that of all that is in the voxel.
    expected = [1.2 * (0.7 + 0.3 * 3),
                1.2 * (0.7 * np.exp(-800 * 0.6 * 0.7e-3) + 0.3 * 3 * np.exp(-800 * CSF_DIFFUSIVITY))]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lost_fibres_become_tissue_without_direction():
    points = torch.zeros(1, 18, 1)
    points[0, 0] = points[0, 3] = 1
    points[0, 6:9, 0] = FIBRE
    lesioned = MIXTURE.with_lesion(points, *whole((0.0, 0.25, 1.0, 1.0)))
    bvals = torch.full((1, 1), 1000.0)
    tissue = torch.as_tensor(PURE.numbers())[None]
    found = MIXTURE.signal(lesioned, tissue, bvals, FIBRE[None, None])
    expected = 0.75 * np.exp(-1.6) + 0.25 * np.exp(-0.7)
    assert float(found) == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(MIXTURE.fibres(points)[0, 0], FIBRE)


def test_water_stays_water_and_air_stays_air():
    water = torch.zeros(1, 18, 2)
    water[0, 2, 0] = 1
    amounts, effects = torch.ones(1, 2), torch.tensor([[0.3, 0.5, 0.5, 1.5]])
    assert torch.equal(MIXTURE.with_lesion(water, amounts, effects), water)
    tensors = torch.zeros(1, 10, 2)
    tensors[0, [0, 3], 0], tensors[0, 4:7, 0] = 1.0, 3.0
    torch.testing.assert_close(TENSORS.with_lesion(tensors, amounts, effects), tensors)


def test_a_tensor_with_a_lesion_against_the_closed_form():
    matrix = 0.7 * torch.eye(3) + 0.6 * (torch.outer(FIBRE, FIBRE) - torch.eye(3) / 3)
    tensor = torch.cat([matrix.diagonal(), 2**0.5 * matrix[[0, 0, 1], [1, 2, 2]]])
    points = torch.cat([torch.tensor([1.0, 0, 0, 0.9]), tensor])[None, :, None]
    torch.testing.assert_close(TENSORS.fibres(points)[0, 0].abs(), FIBRE.abs())
    assert TENSORS.white(points) > 0
    lesioned = TENSORS.with_lesion(points, *whole((0.2, 0.5, 1.1, 1.3)))[0, :, 0]
    wanted = 0.7 * 1.1 * torch.eye(3) + 0.5 * 1.1 * 0.6 * (torch.outer(FIBRE, FIBRE) - torch.eye(3) / 3)
    wanted = 0.8 * wanted + 0.2 * 3 * torch.eye(3)
    torch.testing.assert_close(lesioned[4:7], wanted.diagonal())
    torch.testing.assert_close(lesioned[7:], 2**0.5 * wanted[[0, 0, 1], [1, 2, 2]])
    assert float(lesioned[3]) == pytest.approx(0.9 * 1.3 * 1.4)
    isotropic = torch.tensor([1.0, 0, 0, 1, 0.7, 0.7, 0.7, 0, 0, 0])[None, :, None]
    assert TENSORS.white(isotropic) == 0


def test_finer_views_and_layers_have_the_same_lesions(ball):
    subjects = SimulatedSubjects([ball()], [PURE], lesioned=1.0)
    blocks = subjects.slices(numbers_of_step(0, 0), 3, (20, 20, 5), (2.0, 2.1), (2.0, 2.1))
    assert blocks.lesions is not None
    nothing = dataclasses.replace(blocks.lesions, present=torch.zeros_like(blocks.lesions.present))
    bvals, directions = torch.full((3, 1), 1000.0), F.normalize(torch.ones(3, 1, 3), dim=2)
    lesioned = blocks.signal(bvals, directions)
    healthy = subjects.view(
        blocks.subject, blocks.affine, (20, 20, 5), blocks.tissue, numbers_of_step(0, 0)
    ).planted(nothing)  # fmt: skip
    change = lesioned - healthy.signal(bvals, directions)
    assert (change.abs() > 0.05).sum() > 50
    finer = subjects.finer(blocks, (40, 40, 10), numbers_of_step(0, 1))
    coarse = F.avg_pool3d(finer.signal(bvals, directions), 2)
    changed = change.abs() > 0.05
    assert (coarse - lesioned).abs()[changed].mean() < 0.5 * change.abs()[changed].mean()
    torch.testing.assert_close(blocks.layer(2).signal(bvals, directions), lesioned[..., 2], rtol=1e-5, atol=1e-6)


def test_a_share_of_the_views_has_lesions_and_none_by_default(ball):
    assert SimulatedSubjects([ball()], [PURE]).slices(numbers_of_step(0, 0), 8, (16, 16)).lesions is None
    some = SimulatedSubjects([ball()], [PURE], lesioned=0.5).slices(numbers_of_step(0, 0), 32, (16, 16))
    assert 8 < some.lesions.present.any(dim=1).sum() < 24
