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
        Architecture of the autoencoders of both field strengths.
    unet
        Architecture of the U-Net of their latents.
    features
        Number of features; each passes the autoencoder as a volume of its own.
    told
        Number of channels that condition super-resolution, beside the decoded features.
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
        # Ratio of the root mean squares of the training pairs' features, high over low field strength: the factors of
        # linear harmonisation.
        self.register_buffer("ratios", torch.ones(spec.features))

    def forward(self, part: str, *args: Tensor) -> Any:
        """Return the output of one of `PARTS`. Networks that are trained in parallel need a single entry point."""
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
    n_conditions
        Number of further input channels.
    width, blocks
        Channels of the residual blocks, and their number.
    """

    def __init__(self, features: int, n_conditions: int, width: int, blocks: int):
        super().__init__()
        self.reach = 2 + 2 * blocks  # voxels on each side that a result depends on
        self.first = nn.Conv3d(features + n_conditions, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.last = nn.Conv3d(width, features, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Return the change (B, F, X, Y, Z) of the features, from images (B, F + n_conditions, X, Y, Z)."""
        return self.last(self.blocks(self.first(images)))
