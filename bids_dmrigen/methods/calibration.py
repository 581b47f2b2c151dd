"""Calibration on the scan itself: samples are spread so that left-out acquired volumes lie where they should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..dwi.noise import shell_sigma
from ..dwi.series import Scan, ScanError
from ..dwi.uncertainty import TISSUES, covered, signal_factors, tissue_of
from .base import Generated

BEFORE, AFTER = "coverage_before", "coverage_after"  # among `Generated.checks`


def calibrated(generated: Generated, scan: Scan, best: Mapping[str, np.ndarray]) -> Generated:
    """Return a result whose samples are as far from the best estimate as left-out volumes of the scan say.

    The factors differ by shell and tissue. A generated volume has those of the left-out volumes with the nearest
    b-value. Maps have those of the one shell that they predict, instead of factors learnt with weights. The checks have
    the share of left-out signals in their 90 % intervals, noise included, before and after: each half of the slices
    with the factors of the other half. Without left-out volumes nothing is changed.

    Parameters
    ----------
    generated
        A series or maps with samples.
    scan
        What it was made from, before anything was left out.
    best
        Maps `fa` and `md` (mm²/s), which tell the tissue.
    """
    left, samples = generated.left_out, generated.samples
    if left is None or left.std is None or samples is None:
        return generated
    tissue = tissue_of(best["fa"], best["md"])
    factors, shares = {}, []
    for bval, members in scan.gradients.shells():
        of_shell = np.flatnonzero(np.isin(left.volumes, members))
        sigma = _sigma(scan, members)
        if not len(of_shell) or sigma is None:
            continue
        error = (scan.data[..., left.volumes[of_shell]] - left.mean[..., of_shell])[scan.mask]
        std, kinds = left.std[..., of_shell][scan.mask], tissue[scan.mask]
        factors[bval] = signal_factors(error, std, sigma, kinds)
        half = np.nonzero(scan.mask)[2] % 2 == 0
        for one, other in ((half, ~half), (~half, half)):
            if one.any() and other.any():
                found = signal_factors(error[other], std[other], sigma, kinds[other])[kinds[one]]
                before = covered(error[one], std[one], sigma, np.ones(one.sum()))
                shares.append((before, covered(error[one], std[one], sigma, found)))
    if not factors:
        return generated
    checks = dict(zip((BEFORE, AFTER), np.mean(shares, axis=0).tolist(), strict=True)) if shares else {}
    record = {
        f"b={b:.0f}": {t: round(float(x), 3) for t, x in zip(TISSUES, f, strict=True)} for b, f in factors.items()
    }
    return replace(
        generated,
        samples=replace(samples.after(lambda drawn: _stretched(drawn, generated, factors, tissue)), factors={}),
        checks=generated.checks | checks,
        record=generated.record | {"SampleFactors": record},
    )


def _stretched(
    drawn: np.ndarray, generated: Generated, factors: dict[float, np.ndarray], tissue: np.ndarray
) -> np.ndarray:
    """Return a sample whose generated volumes are farther from the best estimate by the factors of shell and tissue."""
    table, result = generated.gradients, drawn.copy()
    if table is None:
        (of_shell,) = factors.values()
        return generated.mean + of_shell[tissue][..., None].astype(np.float32) * (drawn - generated.mean)
    for volume in np.flatnonzero(~generated.acquired & ~table.is_b0):
        nearest = min(factors, key=lambda b: abs(b - table.bvals[volume]))
        best = generated.mean[..., volume]
        result[..., volume] = best + factors[nearest][tissue].astype(np.float32) * (drawn[..., volume] - best)
    return result.clip(0)


def _sigma(scan: Scan, volumes: np.ndarray) -> float | None:
    """Return the noise of a shell; None where it cannot be estimated."""
    try:
        return shell_sigma(scan, volumes)
    except ScanError:
        return None
