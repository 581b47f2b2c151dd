"""The registered atlas: the signal of known tissue at the positions of the scan."""

import dataclasses

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods.base import Population, Request
from bids_dmrigen.methods.synthesis.atlas import AtlasPrediction
from bids_dmrigen.simulate.signal import CSF_DIFFUSIVITY, simulate_signal
from tests.simulate.conftest import make_ball

AFFINE = np.diag([2.0, 2, 2, 1])


def on_own_grid(atlas, table, b0=50.0):
    """A scan on the grid of the atlas with a constant b0."""
    mask = np.ones(atlas.shape, bool)
    data = np.full((*atlas.shape, 1), b0, np.float32)
    scan = Scan(data, atlas.affine, GradientTable(np.zeros(1), np.zeros((1, 3))), mask)
    maps = Population(np.zeros((*atlas.shape, 1), np.float32), np.array([1000.0]), anatomy=atlas)
    return AtlasPrediction().generate(None, scan, Request(population=maps, options={"table": table}))


def test_on_the_grid_of_the_atlas_it_is_the_attenuation_of_the_atlas():
    atlas = make_ball((0.6, 0.8, 0.0))
    table = GradientTable(np.array([1000.0] * 9 + [2500.0]), np.eye(3)[np.arange(10) % 3])
    generated = on_own_grid(atlas, table)
    with_b0 = GradientTable(np.r_[0.0, table.bvals], np.concatenate([np.zeros((1, 3)), table.bvecs]))
    signal = simulate_signal(atlas, with_b0, atlas.affine)
    inside = atlas.brain.numpy()
    expected = 50 * (signal[..., 1:] / signal[..., :1])[atlas.brain].numpy()
    np.testing.assert_allclose(generated.mean[inside], expected, rtol=2e-3)
    water = 50 * np.exp(-table.bvals * CSF_DIFFUSIVITY)
    corner = generated.mean[0, 0, 0]
    np.testing.assert_allclose(corner, water, rtol=1e-4)
    assert generated.record["Sampler"]["NetworkEvaluations"] == 0


def test_a_finer_grid_elsewhere_reads_the_same_world():
    atlas = make_ball((1.0, 0.0, 0.0))
    atlas = dataclasses.replace(atlas, texture=torch.zeros_like(atlas.texture))
    table = GradientTable(np.array([1000.0]), np.array([[0.0, 1, 0]]))
    coarse = on_own_grid(atlas, table).mean[..., 0]
    affine = np.array(atlas.affine)
    middle = [n // 2 for n in atlas.shape]
    affine[:3, :3] /= 2
    affine[:3, 3] = atlas.affine[:3] @ [*(m - 2 for m in middle), 1]
    mask = np.ones((9, 9, 9), bool)
    scan = Scan(np.full((9, 9, 9, 1), 50, np.float32), affine, GradientTable(np.zeros(1), np.zeros((1, 3))), mask)
    maps = Population(np.zeros((9, 9, 9, 1), np.float32), np.array([1000.0]), anatomy=atlas)
    fine = AtlasPrediction().generate(None, scan, Request(population=maps, options={"table": table})).mean[..., 0]
    part = tuple(slice(m - 2, m + 3) for m in middle)
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse[part], rtol=1e-3)


def test_without_an_anatomy_it_is_refused():
    scan = Scan(np.ones((4, 4, 4, 1), np.float32), AFFINE, GradientTable(np.zeros(1), np.zeros((1, 3))),
                np.ones((4, 4, 4), bool))  # fmt: skip
    with pytest.raises(ScanError, match="fibre directions in the template's space"):
        AtlasPrediction().generate(None, scan, Request())
