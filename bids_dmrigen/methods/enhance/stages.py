"""The four trainings of RISH latent diffusion: both autoencoders, the diffusion between them, super-resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...diffusion.numerics import autocast, resolve_precision
from ...diffusion.processes import linear
from ...diffusion.samplers import ddim, ddim_inverse
from ...diffusion.training import Plan
from ...dwi.spline import even_points, resampled
from ...nets.rish_ldm import FIELDS, RishLDM
from ...simulate.examples import People, numbers_from, numbers_of_step
from ..base import Training
from .examples import SIDE, Pair, simulated
from .inputs import Known, Shell, known_of, on_grid
from .pairs import MeasuredPairs

Source = People | MeasuredPairs
Predicted = Callable[[Tensor, int, int], Tensor]  # (x_t, t, field) -> estimate of the noise in x_t
PROCESS = linear()
UNTOLD = 0.15  # share of the examples whose field strength the U-Net is not told
CONSTANT_BATCHES = 16  # that constants of the network are read from
TRAINING_STEPS = 4  # of the diffusion that makes super-resolution's examples


class Level(NamedTuple):
    """How far and how strongly features of one degree are moved."""

    time: int  # that latents are noised to
    guidance: float  # w of classifier-free guidance


LEVELS = (Level(100, 0.0), Level(100, 0.0), Level(100, 0.0))  # of l = 0, 2, 4


class Stage(Training):
    """One of the trainings: which part of the network, on what, by which loss."""

    rate: float
    fine = False  # whether its examples need the fine grid

    def __init__(self, net: RishLDM):
        self.net = net
        divisor = net.spec.divisor
        height, width, depth = (-(-n // divisor) * divisor for n in SIDE)
        self.side = (height, width, depth)  # of the poor scan's blocks

    def training_plan(self, size: str) -> Plan:
        """Return the default budget and settings; the paper's: AdamW, 1e-4, 200 and 1000 epochs."""
        common: dict[str, Any] = {"evaluate_every": 100, "patience": 1000, "save_every": 100, "ema": 0.998}
        if size == "paper":
            return Plan(steps=200_000, learning_rate=1e-4, warmup=0, weight_decay=0.01, **common)
        return Plan(steps=50_000, learning_rate=self.rate, warmup=100, **common)

    def begin(self, source: Source, batch: int, seed: int) -> None:
        """Leave only this part to be trained, from where the stages before it left the network."""
        for name, own in self.net.named_parameters():
            own.requires_grad_(name.split(".")[0] == self.name)

    def examples(self, source: Source, size: str, batch: int, seed: int) -> Callable[[int], Any]:
        """Return index -> batch of examples on the source's device."""

        def make(index: int) -> Any:
            generator = numbers_of_step(seed, index, source.device)
            return self.example(pair_of(source, batch, generator, self.fine, self.side), generator)

        return make

    def held_out(
        self, source: Source, size: str, seed: int, batches: int = 8, batch: int = 2
    ) -> Callable[[nn.Module], float]:
        """Return a score on fixed examples of subjects who are never trained on; they are blocks, not slices."""
        return super().held_out(source, size, seed, batches, batch)

    def example(self, pair: Pair, generator: torch.Generator) -> Any:
        """Return a batch from a pair of blocks."""
        raise NotImplementedError

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the training loss of a batch; `net` may be wrapped, and is called as `RishLDM`."""
        raise NotImplementedError

    def _some_pairs(self, source: Source, batch: int, seed: int) -> Iterator[Pair]:
        """Yield pairs on the poor scan's grid, to read the network's constants from; none of them is trained on."""
        for k in range(CONSTANT_BATCHES):
            yield pair_of(source, batch, numbers_of_step(seed + 1, k, source.device), False, self.side)


class Autoencoder(Stage):
    """An autoencoder of single features: absolute error, and what quantisation costs."""

    rate = 1e-3

    def loss(self, net: nn.Module, batch: Tensor) -> Tensor:
        found, quantisation = net(self.name, batch.flatten(0, 1)[:, None])
        return (found - batch.flatten(0, 1)[:, None]).abs().mean() + quantisation


class Autoencoder3T(Autoencoder):
    """The poor scans' autoencoder."""

    name, share = "autoencoder_3t", 0.03

    def example(self, pair: Pair, generator: torch.Generator) -> Tensor:
        return pair.low.features


class Autoencoder7T(Autoencoder):
    """The good scans' autoencoder, which starts as that of the poor ones."""

    name, share = "autoencoder_7t", 0.02

    def begin(self, source: Source, batch: int, seed: int) -> None:
        super().begin(source, batch, seed)
        self.net.autoencoder_7t.load_state_dict(self.net.autoencoder_3t.state_dict())

    def example(self, pair: Pair, generator: torch.Generator) -> Tensor:
        return pair.coarse


class NoisyLatents(NamedTuple):
    """A batch of the diffusion's examples: 2 B F latents, of poor scans and then of good ones."""

    latents: Tensor
    labels: Tensor  # (2 B F, 2)
    t: Tensor
    noise: Tensor


class LatentDiffusion(Stage):
    """The U-Net: the mean squared error of the noise that it finds in latents of either field strength."""

    name, share, rate = "unet", 0.07, 1e-3
    constants = ("latent_scale",)

    @torch.no_grad()
    def begin(self, source: Source, batch: int, seed: int) -> None:
        super().begin(source, batch, seed)
        self.net.latent_scale.fill_(1)
        latents = torch.cat([self._latents(pair) for pair in self._some_pairs(source, batch, seed)])
        self.net.latent_scale.copy_(latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-3).reshape(-1, 1, 1, 1))

    @torch.no_grad()
    def example(self, pair: Pair, generator: torch.Generator) -> NoisyLatents:
        uniform, normal = numbers_from(generator)
        latents = self._latents(pair)
        labels = labels_of(len(pair.coarse), pair.coarse.shape[1], latents.device)
        untold = uniform(len(latents)) < UNTOLD
        labels[:, 0] = torch.where(untold, self.net.unet.untold, labels[:, 0])
        t = 1 + (uniform(len(latents)) * PROCESS.steps).long()
        return NoisyLatents(latents, labels, t, normal(*latents.shape))

    def loss(self, net: nn.Module, batch: NoisyLatents) -> Tensor:
        x_t = PROCESS.add_noise(batch.latents, batch.t.reshape(-1, 1, 1, 1, 1), batch.noise)
        return (net("unet", x_t, batch.t.float(), batch.labels) - batch.noise).square().mean()

    def _latents(self, pair: Pair) -> Tensor:
        low = self.net.encode(FIELDS[0], pair.low.features * pair.coarse_mask[:, None])  # as much brain in both
        return torch.cat([low, self.net.encode(FIELDS[1], pair.coarse)])


class Refinement(NamedTuple):
    """A batch of super-resolution's examples."""

    decoded: Tensor  # (B, 3, X, Y, Z) what the diffusion makes, on the fine grid
    known: Known
    truth: Tensor
    weight: Tensor


class SuperResolution(Stage):
    """The refiner, on what the diffusion makes of poor scans: mean squared error."""

    name, share, rate, fine = "refiner", 0.88, 1e-3, True
    constants = ("ratios",)

    @torch.no_grad()
    def begin(self, source: Source, batch: int, seed: int) -> None:
        super().begin(source, batch, seed)
        good, poor = torch.zeros_like(self.net.ratios), torch.zeros_like(self.net.ratios)
        for pair in self._some_pairs(source, batch, seed):
            known = pair.low.determined[:, :, None, None, None] * pair.coarse_mask[:, None]
            good += (known * pair.coarse.square()).sum(dim=(0, 2, 3, 4))
            poor += (known * pair.low.features.square()).sum(dim=(0, 2, 3, 4))
        self.net.ratios.copy_(torch.where(poor > 0, (good / poor.clamp_min(1e-12)).sqrt(), 1.0))

    @torch.no_grad()
    def example(self, pair: Pair, generator: torch.Generator) -> Refinement:
        points = [even_points(n, wanted) for n, wanted in zip(self.side, pair.fine.shape[2:], strict=True)]
        device = pair.fine.device
        with autocast(device, resolve_precision("auto", device)):
            made = translate(self.net, pair.low.features, times_of(TRAINING_STEPS)).float()
        shell = on_grid(pair.low, points)
        known, inside = known_for(self.net, shell), (shell.mask & pair.fine_mask)[:, None]
        decoded = resampled(made, points)
        # From brain to brain errors count relative to what was to be expected.
        expected, voxels = inside * known.scale.square(), inside.sum(dim=(2, 3, 4)).clamp_min(1)
        mean = expected.sum(dim=(2, 3, 4)) / voxels
        weight = expected / mean.clamp_min(1e-12)[:, :, None, None, None] * shell.determined[:, :, None, None, None]
        return Refinement(decoded, known, pair.fine, weight)

    def loss(self, net: nn.Module, batch: Refinement) -> Tensor:
        found = refined(net, batch.decoded, batch.known)
        error = ((found - batch.truth) / batch.known.scale).square()
        return (error * batch.weight).sum() / batch.weight.sum().clamp_min(1)


STAGES = (Autoencoder3T, Autoencoder7T, LatentDiffusion, SuperResolution)


def pair_of(source: Source, batch: int, generator: torch.Generator, both: bool, side: tuple[int, int, int]) -> Pair:
    """Return pairs of simulated people's blocks, or of measured scans'."""
    if isinstance(source, People):
        return simulated(source, batch, generator, both, side)
    return source.pair(batch, generator, both, side)


def labels_of(n: int, kinds: int, device: torch.device) -> Tensor:
    """Return the U-Net's labels (2 n kinds, 2) of n brains' features, poor and then good: field strength, degree."""
    degree = torch.arange(kinds, device=device).repeat(2 * n)
    return torch.stack([torch.arange(2, device=device).repeat_interleave(n * kinds), degree], dim=1)


def times_of(steps: int) -> tuple[list[int], ...]:
    """Return the rising times of inversion of each degree: so many, or as many as its level has."""
    return tuple(
        [round(k * level.time / n) for k in range(1, n + 1)] for level in LEVELS for n in [min(steps, level.time)]
    )


def translate(net: RishLDM, low: Tensor, times: Sequence[Sequence[int]]) -> Tensor:
    """Return features (B, 3, H, W, D) as a better scanner would show them, of those of a poor scan.

    Encoded; noised by inverting DDIM as "3t" (Eq. 8); denoised as "7t" with guidance, (1 + w) e(x, c) - w e(x)
    (Eq. 10); decoded. How far and how strongly is a matter of degree.

    Parameters
    ----------
    net
        In evaluation mode, or without gradients.
    low
        (B, 3, H, W, D) that divides by `net.spec.divisor`.
    times
        Of inversion, for each degree.
    """
    latents = net.encode(FIELDS[0], low).unflatten(0, low.shape[:2])
    made = torch.empty_like(latents)
    for degree, (level, rising) in enumerate(zip(LEVELS, times, strict=True)):
        own = latents[:, degree]

        def predicted(x: Tensor, t: int, field: int, degree: int = degree) -> Tensor:
            labels = torch.tensor([[field, degree]], device=x.device).expand(len(x), -1)
            return net.unet(x, torch.full((len(x),), float(t), device=x.device), labels).to(x)

        def denoise(x: Tensor, t: int, w: float = level.guidance, predicted: Predicted = predicted) -> Tensor:
            found = predicted(x, t, 1)
            if w:
                found = (1 + w) * found - w * predicted(x, t, net.unet.untold)
            return PROCESS.to_x0(x, t, found, "noise")

        start = ddim_inverse(partial(predicted, field=0), PROCESS, own, rising).x0
        made[:, degree] = ddim(denoise, PROCESS, start, rising[::-1]).x0
    return net.decode(FIELDS[1], made.flatten(0, 1))


def known_for(net: RishLDM, shell: Shell) -> Known:
    """Return what this network's super-resolution is told; `paper` is told nothing but what was decoded."""
    known = known_of(shell)
    return known if net.spec.told else known._replace(images=known.images[:, :0])


def refined(net: nn.Module, decoded: Tensor, known: Known) -> Tensor:
    """Return the features of the result; `paper` adds to what was decoded, `small` to what was measured."""
    if not known.images.shape[1]:
        return (decoded + net("refiner", decoded)).clamp_min(0)
    added = net("refiner", torch.cat([decoded, known.images], dim=1))
    return known.centre + known.scale * added
