"""The Hourglass Diffusion Transformer (Crowson et al. 2024), conditioned on b-vector, b-value and slice (Phy-Diff)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .direction_unet import BVAL_UNIT, dyadic_features
from .unet import LevelFeatures

TILE = 8  # tokens: queries of neighbourhood attention are taken in tiles of TILE x TILE
SPAN = 256.0  # pixels that positions -1 ... 1 span: the size of the paper's images
EPS = 1e-6
WRONG_LEVELS = "expected one depth for each width, found widths {widths} and depths {depths}"
WRONG_HEAD = "the width of a head has to divide by 8 and every width by it, found head {head} and widths {widths}"
WRONG_MAPS = "expected {expected} maps from the adapter, one for each level, found {found}"


@dataclass(frozen=True)
class HDiTSpec:
    """Architecture of an `HDiT`.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input image stack and of the output.
    patch
        Height and width of the patch that makes one token, pixels.
    widths
        Width of the tokens of each level, outermost first; height and width of the grid are halved between levels.
    depths
        Transformer layers of each level. All but the last have them on the way down and again on the way up.
    head
        Width of an attention head.
    kernel
        Height and width of the neighbourhood that outer levels attend to, tokens, odd; the last level attends to all.
    mapping_width, mapping_depth
        Width and depth of the network that turns the conditions into one vector.
    expansion
        Hidden width of the feed-forward networks in units of their width.
    dropout
        Probability with which a hidden unit of a feed-forward network is left out in training.
    query_mapping
        Condition the network on b-vector, b-value and slice position. Without it the time is the only condition (the
        paper's ablation).
    recompute
        In training, compute the inside of a layer again on the way back: a third more work, far less memory.

    Raises
    ------
    ValueError
        Where widths, depths and head do not fit together.
    """

    in_channels: int
    out_channels: int = 1
    patch: int = 4
    widths: tuple[int, ...] = (128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 4)
    head: int = 64
    kernel: int = 7
    mapping_width: int = 256
    mapping_depth: int = 2
    expansion: int = 3
    dropout: float = 0.0
    query_mapping: bool = True
    recompute: bool = False

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths):
            raise ValueError(WRONG_LEVELS.format(widths=self.widths, depths=self.depths))
        if self.head % 8 or any(width % self.head for width in self.widths):
            raise ValueError(WRONG_HEAD.format(head=self.head, widths=self.widths))

    @property
    def divisor(self) -> int:
        """Images are padded until height and width divide by this."""
        return self.patch * 2 ** (len(self.widths) - 1)


def neighbourhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int, scale: float | None = None) -> Tensor:
    """Return attention of every query to the kernel x kernel keys around it (Hassani et al. 2023, NATTEN's `na2d`).

    At the border the window is moved until it lies inside the image, so that there are always kernel² keys; an axis
    shorter than the kernel is seen whole.

    Parameters
    ----------
    q, k, v
        (B, heads, H, W, d)
    kernel
        Height and width of the window, odd.
    scale
        Factor of the inner products; d^-1/2 where not given.

    Returns
    -------
    (B, heads, H, W, d)
    """
    # A tile of queries shares the keys around it, and a mask restricts each query to its window. This needs four times
    # the products of gathered windows, but a tenth of the time: keys and values are written three times, not kernel²
    # times.
    batch, heads, height, width = q.shape[:4]
    tile_rows, rows, row_mask = _tiles(height, kernel, q.device)
    tile_columns, columns, column_mask = _tiles(width, kernel, q.device)
    mask = row_mask[:, None, :, None, :, None] & column_mask[None, :, None, :, None, :]
    mask = mask.flatten(4).flatten(2, 3).flatten(0, 1)  # (tiles, queries, keys)

    border = (0, 0, 0, -width % tile_columns, 0, -height % tile_rows)
    tiles = F.pad(q, border).unflatten(3, (-1, tile_columns)).unflatten(2, (-1, tile_rows)).transpose(3, 4)
    grid = tiles.shape[2:4]
    tiles = tiles.flatten(4, 5).flatten(2, 3).flatten(0, 1)  # (B heads, tiles, queries, d)
    k, v = (_surroundings(x, rows, columns) for x in (k, v))  # each (B heads, tiles, keys, d)
    out = F.scaled_dot_product_attention(tiles, k, v, attn_mask=mask[None], scale=scale)
    out = out.unflatten(2, (tile_rows, tile_columns)).unflatten(1, grid).transpose(2, 3)  # (B heads, m, rows, n, ...)
    return out.flatten(3, 4).flatten(1, 2)[:, :height, :width].unflatten(0, (batch, heads))


def _tiles(n: int, kernel: int, device: torch.device) -> tuple[int, list[slice], Tensor]:
    """Cut an axis of n tokens into tiles; return queries per tile, the keys of each tile, and the mask.

    The mask (tiles, queries, keys) is True where a query sees a key. The last tile may have queries beyond the end of
    the axis; they see what the last query on the axis sees.
    """
    kernel, tile = min(kernel, n), min(TILE, n)
    keys = min(tile + kernel - 1, n)
    first_keys = [min(max(start - kernel // 2, 0), n - keys) for start in range(0, n, tile)]
    queries = torch.arange(tile * len(first_keys), device=device).view(-1, tile)
    window = (queries - kernel // 2).clamp(0, n - kernel) - torch.tensor(first_keys, device=device)[:, None]
    offset = torch.arange(keys, device=device) - window[..., None]
    return tile, [slice(first, first + keys) for first in first_keys], (offset >= 0) & (offset < kernel)


def _surroundings(x: Tensor, rows: list[slice], columns: list[slice]) -> Tensor:
    """Return the tokens around each tile, (B heads, tiles, keys, d), of x (B, heads, H, W, d)."""
    # Slices, not indices: on a GPU the gradient of indexing is summed in no fixed order.
    x = torch.stack([x[:, :, r] for r in rows], dim=2)  # (B, heads, m, keys, W, d)
    x = torch.stack([x[:, :, :, :, c] for c in columns], dim=3)  # (B, heads, m, n, keys, keys, d)
    return x.flatten(4, 5).flatten(2, 3).flatten(0, 1)


class AdaRMSNorm(nn.Module):
    """Root-mean-square normalisation of tokens (B, H, W, width), scaled by a function of the condition, first by 1."""

    def __init__(self, width: int, width_condition: int):
        super().__init__()
        self.width = width
        self.scale = _zero(nn.Linear(width_condition, width, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), eps=EPS) * (1 + self.scale(condition)[:, None, None])


class AxialRotary(nn.Module):
    """Rotary positions in two dimensions: a quarter of a head's channels turns with the row, a quarter with the column.

    Frequencies are spaced evenly in their logarithm from pi to 10 pi, over channels and heads; a position of 1 is
    `SPAN` / 2 pixels from the middle, so that a pixel is the same turn in an image of any size.

    Parameters
    ----------
    heads, head
        Number and width of the heads.
    token
        Height and width of a token, pixels.
    """

    frequencies: Tensor

    def __init__(self, heads: int, head: int, token: int):
        super().__init__()
        self.token = token
        pairs = head // 8
        frequencies = math.pi * 10.0 ** (torch.arange(heads * pairs) / (heads * pairs))
        # Frequencies go to the heads in turn, so that each head has low and high ones.
        self.register_buffer("frequencies", frequencies.view(pairs, heads).T.contiguous(), persistent=False)

    def forward(self, height: int, width: int) -> Tensor:
        """Return the angles of a grid of tokens: (heads, height, width, head / 4), radians."""
        rows, columns = (self._angles(n) for n in (height, width))  # each (heads, n, head / 8)
        shape = (-1, height, width, -1)
        return torch.cat([rows[:, :, None].expand(shape), columns[:, None].expand(shape)], dim=-1)

    def _angles(self, n: int) -> Tensor:
        centred = torch.arange(n, device=self.frequencies.device) - (n - 1) / 2
        return (centred * self.token * 2 / SPAN)[:, None] * self.frequencies[:, None]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first half of the channels of x (B, heads, H, W, d), in pairs, by angles (heads, H, W, d / 4)."""
    quarter = angles.shape[-1]
    a, b, rest = x.split([quarter, quarter, x.shape[-1] - 2 * quarter], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


class Attention(nn.Module):
    """Cosine-similarity attention with a learnt scale for each head, to a neighbourhood or, with kernel 0, to all."""

    def __init__(self, width: int, head: int, kernel: int):
        super().__init__()
        self.head, self.kernel = head, kernel
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.full((width // head, 1, 1, 1), 10.0))
        self.out = _zero(nn.Linear(width, width, bias=False))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Return (B, H, W, width) from tokens of that shape and the angles of `AxialRotary`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head)).permute(3, 0, 4, 1, 2, 5)  # each (B, heads, H, W, head)
        q, k = (rotate(F.normalize(part.float(), dim=-1), angles) for part in (q, k))
        q, k = (q * self.scale).to(v.dtype), k.to(v.dtype)
        if self.kernel:
            out = neighbourhood_attention(q, k, v, self.kernel, scale=1.0)
        else:
            q, k, v = (part.flatten(2, 3) for part in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, scale=1.0).unflatten(2, x.shape[1:3])
        return self.out(out.permute(0, 2, 3, 1, 4).flatten(3))


class FeedForward(nn.Module):
    """A gated network, GEGLU (Shazeer 2020): W2 (a GELU(g)) with a, g = W1 x; at first 0."""

    def __init__(self, width: int, expansion: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, 2 * expansion * width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.down = _zero(nn.Linear(expansion * width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(self.dropout(value * F.gelu(gate)))


class Layer(nn.Module):
    """A transformer layer: attention, then a feed-forward network, each added to its input."""

    def __init__(self, spec: HDiTSpec, width: int, kernel: int):
        super().__init__()
        self.attention_norm = AdaRMSNorm(width, spec.mapping_width)
        self.attention = Attention(width, spec.head, kernel)
        self.feed_norm = AdaRMSNorm(width, spec.mapping_width)
        self.feed = FeedForward(width, spec.expansion, spec.dropout)

    def forward(self, x: Tensor, condition: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x, condition), angles)
        return x + self.feed(self.feed_norm(x, condition))


class Level(nn.Module):
    """The transformer layers of one level (0 = outermost), on the way down or on the way up."""

    def __init__(self, spec: HDiTSpec, level: int):
        super().__init__()
        width = spec.widths[level]
        kernel = spec.kernel if level < len(spec.widths) - 1 else 0
        self.recompute = spec.recompute
        self.rotary = AxialRotary(width // spec.head, spec.head, spec.patch * 2**level)
        self.layers = nn.ModuleList(Layer(spec, width, kernel) for _ in range(spec.depths[level]))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        angles = self.rotary(*x.shape[1:3])
        for layer in self.layers:
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, condition, angles, use_reentrant=False)
            else:
                x = layer(x, condition, angles)
        return x


class Merge(nn.Module):
    """Make one token of n x n: (B, H, W, width_in) -> (B, H / n, W / n, width)."""

    def __init__(self, width_in: int, width: int, n: int):
        super().__init__()
        self.n = n
        self.mix = nn.Linear(n * n * width_in, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, self.n)).unflatten(1, (-1, self.n)).transpose(2, 3)
        return self.mix(x.flatten(3))


class Split(nn.Module):
    """Make n x n tokens of one: (B, H, W, width_in) -> (B, n H, n W, width)."""

    def __init__(self, width_in: int, width: int, n: int):
        super().__init__()
        self.n = n
        self.mix = nn.Linear(width_in, n * n * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x).unflatten(3, (self.n, self.n, -1)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)


class Join(nn.Module):
    """Split tokens and mix them with those kept on the way down, in a learnt proportion."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.split = Split(width_in, width, 2)
        self.proportion = nn.Parameter(torch.tensor(0.5))  # of what comes from below

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        x = self.split(x)
        return kept + self.proportion * (x - kept)


class Conditions(nn.Module):
    """Turn time, b-vector, b-value and slice position into one vector: embeddings, their sum, the mapping network.

    Real numbers are embedded as MLP(sign(x) ln(|x| + 1)) (Eq. 7). b-vectors enter as the products of their components,
    which are the same for g and -g.
    """

    def __init__(self, spec: HDiTSpec):
        super().__init__()
        width = spec.mapping_width
        self.time = nn.Sequential(LevelFeatures(width), _mlp(width, width))
        numbers = {"direction": 6, "bval": 1, "position": 1} if spec.query_mapping else {}
        self.numbers = nn.ModuleDict({name: _mlp(n, width) for name, n in numbers.items()})
        self.first_norm, self.last_norm = nn.RMSNorm(width, eps=EPS), nn.RMSNorm(width, eps=EPS)
        self.mapping = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(width, eps=EPS), FeedForward(width, spec.expansion, spec.dropout))
            for _ in range(spec.mapping_depth)
        )

    def forward(self, t: Tensor, bvecs: Tensor, bvals: Tensor, position: Tensor) -> Tensor:
        """Return (B, mapping_width); the parameters are those of `HDiT.forward`."""
        condition = self.time(t)
        if self.numbers:
            # In these units the logarithm keeps shells apart; in s/mm², ln(b + 1) of 1000 and 3000 is 6.9 and 8.0.
            given = {
                "direction": dyadic_features(bvecs),
                "bval": bvals[:, None] / BVAL_UNIT,
                "position": position[:, None],
            }
            condition = condition + sum(self.numbers[name](x.sign() * x.abs().log1p()) for name, x in given.items())
        condition = self.first_norm(condition.float())
        for layer in self.mapping:
            condition = condition + layer(condition)
        return self.last_norm(condition)


class HDiT(nn.Module):
    """Predict an image from an image stack, conditioned on the time, the gradient and the slice.

    An untrained network predicts 0.

    Parameters
    ----------
    spec
        The architecture.
    """

    def __init__(self, spec: HDiTSpec):
        super().__init__()
        self.spec = spec
        widths = spec.widths
        self.conditions = Conditions(spec)
        self.patch_in = Merge(spec.in_channels, widths[0], spec.patch)
        self.down = nn.ModuleList(Level(spec, level) for level in range(len(widths)))
        self.merges = nn.ModuleList(Merge(*pair, 2) for pair in pairwise(widths))
        self.joins, self.up = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            self.joins.append(Join(widths[level + 1], widths[level]))
            self.up.append(Level(spec, level))
        self.norm = nn.RMSNorm(widths[0], eps=EPS)
        self.patch_out = Split(widths[0], spec.out_channels, spec.patch)
        _zero(self.patch_out.mix)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        bvecs: Tensor,
        bvals: Tensor,
        position: Tensor,
        adapter: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the prediction.

        Parameters
        ----------
        x
            (B, in_channels, H, W), any H and W.
        t
            (B,) time, 0 ... T steps.
        bvecs
            (B, 3) unit vectors; g and -g are the same.
        bvals
            (B,) s/mm².
        position
            (B,) position of the slice, 0 ... 1.
        adapter
            Output of `Adapter`: for each level a map (B, width, h, w) that is added after its layers on the way down.

        Returns
        -------
        (B, out_channels, H, W)

        Raises
        ------
        ValueError
            Where there is not one adapter map for each level.
        """
        if adapter is not None and len(adapter) != len(self.down):
            raise ValueError(WRONG_MAPS.format(expected=len(self.down), found=len(adapter)))
        height, width = x.shape[-2:]
        condition = self.conditions(t, bvecs, bvals, position)
        h = self.patch_in(replicate_to(x, self.spec.divisor).permute(0, 2, 3, 1))  # (B, rows, columns, widths[0])
        kept = []
        for number, level in enumerate(self.down):
            h = level(h, condition)
            if adapter is not None:
                h = h + adapter[number].permute(0, 2, 3, 1)
            if number < len(self.merges):
                kept.append(h)
                h = self.merges[number](h)
        for join, level in zip(self.joins, self.up, strict=True):
            h = level(join(h, kept.pop()), condition)
        return self.patch_out(self.norm(h.float())).permute(0, 3, 1, 2)[..., :height, :width]


def replicate_to(x: Tensor, divisor: int) -> Tensor:
    """Repeat the last row and column of x (B, C, H, W) until height and width divide by `divisor`."""
    return F.pad(x, (0, -x.shape[-1] % divisor, 0, -x.shape[-2] % divisor), mode="replicate")


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    return layer
