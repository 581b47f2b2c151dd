"""Feature enhancement and fusion: neutral at the start, blind to order and sign of directions, any size."""

import pytest
import torch

from bids_dmrigen.nets.fefm import FeatureNet, FENSpec, FusedUNet, Fusion
from bids_dmrigen.nets.unet import UNetSpec

SPEC = UNetSpec(4, 2, base=8, multipliers=(1, 1, 2, 2), blocks=1, attention=(), groups=0, bottom=False)
FEN = FENSpec(images=7, patch=8, width=16, layers=1, heads=2)


def inputs(batch=2, n=4, height=32, width=32):
    generator = torch.Generator().manual_seed(0)
    x, acquired = (torch.randn(batch, c, height, width, generator=generator) for c in (4, 1 + n))
    bvecs = torch.nn.functional.normalize(torch.randn(batch, n, 3, generator=generator), dim=2)
    return x, torch.tensor([3.0] * batch), acquired, bvecs, torch.full((batch, n), 1000.0), torch.randn(batch, 5)


def network(fen=FEN):
    torch.manual_seed(0)
    return FusedUNet(SPEC, fen, 5).eval()


def fused(net):
    """Let the features count."""
    for fusion in net.fusions.values():
        torch.nn.init.normal_(fusion.factors.weight, std=0.3)
    return net


@torch.no_grad()
def test_fusion_follows_its_equation_and_starts_neutral():
    block, f, h = Fusion(6, 16, 2), torch.randn(1, 6, 8, 8), torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(block(f, h), f)
    torch.nn.init.normal_(block.factors.weight)
    seen = block.attention(torch.nn.functional.interpolate(h, size=(8, 8), mode="bilinear"))
    scale, shift = block.factors(seen.clamp_min(0)).chunk(2, dim=1)
    torch.testing.assert_close(block(f, h), f * (1 + scale) + shift)


@torch.no_grad()
def test_the_two_lower_of_four_levels_are_fused_and_the_ablation_has_none():
    net = network()
    widths = [fusion.factors.out_channels // 2 for fusion in net.fusions.values()]
    assert widths == [16, 16]
    assert not network(None).fusions
    given = inputs()
    assert not torch.allclose(net(*given), fused(network())(*given))


@torch.no_grad()
def test_directions_have_no_order_and_no_sign():
    net, (x, t, acquired, bvecs, bvals, numbers) = fused(network()), inputs()
    torch.nn.init.normal_(net.fen.direction[-1].weight)
    expected = net(x, t, acquired, bvecs, bvals, numbers)
    order = torch.tensor([2, 0, 3, 1])
    turned = net(x, t, acquired[:, torch.cat([torch.tensor([0]), 1 + order])], -bvecs[:, order], bvals, numbers)
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)
    features, other = (net.fen(acquired, g, bvals) for g in (bvecs, bvecs[:, order]))
    assert not torch.allclose(other, features, atol=0.01), "which image has which direction matters"


@torch.no_grad()
def test_without_directions_each_image_has_its_place_and_missing_ones_are_empty():
    net = FeatureNet(FENSpec(images=7, patch=8, width=16, layers=1, heads=2, directions=False))
    _, _, acquired, bvecs, bvals, _ = inputs()
    torch.testing.assert_close(net(acquired, bvecs, bvals), net(acquired, -bvecs.flip(1), bvals))
    padded = torch.nn.functional.pad(acquired, (0, 0, 0, 0, 0, 2))
    torch.testing.assert_close(net(acquired, bvecs, bvals), net(padded, bvecs, bvals))


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 41), (80, 24)])
def test_any_size(size):
    given = inputs(1, 3, *size)
    assert network()(*given).shape == (1, 2, *size)
    assert fused(network())(*given).isfinite().all()


def test_every_direction_has_an_image():
    x, t, acquired, bvecs, bvals, numbers = inputs()
    with pytest.raises(ValueError, match=r"expected 5 images .* found 4"):
        network()(x, t, acquired[:, :4], bvecs, bvals, numbers)


def test_all_parameters_learn():
    net = fused(network())
    net(*inputs()).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
