"""The device itself: it breaks what CUDA breaks, lets through what CUDA lets through, and computes as the processor."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bids_dmrigen.diffusion.numerics import autocast, policy

from .strict import DEVICE, StrictTensor

pytestmark = pytest.mark.usefixtures("strict")
MIXED = "at least two devices, strict:0 and cpu"


def there(*shape) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape).to(DEVICE)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) + x,
        lambda x: torch.cat([x, torch.ones(2, 3)]),
        lambda x: x @ torch.ones(3, 1),
        lambda x: x.add_(torch.ones(3)),
        lambda x: torch.ones(3).mul_(x[0]),
        lambda x: torch.where(x > 0, x, torch.zeros(2, 3)),
        lambda x: torch.where(torch.ones(2, 3) > 0, x, 0.0),
        lambda x: torch.ones(2, 3)[x > 0],
        lambda x: torch.ones(5)[x[0].long()],
        lambda x: nn.Linear(3, 1)(x),
        lambda x: nn.Linear(3, 1).to(DEVICE)(x.cpu()),
        lambda x: F.grid_sample(x[None, None], torch.zeros(1, 2, 2, 2), align_corners=True),
        lambda x: torch.ones(3, device=x.device) * torch.linspace(0, 1, 3),
        lambda x: torch.searchsorted(torch.arange(6.0), x),
    ],
)
def test_two_devices_never_mix(mix):
    with pytest.raises(RuntimeError, match=MIXED):
        mix(there(2, 3))


@pytest.mark.parametrize("leave", [lambda x: x.numpy(), np.asarray, np.sqrt])
def test_no_tensor_leaves_the_device_without_a_request(leave):
    with pytest.raises(TypeError, match="can't convert strict:0 device type tensor to numpy"):
        leave(there(2, 3))


@pytest.mark.parametrize("device", ["cpu", DEVICE])
@pytest.mark.parametrize(
    "draw",
    [
        lambda g, d: torch.rand(3, generator=g, device=d),
        lambda g, d: torch.randn((2, 3), generator=g, device=d),
        lambda g, d: torch.randint(5, (2,), generator=g, device=d),
        lambda g, d: torch.randperm(5, generator=g, device=d),
        lambda g, d: torch.zeros(3, device=d).uniform_(generator=g),
        lambda g, d: nn.init.normal_(torch.zeros(3, device=d), generator=g),
    ],
)
def test_numbers_are_drawn_from_a_generator_of_their_device(draw, device):
    other = "cpu" if device == DEVICE else DEVICE
    with pytest.raises(RuntimeError, match="device type for generator but found"):
        draw(torch.Generator(other), device)
    result = draw(torch.Generator(device).manual_seed(3), device)
    assert result.device == torch.device(device)
    assert torch.equal(result.cpu(), draw(torch.Generator().manual_seed(3), "cpu"))


def test_operations_that_cuda_allows_are_allowed():
    x = there(2, 3)
    assert isinstance(x + torch.tensor(1.0), StrictTensor), "single numbers"
    assert isinstance(x[torch.tensor([0, 1])], StrictTensor), "the host's indices"
    x[torch.tensor([0])] = 5.0
    x[1:] = torch.full((1, 3), 7.0)  # a copy, if a slow one
    host = torch.zeros(2, 3)
    host[0] = x[0]
    host.copy_(x)
    assert host.tolist() == x.tolist() == [[5.0] * 3, [7.0] * 3]
    assert (float(x[0, 0]), int(x.sum()), bool((x > 0).all()), f"{x[0, 0]:.1f}") == (5.0, 36, True, "5.0")
    assert x.cpu().numpy().tolist() == x.to("cpu").tolist()
    assert torch.as_tensor(np.ones(2), device=DEVICE).device == torch.tensor([1.0], device=DEVICE).device == DEVICE
    assert x.new_zeros(2).device == torch.zeros_like(x).device == torch.eye(2, device=DEVICE).device == DEVICE
    assert torch.zeros_like(x, device="cpu").device.type == "cpu"


def test_shapes_change_in_place():
    x = there(1, 2, 3)
    assert (x.squeeze_(0).shape, x.t_().shape, x.unsqueeze_(1).shape) == ((2, 3), (3, 2), (3, 1, 2))
    assert x.tolist() == [[[0.0, 3.0]], [[1.0, 4.0]], [[2.0, 5.0]]]
    result = (torch.arange(3, device=DEVICE), torch.linspace(0, 1, 3, device=DEVICE), torch.eye(3, device=DEVICE)[0])
    assert [(m + 1).tolist() for m in result] == [[1, 2, 3], [1.0, 1.5, 2.0], [2.0, 1.0, 1.0]]
    assert torch.triu_indices(2, 2, device=DEVICE).tolist() == [[0, 0, 1], [0, 1, 1]]


def test_views_share_memory():
    x = there(4, 3)
    x[1:3].T[0].mul_(-1)
    x.flatten()[0] = 9.0
    assert x[:, 0].tolist() == [9.0, -3.0, -6.0, 9.0]


def test_a_training_step_is_the_processor_s_but_for_rounding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1))
    image, after = torch.randn(3, 1, 4, 4), []
    for device in ("cpu", DEVICE):
        on_device = copy.deepcopy(net).to(device, memory_format=torch.channels_last)
        on_device.load_state_dict(net.state_dict())
        copied = copy.deepcopy(on_device)
        assert all(isinstance(p, nn.Parameter) for p in copied.parameters())
        optimiser = torch.optim.AdamW(on_device.parameters())
        on_device(image.to(device)).square().mean().backward()
        nn.utils.clip_grad_norm_(on_device.parameters(), 0.1)
        optimiser.step()
        assert all(torch.equal(p.cpu(), q) for p, q in zip(copied.parameters(), net.parameters(), strict=True))
        after.append([p.detach().cpu() for p in on_device.parameters()])
    torch.testing.assert_close(*after, rtol=1e-5, atol=1e-7)
    assert not torch.equal(after[0][0], net[0].weight)


def test_autocast_computes_as_cuda_would():
    x = there(2, 2)
    with autocast(DEVICE, "bf16"):
        low = [x @ x, F.linear(x, x), F.conv2d(x[None, None], x[None, None]), torch.einsum("ij,jk->ik", x, x)]
        low.append(F.scaled_dot_product_attention(x[None], x[None], x[None]))
        assert {result.dtype for result in low} == {torch.bfloat16}
        high = [low[0].softmax(0), low[0].exp(), low[0].sum(), F.layer_norm(low[0], (2,)), low[0].square()]
        high.append(F.group_norm(low[0][None], 1))
        assert {result.dtype for result in high} == {torch.float32}
        assert (low[0] + 1).dtype == torch.bfloat16
        assert (x.double() @ x.double()).dtype == torch.float64
        with autocast(DEVICE, "fp32"):
            assert (x @ x).dtype == torch.float32
    torch.testing.assert_close(low[0].cpu(), x.cpu().bfloat16() @ x.cpu().bfloat16())


def test_operations_without_a_fixed_order_raise_where_one_is_required():
    maps = there(1, 1, 3, 3).requires_grad_()
    result = F.grid_sample(maps, there(1, 2, 2, 2) / 8, align_corners=True).sum()
    with policy(deterministic=True):
        result.backward(retain_graph=True)
    for ask in (lambda: result.backward(), lambda: there(3).cumsum(0), lambda: there(3, 2).median(0)):
        with policy(deterministic=True, strict=True), pytest.raises(RuntimeError, match="deterministic implementation"):
            ask()
    with policy(deterministic=True, strict=True):
        assert there(3).long().cumsum(0).tolist() == [0, 1, 3]
        assert float(there(3).median()) == 1
        F.interpolate(there(1, 1, 2, 2).requires_grad_(), size=4, mode="bilinear").sum().backward()
