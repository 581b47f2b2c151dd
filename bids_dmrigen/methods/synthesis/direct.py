"""Networks that say the image at once: no noise and no time, on the same examples and in the same use as Phy-Diff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...diffusion.numerics import autocast
from ...dwi.series import Scan
from ...nets.compared import PatchDiscriminator
from ...nets.direction_unet import BVAL_UNIT, dyadic_features
from ..adversarial import Adversarial, Adversaries, maker
from ..at_once import always_the_same, asked_once, n_parameters
from ..base import Generated, Request
from .examples import BVALS, Batch, Cohort
from .inputs import IMAGES, Condition
from .phydiff_model import PhyDiff, TractHDiT
from .task import SynthesisSpec

TOLD = 8  # numbers that `told` returns
BESIDE = (0, 2)  # channels of the condition that hold the b0 of the slices below and above


class DirectImages(PhyDiff):
    """A network that says the image of a direction, as `Condition` takes it, without noise and time.

    Parameters
    ----------
    spec
        The specification.
    architecture
        () -> the network: condition -> output (B, 1, H, W).
    """

    def __init__(self, spec: SynthesisSpec, architecture: Callable[[], nn.Module]):
        super().__init__(spec)
        self._architecture = architecture

    def network(self, size: str, physics: bool | None = None, query_mapping: bool = True) -> nn.Module:
        """Return an untrained network, always the same; `physics` and `query_mapping` mean nothing here."""
        return always_the_same(self._architecture)

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the range of the training data, and the number of the network's parameters."""
        return {"parameters": n_parameters(self.network(size)), "bvals": list(BVALS)}

    def freeze(self, net: nn.Module, source: Cohort) -> None:
        """Freeze what this source cannot train: the adapter of a network that has one."""
        if isinstance(net, TractHDiT):
            super().freeze(net, source)

    def error(self, made: Tensor, batch: Batch) -> Tensor:
        """Return the weighted mean squared error of images (B, 1, H, W)."""
        return ((made - batch.x0).square() * batch.weight).sum() / batch.weight.sum()

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the error of the images that the network says."""
        return self.error(ask(net, batch.condition).float(), batch)

    def draw(
        self,
        net: nn.Module,
        condition: Condition,
        sampler: str,
        times: list[int],
        noise: Callable[[int], Tensor],
        precision: str,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return images (B, 1, H, W) as `Condition` takes them; there is nothing to sample."""
        with autocast(condition.images.device, precision):
            return ask(net, condition).float()

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Make the wanted images of a scan with `net`, or with stored weights where `net` is None."""
        return super().generate(net, scan, asked_once(request))


class AdversarialImages(Adversarial, DirectImages):
    """The same with a discriminator: the network is `Adversaries`."""


def told(condition: Condition) -> Tensor:
    """Return what is told about B images, (B, `TOLD`): direction, b-value, and the height of the slice."""
    further = torch.stack([condition.bvals / BVAL_UNIT, condition.position], dim=1)
    return torch.cat([dyadic_features(condition.bvecs), further], dim=1)


def adversaries(generator: nn.Module) -> Adversaries:
    """Return a generator with a discriminator that sees its images too."""
    return Adversaries(generator, PatchDiscriminator(IMAGES + 1))


def ask(net: nn.Module, condition: Condition) -> Tensor:
    """Return what a network says of B images, (B, 1, H, W), in units of the expected difference."""
    said: Tensor = maker(net)(condition)
    return said
