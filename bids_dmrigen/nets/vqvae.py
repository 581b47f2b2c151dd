"""A vector-quantised autoencoder of volumes (van den Oord et al. 2017): 3-D convolutions around a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COMMITMENT = 0.25  # weight of the loss that draws the encoder to the codes
FOLLOW = 0.99  # decay of the running averages that draw the codes to the encoder
IDLE = 0.03  # share of the mean number of vectors per code: a code that stands for fewer is moved to a vector
NOT_DIVISIBLE = "the autoencoder halves its input {halvings} times: its size must divide by {divisor}, found {shape}"


@dataclass(frozen=True)
class VQVAESpec:
    """Architecture of a `VQVAE`.

    Parameters
    ----------
    channels
        Channels of the volumes.
    widths
        Channels after each halving.
    blocks
        Residual blocks at each of these sizes, in the encoder and in the decoder.
    codes, code_width
        Number of vectors in the codebook, and their width.
    """

    channels: int = 1
    widths: tuple[int, ...] = (32,)
    blocks: int = 2
    codes: int = 256
    code_width: int = 32

    @property
    def divisor(self) -> int:
        """Height, width and depth of the input must divide by this."""
        return 2 ** len(self.widths)


class Quantised(NamedTuple):
    """Latents quantised by a `Codebook`."""

    codes: Tensor  # (B, C, H, W, D) the nearest codes; gradients reach the latents as if they were these
    loss: Tensor  # scalar
    indices: Tensor  # (B, H, W, D)


class VQVAE(nn.Module):
    """Encode every block of voxels as a vector, and replace it by the nearest vector of a codebook.

    Parameters
    ----------
    spec
        The architecture.
    """

    def __init__(self, spec: VQVAESpec):
        super().__init__()
        self.spec = spec
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        width = spec.channels
        for wanted in spec.widths:
            down += [nn.Conv3d(width, wanted, 4, stride=2, padding=1), nn.SiLU()]
            down += [ResidualBlock(wanted) for _ in range(spec.blocks)]
            width = wanted
        self.encoder = nn.Sequential(*down, nn.Conv3d(width, spec.code_width, 3, padding=1))
        self.codebook = Codebook(spec.codes, spec.code_width)
        widths = (*reversed(spec.widths), spec.channels)
        up.append(nn.Conv3d(spec.code_width, widths[0], 3, padding=1))
        for level, (width, wanted) in enumerate(pairwise(widths)):
            up += [ResidualBlock(width) for _ in range(spec.blocks)]
            up.append(nn.ConvTranspose3d(width, wanted, 4, stride=2, padding=1))
            up += [nn.SiLU()] if level < len(spec.widths) - 1 else []
        self.decoder = nn.Sequential(*up)

    def encode(self, volumes: Tensor) -> Tensor:
        """Return the latents (B, code_width, h, w, d) of volumes (B, channels, H, W, D), not yet quantised.

        Raises
        ------
        ValueError
            Where the size does not divide by `spec.divisor`.
        """
        divisor = self.spec.divisor
        if any(n % divisor for n in volumes.shape[2:]):
            halvings, shape = len(self.spec.widths), tuple(volumes.shape)
            raise ValueError(NOT_DIVISIBLE.format(halvings=halvings, divisor=divisor, shape=shape))
        return self.encoder(volumes)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the volumes of latents, which are quantised first."""
        return self.decoder(self.codebook(latents).codes)

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the volumes encoded and decoded again, and the loss of the quantisation."""
        quantised = self.codebook(self.encode(volumes))
        return self.decoder(quantised.codes), quantised.loss


class Codebook(nn.Module):
    """Replace vectors by the nearest of a learnt set.

    The codes are not parameters: in training each code follows the running mean of the vectors that it stands for (van
    den Oord et al. 2017, appendix A.1). A code to which hardly any vector is near is moved to one of the vectors.
    """

    codes: Tensor  # (codes, width)
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(codes, width))
        self.register_buffer("counts", torch.zeros(codes))  # of vectors that a code stands for, running average
        self.register_buffer("sums", torch.zeros(codes, width))  # of those vectors

    def forward(self, latents: Tensor) -> Quantised:
        """Return latents (B, C, H, W, D) as codes, and 0.25 |z - sg(e)|², the mean over all numbers.

        The straight-through estimator: the gradient of the codes is handed to the latents.
        """
        vectors = latents.movedim(1, -1).float()
        if self.training and torch.is_grad_enabled():
            self._follow(vectors.detach().flatten(0, -2))
        indices = self._nearest(vectors.flatten(0, -2)).reshape(vectors.shape[:-1])
        chosen = F.embedding(indices, self.codes)
        loss = COMMITMENT * F.mse_loss(vectors, chosen)
        through = vectors + (chosen - vectors).detach()
        return Quantised(through.movedim(-1, 1).to(latents.dtype), loss, indices)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Return (N,) indices of the codes nearest to vectors (N, C)."""
        # |z - e|² less |z|², which is the same for all codes.
        return (self.codes.square().sum(dim=1) - 2 * vectors @ self.codes.T).argmin(dim=1)

    @torch.no_grad()
    def _follow(self, vectors: Tensor) -> None:
        """Move the codes towards the means of the vectors (N, C) nearest to them."""
        n, indices = len(self.codes), self._nearest(vectors)
        self.counts.lerp_(torch.bincount(indices, minlength=n).to(self.counts), 1 - FOLLOW)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, vectors), 1 - FOLLOW)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])
        # Not at random, so that a resumed training gives the same result.
        idle = (self.counts < IDLE * len(vectors) / n).nonzero()[:, 0]
        places = torch.linspace(0, len(vectors) - 1, len(idle), device=vectors.device).long()
        self.codes[idle] = vectors[places]
        self.counts[idle] = len(vectors) / n
        self.sums[idle] = self.codes[idle] * self.counts[idle, None]


class ResidualBlock(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(), nn.Conv3d(width, width, 3, padding=1), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
