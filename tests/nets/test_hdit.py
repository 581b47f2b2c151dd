"""The hourglass transformer: neighbourhoods that stay inside the image, positions in pixels, even in b, any size."""

import math
from dataclasses import replace

import pytest
import torch

from bids_dmrigen.nets.hdit import (
    AdaRMSNorm,
    Attention,
    AxialRotary,
    HDiT,
    HDiTSpec,
    Merge,
    Split,
    neighbourhood_attention,
    rotate,
)

TINY = HDiTSpec(in_channels=2, widths=(16, 32), depths=(1, 1), head=16, kernel=3, mapping_width=16, mapping_depth=1)
SIZES = [(7, 7), (8, 8), (9, 12), (17, 10), (16, 23), (14, 14), (5, 20), (6, 3), (1, 9), (25, 33)]


def inputs(height=12, width=8, batch=2):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(batch, 2, height, width, generator=generator),
        "t": torch.tensor([3.0, 700.0])[:batch],
        "bvecs": torch.nn.functional.normalize(torch.randn(batch, 3, generator=generator), dim=1),
        "bvals": torch.tensor([1000.0, 2000.0])[:batch],
        "position": torch.tensor([0.2, 0.7])[:batch],
    }


def network(spec=TINY, trained=True):
    """Make a network; `trained`: with none of the zeros that it starts from."""
    torch.manual_seed(0)
    net = HDiT(spec).eval()
    for p in net.parameters():
        if trained and not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return net


def attention_by_loops(q, k, v, kernel):
    """Each query with the nearest kernel rows and columns inside the image, one after the other."""
    out, (height, width, d) = torch.empty_like(q), q.shape[2:]
    for i in range(height):
        rows = sorted(sorted(range(height), key=lambda r: abs(r - i))[:kernel])
        for j in range(width):
            columns = sorted(sorted(range(width), key=lambda c: abs(c - j))[:kernel])
            keys, values = (x[:, :, rows][:, :, :, columns].flatten(2, 3) for x in (k, v))
            weights = torch.einsum("bhd,bhnd->bhn", q[:, :, i, j], keys).div(math.sqrt(d)).softmax(-1)
            out[:, :, i, j] = torch.einsum("bhn,bhnd->bhd", weights, values)
    return out


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("size", SIZES)
def test_neighbourhood_attention_is_that_of_its_definition(size, kernel):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 2, *size, 4, generator=generator).double().requires_grad_() for _ in range(3)]
    other = [x.detach().clone().requires_grad_() for x in given]
    out, expected = neighbourhood_attention(*given, kernel), attention_by_loops(*other, kernel)
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, generator=generator).double()
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for x, y in zip(given, other, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_neighbourhood_attention_is_the_same_on_a_gpu():
    given = [torch.randn(2, 2, 17, 30, 16, requires_grad=True) for _ in range(3)]
    on_gpu = [x.detach().cuda().requires_grad_() for x in given]
    out, expected = neighbourhood_attention(*on_gpu, 7), neighbourhood_attention(*given, 7)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    expected.square().sum().backward()
    for x, y in zip(on_gpu, given, strict=True):
        torch.testing.assert_close(x.grad.cpu(), y.grad, atol=1e-3, rtol=1e-3)


def test_rotary_positions_tell_the_distance_in_pixels_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 1, 1, 16, generator=generator)

    def products(token, height, width):
        """Products of q at (1, 2) with k two rows and one column on, and of both moved by one."""
        angles = AxialRotary(3, 16, token)(height, width)
        turned_q, turned_k = (rotate(x.expand(3, height, width, 16)[None], angles)[0] for x in (q, k))
        return [(turned_q[:, 1 + m, 2 + m] * turned_k[:, 3 + m, 3 + m]).sum(-1) for m in (0, 1)]

    expected, moved = products(4, 8, 8)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(products(4, 12, 5)[0], expected)
    assert not torch.allclose(products(8, 8, 8)[0], expected, atol=0.01), "a token of twice the size is twice as far"


def test_rotary_frequencies_and_positions():
    angles = AxialRotary(2, 16, token=4)(64, 64)  # the paper's 256 pixels
    step = angles[:, 0, 1] - angles[:, 0, 0]
    torch.testing.assert_close(step[:, :2], torch.zeros(2, 2))
    frequencies = math.pi * 10 ** (torch.tensor([[0, 2], [1, 3]]) / 4)
    torch.testing.assert_close(step[:, 2:], frequencies * 2 / 64, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(angles[:, -1, 0, :2], frequencies * 63 / 64)
    torch.testing.assert_close(angles.flip(1, 2), -angles)


@torch.no_grad()
def test_attention_looks_at_the_angle_between_queries_and_keys():
    attention, x = Attention(16, 8, kernel=0), torch.randn(1, 4, 4, 16)
    torch.nn.init.eye_(attention.out.weight)
    angles = AxialRotary(2, 8, 4)(4, 4)
    expected = attention(x, angles)
    attention.qkv.weight[:32] *= 7
    torch.testing.assert_close(attention(x, angles), expected, atol=1e-5, rtol=1e-5)
    attention.scale *= 2
    assert not torch.allclose(attention(x, angles), expected, atol=0.01)


@torch.no_grad()
def test_norm_starts_as_a_plain_one():
    x, norm = 3 * torch.randn(2, 3, 4, 16), AdaRMSNorm(16, 8)
    expected = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(x, torch.randn(2, 8)), expected)
    torch.nn.init.ones_(norm.scale.weight)
    torch.testing.assert_close(norm(x, torch.full((2, 8), 0.25)), 3 * expected)


@torch.no_grad()
def test_a_merged_token_is_its_patch_and_splits_into_it_again():
    x, merge, split = torch.randn(2, 4, 6, 5), Merge(5, 20, 2), Split(20, 5, 2)
    torch.nn.init.eye_(merge.mix.weight)
    torch.nn.init.eye_(split.mix.weight)
    merged = merge(x)
    assert torch.equal(merged[1, 1, 2], x[1, 2:4, 4:6].flatten())
    assert torch.equal(split(merged), x)


@torch.no_grad()
def test_real_numbers_are_embedded_by_equation_7():
    net, given, seen = network(), inputs(), {}
    for name, embedding in net.conditions.numbers.items():
        embedding.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    bvecs = torch.tensor([[0.6, -0.8, 0.0], [0.0, 0.0, 1.0]])
    net(**given | {"bvecs": bvecs})
    torch.testing.assert_close(seen["bval"], torch.tensor([[2.0], [3.0]]).log())  # 1000 and 2000 s/mm²
    torch.testing.assert_close(seen["position"], torch.tensor([[1.2], [1.7]]).log())
    xx, yy, xy = (math.log(1 + p) for p in (0.36, 0.64, 0.48 * 2**0.5))
    torch.testing.assert_close(seen["direction"][0], torch.tensor([xx, yy, 0, -xy, 0, 0]))


@torch.no_grad()
def test_untrained_network_predicts_nothing():
    assert not network(trained=False)(**inputs()).any()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (5, 22), (3, 1)])
def test_any_size(size):
    net, given = network(), inputs(*size)
    out = net(**given)
    assert out.shape == (2, 1, *size)
    assert out.std() > 0
    rows, columns = (torch.arange(-(-n // 8) * 8).clamp(max=n - 1) for n in size)
    larger = net(**given | {"x": given["x"][:, :, rows][..., columns]})
    torch.testing.assert_close(larger[..., : size[0], : size[1]], out)


@torch.no_grad()
def test_antipodal_vectors_are_the_same_direction():
    net, given = network(), inputs()
    assert torch.equal(net(**given), net(**given | {"bvecs": -given["bvecs"]}))


def test_every_part_of_the_input_matters_and_only_to_its_own_image():
    net, given = network(), inputs()
    given = {name: value.requires_grad_() for name, value in given.items()}
    net(**given)[0].square().sum().backward()
    for name, value in given.items():
        assert value.grad[0].abs().max() > 0, name
        assert value.grad[1].abs().max() == 0, name
    assert (given["bvecs"].grad[0] != 0).all()


@torch.no_grad()
def test_without_query_mapping_only_the_time_is_a_condition():
    net, given = network(replace(TINY, query_mapping=False)), inputs()
    expected = net(**given)
    others = {"bvecs": given["bvecs"].flip(0), "bvals": given["bvals"] * 2, "position": given["position"] / 2}
    assert torch.equal(net(**given | others), expected)
    assert not torch.allclose(net(**given | {"t": given["t"] + 50}), expected, atol=0.01)


def test_all_parameters_learn():
    net = network()
    net(**inputs()).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not [name for name, p in net.named_parameters() if not p.grad.any()]


@torch.no_grad()
def test_adapter_maps_are_added_level_by_level():
    net, given = network(), inputs()
    zeros = [torch.zeros(2, 16, 4, 2), torch.zeros(2, 32, 2, 1)]
    expected = net(**given)
    assert torch.equal(net(**given, adapter=zeros), expected)
    for level in (0, 1):
        maps = [x + (number == level) for number, x in enumerate(zeros)]
        assert not torch.allclose(net(**given, adapter=maps), expected, atol=0.01)
    with pytest.raises(ValueError, match=r"expected 2 maps .* found 1"):
        net(**given, adapter=zeros[:1])


@torch.no_grad()
def test_half_precision_stays_near():
    net, given = network(), inputs()
    expected = net(**given)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(**given)
    assert (out - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize("mapping_width", [128, 256])
def test_small_size_has_the_parameters_of_its_parts(mapping_width):
    spec = HDiTSpec(2, widths=(64, 128, 256), head=32, mapping_width=mapping_width)
    with torch.device("meta"):
        net = HDiT(spec)
    m = mapping_width

    def layer(width):
        # query, key, value, out; twice two thirds of the feed-forward network and the way back; two norms; scales
        return 4 * width**2 + 9 * width**2 + 2 * m * width + width // 32

    layers = 4 * layer(64) + 4 * layer(128) + 4 * layer(256)
    between = 2 * (4 * 64 * 128 + 4 * 128 * 256) + 2
    ends = 2 * 16 * 64 + 64 * 16 + 64
    embeddings = (m + 1) * m + (6 + 1) * m + 2 * 2 * m + 4 * (m + 1) * m
    mapping = 2 * (9 * m**2 + m) + 2 * m
    assert sum(p.numel() for p in net.parameters()) == layers + between + ends + embeddings + mapping


def test_paper_size():
    with torch.device("meta"):
        net = HDiT(HDiTSpec(in_channels=2))
    assert [len(level.layers) for level in (*net.down, *net.up)] == [2, 2, 4, 2, 2]
    assert [level.layers[0].attention.kernel for level in (*net.down, *net.up)] == [7, 7, 0, 7, 7]
    assert [level.layers[0].attention.qkv.in_features for level in net.down] == [128, 256, 512]


def test_parts_have_to_fit():
    with pytest.raises(ValueError, match=r"widths \(16, 32\) and depths \(1,\)"):
        replace(TINY, depths=(1,))
    with pytest.raises(ValueError, match="found head 12"):
        replace(TINY, head=12)
    with pytest.raises(ValueError, match=r"found head 16 and widths \(16, 24\)"):
        replace(TINY, widths=(16, 24))


def test_recomputed_layers_have_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        spec = HDiTSpec(2, widths=(16, 16), depths=(1, 2), head=8, mapping_width=16, recompute=recompute)
        net = HDiT(spec).train()
        for number, parameter in enumerate(net.parameters()):
            generator = torch.Generator().manual_seed(number)
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        x = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1))
        condition = (
            torch.tensor([3.0, 700.0]),
            torch.eye(3)[:2],
            torch.tensor([1000.0, 2000.0]),
            torch.tensor([0.2, 0.7]),
        )
        net(x, *condition).square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
