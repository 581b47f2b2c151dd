"""Scores of what a method says about its own uncertainty, against maps that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..dwi.series import Scan
from ..dwi.tensor import tensor_volumes
from ..dwi.uncertainty import NORMAL_90, TISSUES, interval, tissue_of
from ..methods.base import Generated, Request, Samples
from ..methods.uncertainty import standard_errors
from . import metrics

NOISE_SAMPLES = 16  # of the noise of a reference
DRAWS = 8  # of a normal distribution, for the energy score of an arm without samples
KEYS = ("white", "grey", "fluid")  # of `TISSUES`, in the names of scores


class Colours:
    """Collects the colour FA of each sample in a mask."""

    def __init__(self, mask: np.ndarray):
        self._mask, self._drawn, self._fa = mask, list[np.ndarray](), list[np.ndarray]()

    def __call__(self, maps: Mapping[str, np.ndarray]) -> None:
        """Take the maps of a sample."""
        self._drawn.append(maps["dec"][self._mask])
        self._fa.append(maps["fa"][self._mask])

    def around(self, best: np.ndarray, fa_error: np.ndarray) -> np.ndarray:
        """Return the samples (K, V, 3) around the best estimate (V, 3), as far from it as the errors of FA say (V,)."""
        drawn = np.stack(self._drawn)
        stretch = fa_error / np.maximum(np.std(self._fa, axis=0, ddof=1), metrics.TINY)
        return best + stretch[:, None] * (drawn - drawn.mean(axis=0))


def distribution_scores(
    maps: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    mask: np.ndarray,
    fa_error: np.ndarray | None = None,
    colours: Colours | None = None,
) -> dict[str, float]:
    """Return the scores of the distributions of FA and colour FA.

    An arm without samples gets one error everywhere, the one that it turns out to have on this very scan. An arm with
    samples has to know its errors beforehand, and may know where they are.

    Parameters
    ----------
    maps
        Best estimates `fa`, `md` and `dec`.
    reference
        What they are compared with: volumes that the arm has not seen, or the truth.
    mask
        (X, Y, Z) bool.
    fa_error
        (X, Y, Z) standard error of FA; None for an arm without samples.
    colours
        The colour FA of the samples.
    """
    fa, truth, dec = maps["fa"][mask], reference["fa"][mask], maps["dec"][mask]
    if fa_error is None:
        error = np.full(fa.shape, np.sqrt(np.mean((truth - fa) ** 2)))
        away = np.sqrt(np.mean((reference["dec"][mask] - dec) ** 2))
        rng = np.random.default_rng(0)
        drawn = dec + away * rng.standard_normal((DRAWS, *dec.shape))
    else:
        error = fa_error[mask]
        drawn = dec[None] if colours is None else colours.around(dec, error)
    low, high = interval("fa", fa, error)
    inside, tissue = (truth >= low) & (truth <= high), tissue_of(reference["fa"][mask], reference["md"][mask])
    scores = {
        "fa_crps": metrics.crps(fa, error, truth),
        "fa_coverage": float(inside.mean()),
        "fa_width": float(2 * NORMAL_90 * error.mean()),
    }
    if len(drawn) > 1:
        scores["dec_energy"] = metrics.energy_score(drawn, reference["dec"][mask])
    for k, name in zip(range(len(TISSUES)), KEYS, strict=True):
        if (tissue == k).any():
            scores[f"fa_coverage_{name}"] = float(inside[tissue == k].mean())
    return scores


def noise_of_fa(scan: Scan) -> np.ndarray:
    """Return the standard error (X, Y, Z) that the noise of a scan gives the FA of a tensor fitted to it."""
    same = Samples(NOISE_SAMPLES, lambda _: np.asarray(scan.data, np.float32))
    acquired = np.ones(len(scan.gradients), bool)
    as_result = Generated(np.asarray(scan.data, np.float32), same, scan.gradients, (), acquired, {})
    fitted = np.flatnonzero(tensor_volumes(scan.gradients)).tolist()
    return standard_errors(as_result, scan, Request(run="reference"), fitted)["fa"]
