"""The networks of RISH latent diffusion (Zhu et al. 2024): two autoencoders, a U-Net between them, super-resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .latent_unet import LabelledUNet
from .unet import UNetSpec
from .vqvae import VQVAE, ResidualBlock, VQVAESpec

FIELDS = ("3t", "7t")  # classes of the U-Net's first label, in order
PARTS = ("autoencoder_3t", "autoencoder_7t", "unet", "refiner")


@dataclass(frozen=True)
class RishLDMSpec:
    """Architecture of a `RishLDM`.

    Parameters
    ----------
    autoencoder
        Of both field strengths.
    unet
        Of their latents.
    features
        Kinds of volumes that pass the autoencoder one by one.
    told
        Channels that super-resolution sees beside the decoded features.
    width, blocks
        Channels of super-resolution, and residual blocks between its two convolutions.
    """

    autoencoder: VQVAESpec
    unet: UNetSpec
    features: int = 3
    told: int = 0
    width: int = 32
    blocks: int = 4

    @property
    def divisor(self) -> int:
        """Height, width and depth of volumes must divide by this."""
        return self.autoencoder.divisor * self.unet.divisor


class RishLDM(nn.Module):
    """All networks of the method; `net(part, ...)` calls one of them.

    Parameters
    ----------
    spec
        The architecture.
    """

    latent_scale: Tensor
    ratios: Tensor

    def __init__(self, spec: RishLDMSpec):
        super().__init__()
        self.spec = spec
        self.autoencoder_3t = VQVAE(spec.autoencoder)
        self.autoencoder_7t = VQVAE(spec.autoencoder)
        self.unet = LabelledUNet(spec.unet, (len(FIELDS), spec.features))
        self.refiner = Refiner(spec.features, spec.told, spec.width, spec.blocks)
        # What latents are divided by before noise is added to them.
        self.register_buffer("latent_scale", torch.ones(spec.autoencoder.code_width, 1, 1, 1))
        # Of the training pairs' features, good over poor, root mean squares: what linear harmonisation scales by.
        self.register_buffer("ratios", torch.ones(spec.features))

    def forward(self, part: str, *args: Tensor) -> Any:
        """Return what one of `PARTS` makes of its arguments: one entry, for networks that are trained in parallel."""
        return getattr(self, part)(*args)

    def encode(self, field: str, features: Tensor) -> Tensor:
        """Return the latents (B F, C, h, w, d), of about unit variance, of features (B, F, H, W, D) at "3t" or "7t"."""
        autoencoder = getattr(self, f"autoencoder_{field}")
        return autoencoder.encode(features.flatten(0, 1)[:, None]) / self.latent_scale

    def decode(self, field: str, latents: Tensor) -> Tensor:
        """Return the features (B, F, H, W, D) of latents (B F, C, h, w, d)."""
        autoencoder = getattr(self, f"autoencoder_{field}")
        return autoencoder.decode(latents * self.latent_scale)[:, 0].unflatten(0, (-1, self.spec.features))


class Refiner(nn.Module):
    """Two convolutions with residual blocks between them, at the resolution of the result (after SRCNN).

    Parameters
    ----------
    features
        Decoded features, (B, F, X, Y, Z) on the fine grid.
    told
        Further channels that it sees.
    width, blocks
        Of what is between.
    """

    def __init__(self, features: int, told: int, width: int, blocks: int):
        super().__init__()
        self.reach = 2 + 2 * blocks  # voxels on each side that a result depends on
        self.first = nn.Conv3d(features + told, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.last = nn.Conv3d(width, features, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return what is to be added (B, F, X, Y, Z) to the features, of images (B, F + told, X, Y, Z)."""
        return self.last(self.blocks(self.first(images)))
