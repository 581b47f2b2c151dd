"""The U-Net of SR3 (Saharia et al. 2021): residual blocks told the noise level, attention where asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOT_DIVISIBLE = "the U-Net halves its input {halvings} times: height and width must divide by {divisor}, found {shape}"


@dataclass(frozen=True)
class UNetSpec:
    """Architecture of a `UNet`.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input image stack and of the output.
    base
        Channels at full resolution.
    multipliers
        Channels of each level in units of `base`; the image is halved between levels.
    blocks
        Residual blocks per level on the way down; one more on the way up.
    attention
        Levels (0 = full resolution) whose blocks end with self-attention; the bottom always has one.
    groups
        Groups of the normalisation, or 0 for none: restoring an image needs its scale, which
        normalisation takes away.
    bottom
        Two more blocks at the lowest level, the first with attention.
    heads
        Heads of the attention; every width it works at divides by them.
    context
        Width of the tokens that attention also looks at (`DirectionUNet`), or 0 where there are none.
    zero_output
        Start the last convolution at zero, so that an untrained network predicts nothing.
    """

    in_channels: int
    out_channels: int = 1
    base: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 8, 8)
    blocks: int = 2
    attention: tuple[int, ...] = (3,)
    groups: int = 32
    bottom: bool = True
    heads: int = 1
    context: int = 0
    zero_output: bool = False

    @property
    def divisor(self) -> int:
        """Height and width of the input must divide by this."""
        return 2 ** (len(self.multipliers) - 1)


class UNet(nn.Module):
    """Predict an image from an image stack and its continuous noise level.

    Parameters
    ----------
    spec
        The architecture.
    """

    def __init__(self, spec: UNetSpec):
        super().__init__()
        self.spec = spec
        widths = [spec.base * m for m in spec.multipliers]
        self.embed = nn.Sequential(
            LevelFeatures(spec.base),
            nn.Linear(spec.base, 4 * spec.base),
            nn.SiLU(),
            nn.Linear(4 * spec.base, spec.base),
        )
        self.stem = nn.Conv2d(spec.in_channels, spec.base, 3, padding=1)

        def stage(width_in, width, level):
            return Stage(spec, width_in, width, attention=level in spec.attention)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, kept = spec.base, [spec.base]
        for level, wanted in enumerate(widths):
            for _ in range(spec.blocks):
                self.down.append(stage(width, wanted, level))
                width = wanted
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.bottom = nn.ModuleList()
        if spec.bottom:
            self.bottom.append(Stage(spec, width, width, attention=True))
            self.bottom.append(Stage(spec, width, width))
        for level, wanted in reversed(list(enumerate(widths))):
            for _ in range(spec.blocks + 1):
                self.up.append(stage(width + kept.pop(), wanted, level))
                width = wanted
            if level:
                self.up.append(Enlarge(width))
        self.head = nn.Sequential(
            _norm(spec.groups, width), nn.SiLU(), nn.Conv2d(width, spec.out_channels, 3, padding=1)
        )
        if spec.zero_output:
            nn.init.zeros_(self.head[-1].weight)
            nn.init.zeros_(self.head[-1].bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the prediction.

        Parameters
        ----------
        x
            (B, in_channels, H, W); H and W divide by `spec.divisor`.
        level
            (B,) noise level: sqrt(alpha_bar), 1 = clean.

        Returns
        -------
        (B, out_channels, H, W)

        Raises
        ------
        ValueError
            Where H or W does not divide.
        """
        divisor = self.spec.divisor
        if x.shape[-2] % divisor or x.shape[-1] % divisor:
            raise ValueError(
                NOT_DIVISIBLE.format(halvings=len(self.spec.multipliers) - 1, divisor=divisor, shape=tuple(x.shape))
            )
        return self._through(x, self.embed(level))

    def _through(
        self, x: Tensor, told: Tensor, tokens: Tensor | None = None, fuse: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Go down and up again.

        `told` (B, base) reaches every block, `tokens` (B, N, context) the attention; `fuse` (number of a layer on the
        way down, what it gives) -> what goes on from there.
        """
        h = self.stem(x)
        kept = [h]
        for number, layer in enumerate(self.down):
            h = layer(h, told, tokens) if isinstance(layer, Stage) else layer(h)
            h = h if fuse is None else fuse(number, h)
            kept.append(h)
        for layer in self.bottom:
            h = layer(h, told, tokens)
        for layer in self.up:
            h = layer(torch.cat([h, kept.pop()], dim=1), told, tokens) if isinstance(layer, Stage) else layer(h)
        return self.head(h)


class LevelFeatures(nn.Module):
    """Sines and cosines of a continuous noise level, as WaveGrad and SR3 embed it."""

    def __init__(self, width: int):
        super().__init__()
        frequencies = 10_000.0 ** -(torch.arange(width // 2) / (width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Stage(nn.Module):
    """A residual block; where asked with self-attention after it, and attention to the tokens where there are any."""

    def __init__(self, spec: UNetSpec, width_in: int, width: int, attention: bool = False):
        super().__init__()
        groups = spec.groups
        self.first = nn.Sequential(_norm(groups, width_in), nn.SiLU(), nn.Conv2d(width_in, width, 3, padding=1))
        self.told = nn.Linear(spec.base, width)
        self.second = nn.Sequential(_norm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.attention = SelfAttention(width, groups, spec.heads) if attention else nn.Identity()
        self.cross = CrossAttention(width, spec.context, groups, spec.heads) if attention and spec.context else None

    def forward(self, x: Tensor, told: Tensor, tokens: Tensor | None = None) -> Tensor:
        h = self.first(x) + self.told(told)[:, :, None, None]
        h = self.attention(self.second(h) + self.skip(x))
        return h if self.cross is None else self.cross(h, tokens)


class SelfAttention(nn.Module):
    """Self-attention over the pixels of a feature map, added to its input."""

    def __init__(self, width: int, groups: int, heads: int = 1):
        super().__init__()
        self.heads = heads
        self.norm = _norm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).transpose(2, 3).unbind(1)  # each (B, HW, C)
        mixed = attend(q, k, v, self.heads)
        return x + self.out(mixed.transpose(1, 2).reshape(b, c, h, w))


class CrossAttention(nn.Module):
    """Attention of the pixels of a feature map to tokens, added to its input."""

    def __init__(self, width: int, context: int, groups: int, heads: int = 1):
        super().__init__()
        self.heads = heads
        self.norm = _norm(groups, width)
        self.query = nn.Conv2d(width, width, 1, bias=False)
        self.keys_values = nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q = self.query(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, C)
        k, v = self.keys_values(tokens).chunk(2, dim=-1)  # each (B, N, C)
        mixed = attend(q, k, v, self.heads)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return scaled dot-product attention of queries (B, N, C) to keys and values (B, M, C): (B, N, C)."""
    if heads == 1:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # each (B, heads, N or M, C / heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Enlarge(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _norm(groups: int, width: int) -> nn.Module:
    return nn.GroupNorm(groups, width) if groups else nn.Identity()
