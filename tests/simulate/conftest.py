"""A small anatomy with a known shape and direction."""

import numpy as np
import pytest
import torch

from bids_dmrigen.simulate.anatomy import world_grid
from bids_dmrigen.simulate.atlas import Atlas

SHAPE = (30, 32, 28)
AFFINE = np.array([[2.0, 0, 0, -29], [0, 2.0, 0, -31], [0, 0, 2.0, -27], [0, 0, 0, 1]])


def make_ball(direction=(1.0, 0, 0), radius=22.0, centre=(0.0, 0, 0), affine=AFFINE, shape=SHAPE) -> Atlas:
    """Return a ball of white matter in one direction, its outer third grey with a little CSF."""
    world = world_grid(affine, shape)
    distance = (world - torch.tensor(centre, dtype=torch.float32)[:, None, None, None]).norm(dim=0)
    brain = distance < radius
    white = (distance < radius * 0.67) & brain
    fractions = torch.stack([white.float(), 0.8 * (brain & ~white), 0.2 * (brain & ~white)])
    directions = torch.zeros(3, 3, *shape)
    directions[0] = torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)[
        :, None, None, None
    ]
    weights = torch.zeros(3, *shape)
    weights[0] = 0.9 * brain
    return Atlas(fractions, directions * brain, weights, white.float(), brain, affine)


@pytest.fixture(scope="session")
def ball():
    """Return the function that makes a ball."""
    return make_ball
