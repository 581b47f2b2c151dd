"""Paired differences of two arms, and whether they are more than chance.

The intervals are those of the scans or slices. They do not know what another training of the same network would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    among
        Number of arms of which the first was chosen by the same numbers; the interval is wider for it (Bonferroni).
    """

    mean: float
    low: float
    high: float
    count: int
    among: int = 1

    @property
    def more_than_chance(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, among: int = 1) -> Difference:
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
    pairs = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    pairs = pairs[np.isfinite(pairs)]
    if not len(pairs):
        return Difference(float("nan"), float("nan"), float("nan"), 0, among)
    error = float("nan") if len(pairs) == 1 else float(pairs.std(ddof=1)) / len(pairs) ** 0.5
    return _of(float(pairs.mean()), error, len(pairs), among)


def jackknife(statistic: Callable[[np.ndarray], float], count: int, among: int = 1) -> Difference:
    """Return a difference that is not a mean, with the interval of the jackknife (Efron & Stein 1981).

    Parameters
    ----------
    statistic
        (count,) bool, which parts are used -> the difference.
    count
        Number of parts, such as slices.
    among
        As in `Difference`.

    Examples
    --------
    >>> import numpy as np
    >>> numbers = np.array([2.0, 2.0, 3.0])
    >>> found = jackknife(lambda used: numbers[used].mean(), 3)
    >>> round(found.low, 3), round(found.high, 3)
    (0.899, 3.768)
    """
    every = np.ones(count, bool)
    if count == 1:
        return _of(float(statistic(every)), float("nan"), 1, among)
    without = np.array([statistic(np.arange(count) != k) for k in range(count)])
    error = float(np.sqrt((count - 1) * np.var(without)))
    return _of(float(statistic(every)), error, count, among)


def _of(mean: float, error: float, count: int, among: int) -> Difference:
    from scipy import stats

    level = 1 - (1 - CONFIDENCE) / (2 * max(among, 1))
    half = float("nan") if count == 1 else float(stats.t.ppf(level, count - 1)) * error
    return Difference(mean, mean - half, mean + half, count, among)


def in_words(found: Difference, unit: str, over: str) -> str:
    """Return a difference in words, such as "+0.21 dB (95 % interval over 24 slices: 0.05 to 0.37)"."""
    text = f"{found.mean:+.2f} {unit}"
    if not np.isfinite(found.low):
        return f"{text} (one of {over} alone: no interval)"
    chance = "more than chance" if found.more_than_chance else "no more than chance"
    among = f", for the best of {found.among}" if found.among > 1 else ""
    return f"{text} (95 % interval over {found.count} {over}{among}: {found.low:+.2f} to {found.high:+.2f}, {chance})"
