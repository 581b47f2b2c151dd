"""CycleGAN's networks and their training; see `cyclegan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...diffusion.arrays import Prepared
from ...diffusion.training import fixed_score
from ...nets.compared import PatchDiscriminator, PlainUNet
from ...simulate.examples import SimulatedSubjects
from ..adversarial import verdicts
from .direct import DirectMaps
from .examples import Batch
from .inputs import Condition, lengthened
from .task import TENSOR, MapsSpec

CYCLE = 10.0  # weight of the error of what was made and undone, as in the paper
WIDTHS = (32, 64, 96)


class Round(NamedTuple):
    """The errors of one round of both networks, scalars."""

    cycle: Tensor  # of tensors that were changed and changed back
    generators: Tensor
    discriminators: Tensor


class Generator(nn.Module):
    """Make tensors of others, by what is added to their first six numbers (`inputs.numbers_of`)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PlainUNet(TENSOR, TENSOR, WIDTHS)

    def changed(self, numbers: Tensor) -> Tensor:
        """Return other numbers (S, 6, H, W) of numbers (S, 6, H, W)."""
        return numbers + self.body(numbers)

    def forward(self, condition: Condition) -> Tensor:
        """Return (S, 7, H, W), as `Condition` takes it, of the condition of S slices."""
        six = self.changed(condition.centre[:, :TENSOR])
        length = six[:, 1:].norm(dim=1, keepdim=True)
        return (torch.cat([six, length], dim=1) - condition.centre) / condition.scale


class Cycle(nn.Module):
    """Both generators and both discriminators."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.back = Generator(), Generator()  # noisy to good, and good to noisy
        self.of_good, self.of_noisy = PatchDiscriminator(TENSOR), PatchDiscriminator(TENSOR)

    def forward(self, noisy: Tensor, good: Tensor, inside: Tensor) -> Round:
        """Return the errors for tensors (S, 6, H, W) of different slices, judged `inside` (S, 1, H, W) the brain.

        Generators see all voxels, as they will in use; what is judged and what has an error is inside.
        """
        made_good, made_noisy = self.generator.changed(noisy), self.back.changed(good)
        undone = (self.back.changed(made_good) - noisy) * inside, (self.generator.changed(made_noisy) - good) * inside
        generators, discriminators = noisy.new_zeros(()), noisy.new_zeros(())
        for judge, made, real in ((self.of_good, made_good, good), (self.of_noisy, made_noisy, noisy)):
            judged = made * inside
            fooled, told_apart = verdicts(judge, judged, judged.detach(), real * inside)
            generators, discriminators = generators + fooled, discriminators + told_apart
        voxels = inside.sum().clamp_min(1) * TENSOR
        cycle = sum((u.abs().sum() / voxels for u in undone), noisy.new_zeros(()))
        return Round(cycle, generators, discriminators)


class CycleMaps(DirectMaps):
    """CycleGAN."""

    def __init__(self, spec: MapsSpec):
        super().__init__(spec, Cycle)

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of all errors of a round; the good tensors are those of the batch's other slices."""
        condition, inside = batch.condition, (batch.weight[:, :1] > 0).to(batch.x0)
        truth = lengthened(condition.centre + condition.scale * batch.x0)[:, :TENSOR]
        noisy = condition.centre[:, :TENSOR]
        errors = net(noisy, truth.roll(1, dims=0), inside * inside.roll(1, dims=0))
        total: Tensor = CYCLE * errors.cycle + errors.generators + errors.discriminators
        return total

    def held_out(self, source: SimulatedSubjects | Prepared, size: str, seed: int) -> Callable[[nn.Module], float]:
        """Return network -> error of the tensors that its generator makes, on fixed pairs; none trains it."""
        batches, batch = self.scored_on(size)
        return fixed_score(self.examples(source, size, batch, seed), super().loss, batches)
