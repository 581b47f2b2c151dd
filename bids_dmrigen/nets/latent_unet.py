"""A 3-D U-Net for latents, conditioned by cross-attention on a class label and on the feature (RISH-LDM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .unet import UNet, UNetSpec

NO_TOKENS = "a U-Net with labels needs a width for their tokens: UNetSpec.context is 0"


class LabelledUNet(UNet):
    """Predict from noisy latents, the time, and one token for each label.

    Parameters
    ----------
    spec
        `dims` is 3; `context` is the width of the tokens.
    labels
        Number of classes of each label. The first label has one class more, number `labels[0]`: unconditional.

    Raises
    ------
    ValueError
        Where `spec.context` is 0.
    """

    def __init__(self, spec: UNetSpec, labels: tuple[int, ...]):
        if not spec.context:
            raise ValueError(NO_TOKENS)
        super().__init__(spec)
        sizes = (labels[0] + 1, *labels[1:])
        self.tokens = nn.ModuleList(nn.Embedding(size, spec.context) for size in sizes)
        self.unconditional = labels[0]  # class of the first label that stands for no condition

    # Networks that build on the U-Net take further conditions as arguments.
    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the prediction (B, out_channels, H, W, D).

        Parameters
        ----------
        x
            (B, in_channels, H, W, D), all of which divide by `spec.divisor`.
        t
            (B,) time, 0 ... T.
        labels
            (B, L) integers.

        Raises
        ------
        ValueError
            Where the size does not divide.
        """
        self._check(x)
        tokens = torch.stack([embedding(labels[:, k]) for k, embedding in enumerate(self.tokens)], dim=1)
        return self._through(x, self.embed(t), tokens)
