"""Training slices: exact fits of known tissue, known turns, and the same numbers as the signal of a whole anatomy."""

import dataclasses

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.tensor import fit_tensor, tensor_maps
from bids_dmrigen.simulate.anatomy import deform, rigid, warped
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import HELD_OUT, NO_SUBJECTS, SimulatedSubjects, numbers_of_step
from bids_dmrigen.simulate.imaging import Imaging, measure
from bids_dmrigen.simulate.signal import Compartments, Tissue, simulate_signal
from bids_dmrigen.spatial.templates import embedded_mni

AXIAL, RADIAL = 1.6e-3, 0.4e-3
PURE = Tissue(*[Compartments(0.0, AXIAL, RADIAL, 0.0, 0.7e-3, 1.0)] * 2)  # no sticks, no dispersion: a tensor


def scheme(batch: int, n: int = 20, bvals=(1000.0,)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, N) b-values, one shell per example in turn, and (B, N, 3) directions; two b0s first."""
    directions = torch.tensor(np.r_[np.zeros((2, 3)), even_directions(n)], dtype=torch.float32)
    shells = torch.tensor([bvals[i % len(bvals)] for i in range(batch)])[:, None]
    return torch.cat([torch.zeros(batch, 2), shells.expand(-1, n)], dim=1), directions.expand(batch, -1, -1)


@pytest.fixture(scope="module")
def one(ball):
    """A subject without any variation, all of whose white matter follows one direction."""
    atlas = ball((0.6, 0.8, 0.0))
    return dataclasses.replace(atlas, weights=atlas.weights / 0.9)


@pytest.fixture(scope="module")
def crowd(ball):
    return SimulatedSubjects([deform(ball(), seed) for seed in range(2)])


def test_on_the_anatomys_own_grid_the_signal_is_that_of_the_whole_anatomy(ball):
    atlas = deform(ball((0.48, 0.6, 0.64)), 1)
    tissue = Tissue.random(2)
    bvals, directions = scheme(1)
    affine = torch.tensor(atlas.affine, dtype=torch.float32)[None]
    subjects = SimulatedSubjects([atlas], [tissue])
    view = subjects.view(torch.tensor([0]), affine, atlas.shape, subjects.tissues, numbers_of_step(0, 0))
    table = GradientTable.from_world(bvals[0].numpy(), directions[0].numpy(), atlas.affine)
    expected = simulate_signal(atlas, table, atlas.affine, tissue).permute(3, 0, 1, 2)
    torch.testing.assert_close(view.signal(bvals, directions)[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(view.fractions()[0], atlas.fractions)
    torch.testing.assert_close(view.mask()[0], atlas.brain)


def test_a_tensor_fit_of_noise_free_tensor_tissue_returns_its_diffusivities(one):
    batch = SimulatedSubjects([one], [PURE]).slices(numbers_of_step(0, 0), 6, (24, 24))
    bvals, directions = scheme(6, bvals=(700.0, 1500.0, 3000.0))
    signal, white = batch.signal(bvals, directions), batch.fractions()[:, 0] > 0.999
    assert white.sum() > 300
    for i in range(6):
        voxels = signal[i].permute(1, 2, 0)[white[i]]
        maps = tensor_maps(fit_tensor(voxels, bvals[i].numpy(), directions[i].numpy(), "ols"))
        expected = torch.tensor([AXIAL, RADIAL, RADIAL]).expand_as(maps["eigenvalues"])
        torch.testing.assert_close(maps["eigenvalues"], expected, atol=2e-6, rtol=0)
        cosine = maps["eigenvectors"][..., 0] @ torch.tensor([0.6, 0.8, 0.0])
        assert cosine.abs().min() > 0.9999


def test_directions_turn_with_the_subject_and_not_with_the_view(ball):
    direction = np.array([0.48, 0.6, 0.64])
    pose = rigid([0, 0, 0, 20, -30, 45], np.zeros(3))
    straight = ball(direction)
    turned = warped(dataclasses.replace(straight, weights=straight.weights / 0.9), pose)
    batch = SimulatedSubjects([turned], [PURE]).slices(numbers_of_step(0, 0), 4, (24, 24))
    bvals, directions = scheme(4)
    signal = batch.signal(bvals, directions).permute(0, 2, 3, 1)[batch.fractions()[:, 0] > 0.99]
    maps = tensor_maps(fit_tensor(signal, bvals[0].numpy(), directions[0].numpy(), "ols"))
    expected = torch.tensor(pose[:3, :3].T @ direction, dtype=torch.float32)
    assert (maps["eigenvectors"][..., 0] @ expected).abs().min() > 0.999


def test_every_example_has_its_own_gradient_table(crowd):
    batch = crowd.slices(numbers_of_step(0, 0), 3, (20, 20))
    bvals, directions = scheme(3, bvals=(600.0, 1500.0, 2900.0))
    turn = torch.tensor(rigid([0, 0, 0, 30, 20, 10], np.zeros(3))[:3, :3], dtype=torch.float32)
    directions = torch.stack([directions[0], directions[1] @ turn.T, -directions[2]])
    together = batch.signal(bvals, directions)
    for i in range(3):
        alone = dataclasses.replace(
            batch, points=batch.points[i : i + 1], inside=batch.inside[i : i + 1], tissue=batch.tissue[i : i + 1]
        )
        torch.testing.assert_close(together[i], alone.signal(bvals[i : i + 1], directions[i : i + 1])[0])


def test_a_layer_of_a_block_is_that_slice_with_fewer_points(crowd):
    block = crowd.slices(numbers_of_step(0, 1), 2, (16, 12, 3))
    bvals, directions = scheme(2)
    whole = block.signal(bvals, directions)
    for k in range(3):
        layer = block.layer(k)
        torch.testing.assert_close(layer.signal(bvals, directions), whole[..., k], rtol=1e-5, atol=1e-6)
        assert layer.points.shape[2] < block.points.shape[2]
        corner = torch.tensor([0.0, 0, k, 1])
        torch.testing.assert_close(layer.affine[..., 3], block.affine @ corner)


def test_a_voxel_across_an_edge_averages_signals(ball):
    atlas = ball(radius=60)
    white = (torch.arange(atlas.shape[0]) < 15).float()[:, None, None].expand(*atlas.shape)
    atlas = dataclasses.replace(atlas, fractions=torch.stack([white, torch.zeros_like(white), 1 - white]))
    affine = torch.tensor([[[12.0, 0, 0, 0], [0, 4, 0, -20], [0, 0, 4, -20], [0, 0, 0, 1]]])  # voxel 0 on the edge
    subjects = SimulatedSubjects([atlas], [PURE])
    where = torch.tensor([0]), affine, (1, 10, 10), subjects.tissues
    view = subjects.view(*where, numbers_of_step(0, 0), supersample=(4, 4, 4))
    mixed = view.signal(*scheme(1))[0].mean(dim=(1, 2, 3))
    share = view.fractions()[0, 0].mean()
    assert float(share) == pytest.approx(0.5, abs=0.02)
    pure = [dataclasses.replace(atlas, fractions=torch.eye(3)[t][:, None, None, None] * atlas.brain) for t in (0, 2)]
    sides = [
        SimulatedSubjects([p], [PURE]).view(*where, numbers_of_step(0, 0)).signal(*scheme(1))[0, :, 0, 5, 5]
        for p in pure
    ]
    torch.testing.assert_close(mixed, share * sides[0] + (1 - share) * sides[1], atol=1e-3, rtol=1e-3)


def test_the_random_numbers_of_a_step_do_not_depend_on_earlier_steps(crowd):
    first = crowd.slices(numbers_of_step(3, 7), 4, (20, 20))
    crowd.slices(numbers_of_step(3, 6), 4, (20, 20))
    again, other = crowd.slices(numbers_of_step(3, 7), 4, (20, 20)), crowd.slices(numbers_of_step(3, 8), 4, (20, 20))
    for field in ("points", "inside", "tissue", "affine"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert not torch.equal(first.affine, other.affine)


def test_views_contain_brain_and_have_the_requested_size(crowd):
    flat, block = crowd.slices(numbers_of_step(0, 0), 32, (24, 20)), crowd.slices(numbers_of_step(0, 1), 4, (8, 9, 5))
    assert flat.signal(*scheme(32)).shape == (32, 22, 24, 20)
    assert block.signal(*scheme(4)).shape == (4, 22, 8, 9, 5)
    assert flat.mask().flatten(1).any(dim=1).all()
    torch.testing.assert_close(flat.axes().mT @ flat.axes(), torch.eye(3).expand(32, 3, 3), atol=1e-5, rtol=0)


def test_held_out_subjects_differ_from_the_training_subjects(ball):
    atlas = ball()
    training, held_out = SimulatedSubjects.from_atlas(atlas, 1), SimulatedSubjects.from_atlas(atlas, 1, held_out=True)
    torch.testing.assert_close(held_out.subject(0).table, SimulatedSubjects([deform(atlas, HELD_OUT)]).subject(0).table)
    assert len(training.subject(0).table) != len(held_out.subject(0).table)
    with pytest.raises(ValueError, match=NO_SUBJECTS):
        SimulatedSubjects([])


def test_subjects_of_the_embedded_atlas_have_the_anisotropy_and_diffusivity_of_real_scans():
    arrays, affine = embedded_mni(3)
    subjects = SimulatedSubjects.from_atlas(procedural_atlas(**arrays, affine=affine), 1, held_out=True)
    batch = subjects.slices(numbers_of_step(0, 0), 8, (64, 64))
    bvals, directions = scheme(8, bvals=(1000.0,))
    noisy = measure(batch.signal(bvals, directions), batch.tissue[:, 5], numbers_of_step(0, 1), Imaging(snr=(40, 40)))
    signal = noisy.signal.permute(0, 2, 3, 1)[batch.mask()]
    maps = tensor_maps(fit_tensor(signal, bvals[0].numpy(), directions[0].numpy(), "wls"))
    assert 0.19 < float(maps["fa"].mean()) < 0.34  # means over the brains of nine real scans
    assert 0.65e-3 < float(maps["md"].median()) < 0.85e-3


def test_subjects_are_simulated_when_they_are_drawn(ball):
    requested = []

    class Watched(list):
        def __getitem__(self, number):
            requested.append(number)
            return super().__getitem__(number)

    subjects = SimulatedSubjects(Watched([deform(ball(), seed) for seed in range(5)]))
    assert not requested
    first = subjects.slices(numbers_of_step(0, 0), 2, (8, 8))
    assert sorted(requested) == sorted(set(first.subject.tolist()))
    subjects.slices(numbers_of_step(0, 0), 2, (8, 8))
    assert len(requested) == len(set(requested)), "each is simulated once"
