"""Similarity of two images or masks on one grid."""

from __future__ import annotations

import numpy as np


def pearson(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    """Return the Pearson correlation of two (X, Y, Z) volumes in a mask, NaN where one is constant."""
    a, b = np.asarray(one, np.float64)[mask], np.asarray(other, np.float64)[mask]
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def mutual_information(one: np.ndarray, other: np.ndarray, mask: np.ndarray, bins: int = 32) -> float:
    """Return the normalised mutual information 2 I(A; B) / (H(A) + H(B)) of volumes in a mask, in [0, 1]."""
    counts, _, _ = np.histogram2d(np.asarray(one)[mask].ravel(), np.asarray(other)[mask].ravel(), bins)
    joint = counts / counts.sum()

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    separate = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
    return float(2 * (separate - entropy(joint.ravel())) / separate) if separate > 0 else float("nan")


def dice(one, other) -> float:
    """Return the Dice overlap 2 |A ∩ B| / (|A| + |B|) of two masks; NaN where both are empty."""
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    total = one.sum() + other.sum()
    return float(2 * (one & other).sum() / total) if total else float("nan")
