"""What networks that are asked once have in common, in every room: no noise, no time, nothing to sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .base import Request


class Translation(nn.Module):
    """A network of images as a network of a condition, which has `images` (B, K, H, W).

    Parameters
    ----------
    body
        (B, K, H, W), (B, J) -> (B, C, H, W), J numbers as from `told`; or, with `spread`, (B, K + J, H, W) alone.
    told
        Condition -> numbers (B, J).
    spread
        Whether the numbers are given as images that are the same everywhere.
    without
        Channels of the images that are left out.
    """

    def __init__(
        self, body: nn.Module, told: Callable[[Any], Tensor], spread: bool = True, without: Sequence[int] = ()
    ):
        super().__init__()
        self.body, self.told, self.spread, self.without = body, told, spread, frozenset(without)

    def forward(self, condition: Any) -> Tensor:
        """Return (B, C, H, W) of a condition."""
        images, numbers = condition.images, self.told(condition)
        if self.without:
            images = images[:, [k for k in range(images.shape[1]) if k not in self.without]]
        if not self.spread:
            return self.body(images, numbers)
        wide = numbers[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return self.body(torch.cat([images, wide], dim=1))


def asked_once(request: Request) -> Request:
    """Return a request for the only result that such a network has."""
    return replace(request, n_samples=1, sampler="fast", steps=None)


def always_the_same(architecture: Callable[[], nn.Module]) -> nn.Module:
    """Return an untrained network whose random weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architecture()


def n_parameters(net: nn.Module) -> int:
    """Return how many numbers of a network are learnt."""
    return sum(parameter.numel() for parameter in net.parameters())
