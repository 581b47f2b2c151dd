"""Feature enhancement and fusion (Diff-DTI): a transformer beside the U-Net looks at the acquired images as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .direction_unet import BVAL_UNIT, dyadic_features
from .unet import SelfAttention, Stage, UNet, UNetSpec

WRONG_IMAGES = "expected {expected} images in `acquired` (b0, then diffusion-weighted ones), found {found}"


@dataclass(frozen=True)
class FENSpec:
    """Architecture of a `FeatureNet`.

    Parameters
    ----------
    images
        Largest number of images that it takes: b0 and diffusion-weighted ones.
    patch
        Height and width of a patch, voxels.
    width
        Width of the tokens and features.
    layers, heads
        Number of layers and of attention heads of the transformer.
    directions
        Give the network the b-vector of each image; then the order of the images has no meaning. Without b-vectors
        every image has its fixed place, as in the paper.
    """

    images: int = 7
    patch: int = 8
    width: int = 64
    layers: int = 2
    heads: int = 4
    directions: bool = True


class FeatureNet(nn.Module):
    """FEN: patches of the acquired images -> transformer encoder -> features (B, width, 2 H / patch, 2 W / patch).

    Attention of the patches to each other (Eq. 8 and 9), a network with ReLU (Eq. 10), then a transposed convolution
    with layer normalisation before it and GELU after it.
    """

    def __init__(self, spec: FENSpec):
        super().__init__()
        self.spec = spec
        width, patch = spec.width, spec.patch
        if spec.directions:
            self.b0 = nn.Conv2d(1, width, patch, stride=patch)
            self.image = nn.Conv2d(1, width, patch, stride=patch)
            self.direction = nn.Sequential(nn.Linear(7, width), nn.SiLU(), nn.Linear(width, 2 * width))
        else:
            self.all = nn.Conv2d(spec.images, width, patch, stride=patch)
        layer = nn.TransformerEncoderLayer(width, spec.heads, 4 * width, 0.0, "relu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, spec.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.enlarge = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, acquired: Tensor, bvecs: Tensor, bvals: Tensor) -> Tensor:
        """Return features.

        Parameters
        ----------
        acquired
            (B, 1 + n, H, W): b0, then n diffusion-weighted images; H and W divide by the patch.
        bvecs, bvals
            (B, n, 3) unit vectors and (B, n) s/mm².
        """
        tokens = self._patches(acquired, bvecs, bvals)
        height, width = tokens.shape[2:]
        tokens = tokens + _positions(height, width, self.spec.width, tokens)
        tokens = self.norm(self.encoder(tokens.flatten(2).transpose(1, 2)))
        return F.gelu(self.enlarge(tokens.transpose(1, 2).unflatten(2, (height, width))))

    def _patches(self, acquired: Tensor, bvecs: Tensor, bvals: Tensor) -> Tensor:
        batch, n = bvecs.shape[:2]
        if not self.spec.directions:
            return self.all(F.pad(acquired, (0, 0, 0, 0, 0, self.spec.images - acquired.shape[1])))
        features = torch.cat([dyadic_features(bvecs), bvals[..., None] / BVAL_UNIT], dim=-1)
        scale, shift = self.direction(features)[..., None, None].chunk(2, dim=2)  # each (B, n, width, 1, 1)
        images = self.image(acquired[:, 1:].flatten(0, 1)[:, None]).unflatten(0, (batch, n))
        return self.b0(acquired[:, :1]) + (images * (1 + scale) + shift).mean(dim=1)


class Fusion(nn.Module):
    """DFB: u = f s1 + s2 with s1 = Conv_a(A(h)), s2 = Conv_b(A(h)) (Eq. 11 to 13), A self-attention, Conv after a ReLU.

    It starts as u = f.
    """

    def __init__(self, width: int, features: int, heads: int):
        super().__init__()
        self.attention = SelfAttention(features, 0, heads)
        self.factors = nn.Conv2d(features, 2 * width, 3, padding=1)
        for parameter in self.factors.parameters():
            nn.init.zeros_(parameter)

    def forward(self, f: Tensor, h: Tensor) -> Tensor:
        """Return u (B, width, H, W) from f of that shape and features h (B, features, any, any)."""
        h = F.interpolate(h, size=f.shape[2:], mode="bilinear", align_corners=False)
        scale, shift = self.factors(F.relu(self.attention(h))).chunk(2, dim=1)
        return f * (1 + scale) + shift


class FusedUNet(UNet):
    """A U-Net conditioned on the time and on global numbers; its lower levels are fused with features of the images.

    Parameters
    ----------
    spec
        Architecture of the U-Net; `in_channels` counts the noisy maps and the images given beside them.
    fen
        Architecture of the feature network, or None for no such network (the paper's ablation).
    n_numbers
        How many global numbers condition the network beside the time; may be 0.
    """

    spread: Tensor  # a buffer of `methods.maps.slices`

    def __init__(self, spec: UNetSpec, fen: FENSpec | None, n_numbers: int):
        super().__init__(spec)
        self.fen = None if fen is None else FeatureNet(fen)
        self.numbers = None
        if n_numbers:
            self.numbers = nn.Sequential(nn.Linear(n_numbers, spec.base), nn.SiLU(), nn.Linear(spec.base, spec.base))
        self.fusions = nn.ModuleDict()
        if fen is not None:  # S - 2 of the S levels: the lower ones
            ends = [k for k, layer in enumerate(self.down) if isinstance(layer, Stage)][spec.blocks - 1 :: spec.blocks]
            for level, number in enumerate(ends):
                if level >= 2 or len(ends) <= 2:
                    width = spec.base * spec.multipliers[level]
                    self.fusions[str(number)] = Fusion(width, fen.width, fen.heads)

    # Networks that build on the U-Net take further conditions as arguments.
    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, acquired: Tensor, bvecs: Tensor, bvals: Tensor, numbers: Tensor
    ) -> Tensor:
        """Return the prediction.

        Parameters
        ----------
        x
            (B, in_channels, H, W), any H and W.
        t
            (B,) time.
        acquired, bvecs, bvals
            See `FeatureNet.forward`; H and W as those of x.
        numbers
            (B, n_numbers).

        Returns
        -------
        (B, out_channels, H, W)

        Raises
        ------
        ValueError
            Where there is not exactly one image more than there are b-vectors.
        """
        if acquired.shape[1] != bvecs.shape[1] + 1:
            raise ValueError(WRONG_IMAGES.format(expected=bvecs.shape[1] + 1, found=acquired.shape[1]))
        height, width = x.shape[-2:]
        divisor = self.spec.divisor if self.fen is None else math.lcm(self.spec.divisor, self.fen.spec.patch)
        border = (0, -width % divisor, 0, -height % divisor)
        condition = self.embed(t) if self.numbers is None else self.embed(t) + self.numbers(numbers)
        fuse = None
        if self.fen is not None:
            features = self.fen(F.pad(acquired, border, mode="replicate"), bvecs, bvals)

            def fuse(number: int, h: Tensor) -> Tensor:
                return self.fusions[str(number)](h, features) if str(number) in self.fusions else h

        return self._through(F.pad(x, border, mode="replicate"), condition, fuse=fuse)[..., :height, :width]


def _positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Return (channels, height, width) sines and cosines of row and column, for a grid of any size."""
    quarter = channels // 4
    frequency = 100.0 ** -(torch.arange(quarter, device=like.device) / quarter)
    parts = []
    for axis, n in enumerate((height, width)):
        angle = torch.arange(n, device=like.device)[:, None] * frequency  # (n, quarter)
        both = torch.cat([angle.sin(), angle.cos()], dim=1).T  # (2 quarter, n)
        shape = (-1, n, 1) if axis == 0 else (-1, 1, n)
        parts.append(both.reshape(shape).expand(-1, height, width))
    return torch.cat(parts).to(like.dtype)
