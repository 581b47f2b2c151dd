"""The U-Net: the paper's size, shapes, and that each part of the input reaches the output."""

import pytest
import torch

from bids_dmrigen.nets.unet import LevelFeatures, SelfAttention, UNet, UNetSpec

TINY = UNetSpec(in_channels=2, base=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4)


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_paper_size_has_the_24_5_million_parameters_of_the_paper():
    assert round(count(UNet(UNetSpec(in_channels=1))) / 1e6, 1) == 24.5


@pytest.mark.parametrize("groups", [4, 0])
def test_output_has_the_shape_of_the_input_and_depends_on_all_of_it(groups):
    torch.manual_seed(0)
    net = UNet(UNetSpec(in_channels=2, out_channels=3, base=8, multipliers=(1, 2, 2), groups=groups, attention=(2,)))
    x = torch.randn(2, 2, 12, 20, requires_grad=True)
    level = torch.tensor([0.3, 0.9], requires_grad=True)
    y = net(x, level)
    assert y.shape == (2, 3, 12, 20)
    # attention at the bottom sees the whole image: the corner of the output feels the opposite corner
    y[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, -1, -1].abs().min() > 0
    assert x.grad[1].abs().max() == 0  # and no other image of the batch
    assert level.grad[0] != 0


def test_every_parameter_is_trained():
    torch.manual_seed(0)
    net = UNet(TINY)
    net(torch.randn(2, 2, 8, 8), torch.tensor([0.3, 0.9])).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_zero_output_predicts_nothing_but_learns():
    net = UNet(UNetSpec(in_channels=1, base=8, multipliers=(1, 2), attention=(), groups=0, zero_output=True))
    y = net(torch.randn(1, 1, 8, 8), torch.ones(1))
    assert not y.any()
    (y - 1).square().mean().backward()
    assert net.head[-1].weight.grad.abs().max() > 0


def test_undivisible_size_is_refused_with_the_divisor():
    assert TINY.divisor == 2
    with pytest.raises(ValueError, match=r"divide by 2, found \(1, 2, 8, 7\)"):
        UNet(TINY)(torch.zeros(1, 2, 8, 7), torch.ones(1))


def test_level_features_tell_near_levels_apart():
    # sqrt(alpha_bar) of Di-Fusion's latter steps runs over 0.9925 ... 1 only
    features = LevelFeatures(32)(torch.tensor([0.0, 0.5, 0.9925, 1.0]))
    assert features.shape == (4, 32)
    assert torch.cdist(features, features)[2, 3] > 1e-3
    torch.testing.assert_close(features.square().sum(1), torch.full((4,), 16.0))  # sin² + cos²


def test_attention_over_equal_pixels_averages_them():
    torch.manual_seed(0)
    layer = SelfAttention(8, 0)
    x = torch.randn(1, 8, 1, 1).expand(1, 8, 4, 4)
    value = layer.qkv.weight[16:, :, 0, 0] @ x[0, :, 0, 0]
    expected = x[0, :, 0, 0] + layer.out.weight[:, :, 0, 0] @ value + layer.out.bias
    torch.testing.assert_close(layer(x)[0], expected[:, None, None].expand(8, 4, 4))
