"""One seed, one sample: whatever the batch size, the order, the number of workers and the device.

The noise is the same to the bit (`test_noise.py`). The network is not: sums of another batch size, memory layout or
device end in other last bits, which twenty steps of a sampler carry along. TOLERANCE is what is promised, in units of
images whose standard deviation is one. Found on a CPU: 1.2e-6 between batch sizes, 9.5e-7 between one thread and two,
0 between orders.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from bids_dmrigen.diffusion.noise import NoiseSource
from bids_dmrigen.diffusion.processes import linear
from bids_dmrigen.diffusion.samplers import ddim, even_times
from bids_dmrigen.nets.unet import UNet, UNetSpec

TOLERANCE = 1e-4
SIDE = 16
ADDRESSES = [(volume, slice, sample) for volume in range(3) for slice in (4, 1) for sample in range(2)]


@torch.no_grad()
def sample(addresses, device="cpu"):
    """Return {address: image} from one batch: a small network, DDIM with eta = 1, which draws noise in every step."""
    torch.manual_seed(0)
    net = UNet(UNetSpec(1, base=8, multipliers=(1, 2), blocks=1, groups=4, attention=(1,))).to(device)
    process = linear()

    def denoise(x, t):
        level = process.marginal(t)[0].float().expand(len(x)).to(device)
        return process.to_x0(x, t, net(x, level), "v")

    source = NoiseSource(1, "01", "dwi", "test", addresses, (1, SIDE, SIDE), device)
    sampled = ddim(denoise, process, source(0), even_times(1000, 20), source, eta=1.0)
    return dict(zip(addresses, sampled.x0.cpu(), strict=True))


@pytest.fixture(scope="module")
def together():
    return sample(ADDRESSES)


def batches(addresses, size):
    return [addresses[k : k + size] for k in range(0, len(addresses), size)]


def check(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for address, image in expected.items():
        torch.testing.assert_close(found[address], image, rtol=0, atol=tolerance)


def test_they_are_different_samples(together):
    images = torch.stack(list(together.values())).flatten(1)
    assert (torch.cdist(images, images) + torch.eye(len(images)) * 100).min() > 1
    assert 0.2 < images.std() < 5


@pytest.mark.parametrize("size", [1, 5])
def test_batch_size_does_not_matter(together, size):
    found = {}
    for batch in batches(ADDRESSES, size):
        found |= sample(batch)
    check(found, together)


def test_order_does_not_matter(together):
    order = torch.randperm(len(ADDRESSES), generator=torch.Generator().manual_seed(0)).tolist()
    check(sample([ADDRESSES[k] for k in order]), together)


def test_workers_do_not_matter(together):
    found = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for part in pool.map(sample, batches(ADDRESSES, 3)):
            found |= part
    check(found, together)


def test_the_same_call_gives_the_same_bits(together):
    check(sample(ADDRESSES), together, tolerance=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_device_does_not_matter(together):
    check(sample(ADDRESSES, "cuda"), together)
