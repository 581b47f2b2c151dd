"""What individuals share with the atlas and what not."""

import dataclasses

import torch

from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.individual import Variation

STILL = Variation(
    0, 0, 0, (), (), sharpness=1, sulci=0, tissue=0, tilt_degrees=0, free_water=0, shares=0, mixing=0,
    texture=(0, 0, 0),
)  # fmt: skip


def neighbour_correlation(values, inside, axis):
    both = inside & inside.roll(1, axis)
    return float(torch.corrcoef(torch.stack([values[both], values.roll(1, axis)[both]]))[0, 1])


def test_texture_in_white_matter_runs_along_the_fibres(ball):
    subject = deform(ball((1.0, 0, 0)), 0, dataclasses.replace(STILL, texture=(0.2, 0, 0)))
    white = subject.fractions[0] > 0.99
    along, across = (neighbour_correlation(subject.texture[0], white, axis) for axis in (0, 1))
    assert along > 0.8
    assert across < 0.6
    assert 0.1 < float(subject.texture[0][white].std()) < 0.3, "as strong as without streaks"


def test_free_water_takes_the_place_of_tissue(ball):
    subject = deform(ball(), 0, dataclasses.replace(STILL, free_water=0.05))
    white = ball().fractions[0] > 0.99
    added = subject.fractions[2][white]
    assert 0.02 < float(added.mean()) < 0.08
    assert float(added.min()) > 0
    torch.testing.assert_close(subject.fractions.sum(dim=0), subject.brain.float())


def test_fibres_that_share_a_voxel_are_more_dispersed(ball):
    alone, shared = ball(), ball()
    shared.weights[0] *= 0.5
    change = [deform(atlas, 0, dataclasses.replace(STILL, mixing=2.0)).texture[1] for atlas in (alone, shared)]
    white = alone.fractions[0] > 0.99
    torch.testing.assert_close(change[0][white].mean(), torch.tensor(0.2), atol=1e-3, rtol=0)  # 2 (1 - 0.9)
    torch.testing.assert_close(change[1][white].mean(), torch.tensor(1.1), atol=1e-3, rtol=0)
