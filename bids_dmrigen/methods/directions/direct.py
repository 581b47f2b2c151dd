"""Networks that say the image at once: no noise and no time, on the same examples and in the same use as QID²."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from .examples import BVALS, DIRECTIONS, Batch
from .inputs import EXTRA, Condition
from .qid2_model import QID2
from .task import REFERENCES, DirectionsSpec


class DirectDirections(QID2):
    """A network that says the image of a direction, as `Condition` takes it, without noise and time.

    Parameters
    ----------
    spec
        The specification.
    architecture
        Number of references -> the network: condition -> output (B, 1, H, W).
    references
        Number of nearest directions that the network sees.
    """

    def __init__(
        self, spec: DirectionsSpec, architecture: Callable[[int], nn.Module], references: int = REFERENCES.default
    ):
        super().__init__(references)
        self.spec, self._built = spec, architecture

    def configured(self, options: Mapping[str, Any]) -> DirectDirections:
        """Return the method with the number of references in the options."""
        return type(self)(self.spec, self._built, options.get(REFERENCES.key, REFERENCES.default))

    def network(self, size: str) -> nn.Module:
        """Return an untrained network, always the same."""
        return always_the_same(lambda: self._built(self.references))

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the range of the training data, and the number of the network's parameters."""
        settings = {"parameters": n_parameters(self.network(size)), REFERENCES.key: self.references}
        return settings | {"bvals": list(BVALS), "directions": list(DIRECTIONS)}

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
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        precision: str,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return what the network says of B images, (B, 1, H, W); there is nothing to sample."""
        with autocast(condition.images.device, precision):
            return ask(net, condition)

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Fill every shell of the scan with `net`, or with stored weights where `net` is None."""
        return super().generate(net, scan, asked_once(request))


class AdversarialDirections(Adversarial, DirectDirections):
    """The same with a discriminator: the network is `Adversaries`."""


def told(condition: Condition) -> Tensor:
    """Return what is told about B images, (B, 8 + R): direction, b-value, noise, and how near the references are."""
    target = condition.bvecs[:, -1]
    near = (condition.bvecs[:, :-1] * target[:, None]).sum(dim=2).square()
    further = torch.stack([condition.bvals[:, -1] / BVAL_UNIT, condition.log_sigma], dim=1)
    return torch.cat([dyadic_features(target), further, near], dim=1)


def told_to(references: int) -> int:
    """Return how many numbers `told` returns."""
    return 8 + references


def adversaries(generator: nn.Module, references: int) -> Adversaries:
    """Return a generator with a discriminator that sees its images too."""
    return Adversaries(generator, PatchDiscriminator(references + EXTRA + 1))


def ask(net: nn.Module, condition: Condition) -> Tensor:
    """Return what a network says of B images, (B, 1, H, W), in units of the expected error."""
    said: Tensor = maker(net)(condition)
    return said
