"""The XTRACT adapter of Phy-Diff: white-matter tracts of an atlas -> maps that an `HDiT` adds to its levels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .hdit import replicate_to

XI = 0.2  # xi of Eq. 8


class Adapter(nn.Module):
    """A T2I-adapter (Mou et al. 2023). At the start of its training every map that it returns is 0.

    It is trained after the backbone, whose weights do not change.

    Parameters
    ----------
    channels_in
        Number of tracts: 42 in XTRACT.
    patch, widths
        As in the `HDiTSpec`.
    blocks
        Residual blocks per level.
    """

    def __init__(
        self, channels_in: int = 42, patch: int = 4, widths: tuple[int, ...] = (128, 256, 512), blocks: int = 2
    ):
        super().__init__()
        self.patch = patch
        self.divisor = patch * 2 ** (len(widths) - 1)
        self.levels, self.out = nn.ModuleList(), nn.ModuleList()
        width_in = channels_in * patch**2
        for width in widths:
            body = (ResidualBlock(width) for _ in range(blocks))
            self.levels.append(nn.Sequential(nn.Conv2d(width_in, width, 1), *body))
            out = nn.Conv2d(width, width, 1)
            for parameter in out.parameters():
                nn.init.zeros_(parameter)
            self.out.append(out)
            width_in = width

    def forward(self, condition: Tensor) -> list[Tensor]:
        """Return for each level a map (B, width, h, w) of the size of the HDiT's grid of tokens.

        Parameters
        ----------
        condition
            (B, channels_in, H, W), from `tract_condition`; H and W are those of the HDiT's images.
        """
        h = F.pixel_unshuffle(replicate_to(condition, self.divisor), self.patch)
        maps = []
        for number, (level, out) in enumerate(zip(self.levels, self.out, strict=True)):
            h = level(h if number == 0 else F.avg_pool2d(h, 2))
            maps.append(out(h))
        return maps


class ResidualBlock(nn.Module):
    """Two convolutions, the second 1 x 1, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def tract_condition(tracts: Tensor, b0: Tensor) -> Tensor:
    """Fill the tracts that a slice does not cut: c' = (sum of the others + 0.2) minmax(b0) (Eq. 8).

    Parameters
    ----------
    tracts
        (B, tracts, H, W) probabilities, 0 ... 1; a channel of zeros is a tract that the slice does not cut.
    b0
        (B, 1, H, W) of the same slices, any units: each slice is brought to 0 ... 1.

    Returns
    -------
    (B, tracts, H, W)
    """
    empty = (tracts == 0).all(dim=(-2, -1), keepdim=True)  # (B, tracts, 1, 1)
    low, high = b0.amin(dim=(-2, -1), keepdim=True), b0.amax(dim=(-2, -1), keepdim=True)
    scaled = (b0 - low) / (high - low).where(high > low, 1)  # 0 where the slice is constant
    return ((tracts.sum(dim=1, keepdim=True) + XI) * scaled).where(empty, tracts)
