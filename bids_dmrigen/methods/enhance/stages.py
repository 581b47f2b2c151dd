"""The four trainings of RISH latent diffusion: both autoencoders, the diffusion between them, super-resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ...simulate.examples import SimulatedSubjects, numbers_from, numbers_of_step
from ..base import Training
from .examples import SIDE, Pair, simulated
from .inputs import Condition, Shell, condition_of, on_grid
from .pairs import MeasuredPairs
from .rishldm import GUIDANCE, NOISE

Source = SimulatedSubjects | MeasuredPairs
Predicted = Callable[[Tensor, int, int], Tensor]  # (x_t, t, field) -> estimate of the noise in x_t
PROCESS = linear()
UNCONDITIONAL_SHARE = 0.15  # share of the examples without the field strength, for classifier-free guidance
CONSTANT_BATCHES = {"small": 16, "paper": 2}  # batches from which constants of the network are computed
TRAINING_EVALUATIONS = 8  # evaluations of the diffusion for super-resolution's examples
PATCH = 64  # voxels, edge of super-resolution's examples of size `paper`


class Level(NamedTuple):
    """The settings of the diffusion for features of one degree."""

    time: int  # to which latents are noised
    guidance: float  # w of classifier-free guidance

    @property
    def cost(self) -> int:
        """Evaluations of one step and its way back, where guidance needs two."""
        return 3 if self.guidance else 2


def levels_of(options: Mapping[str, Any]) -> tuple[Level, ...]:
    """Return the level of each degree, l = 0, 2, 4, from the method's options by key."""
    noise, guidance = (options.get(option.key, option.default) for option in (NOISE, GUIDANCE))
    return tuple(Level(int(time), float(w)) for time, w in zip(noise, guidance, strict=True))


LEVELS = levels_of({})  # for the examples of super-resolution


class Stage(Training):
    """One of the trainings: the part of the network, its examples and its loss."""

    rate: float
    small_share: float  # share of a budget in minutes, size `small`
    passes: tuple[int, int]  # epochs, and scans in each, of size `paper`
    fine = False  # whether its examples need the fine grid

    def __init__(self, net: RishLDM, size: str):
        self.net, self.size = net, size
        divisor = net.spec.divisor
        height, width, depth = (-(-n // divisor) * divisor for n in SIDE[size])
        self.side = (height, width, depth)  # of the poor scan's blocks

    @classmethod
    def paper_steps(cls) -> int:
        """Return the steps of the paper's epochs, one scan per step."""
        epochs, scans = cls.passes
        return epochs * scans

    def share(self, size: str) -> float:
        """Return the share of a budget in minutes; for `paper` in proportion to the paper's epochs."""
        if size == "paper":
            return self.paper_steps() / sum(stage.paper_steps() for stage in STAGES)
        return self.small_share

    def training_plan(self, size: str) -> Plan:
        """Return the default budget and settings; the paper's: AdamW, 1e-4, 200 and 1000 epochs."""
        common: dict[str, Any] = {"evaluate_every": 100, "patience": 1000, "save_every": 100, "ema": 0.998}
        if size == "paper":
            return Plan(steps=self.paper_steps(), learning_rate=1e-4, warmup=0, weight_decay=0.01, **common)
        return Plan(steps=50_000, learning_rate=self.rate, warmup=100, **common)

    def begin(self, source: Source, batch: int, seed: int) -> None:
        """Freeze all parts of the network but this one."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name.split(".")[0] == self.name)

    def examples(self, source: Source, size: str, batch: int, seed: int) -> Callable[[int], Any]:
        """Return index -> batch of examples on the source's device."""

        def make(index: int) -> Any:
            generator = numbers_of_step(seed, index, source.device)
            return self.example(pair_of(source, batch, generator, self.fine, self.side, self.size), generator)

        return make

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return the number of fixed batches, and of examples in each: blocks, or (`paper`) one whole brain."""
        return (1, 1) if size == "paper" else (8, 2)

    def example(self, pair: Pair, generator: torch.Generator) -> Any:
        """Return a batch from a pair of blocks."""
        raise NotImplementedError

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the training loss of a batch; `net` may be wrapped, and is called like `RishLDM`."""
        raise NotImplementedError

    def _some_pairs(self, source: Source, batch: int, seed: int) -> Iterator[Pair]:
        """Yield pairs on the poor scan's grid for the network's constants; they are not in the training."""
        for k in range(CONSTANT_BATCHES[self.size]):
            yield pair_of(source, batch, numbers_of_step(seed + 1, k, source.device), False, self.side, self.size)

    def _chosen(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return the features (B, F, ...) of a step: all, or (`paper`, with whole brains) one degree."""
        if self.size != "paper":
            return features
        degree = int(torch.randint(features.shape[1], (), generator=generator, device=generator.device))
        return features[:, degree : degree + 1]


class Autoencoder(Stage):
    """An autoencoder of single features; the loss is the absolute error and that of quantisation."""

    rate = 1e-3

    def loss(self, net: nn.Module, batch: Tensor) -> Tensor:
        reconstruction, quantisation = net(self.name, batch.flatten(0, 1)[:, None])
        return (reconstruction - batch.flatten(0, 1)[:, None]).abs().mean() + quantisation


class Autoencoder3T(Autoencoder):
    """The poor scans' autoencoder."""

    name, small_share, passes = "autoencoder_3t", 0.03, (200, 958)  # nine tenths of 1065 scans

    def example(self, pair: Pair, generator: torch.Generator) -> Tensor:
        return self._chosen(pair.low.features, generator)


class Autoencoder7T(Autoencoder):
    """The good scans' autoencoder, which starts as a copy of the poor scans'."""

    name, small_share, passes = "autoencoder_7t", 0.02, (200, 154)  # of 171 scans

    def begin(self, source: Source, batch: int, seed: int) -> None:
        super().begin(source, batch, seed)
        self.net.autoencoder_7t.load_state_dict(self.net.autoencoder_3t.state_dict())

    def example(self, pair: Pair, generator: torch.Generator) -> Tensor:
        return self._chosen(pair.coarse, generator)


class NoisyLatents(NamedTuple):
    """A batch of the diffusion's examples: 2 B F latents, first of poor scans, then of good ones."""

    latents: Tensor
    labels: Tensor  # (2 B F, 2)
    t: Tensor
    noise: Tensor


class LatentDiffusion(Stage):
    """The U-Net, trained to predict the noise in latents of both field strengths; mean squared error."""

    name, rate = "unet", 1e-3
    small_share, passes = 0.07, (1000, 308)  # of 342 scans
    constants = ("latent_scale",)

    @torch.no_grad()
    def begin(self, source: Source, batch: int, seed: int) -> None:
        super().begin(source, batch, seed)
        self.net.latent_scale.fill_(1)
        pairs = self._some_pairs(source, batch, seed)
        latents = torch.cat([self._latents(*self._both(pair)) for pair in pairs])
        self.net.latent_scale.copy_(latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-3).reshape(-1, 1, 1, 1))

    @torch.no_grad()
    def example(self, pair: Pair, generator: torch.Generator) -> NoisyLatents:
        uniform, normal = numbers_from(generator)
        low, high = self._both(pair)
        degree = None
        if self.size == "paper":
            degree = int(torch.randint(low.shape[1], (), generator=generator, device=generator.device))
            low, high = low[:, degree : degree + 1], high[:, degree : degree + 1]
        latents = self._latents(low, high)
        labels = labels_of(len(low), latents.device, range(pair.coarse.shape[1]) if degree is None else [degree])
        unconditional = uniform(len(latents)) < UNCONDITIONAL_SHARE
        labels[:, 0] = torch.where(unconditional, self.net.unet.unconditional, labels[:, 0])
        t = 1 + (uniform(len(latents)) * PROCESS.steps).long()
        return NoisyLatents(latents, labels, t, normal(*latents.shape))

    def loss(self, net: nn.Module, batch: NoisyLatents) -> Tensor:
        x_t = PROCESS.add_noise(batch.latents, batch.t.reshape(-1, 1, 1, 1, 1), batch.noise)
        return (net("unet", x_t, batch.t.float(), batch.labels) - batch.noise).square().mean()

    @staticmethod
    def _both(pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the features of the poor and of the good scan, with the same brain mask."""
        return pair.low.features * pair.coarse_mask[:, None], pair.coarse

    def _latents(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.cat(
            [self.net.encode(field, features) for field, features in zip(FIELDS, (low, high), strict=True)]
        )


class Refinement(NamedTuple):
    """A batch of super-resolution's examples."""

    decoded: Tensor  # (B, 3, X, Y, Z) output of the diffusion, on the fine grid
    condition: Condition
    truth: Tensor
    weight: Tensor


class SuperResolution(Stage):
    """The refiner, trained on the diffusion's output for poor scans; mean squared error."""

    name, rate, fine = "refiner", 1e-3, True
    small_share, passes = 0.88, (200, 154)
    constants = ("ratios",)

    @torch.no_grad()
    def begin(self, source: Source, batch: int, seed: int) -> None:
        super().begin(source, batch, seed)
        good, poor = torch.zeros_like(self.net.ratios), torch.zeros_like(self.net.ratios)
        for pair in self._some_pairs(source, batch, seed):
            determined = pair.low.determined[:, :, None, None, None] * pair.coarse_mask[:, None]
            good += (determined * pair.coarse.square()).sum(dim=(0, 2, 3, 4))
            poor += (determined * pair.low.features.square()).sum(dim=(0, 2, 3, 4))
        self.net.ratios.copy_(torch.where(poor > 0, (good / poor.clamp_min(1e-12)).sqrt(), 1.0))

    def translated(self, low: Tensor) -> Tensor:
        """Return features (B, 3, H, W, D) as the diffusion makes them of those of a poor scan."""
        with autocast(low.device, resolve_precision("auto", low.device)):
            return translate(self.net, low, LEVELS, times_of(TRAINING_EVALUATIONS, LEVELS)).float()

    @torch.no_grad()
    def example(self, pair: Pair, generator: torch.Generator) -> Refinement:
        points = [even_points(n, wanted) for n, wanted in zip(self.side, pair.fine.shape[2:], strict=True)]
        translated = self.translated(pair.low.features)
        truth, fine_mask = pair.fine, pair.fine_mask
        if self.size == "paper":  # patches, as in the training of SRCNN
            part = _patch(fine_mask.shape[1:], generator)
            points = [p[window] for p, window in zip(points, part, strict=True)]
            rows, columns, slices = part
            truth, fine_mask = truth[..., rows, columns, slices], fine_mask[..., rows, columns, slices]
        shell = on_grid(pair.low, points)
        condition, inside = condition_for(self.net, shell), (shell.mask & fine_mask)[:, None]
        decoded = resampled(translated, points)
        # Between brains, errors are relative to the expected error.
        expected, voxels = inside * condition.scale.square(), inside.sum(dim=(2, 3, 4)).clamp_min(1)
        mean = expected.sum(dim=(2, 3, 4)) / voxels
        weight = expected / mean.clamp_min(1e-12)[:, :, None, None, None] * shell.determined[:, :, None, None, None]
        return Refinement(decoded, condition, truth, weight)

    def loss(self, net: nn.Module, batch: Refinement) -> Tensor:
        return feature_error(refined(net, batch.decoded, batch.condition), batch)


def feature_error(said: Tensor, batch: Refinement) -> Tensor:
    """Return the weighted mean squared error of features (B, 3, X, Y, Z), in units of the expected error."""
    error = ((said - batch.truth) / batch.condition.scale).square()
    return (error * batch.weight).sum() / batch.weight.sum().clamp_min(1)


STAGES = (Autoencoder3T, Autoencoder7T, LatentDiffusion, SuperResolution)


def pair_of(
    source: Source, batch: int, generator: torch.Generator, both: bool, side: tuple[int, int, int], size: str
) -> Pair:
    """Return pairs of blocks of simulated subjects or of measured scans."""
    if isinstance(source, SimulatedSubjects):
        return simulated(source, batch, generator, both, side, size)
    return source.pair(batch, generator, both, side)


def labels_of(n: int, device: torch.device, degrees: Sequence[int]) -> Tensor:
    """Return the U-Net's labels (2 n F, 2), field strength and degree, for n brains: first poor, then good."""
    degree = torch.tensor(list(degrees), device=device).repeat(2 * n)
    return torch.stack([torch.arange(2, device=device).repeat_interleave(n * len(degrees)), degree], dim=1)


def _patch(shape: Sequence[int], generator: torch.Generator) -> tuple[slice, ...]:
    """Return a random patch of volumes, `PATCH` voxels or the whole length along each axis."""
    starts = [
        int(torch.randint(max(n - PATCH, 0) + 1, (), generator=generator, device=generator.device)) for n in shape
    ]
    return tuple(slice(start, start + PATCH) for start in starts)


def times_of(evaluations: int, levels: Sequence[Level]) -> tuple[list[int], ...]:
    """Return each degree's increasing times of inversion, for a number of evaluations there and back.

    There are fewer where the level has fewer times. One time takes two evaluations, or three with guidance.
    """
    steps = [min(max(evaluations // level.cost, 1), level.time) for level in levels]
    return tuple([round(k * level.time / n) for k in range(1, n + 1)] for level, n in zip(levels, steps, strict=True))


def translate(net: RishLDM, low: Tensor, levels: Sequence[Level], times: Sequence[Sequence[int]]) -> Tensor:
    """Return features (B, 3, H, W, D) as a better scanner would show them, from those of a poor scan.

    They are encoded, noised by DDIM inversion as "3t" (Eq. 8), denoised as "7t" with guidance,
    (1 + w) e(x, c) - w e(x) (Eq. 10), and decoded. Time and guidance differ by degree.

    Parameters
    ----------
    net
        The network, in evaluation mode or without gradients.
    low
        (B, 3, H, W, D), each edge a multiple of `net.spec.divisor`.
    levels, times
        For each degree, the level and the times of inversion.
    """
    latents = net.encode(FIELDS[0], low).unflatten(0, low.shape[:2])
    translated = torch.empty_like(latents)
    for degree, (level, rising) in enumerate(zip(levels, times, strict=True)):
        degree_latents = latents[:, degree]

        def predicted(x: Tensor, t: int, field: int, degree: int = degree) -> Tensor:
            labels = torch.tensor([[field, degree]], device=x.device).expand(len(x), -1)
            return net.unet(x, torch.full((len(x),), float(t), device=x.device), labels).to(x)

        def denoise(x: Tensor, t: int, w: float = level.guidance, predicted: Predicted = predicted) -> Tensor:
            estimate = predicted(x, t, 1)
            if w:
                estimate = (1 + w) * estimate - w * predicted(x, t, net.unet.unconditional)
            return PROCESS.to_x0(x, t, estimate, "noise")

        start = ddim_inverse(partial(predicted, field=0), PROCESS, degree_latents, rising).x0
        translated[:, degree] = ddim(denoise, PROCESS, start, rising[::-1]).x0
    return net.decode(FIELDS[1], translated.flatten(0, 1))


def condition_for(net: RishLDM, shell: Shell) -> Condition:
    """Return the condition of this network's super-resolution; `paper` sees the decoded features alone."""
    condition = condition_of(shell)
    return condition if net.spec.told else condition._replace(images=condition.images[:, :0])


def refined(net: nn.Module, decoded: Tensor, condition: Condition) -> Tensor:
    """Return the refined features; `paper` corrects the decoded features, `small` the measured ones."""
    if not condition.images.shape[1]:
        return (decoded + net("refiner", decoded)).clamp_min(0)
    added = net("refiner", torch.cat([decoded, condition.images], dim=1))
    return condition.centre + condition.scale * added
