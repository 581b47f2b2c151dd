"""The networks of latent diffusion, their two trainings, and the generation of images; see `latentdiffusion`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.numerics import autocast
from ...diffusion.samplers import ancestral, dpm_solver_pp_2m
from ...diffusion.training import Plan
from ...nets.compared import ImageAutoencoder, padded
from ...nets.unet import UNet, UNetSpec
from ...simulate.examples import numbers_of_step
from ..base import Training
from ..making import denoiser
from .direct import TOLD, told
from .examples import BVALS, Batch, Cohort, examples
from .inputs import IMAGES, PROCESS, Condition
from .latentdiffusion import SPEC
from .phydiff_model import PhyDiff

CODES = 4  # channels of the latents
SEEN = 24  # channels of the condition at the size of the latents
SHARE = 0.2  # of a budget in minutes, for the autoencoder
CONSTANT_BATCHES = 8  # batches that the scale of the latents is computed from
UNET = UNetSpec(CODES + SEEN + TOLD, CODES, base=48, multipliers=(1, 2), blocks=1, attention=(1,), groups=0,
                bottom=False, heads=4, zero_output=True)  # fmt: skip


class LatentNet(nn.Module):
    """The autoencoder of images, and the U-Net of its latents; `net(part, ...)` calls one of the two."""

    latent_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = ImageAutoencoder(1, CODES)
        self.denoiser = LatentDenoiser()
        self.register_buffer("latent_scale", torch.ones(CODES, 1, 1))  # what latents are divided by

    def forward(self, part: str, *args: Any) -> Tensor:
        """Return the output of a part. Networks that are trained in parallel need a single entry point."""
        output: Tensor = getattr(self, part)(*args)
        return output

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, `CODES`, h, w), of about unit variance, of images (B, 1, H, W)."""
        return self.autoencoder.encoder(padded(images, self.block)) / self.latent_scale

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Return the images (B, 1, height, width) of latents."""
        return self.autoencoder.decoder(latents * self.latent_scale)[..., :height, :width]

    @property
    def block(self) -> int:
        """Height and width of the voxels that one latent stands for, in a multiple that the U-Net takes."""
        return ImageAutoencoder.block * UNET.divisor


class LatentDenoiser(nn.Module):
    """The U-Net of latents with its view of the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(
            nn.Conv2d(IMAGES, SEEN, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(SEEN, SEEN, 4, stride=2, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.unet = UNet(UNET)

    def forward(self, x: Tensor, t: Tensor, images: Tensor, numbers: Tensor) -> Tensor:
        """Return latents (B, `CODES`, h, w) of noisy ones, times (B,), images (B, K, 4 h, 4 w) and numbers."""
        wide = numbers[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.unet(torch.cat([x, self.seen(images), wide], dim=1), t.float())


class NoisyLatents(NamedTuple):
    """A batch of the diffusion's examples."""

    latents: Tensor
    noise: Tensor
    t: Tensor
    images: Tensor
    numbers: Tensor


class _Part(Training):
    """The training of one part of the network."""

    def __init__(self, method: LatentDiffusion, net: LatentNet):
        self.method, self.net = method, net

    def training_plan(self, size: str) -> Plan:
        """Return the default budget and settings."""
        return self.method.training_plan(size)

    def begin(self, source: Cohort, batch: int, seed: int) -> None:
        """Freeze all parts of the network but this one."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name.split(".")[0] == self.name)

    def examples(self, source: Cohort, size: str, batch: int, seed: int) -> Callable[[int], Any]:
        """Return index -> batch of examples on the source's device."""

        def make(index: int) -> Any:
            return self.example(examples(source, size, batch, numbers_of_step(seed, index, source.device)))

        return make

    def example(self, batch: Batch) -> Any:
        """Return what this training needs of a batch."""
        raise NotImplementedError


class Autoencoding(_Part):
    """Images and their reconstruction; mean absolute error."""

    name = "autoencoder"

    def share(self, size: str) -> float:
        """Return the share of a budget in minutes that this training takes."""
        return SHARE

    def example(self, batch: Batch) -> Batch:
        """Return the batch."""
        return batch

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the error of the reconstruction."""
        error = (net(self.name, batch.x0) - batch.x0).abs()
        return (error * batch.weight).sum() / batch.weight.sum()


class Denoising(_Part):
    """Noisy latents and clean ones; mean squared error."""

    name, constants = "denoiser", ("latent_scale",)

    def share(self, size: str) -> float:
        """Return the share of a budget in minutes that this training takes."""
        return 1 - SHARE

    @torch.no_grad()
    def begin(self, source: Cohort, batch: int, seed: int) -> None:
        """Freeze the autoencoder, and set the scale of its latents."""
        super().begin(source, batch, seed)
        self.net.latent_scale.fill_(1)
        latents = [
            self.net.encode(examples(source, "small", batch, numbers_of_step(seed + 1, k, source.device)).x0)
            for k in range(CONSTANT_BATCHES)
        ]
        self.net.latent_scale.copy_(torch.cat(latents).std(dim=(0, 2, 3)).clamp_min(1e-3).reshape(-1, 1, 1))

    @torch.no_grad()
    def example(self, batch: Batch) -> NoisyLatents:
        """Return latents of the images, and what is told about them."""
        return NoisyLatents(
            self.net.encode(batch.x0), of_latents(batch.noise), batch.t, batch.condition.images, told(batch.condition)
        )

    def loss(self, net: nn.Module, batch: NoisyLatents) -> Tensor:
        """Return the error of the latents that are said of noisy ones."""
        x_t = PROCESS.add_noise(batch.latents, batch.t.reshape(-1, 1, 1, 1), batch.noise)
        said = net(self.name, x_t, batch.t, batch.images, batch.numbers)
        return (said.float() - batch.latents).square().mean()


class LatentDiffusion(PhyDiff):
    """Latent diffusion."""

    def __init__(self) -> None:
        super().__init__(SPEC, physics=False)

    def network(self, size: str, physics: bool | None = None, query_mapping: bool = True) -> nn.Module:
        """Return untrained networks, always the same; `physics` and `query_mapping` mean nothing here."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LatentNet()

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture and the range of the training data."""
        return {**vars(UNET), "codes": CODES, "bvals": list(BVALS)}

    def trainings(self, net: nn.Module) -> list[Training]:
        """Return the two trainings, in order."""
        return [part(self, cast("LatentNet", net)) for part in (Autoencoding, Denoising)]

    def freeze(self, net: nn.Module, source: Cohort) -> None:
        """Freeze nothing: each training freezes the other part."""

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
        """Return images (B, 1, H, W) as `Condition` takes them; `mean` is no latent, and not used."""
        network, (height, width) = cast("LatentNet", net), condition.centre.shape[2:]
        images, numbers = padded(condition.images, network.block), told(condition)

        def latents(k: int) -> Tensor:
            return of_latents(_grown(noise(k), images))

        def ask(x: Tensor, t: Tensor) -> Tensor:
            return network.denoiser(x, t, images, numbers)

        sample = dpm_solver_pp_2m if sampler == "fast" else partial(ancestral, noise=latents)
        output = sample(denoiser(ask, PROCESS, "x0", precision), PROCESS, latents(0), times).x0
        with autocast(output.device, precision):
            return network.decode(output, height, width).float()


def of_latents(noise: Tensor) -> Tensor:
    """Return noise (B, `CODES`, h, w) of a block's voxels, of noise (B, 1, H, W)."""
    return F.pixel_unshuffle(noise, ImageAutoencoder.block)[:, :CODES]


def _grown(noise: Tensor, images: Tensor) -> Tensor:
    """Return noise with zeros after its last rows and columns, as large as some images."""
    return F.pad(noise, (0, images.shape[3] - noise.shape[3], 0, images.shape[2] - noise.shape[2]))


def build() -> LatentDiffusion:
    """Return the method."""
    return LatentDiffusion()
