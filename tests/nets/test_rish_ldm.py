"""The networks together: latents of single features, labels that matter, super-resolution that starts at nothing."""

import pytest
import torch

from bids_dmrigen.nets.latent_unet import LabelledUNet
from bids_dmrigen.nets.rish_ldm import PARTS, RishLDM, RishLDMSpec
from bids_dmrigen.nets.unet import UNet, UNetSpec
from bids_dmrigen.nets.vqvae import VQVAESpec

UNET = UNetSpec(4, 4, base=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4, context=8, dims=3)
SPEC = RishLDMSpec(VQVAESpec(widths=(8,), blocks=1, codes=16, code_width=4), UNET, told=2, width=8, blocks=1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return RishLDM(SPEC)


def test_a_volume_goes_through_the_unet_and_needs_the_divisor():
    torch.manual_seed(0)
    unet = UNet(UNetSpec(2, 3, base=8, multipliers=(1, 2), groups=4, attention=(1,), dims=3))
    x = torch.randn(2, 2, 4, 6, 8, requires_grad=True)
    y = unet(x, torch.tensor([0.3, 0.9]))
    assert y.shape == (2, 3, 4, 6, 8)
    y[0, :, 0, 0, 0].sum().backward()
    assert x.grad[0, :, -1, -1, -1].abs().min() > 0  # attention sees the whole of it
    assert not x.grad[1].any()
    with pytest.raises(ValueError, match="must divide by 2"):
        unet(torch.randn(1, 2, 4, 6, 7), torch.ones(1))


def test_each_label_reaches_the_output():
    torch.manual_seed(0)
    unet = LabelledUNet(UNET, (2, 3))
    x, t = torch.randn(1, 4, 4, 4, 4), torch.tensor([100.0])
    outputs = [unet(x, t, torch.tensor([labels])) for labels in ([0, 0], [1, 0], [unet.unconditional, 0], [0, 2])]
    assert unet.unconditional == 2
    assert all((a - b).abs().max() > 1e-4 for k, a in enumerate(outputs) for b in outputs[:k])
    with pytest.raises(ValueError, match="context"):
        LabelledUNet(UNetSpec(4, 4, dims=3), (2, 3))


def test_features_are_encoded_one_by_one_and_scaled(net):
    features = torch.rand(2, 3, 8, 8, 4)
    latents = net.encode("3t", features)
    assert latents.shape == (6, 4, 4, 4, 2)
    torch.testing.assert_close(latents[4], net.autoencoder_3t.encode(features[1:, 1:2])[0])
    net.eval()  # in training the codes follow the latents
    net.autoencoder_7t.codebook.codes.normal_(std=0.05)
    decoded = net.decode("7t", latents)
    assert decoded.shape == features.shape
    net.latent_scale.fill_(100)
    torch.testing.assert_close(net.encode("3t", features), latents / 100)
    torch.testing.assert_close(net.decode("7t", latents / 100), decoded)


def test_untrained_super_resolution_adds_nothing_and_has_the_stated_reach(net):
    images = torch.randn(1, 5, 16, 16, 16)
    assert not net("refiner", images).any()
    torch.nn.init.normal_(net.refiner.last.weight)
    images.requires_grad_(True)
    net.refiner(images)[0, :, 8, 8, 8].sum().backward()
    touched = images.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (touched.min(dim=0).values == 8 - net.refiner.reach).all()


def test_its_parts_contain_every_parameter(net):
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == set(PARTS)
    assert SPEC.divisor == 4
