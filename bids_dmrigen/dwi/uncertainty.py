"""From samples of a result to the uncertainty of its maps: how far the truth may lie from the best estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SCALARS = ("fa", "md", "ad", "rd")  # maps with one number in a voxel, diffusivities in mm²/s
TISSUES = ("white matter", "grey matter", "CSF")  # as classified by `tissue_of`
WHITE_FA, FLUID_MD = 0.25, 1.5e-3  # lower limits of white matter, and (mm²/s) of fluid
BESIDE = 0.135  # weight of the voxels beside one over its own: a Gaussian whose width is half a voxel
NORMAL_90 = 1.645  # half the 90 % interval of a normal distribution, in standard deviations
HIGHEST = {"fa": 1.0}  # of maps with an upper limit; none is below 0
TINY = 1e-12
FEWEST = 500  # signals of a tissue for a factor of its own


class Running:
    """Mean and standard deviation of arrays that are added one by one (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        """Add an array; all have the same shape."""
        if not self.count:
            self.mean, self._squares = np.zeros(values.shape), np.zeros(values.shape)
        self.count += 1
        change = values - self.mean
        self.mean += change / self.count
        self._squares += change * (values - self.mean)

    def std(self) -> np.ndarray:
        """Return the standard deviation, float32, of at least two arrays."""
        return np.sqrt(self._squares / (self.count - 1)).astype(np.float32)


def tissue_of(fa: np.ndarray, md: np.ndarray) -> np.ndarray:
    """Return indices into `TISSUES`: CSF by high MD (mm²/s), then white matter by high FA."""
    return np.where(md > FLUID_MD, 2, np.where(fa > WHITE_FA, 0, 1))


def map_errors(
    best: Mapping[str, np.ndarray],
    samples: Iterable[Mapping[str, np.ndarray]],
    mask: np.ndarray,
    factors: Mapping[str, Sequence[float]],
) -> dict[str, np.ndarray]:
    """Return the standard error of each map (X, Y, Z), float32, 0 outside the mask.

    A few samples tell a standard deviation only roughly: of K, its logarithm has the variance 1 / (2 (K - 1)). So
    variances are averaged over the nearest voxels of the plane. Then each logarithm is drawn towards the mean of its
    tissue, by that variance over the variance which the logarithms have in the tissue (empirical Bayes). `factors` are
    those of `Samples.factors`.

    Parameters
    ----------
    best
        The best estimate, by name of the map; fa and md (mm²/s) tell the tissue.
    samples
        The same maps of each sample.
    mask
        (X, Y, Z) bool.
    factors
        By name of a map: for each of `TISSUES`; 1 for other maps.
    """
    running = {name: Running() for name in best}
    for sample in samples:
        for name, values in sample.items():
            running[name].add(values)
    tissue = tissue_of(best["fa"][mask], best["md"][mask])
    errors = {}
    for name, spread in running.items():
        noise = 1 / (2 * (spread.count - 1))
        error = _averaged(spread.std(), mask)
        for k in range(len(TISSUES)):
            chosen = tissue == k
            if chosen.any():
                error[chosen] = factors.get(name, (1, 1, 1))[k] * _towards_mean(error[chosen], noise)
        errors[name] = np.zeros(mask.shape, np.float32)
        errors[name][mask] = error
    return errors


def interval(name: str, best: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 5 % and 95 % quantiles of a map: of a normal distribution, within the range that the map can have."""
    low, high = best - NORMAL_90 * error, best + NORMAL_90 * error
    return np.maximum(low, 0), np.minimum(high, HIGHEST.get(name, np.inf))


def _averaged(std: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the root (V,) of variances in the mask, averaged over neighbours in the plane that are in it too."""
    total, share = np.where(mask, std.astype(np.float64) ** 2, 0), mask.astype(np.float64)
    for axis in (0, 1):
        total, share = (values + BESIDE * _beside(values, axis) for values in (total, share))
    averaged: np.ndarray = np.sqrt(total[mask] / share[mask])
    return averaged


def _beside(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the sum of both neighbours along an axis; outside there is 0."""
    result, lines = np.zeros_like(values), np.moveaxis(values, axis, 0)
    moved = np.moveaxis(result, axis, 0)
    moved[1:] += lines[:-1]
    moved[:-1] += lines[1:]
    return result


def _towards_mean(error: np.ndarray, noise: float) -> np.ndarray:
    logarithm = np.log(np.maximum(error, TINY))
    found = logarithm.var()
    share = 1.0 if found <= noise else noise / found
    drawn: np.ndarray = np.exp((1 - share) * logarithm + share * logarithm.mean())
    return drawn


def signal_factors(error: np.ndarray, std: np.ndarray, sigma: float, tissue: np.ndarray) -> np.ndarray:
    """Return by what the spread of samples has to be multiplied in each of `TISSUES`, (3,), to hold 90 % (conformal).

    A measured signal lies within 1.645 (f² std² + sigma²)^(1/2) of the estimate where f is at least
    ((error / 1.645)² - sigma²)^(1/2) / std. The factor of a tissue is the 90 % quantile of that; of a tissue with fewer
    than `FEWEST` signals, that of all.

    Parameters
    ----------
    error
        (V, K) measured signals of left-out volumes less what was generated for them.
    std
        (V, K) standard deviation of its samples.
    sigma
        Standard deviation of the noise of the measured signals.
    tissue
        (V,) indices into `TISSUES`.
    """
    needed = np.sqrt(np.maximum((error / NORMAL_90) ** 2 - sigma**2, 0)) / np.maximum(std, TINY)
    chosen = [needed[tissue == k] for k in range(len(TISSUES))]
    return np.array([np.quantile(part if part.size >= FEWEST else needed, 0.9) for part in chosen])


def covered(error: np.ndarray, std: np.ndarray, sigma: float, factors: np.ndarray) -> float:
    """Return the share of measured signals within the 90 % interval; `factors` (V,) as from `signal_factors`."""
    within = NORMAL_90 * np.hypot(factors[:, None] * std, sigma)
    return float((np.abs(error) <= within).mean())
