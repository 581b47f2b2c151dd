"""Networks of the systems that the papers compare with, for images or volumes; all end with a layer of zeros."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import convolution

LEAK = 0.2  # slope of a discriminator's activation below zero


class PlainCNN(nn.Module):
    """Convolutions with ReLU between them, of which nothing is halved: of one voxel alone, where the kernel is 1.

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    width, layers
        Channels between the convolutions, and the number of convolutions, two or more.
    kernel
        Voxels along each edge of a convolution, odd.
    dims
        2 for images, 3 for volumes.
    """

    def __init__(self, n_in: int, n_out: int, width: int, layers: int, kernel: int = 3, dims: int = 2):
        super().__init__()
        self.reach = (kernel // 2) * layers  # voxels on each side that a result depends on
        parts: list[nn.Module] = []
        for a, b in pairwise([n_in, *[width] * (layers - 1)]):
            parts += [awake(convolution(dims)(a, b, kernel, padding=kernel // 2)), nn.ReLU()]
        self.body = nn.Sequential(*parts, zeros(convolution(dims)(width, n_out, kernel, padding=kernel // 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, H, W[, D]) of x (B, n_in, H, W[, D])."""
        return self.body(x)


class Block(nn.Module):
    """Two convolutions with ReLU; numbers that are told scale and shift what is between them (FiLM).

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    told
        How many numbers are told; 0 for none.
    """

    def __init__(self, n_in: int, n_out: int, told: int = 0):
        super().__init__()
        self.first, self.second = (awake(nn.Conv2d(n, n_out, 3, padding=1)) for n in (n_in, n_out))
        self.told = nn.Linear(told, 2 * n_out) if told else None

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """Return (B, n_out, H, W) of x (B, n_in, H, W) and the numbers (B, told)."""
        h = self.first(x)
        if self.told is not None:
            scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return F.relu(self.second(F.relu(h)))


class PlainUNet(nn.Module):
    """The U-Net of Ronneberger et al. (2015), without a time: blocks, maximum pooling, concatenation.

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    widths
        Channels of each level; the image is halved between levels.
    told
        How many numbers every block is told; 0 for none.
    """

    def __init__(self, n_in: int, n_out: int, widths: tuple[int, ...] = (32, 64, 128), told: int = 0):
        super().__init__()
        self.divisor = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(Block(a, b, told) for a, b in pairwise([n_in, *widths]))
        self.up = nn.ModuleList(Block(low + high, high, told) for high, low in reversed(list(pairwise(widths))))
        self.last = zeros(nn.Conv2d(widths[0], n_out, 1))

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """Return (B, n_out, H, W) of x (B, n_in, H, W), any H and W, and the numbers (B, told)."""
        height, width = x.shape[2:]
        h, kept = padded(x, self.divisor), []
        for level, block in enumerate(self.down):
            h = block(F.max_pool2d(h, 2) if level else h, told)
            kept.append(h)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0), beside], dim=1), told)
        return self.last(h)[..., :height, :width]


class NestedUNet(nn.Module):
    """U-Net++ (Zhou et al. 2018): between both sides of a level are blocks that also see the level below.

    Parameters
    ----------
    n_in, n_out, widths
        As for `PlainUNet`.
    """

    def __init__(self, n_in: int, n_out: int, widths: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        self.divisor = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(Block(a, b) for a, b in pairwise([n_in, *widths]))
        # Block k of a level sees the k blocks before it, and block k - 1 of the level below.
        self.across = nn.ModuleDict({
            f"{level} {k}": Block(k * width + below, width)
            for level, (width, below) in enumerate(pairwise(widths)) for k in range(1, len(widths) - level)
        })  # fmt: skip
        self.last = zeros(nn.Conv2d(widths[0], n_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, H, W) of x (B, n_in, H, W), any H and W."""
        height, width = x.shape[2:]
        h, levels = padded(x, self.divisor), []
        for level, block in enumerate(self.down):
            h = block(F.max_pool2d(h, 2) if level else h)
            levels.append([h])
        for k in range(1, len(levels)):
            for level in range(len(levels) - k):
                below = F.interpolate(levels[level + 1][k - 1], scale_factor=2.0)
                levels[level].append(self.across[f"{level} {k}"](torch.cat([*levels[level], below], dim=1)))
        return self.last(levels[0][-1])[..., :height, :width]


class PatchDiscriminator(nn.Module):
    """Say of every patch whether it is real: about 1, or made: about 0 (Isola et al. 2017).

    Parameters
    ----------
    n_in
        Channels of what is judged.
    width, halvings
        Channels after the first convolution, and how often the size is halved.
    dims
        2 for images, 3 for volumes.
    """

    def __init__(self, n_in: int, width: int = 32, halvings: int = 3, dims: int = 2):
        super().__init__()
        conv, parts = convolution(dims), []
        for level, (a, b) in enumerate(pairwise([n_in, *(width * 2**k for k in range(halvings))])):
            parts += [conv(a, b, 4 if level else 3, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        self.body = nn.Sequential(*parts, conv(width * 2 ** (halvings - 1), 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1, h, w[, d]) of x (B, n_in, H, W[, D])."""
        return self.body(x)


class ImageAutoencoder(nn.Module):
    """A plain autoencoder of images: each block of `block` x `block` voxels becomes `codes` numbers.

    Parameters
    ----------
    n_in
        Channels of the images.
    codes
        Channels of the latents.
    width
        Channels between the convolutions.
    """

    block = 4

    def __init__(self, n_in: int = 1, codes: int = 4, width: int = 48):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(n_in, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, codes, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(codes, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(width, n_in, 4, stride=2, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of images (B, n_in, H, W); H and W divide by `block`."""
        return self.decoder(self.encoder(x))


def awake(layer: Any) -> Any:
    """Return a layer whose output before a ReLU is as strong as its input: without it, deep features fade at first."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def zeros(layer: Any) -> Any:
    """Return a layer with all of its parameters at zero: what is added to a start begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def padded(x: Tensor, divisor: int) -> Tensor:
    """Return images (B, C, H, W) whose last rows and columns are repeated until both divide by `divisor`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % divisor, 0, -height % divisor), mode="replicate")
