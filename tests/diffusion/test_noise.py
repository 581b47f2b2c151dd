"""Addressed noise: the same numbers for the same address, others for another."""

import itertools

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.noise import NoiseSource, generator, noise

HERE = {
    "seed": 1,
    "subject": "01",
    "run": "acq-a_dwi",
    "method": "difusion",
    "volume": 3,
    "slice": 7,
    "sample": 2,
}


def test_equal_addresses_give_equal_numbers_in_any_order():
    addresses = [HERE | {"volume": v, "slice": s} for v, s in itertools.product(range(4), range(4))]
    forward = {(a["volume"], a["slice"]): noise(**a, shape=(5, 6)) for a in addresses}
    for a in reversed(addresses):
        np.testing.assert_array_equal(forward[a["volume"], a["slice"]], noise(**a, shape=(5, 6)))


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"subject": "1"}, {"run": ""}, {"method": "x"}, {"volume": 7, "slice": 3}, {"sample": 0}],
)
def test_any_part_of_the_address_changes_them(other):
    a, b = noise(**HERE, shape=(4000,)), noise(**(HERE | other), shape=(4000,))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 4000**0.5


def test_they_are_standard_normal_float32():
    x = noise(**HERE, shape=(200, 500))
    assert x.dtype == np.float32
    assert abs(x.mean()) < 5 / x.size**0.5
    assert abs(x.std() - 1) < 5 / (2 * x.size) ** 0.5


def test_numbers_stay_the_same_from_release_to_release():
    # Philox is specified, so these may never change: old results would no longer be reproducible
    assert generator(0).integers(0, 2**32, 3).tolist() == [2245347848, 631860565, 2192726975]


ADDRESSES = [(volume, slice, sample) for volume in (0, 3) for slice in (7, 2) for sample in (0, 1)]


def source(addresses, device="cpu"):
    return NoiseSource(1, "01", "acq-a_dwi", "qid2", addresses, (2, 5, 6), device)


def test_batches_have_the_noise_of_their_addresses_in_any_order():
    whole = source(ADDRESSES)(0)
    assert whole.shape == (8, 2, 5, 6)
    assert whole.dtype == torch.float32
    for k, (volume, slice, sample) in enumerate(ADDRESSES):
        alone = noise(1, "01", "acq-a_dwi", "qid2", volume, slice, sample, (2, 5, 6))
        np.testing.assert_array_equal(whole[k], alone)
    assert torch.equal(source(ADDRESSES[::-1])(4), source(ADDRESSES)(4).flip(0))
    assert torch.equal(source(ADDRESSES[3:5])(4), source(ADDRESSES)(4)[3:5])


def test_draws_of_one_address_are_independent_of_each_other_and_of_earlier_draws():
    one = NoiseSource(1, "", "", "", [(0, 0, 0)], (4000,))
    draws = torch.cat([one(k) for k in range(6)])
    assert (torch.corrcoef(draws) - torch.eye(6)).abs().max() < 5 / 4000**0.5
    assert torch.equal(one(3)[0], draws[3])


def test_draws_stay_apart_however_long_they_are():
    # the counter of Philox is 256 bits wide and `draw` its highest word: 2^194 numbers lie between two draws
    state = [generator(0, draw=draw).bit_generator.state["state"]["counter"].tolist() for draw in (0, 1, 2)]
    assert state == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_noise_is_the_same_on_a_gpu_to_the_bit():
    for draw in range(3):
        assert torch.equal(source(ADDRESSES, "cuda")(draw).cpu(), source(ADDRESSES)(draw))
