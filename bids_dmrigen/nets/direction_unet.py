"""A U-Net for one diffusion direction from others: it attends to a token for each b-vector (QID²)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import UNet, UNetSpec

BVAL_UNIT = 1000.0  # s/mm²
WRONG_VECTORS = "expected b-vectors of shape {expected} (references, then target), found {found}"


class DirectionUNet(UNet):
    """Predict the image of a target direction from the noisy target and R reference images.

    Its conditions are the time, the noise level of the references, and one token for each b-vector, which is the same
    for g and -g.

    Parameters
    ----------
    spec
        `in_channels` is at least 1 + R: the noisy target, the references, then further images
        that describe the target; `context` is the width of the tokens.
    references
        Number R of reference images.

    Raises
    ------
    ValueError
        Where `spec.context` is 0.
    """

    def __init__(self, spec: UNetSpec, references: int):
        if not spec.context:
            raise ValueError("a U-Net with b-vectors needs a width for their tokens: UNetSpec.context is 0")
        super().__init__(spec)
        self.references = references
        self.tokens = DirectionTokens(references + 1, spec.context)
        self.noise = nn.Sequential(nn.Linear(1, spec.base), nn.SiLU(), nn.Linear(spec.base, spec.base))

    # Networks that build on the U-Net take further conditions as arguments.
    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, bvecs: Tensor, bvals: Tensor, log_sigma: Tensor
    ) -> Tensor:
        """Return the prediction.

        Parameters
        ----------
        x
            (B, in_channels, H, W), any H and W: the noisy target, the references, further images of the target.
        t
            (B,) time, 0 ... T.
        bvecs
            (B, R + 1, 3) unit vectors: of the references in the order of their channels, then of the target.
        bvals
            (B, R + 1) s/mm², in the same order.
        log_sigma
            (B,) natural logarithm of the references' noise level in the images' units. The network
            cannot read it from the images, because normalisation layers remove their scale.

        Returns
        -------
        (B, out_channels, H, W)

        Raises
        ------
        ValueError
            Where there is not one b-vector for each reference and the target.
        """
        expected = (len(x), self.references + 1, 3)
        if bvecs.shape != expected:
            raise ValueError(WRONG_VECTORS.format(expected=expected, found=tuple(bvecs.shape)))
        height, width = x.shape[-2:]
        divisor = self.spec.divisor
        padded = F.pad(x, (0, -width % divisor, 0, -height % divisor), mode="replicate")
        condition = self.embed(t) + self.noise(log_sigma[:, None])
        return self._through(padded, condition, self.tokens(bvecs, bvals))[..., :height, :width]


class DirectionTokens(nn.Module):
    """A token for each b-vector from the six products g_i g_j, its b-value, and which image it belongs to.

    Parameters
    ----------
    n
        Number of b-vectors.
    width
        Width of the tokens.
    """

    def __init__(self, n: int, width: int):
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(7, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(torch.randn(n, width) * width**-0.5)

    def forward(self, bvecs: Tensor, bvals: Tensor) -> Tensor:
        """Return (B, N, width) for bvecs (B, N, 3) and bvals (B, N)."""
        features = torch.cat([dyadic_features(bvecs), bvals[..., None] / BVAL_UNIT], dim=-1)
        return self.mix(features) + self.place


def dyadic_features(bvecs: Tensor) -> Tensor:
    """Return xx, yy, zz, √2 xy, √2 xz, √2 yz of vectors (..., 3), so that inner products are (g·h)²."""
    x, y, z = bvecs.unbind(-1)
    root = 2**0.5
    return torch.stack([x * x, y * y, z * z, root * x * y, root * x * z, root * y * z], dim=-1)
