"""The tract adapter: nothing at the start, maps of the sizes that the transformer has, tracts filled by Eq. 8."""

import pytest
import torch

from bids_dmrigen.nets.adapter import Adapter, tract_condition
from bids_dmrigen.nets.hdit import HDiT, HDiTSpec

SPEC = HDiTSpec(in_channels=2, widths=(16, 32, 32), depths=(1, 1, 1), head=16, mapping_width=16, mapping_depth=1)


def adapter(trained=True):
    torch.manual_seed(0)
    net = Adapter(5, SPEC.patch, SPEC.widths, blocks=1)
    for out in net.out if trained else ():
        torch.nn.init.normal_(out.weight, std=0.3)
    return net


def backbone():
    torch.manual_seed(0)
    net = HDiT(SPEC).eval()
    torch.nn.init.normal_(net.patch_out.mix.weight)
    return net


def inputs(height, width):
    generator = torch.Generator().manual_seed(0)
    x, tracts = (torch.randn(2, c, height, width, generator=generator) for c in (2, 5))
    condition = (torch.tensor([3.0, 700.0]), torch.eye(3)[:2], torch.tensor([1000.0, 2000.0]), torch.tensor([0.2, 0.7]))
    return (x, *condition), tracts


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 32), (33, 20), (5, 7)])
def test_an_untrained_adapter_changes_nothing_and_a_trained_one_does_at_any_size(size):
    net, (given, tracts) = backbone(), inputs(*size)
    expected = net(*given)
    assert expected.std() > 0
    assert torch.equal(net(*given, adapter=adapter(trained=False)(tracts)), expected)
    maps = adapter()(tracts)
    grid = [-(-n // 16) * 4 for n in size]
    assert [m.shape for m in maps] == [(2, w, grid[0] >> k, grid[1] >> k) for k, w in enumerate(SPEC.widths)]
    assert not torch.allclose(net(*given, adapter=maps), expected, atol=0.01)


@torch.no_grad()
def test_a_tract_changes_the_features_near_it_only():
    net, (_, tracts) = adapter(), inputs(64, 64)
    other = tracts.clone()
    other[:, :, 40:, :8] += 1
    changed = [(b - a).abs().amax(dim=(0, 1)) > 1e-6 for a, b in zip(net(tracts), net(other), strict=True)]
    assert [c[-1, 0].item() for c in changed] == [True] * 3
    # a level's block sees one token further: 4 pixels, then 8 more, then 16 more
    assert [c.nonzero().amax(0)[1].item() for c in changed] == [2, 2, 2]
    assert [c.nonzero().amin(0)[0].item() for c in changed] == [9, 3, 0]


def test_the_backbone_teaches_it():
    net, learner, (given, tracts) = backbone(), adapter(trained=False), inputs(16, 16)
    net(*given, adapter=learner(tracts)).square().sum().backward()
    assert all(out.weight.grad.isfinite().all() and out.weight.grad.any() for out in learner.out)
    learner = adapter()
    net(*given, adapter=learner(tracts)).square().sum().backward()
    assert not [name for name, p in learner.named_parameters() if not (p.grad.isfinite().all() and p.grad.any())]


def test_paper_size():
    with torch.device("meta"):
        maps = Adapter()(torch.empty(1, 42, 256, 256))
    assert [tuple(m.shape) for m in maps] == [(1, 128, 64, 64), (1, 256, 32, 32), (1, 512, 16, 16)]


def test_empty_tracts_are_filled_as_in_equation_8():
    tracts = torch.zeros(2, 3, 2, 2)
    tracts[0, 0] = torch.tensor([[0.5, 0.0], [0.0, 0.25]])
    tracts[0, 2] = torch.tensor([[0.25, 0.0], [0.0, 0.0]])
    b0 = torch.tensor([[[[300.0, 100.0], [200.0, 100.0]]], [[[7.0, 7.0], [7.0, 7.0]]]])
    filled = tract_condition(tracts, b0)
    expected = tracts.clone()
    expected[0, 1] = torch.tensor([[0.95, 0.0], [0.1, 0.0]])  # (0.75, 0, 0, 0.25) + 0.2 times (1, 0, 0.5, 0)
    torch.testing.assert_close(filled, expected)  # a constant b0 has nothing to give
    torch.testing.assert_close(tract_condition(tracts, 3 * b0 + 5), expected)
