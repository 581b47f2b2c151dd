"""The U-Net of SR3 (Saharia et al. 2021): residual blocks conditioned on the noise level, with optional attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOT_DIVISIBLE = "the U-Net halves its input {halvings} times: its size must divide by {divisor}, found {shape}"


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
    heads, head
        Number of attention heads, or where that is 0 the width of a head, by which every width must be divisible.
    context
        Width of the tokens that attention also looks at (`DirectionUNet`), or 0 where there are none.
    feed
        Hidden width of a gated network (GEGLU) after attention to tokens, in units of its width; 0 for no network.
    zero_output
        Start the last convolution at zero, so that an untrained network predicts nothing.
    dims
        2 for images, 3 for volumes.
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
    head: int = 0
    context: int = 0
    feed: int = 0
    zero_output: bool = False
    dims: int = 2

    def heads_of(self, width: int) -> int:
        """Return how many heads attention has at a width."""
        return self.heads or width // self.head

    @property
    def divisor(self) -> int:
        """Height, width and depth of the input must divide by this."""
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
        self.stem = convolution(spec.dims)(spec.in_channels, spec.base, 3, padding=1)

        def stage(width_in: int, width: int, level: int) -> Stage:
            return Stage(spec, width_in, width, attention=level in spec.attention)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, kept = spec.base, [spec.base]
        for level, wanted in enumerate(widths):
            for _ in range(spec.blocks):
                self.down.append(stage(width, wanted, level))
                width = wanted
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(convolution(spec.dims)(width, width, 3, stride=2, padding=1))
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
                self.up.append(Enlarge(width, spec.dims))
        last = convolution(spec.dims)(width, spec.out_channels, 3, padding=1)
        self.head = nn.Sequential(_norm(spec.groups, width), nn.SiLU(), last)
        if spec.zero_output:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the prediction.

        Parameters
        ----------
        x
            (B, in_channels, H, W[, D]), all of which divide by `spec.divisor`.
        level
            (B,) noise level: sqrt(alpha_bar), 1 = clean.

        Returns
        -------
        (B, out_channels, H, W[, D])

        Raises
        ------
        ValueError
            Where a size does not divide.
        """
        self._check(x)
        return self._through(x, self.embed(level))

    def _check(self, x: Tensor) -> None:
        divisor = self.spec.divisor
        if any(n % divisor for n in x.shape[2:]):
            raise ValueError(
                NOT_DIVISIBLE.format(halvings=len(self.spec.multipliers) - 1, divisor=divisor, shape=tuple(x.shape))
            )

    def _through(
        self,
        x: Tensor,
        condition: Tensor,
        tokens: Tensor | None = None,
        fuse: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the prediction of the U-Net.

        `condition` (B, base) enters every block, `tokens` (B, N, context) the attention. `fuse` takes the number of a
        layer on the way down and its output, and returns the features that replace this output.
        """
        h = self.stem(x)
        kept = [h]
        for number, layer in enumerate(self.down):
            h = layer(h, condition, tokens) if isinstance(layer, Stage) else layer(h)
            h = h if fuse is None else fuse(number, h)
            kept.append(h)
        for layer in self.bottom:
            h = layer(h, condition, tokens)
        for layer in self.up:
            h = layer(torch.cat([h, kept.pop()], dim=1), condition, tokens) if isinstance(layer, Stage) else layer(h)
        return self.head(h)


class LevelFeatures(nn.Module):
    """Sines and cosines of a continuous noise level, as WaveGrad and SR3 embed it."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        frequencies = 10_000.0 ** -(torch.arange(width // 2) / (width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Stage(nn.Module):
    """A residual block, with optional self-attention after it, and attention to the tokens where there are any."""

    def __init__(self, spec: UNetSpec, width_in: int, width: int, attention: bool = False):
        super().__init__()
        groups, conv = spec.groups, convolution(spec.dims)
        self.first = nn.Sequential(_norm(groups, width_in), nn.SiLU(), conv(width_in, width, 3, padding=1))
        self.told = nn.Linear(spec.base, width)
        self.second = nn.Sequential(_norm(groups, width), nn.SiLU(), conv(width, width, 3, padding=1))
        self.skip = conv(width_in, width, 1) if width_in != width else nn.Identity()
        heads = spec.heads_of(width)
        self.attention = SelfAttention(width, groups, heads, spec.dims) if attention else nn.Identity()
        self.cross = self.feed = None
        if attention and spec.context:
            self.cross = CrossAttention(width, spec.context, groups, heads, spec.dims)
            self.feed = GatedNetwork(width, spec.feed, groups, spec.dims) if spec.feed else None

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor | None = None) -> Tensor:
        h = self.first(x)
        h = h + self.told(condition).reshape(*h.shape[:2], *[1] * (h.ndim - 2))
        h = self.attention(self.second(h) + self.skip(x))
        h = h if self.cross is None else self.cross(h, tokens)
        return h if self.feed is None else self.feed(h)


class SelfAttention(nn.Module):
    """Self-attention over the pixels of a feature map, added to its input."""

    def __init__(self, width: int, groups: int, heads: int = 1, dims: int = 2):
        super().__init__()
        self.heads = heads
        self.norm = _norm(groups, width)
        self.qkv = convolution(dims)(width, 3 * width, 1, bias=False)
        self.out = convolution(dims)(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, -1).transpose(2, 3).unbind(1)  # each (B, HW[D], C)
        mixed = attend(q, k, v, self.heads)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class CrossAttention(nn.Module):
    """Attention of the pixels of a feature map to tokens, added to its input."""

    def __init__(self, width: int, context: int, groups: int, heads: int = 1, dims: int = 2):
        super().__init__()
        self.heads = heads
        self.norm = _norm(groups, width)
        self.query = convolution(dims)(width, width, 1, bias=False)
        self.keys_values = nn.Linear(context, 2 * width, bias=False)
        self.out = convolution(dims)(width, width, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q = self.query(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW[D], C)
        k, v = self.keys_values(tokens).chunk(2, dim=-1)  # each (B, N, C)
        mixed = attend(q, k, v, self.heads)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class GatedNetwork(nn.Module):
    """A network for each pixel of a feature map, added to its input: W2 (a GELU(g)) with a, g = W1 x (Shazeer 2020)."""

    def __init__(self, width: int, expansion: int, groups: int, dims: int = 2):
        super().__init__()
        self.norm = _norm(groups, width)
        self.up = convolution(dims)(width, 2 * expansion * width, 1)
        self.down = convolution(dims)(expansion * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=1)
        return x + self.down(value * F.gelu(gate))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return scaled dot-product attention of queries (B, N, C) to keys and values (B, M, C): (B, N, C)."""
    if heads == 1:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # each (B, heads, N or M, C / heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Enlarge(nn.Module):
    """Double the size along every axis: nearest neighbour, then a convolution."""

    def __init__(self, width: int, dims: int = 2):
        super().__init__()
        self.conv = convolution(dims)(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def convolution(dims: int) -> type[nn.Module]:
    """Return the convolution of 2-D images or of 3-D volumes."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[dims]


def _norm(groups: int, width: int) -> nn.Module:
    return nn.GroupNorm(groups, width) if groups else nn.Identity()
