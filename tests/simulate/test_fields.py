"""Random fields against their closed form, samplers against each other."""

import numpy as np
import pytest
import torch

from bids_dmrigen.simulate.fields import random_field, sample, sample_mean, stream


def test_random_fields_have_the_stated_autocorrelation():
    field = random_field(np.random.default_rng(0), 4, (48, 48, 48), (2.0, 2.0, 3.0))
    torch.testing.assert_close(field.std(dim=(1, 2, 3)), torch.ones(4))
    for axis, length in ((1, 2.0), (3, 3.0)):
        shifted = torch.roll(field, 2, dims=axis)
        expected = np.exp(-(2**2) / (4 * length**2))
        assert float((field * shifted).mean()) == pytest.approx(expected, abs=0.04)


def test_streams_do_not_depend_on_what_was_drawn_before():
    first = stream(5, 1, 2)
    stream(5, 1, 1).normal(size=100)
    np.testing.assert_array_equal(first.normal(size=4), stream(5, 1, 2).normal(size=4))
    assert not np.array_equal(stream(5, 1, 2).normal(size=4), stream(6, 1, 2).normal(size=4))


def test_both_samplers_agree_in_and_beyond_the_grid():
    rng = np.random.default_rng(1)
    maps = torch.as_tensor(rng.normal(size=(5, 7, 8, 6)), dtype=torch.float32)
    points = torch.as_tensor(rng.uniform(-2, 9, size=(3, 3, 400)), dtype=torch.float32)
    expected = torch.stack([sample(maps, p) for p in points]).mean(dim=0)
    means = sample_mean(maps.flatten(1).T.contiguous(), (7, 8, 6), points).T
    torch.testing.assert_close(means, expected, atol=1e-5, rtol=1e-4)


def test_octaves_share_the_variance_evenly():
    field = random_field(np.random.default_rng(0), 4, (48, 48, 48), (3.0, 3.0, 3.0), (1.0, 1.0, 1.0))
    expected = (np.exp(-(2**2) / (4 * 9)) + np.exp(-(2**2) / 4)) / 2
    assert float((field * torch.roll(field, 2, dims=1)).mean()) == pytest.approx(expected, abs=0.04)
