"""The U-Net with b-vectors: an even function of them, conditioned on them, for images of any size."""

from dataclasses import replace

import pytest
import torch

from bids_dmrigen.nets.direction_unet import DirectionTokens, DirectionUNet, dyadic_features
from bids_dmrigen.nets.unet import CrossAttention, Stage, UNetSpec, attend

TINY = UNetSpec(in_channels=4, base=8, multipliers=(1, 1, 2), blocks=1, attention=(1, 2), groups=4, heads=2, context=16)


def network(spec=TINY, seed=0):
    torch.manual_seed(seed)
    return DirectionUNet(spec, spec.in_channels - 1)


def inputs(height=12, width=8, batch=2, seed=1):
    random = torch.Generator().manual_seed(seed)
    bvecs = torch.nn.functional.normalize(torch.randn(batch, 4, 3, generator=random), dim=-1)
    return {
        "x": torch.randn(batch, 4, height, width, generator=random),
        "t": torch.tensor([3.0, 700.0])[:batch],
        "bvecs": bvecs,
        "bvals": torch.full((batch, 4), 1000.0),
        "log_sigma": torch.tensor([-3.0, -2.0])[:batch],
    }


def test_paper_size_of_qid2():
    # channels 128, 128, 256, one residual block per level, attention on the two lower levels, six references
    spec = UNetSpec(in_channels=7, base=128, multipliers=(1, 1, 2), blocks=1, attention=(1, 2), heads=4, context=128)
    with torch.device("meta"):
        net = DirectionUNet(spec, spec.in_channels - 1)
    down = [layer for layer in net.down if isinstance(layer, Stage)]
    assert [layer.second[-1].out_channels for layer in down] == [128, 128, 256]
    assert [layer.cross is not None for layer in down] == [False, True, True]


@torch.no_grad()
def test_antipodal_vectors_are_the_same_direction():
    net, given = network(), inputs()
    for which in range(4):
        turned = given["bvecs"].clone()
        turned[:, which] *= -1
        assert torch.equal(net(**given), net(**given | {"bvecs": turned}))


def test_every_part_of_the_input_matters_and_only_to_its_own_image():
    net, given = network(), inputs()
    given = {name: value.requires_grad_() for name, value in given.items()}
    net(**given)[0].square().sum().backward()
    for name, value in given.items():
        assert value.grad[0].abs().max() > 0, name
        assert value.grad[1].abs().max() == 0, name
    # every b-vector and every b-value by itself
    assert (given["bvecs"].grad[0].norm(dim=-1) > 0).all()
    assert (given["bvals"].grad[0] != 0).all()


@torch.no_grad()
def test_which_image_a_vector_belongs_to_matters():
    net, given = network(), inputs()
    order = [1, 0, 2, 3]
    assert (net(**given) - net(**given | {"bvecs": given["bvecs"][:, order]})).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("size", [(12, 8), (13, 9), (7, 14), (5, 5)])
def test_any_size_is_padded_and_cropped(size):
    net, given = network(), inputs(*size)
    y = net(**given)
    assert y.shape == (2, 1, *size)
    rows, columns = (-side % 4 for side in size)
    edges = torch.cat([given["x"], given["x"][..., -1:, :].expand(-1, -1, rows, -1)], dim=-2)
    edges = torch.cat([edges, edges[..., -1:].expand(-1, -1, -1, columns)], dim=-1)
    torch.testing.assert_close(y, net(**given | {"x": edges})[..., : size[0], : size[1]])


@torch.no_grad()
def test_channels_last_gives_the_same():
    net, given = network(), inputs()
    expected = net(**given)
    net.to(memory_format=torch.channels_last)
    y = net(**given | {"x": given["x"].contiguous(memory_format=torch.channels_last)})
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_is_trained():
    net = network()
    net(**inputs()).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_dyadic_features_have_the_squared_cosine_as_inner_product():
    g, h = torch.nn.functional.normalize(torch.randn(2, 50, 3, dtype=torch.float64), dim=-1)
    products = dyadic_features(g) @ dyadic_features(h).T
    torch.testing.assert_close(products, (g @ h.T) ** 2)


def test_tokens_are_one_for_each_vector():
    torch.manual_seed(0)
    tokens = DirectionTokens(4, 16)
    given = inputs()
    whole = tokens(given["bvecs"], given["bvals"])
    assert whole.shape == (2, 4, 16)
    changed = given["bvecs"].clone()
    changed[:, 2] = torch.tensor([1.0, 0, 0])
    moved = (tokens(changed, given["bvals"]) - whole).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, True, False]


def test_attention_is_softmax_of_inner_products_in_each_head():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    for heads in (1, 2, 3):
        width = 6 // heads
        parts = []
        for n in range(heads):
            head = slice(n * width, (n + 1) * width)
            weights = (q[..., head] @ k[..., head].transpose(1, 2) / width**0.5).softmax(dim=-1)
            parts.append(weights @ v[..., head])
        torch.testing.assert_close(attend(q, k, v, heads), torch.cat(parts, dim=-1))


def test_attention_to_equal_tokens_adds_their_value_everywhere():
    # what one token for all b-vectors would amount to: a shift, whatever the image
    torch.manual_seed(0)
    layer, x = CrossAttention(8, 16, 4, heads=2), torch.randn(1, 8, 3, 5)
    token = torch.randn(1, 1, 16)
    shift = (layer(x, token.expand(1, 4, 16)) - x).detach()
    value = layer.out.weight[:, :, 0, 0] @ (layer.keys_values.weight[8:] @ token[0, 0]) + layer.out.bias
    torch.testing.assert_close(shift[0], value.detach()[:, None, None].expand(8, 3, 5))


def test_faults_are_refused():
    with pytest.raises(ValueError, match=r"UNetSpec\.context is 0"):
        DirectionUNet(replace(TINY, context=0), 3)
    given = inputs()
    with pytest.raises(ValueError, match=r"expected b-vectors of shape \(2, 4, 3\) .* found \(2, 3, 3\)"):
        network()(**given | {"bvecs": given["bvecs"][:, 1:]})
