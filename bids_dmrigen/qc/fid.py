"""The Fréchet distance of two sets of images, by features of a fixed random network.

Papers use features of a network that was trained on photographs, whose weights may not be shipped. Random convolutions
see texture too, and are the same everywhere; figures are comparable with each other, not with those of papers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

FEATURES = 16
SIDE = 64  # pixels: images are brought to this size
LEAST_IMAGES = 2


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^1/2) of two sets of features (Heusel et al. 2017).

    Parameters
    ----------
    first, second
        (N, F) and (M, F) features, N and M at least 2.

    Returns
    -------
    float
        0 for equal sets; NaN where a set has fewer than two.
    """
    if min(len(first), len(second)) < LEAST_IMAGES:
        return float("nan")
    one, other = (np.cov(np.asarray(x, dtype=np.float64), rowvar=False) for x in (first, second))
    # tr (C1 C2)^1/2 is the sum of the roots of the eigenvalues of C1 C2, which are real and not negative.
    values = np.linalg.eigvals(one @ other).real.clip(min=0)
    means = np.asarray(first, dtype=np.float64).mean(axis=0) - np.asarray(second, dtype=np.float64).mean(axis=0)
    return float(means @ means + np.trace(one) + np.trace(other) - 2 * np.sqrt(values).sum())


def features(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return features (Z, `FEATURES`) of the slices of a volume that contain brain.

    Parameters
    ----------
    volume, mask
        (X, Y, Z), and bool; what lies outside the mask counts as 0.
    """
    slices = [z for z in range(mask.shape[2]) if mask[..., z].any()]
    images = np.stack([np.where(mask[..., z], volume[..., z], 0) for z in slices])
    x = torch.from_numpy(images.astype(np.float32))[:, None]
    x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    random = torch.Generator().manual_seed(0)
    for n_in, n_out in ((1, 8), (8, 16), (16, FEATURES)):
        weight = torch.randn(n_out, n_in, 3, 3, generator=random) * (2 / (9 * n_in)) ** 0.5
        x = F.relu(F.conv2d(x, weight - weight.mean(dim=(2, 3), keepdim=True) / 2, stride=2, padding=1))
    return x.mean(dim=(2, 3)).numpy()
