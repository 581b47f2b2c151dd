"""Networks that say the features of a better scan at once: what RISH latent diffusion is without its diffusion.

They see what its super-resolution sees, but nothing of what was generated in the latent space. Examples and use are the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...diffusion.numerics import autocast
from ...diffusion.training import fixed_score
from ...dwi.gradients import LEAST_DIRECTIONS
from ...dwi.series import Scan
from ...nets.compared import PatchDiscriminator
from ...nets.rish_ldm import RishLDM, RishLDMSpec
from ..adversarial import SHARE, Contest, verdicts
from ..at_once import always_the_same, asked_once, n_parameters
from ..base import Generated, Request
from .inputs import CONDITION_CHANNELS, DEGREES
from .rishldm_model import SIZES, RishLatentDiffusion, _Maker
from .stages import Refinement, Source, Stage, SuperResolution, feature_error, refined
from .task import BVALS, RishSpec

CHANNELS = len(DEGREES) + CONDITION_CHANNELS["small"]  # of the input; the first are those of the diffusion, here 0


class DirectNet(nn.Module):
    """A network in the place of RISH latent diffusion's, of which there is only the last part.

    Parameters
    ----------
    refiner
        (B, `CHANNELS`, X, Y, Z) -> (B, 3, X, Y, Z), with `reach`, the voxels on each side that a result depends on.
    discriminator
        (B, `CHANNELS` + 3, X, Y, Z) -> verdicts; None where nothing judges.
    """

    spec: RishLDMSpec = SIZES["small"]
    ratios: Tensor

    def __init__(self, refiner: nn.Module, discriminator: nn.Module | None = None):
        super().__init__()
        self.refiner, self.discriminator = refiner, discriminator
        self.register_buffer("ratios", torch.ones(len(DEGREES)))

    def forward(self, part: str, *args: Any) -> Any:
        """Return the output of a part, as `RishLDM.forward`."""
        return getattr(self, part)(*args)

    def contest(self, images: Tensor, real: Tensor, weight: Tensor) -> Contest:
        """Return the contest for images (B, `CHANNELS`, X, Y, Z) and what is real, (B, 3, X, Y, Z)."""
        made, inside = self.refiner(images), (weight > 0).to(real)
        assert self.discriminator is not None  # `adversaries` gave one
        parts = (torch.cat([images, x * inside], dim=1) for x in (made, made.detach(), real))
        return Contest(made, *verdicts(self.discriminator, *parts))


class Refining(SuperResolution):
    """The training of the refiner alone."""

    small_share = 1.0

    def __init__(self, net: DirectNet, size: str):
        super().__init__(cast("RishLDM", net), size)

    def begin(self, source: Source, batch: int, seed: int) -> None:
        """Train all parameters."""
        Stage.begin(self, source, batch, seed)
        for parameter in self.net.parameters():
            parameter.requires_grad_(True)

    def translated(self, low: Tensor) -> Tensor:
        """Return zeros (B, 3, H, W, D): nothing is generated."""
        return torch.zeros_like(low)


class Contested(Refining):
    """The training of a refiner and a discriminator."""

    def loss(self, net: nn.Module, batch: Refinement) -> Tensor:
        """Return the errors of both sides of a contest."""
        condition = batch.condition
        images = torch.cat([batch.decoded, condition.images], dim=1)
        real = (batch.truth - condition.centre) / condition.scale
        contest = net("contest", images, real, batch.weight)
        with autocast(images.device, "fp32"):
            error = feature_error(condition.centre + condition.scale * contest.made.float(), batch)
        return error + SHARE * contest.generator + contest.discriminator

    def held_out(self, source: Source, size: str, seed: int) -> Callable[[nn.Module], float]:
        """Return network -> error of what its refiner says, on fixed examples that are never trained on."""
        batches, batch = self.scored_on(size)

        def error(net: nn.Module, batch: Refinement) -> Tensor:
            return feature_error(refined(net, batch.decoded, batch.condition), batch)

        return fixed_score(self.examples(source, size, batch, seed), error, batches)


class DirectEnhancement(RishLatentDiffusion):
    """A network that says the features of a better scan at once.

    Parameters
    ----------
    spec
        The specification.
    architecture
        () -> the network.
    """

    steps = (1, 1, 1)

    def __init__(self, spec: RishSpec, architecture: Callable[[], DirectNet]):
        self.spec, self._architecture = spec, architecture

    def network(self, size: str) -> nn.Module:
        """Return an untrained network, always the same."""
        return always_the_same(self._architecture)

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the range of the training data, and the number of the network's parameters."""
        return {
            "parameters": n_parameters(self.network(size)),
            "bvals": list(BVALS),
            "directions_at_least": LEAST_DIRECTIONS,
        }

    def trainings(self, net: nn.Module) -> list[Stage]:
        """Return the one training of the network."""
        network = cast("DirectNet", net)
        return [(Refining if network.discriminator is None else Contested)(network, "small")]

    def translated(self, maker: _Maker, low: Tensor) -> Tensor:
        """Return zeros (1, 3, x, y, z): nothing is generated."""
        return torch.zeros_like(low)

    def record(self, maker: _Maker, **more: Any) -> dict[str, Any]:
        """Return how the result was made, for `Generated.record`."""
        return maker.making.record(1, **more)

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Make the shells of a scan with `net`, or with stored weights where `net` is None."""
        return super().generate(net, scan, asked_once(request))


def adversaries(refiner: nn.Module) -> DirectNet:
    """Return a refiner with a discriminator that sees its images too."""
    return DirectNet(refiner, PatchDiscriminator(CHANNELS + len(DEGREES), halvings=2, dims=3))
