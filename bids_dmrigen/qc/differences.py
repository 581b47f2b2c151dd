"""Paired differences of two arms, and whether they are more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its interval of confidence.

    Parameters
    ----------
    mean, low, high
        Mean, and limits of the 95 % interval; NaN limits where there is only one pair.
    count
        Number of pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def more_than_chance(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Difference:
    """Return the difference of paired numbers, first - second, with the interval of Student's t.

    Pairs of which one is not finite are left out; with none left, all is NaN.

    Examples
    --------
    >>> found = difference([3.0, 4.0, 5.0], [1.0, 2.0, 2.0])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (2.333, 0.899, 3.768)
    >>> found.more_than_chance
    True
    """
    from scipy import stats

    pairs = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    pairs = pairs[np.isfinite(pairs)]
    if not len(pairs):
        return Difference(float("nan"), float("nan"), float("nan"), 0)
    mean = float(pairs.mean())
    if len(pairs) == 1:
        return Difference(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5)
    return Difference(mean, mean - half, mean + half, len(pairs))


def in_words(found: Difference, unit: str, over: str) -> str:
    """Return a difference in words, such as "+0.21 dB (95 % interval over 24 slices: 0.05 to 0.37)"."""
    text = f"{found.mean:+.2f} {unit}"
    if not np.isfinite(found.low):
        return f"{text} (one of {over} alone: no interval)"
    chance = "more than chance" if found.more_than_chance else "no more than chance"
    return f"{text} (95 % interval over {found.count} {over}: {found.low:+.2f} to {found.high:+.2f}, {chance})"
