"""Means of maps in regions, such as an atlas's tracts: what a study of groups would see of an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .evaluation import Evaluation

MAPS = ("fa", "md")
LEAST_VOXELS = 10  # of a region: a mean over fewer says little


def region_scores(result: Evaluation, regions: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return mean and bias of FA and MD for every arm, number of kept directions and region.

    A bias is the mean over the region less that of the reference from all volumes; means over the selections. Regions
    with fewer than `LEAST_VOXELS` scored voxels are left out.

    Parameters
    ----------
    result
        The evaluation.
    regions
        Name -> (X, Y, Z) bool.
    """
    rows = []
    inside = {name: mask & result.mask for name, mask in regions.items()}
    for keep, arm in dict.fromkeys((o.keep, o.arm) for o in result.outcomes if not o.fault):
        outcomes = [o for o in result.outcomes if (o.keep, o.arm) == (keep, arm) and not o.fault]
        for region, where in inside.items():
            if where.sum() < LEAST_VOXELS:
                continue
            row: dict[str, Any] = {"method": arm, "keep": keep, "region": region, "voxels": int(where.sum())}
            for name in MAPS:
                mean = float(np.mean([o.maps[name][where].mean() for o in outcomes]))
                row |= {f"{name}_mean": mean, f"{name}_bias": mean - float(result.reference[name][where].mean())}
            rows.append(row)
    return rows


def summary(rows: Sequence[Mapping[str, Any]], keep: int) -> list[list[str]]:
    """Return a table: a header, then for each arm the mean size of its biases over the regions, and the largest one."""
    out = [["method", "regions", "FA bias, mean size", "FA bias, largest", "MD bias, mean size (1e-6 mm²/s)"]]
    for arm in dict.fromkeys(row["method"] for row in rows if row["keep"] == keep):
        own = [row for row in rows if (row["keep"], row["method"]) == (keep, arm)]
        fa, md = (np.array([row[f"{name}_bias"] for row in own]) for name in MAPS)
        worst = own[int(np.abs(fa).argmax())]
        largest = f"{worst['fa_bias']:+.3f} ({worst['region']})"
        out.append([arm, str(len(own)), f"{np.abs(fa).mean():.4f}", largest, f"{1e6 * np.abs(md).mean():.1f}"])
    return out
