"""What adversarial arms have in common: a generator and a discriminator that never share gradients (Goodfellow 2014).

Both are parts of one network, so that the one training loop serves them too. The discriminator judges what is made
twice: with its parameters held, for the generator's error; and what is made held, for its own. Errors are squared
(Mao et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..diffusion.numerics import autocast
from ..diffusion.training import fixed_score
from .base import Training

SHARE = 0.02  # weight of the verdict in the generator's error, beside the error of what it makes


class Contest(NamedTuple):
    """What a generator made, and both errors of a contest."""

    made: Tensor  # as the generator returns it
    generator: Tensor  # scalar: 0 where the discriminator takes all for real
    discriminator: Tensor  # scalar: 0 where it tells all apart


class Adversaries(nn.Module):
    """A generator and its discriminator, which also sees what the generator was given.

    Parameters
    ----------
    generator
        (condition) -> what is made, (B, C, ...).
    discriminator
        (images of the condition and what is judged, channel by channel) -> verdicts.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def forward(self, condition: Any, images: Tensor, real: Tensor, inside: Tensor) -> Contest:
        """Return the contest for a condition: `images` (B, K, ...) of it, what is `real` (B, C, ...).

        What lies outside of `inside` (B, 1, ...) is judged as 0 in both.
        """
        made = self.generator(condition)
        parts = (torch.cat([images, values * inside], dim=1) for values in (made, made.detach(), real))
        return Contest(made, *verdicts(self.discriminator, *parts))


def verdicts(discriminator: nn.Module, made: Tensor, made_alone: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the errors of a generator and of a discriminator, without any gradient that both share.

    Parameters
    ----------
    discriminator
        (B, C, ...) -> verdicts.
    made, made_alone
        What was made, with gradients to the generator and without.
    real
        What is real.
    """
    held = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    generator = (functional_call(discriminator, held, (made,)) - 1).square().mean()
    told_apart = (discriminator(real) - 1).square().mean() + discriminator(made_alone).square().mean()
    return generator, told_apart / 2


def maker(net: nn.Module) -> nn.Module:
    """Return the part of a network that makes something: its generator, where it has one, or the network itself."""
    made: nn.Module = getattr(net, "generator", net)
    return made


class Adversarial(Training):
    """The training of `Adversaries`, on a room's examples: what is made counts by the room's own error too."""

    if TYPE_CHECKING:  # of the room's own class, which comes after this one

        def error(self, made: Tensor, batch: Any) -> Tensor:
            """Return the error of what was made, a scalar."""

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the errors of both sides of a contest."""
        inside = (batch.weight > 0).to(batch.x0)
        contest = net(batch.condition, batch.condition.images, batch.x0, inside)
        with autocast(batch.x0.device, "fp32"):
            error = self.error(contest.made.float(), batch)
        return error + SHARE * contest.generator + contest.discriminator

    def held_out(self, source: Any, size: str, seed: int) -> Callable[[nn.Module], float]:
        """Return network -> error of what its generator makes, on fixed examples that are never trained on."""
        batches, batch = self.scored_on(size)

        def error(net: nn.Module, batch: Any) -> Tensor:
            return self.error(maker(net)(batch.condition).float(), batch)

        return fixed_score(self.examples(source, size, batch, seed), error, batches)
