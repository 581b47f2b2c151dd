"""One sentence about an evaluation: which arm is best, by how much, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..methods.rivals import RIVALS
from .differences import Difference, difference, in_words, jackknife
from .evaluation import SCORES, Evaluation

# In this order: what a reference with noise of its own favours least comes first.
KEYS = ("left_out_fa_psnr", "fa_psnr", "dwi_psnr")
NOTHING = "No arm could be scored."
ALONE = "{best} is the only arm that could be scored."


def verdict(result: Evaluation, keep: int, arms: Sequence[str]) -> str:
    """Return the sentence for one number of kept directions.

    The best arm is the one with the best mean score. It is compared with the best simple estimate or, where it is one,
    with the best of the others. The interval is over slices, and wider for the choice among the arms.

    Parameters
    ----------
    result
        The evaluation.
    keep
        The number of kept directions.
    arms
        Names of the arms.
    """
    key, means = _scores(result, keep, arms)
    if not means:
        return NOTHING
    best = max(means, key=lambda arm: means[arm])
    others = {arm: mean for arm, mean in means.items() if arm != best}
    if not others:
        return ALONE.format(best=best)
    simple = {arm: mean for arm, mean in others.items() if arm in RIVALS}
    rivals = simple if simple and best not in RIVALS else others
    second = max(rivals, key=lambda arm: rivals[arm])
    kind = "the best simple estimate" if second in RIVALS and best not in RIVALS else "the next best arm"
    found = in_words(over_slices(result, keep, best, second, len(means) - 1), "dB", "slices")
    return (
        f"With {keep} directions, {best} is best here by {SCORES[key].label} ({means[best]:.2f} dB): {found} "
        f"against {second}, {kind}."
    )


def over_slices(result: Evaluation, keep: int, first: str, second: str, among: int = 1) -> Difference:
    """Return the difference in FA PSNR of two arms in dB, the mean over the selections, with its interval over slices.

    It is that of the whole mask, so it is above 0 where the first arm has the better score. `among` is as in
    `Difference`.
    """
    counts = result.mask.sum(axis=(0, 1))
    used = counts > 0

    def errors(arm: str) -> np.ndarray:
        rows = {o.rotation: o.slice_errors for o in result.outcomes if (o.keep, o.arm) == (keep, arm) and not o.fault}
        return np.array([rows[k][used] * counts[used] for k in sorted(rows) if k in shared])

    shared = set.intersection(*(
        {o.rotation for o in result.outcomes if (o.keep, o.arm) == (keep, arm) and not o.fault}
        for arm in (first, second)
    ))  # fmt: skip
    one, other = errors(first), errors(second)

    def gain(chosen: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.mean(10 * np.log10(other[:, chosen].sum(axis=1) / one[:, chosen].sum(axis=1))))

    return jackknife(gain, int(used.sum()), among)


def over_scans(results: Mapping[str, Evaluation], keeps: Iterable[int]) -> list[str]:
    """Return sentences on several scans: what each arm has over the best simple estimate of each scan, paired.

    Parameters
    ----------
    results
        Name of the scan -> its evaluation.
    keeps
        Numbers of kept directions.
    """
    found = []
    for keep in keeps:
        best = {scan: result.best_simple(keep) for scan, result in results.items()}
        arms = dict.fromkeys(o.arm for r in results.values() for o in r.outcomes if o.arm not in RIVALS)
        for key in KEYS:
            simple = {scan: scores[key][1] for scan, scores in best.items() if key in scores}
            for arm in arms:
                own = [results[scan].summary(keep, arm)[key][0] for scan in simple]
                gain = difference(own, list(simple.values()))
                if gain.count:
                    label = (
                        f"{keep} directions, {SCORES[key].label}: {arm} against the best simple estimate of each scan"
                    )
                    found.append(f"{label}: {in_words(gain, 'dB', 'scans')}.")
    return found


def _scores(result: Evaluation, keep: int, arms: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Return the score that is used, and its mean for each arm that has it."""
    for key in KEYS:
        means = {arm: result.summary(keep, arm)[key][0] for arm in arms}
        means = {arm: mean for arm, mean in means.items() if np.isfinite(mean)}
        if means:
            return key, means
    return KEYS[0], {}
