"""ADC maps of preprocessed runs in the template's space, and their average: an ADC atlas of real subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..bids.names import output_path
from ..bids.run import Run
from ..dwi.adc import MeanOverBrains, apparent_diffusion
from ..dwi.series import Scan, ScanError

# FSL's MNI152 at 2 mm; the brain of every MNI template lies within it.
GRID_SHAPE = (91, 109, 91)
GRID_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2.0, 0, -126], [0, 0, 2.0, -72], [0, 0, 0, 1]])
REACH = 0.5  # largest distance from a shell to the b-value that it is used for, as a share of that b-value
NO_SHELL = (
    "no run has a shell near b = {missing} s/mm² (found: {found}); give b-values that were measured (--bvalues), "
    "or add runs"
)


def find_transform(run: Run) -> tuple[Path, str]:
    """Return the transform that resamples a preprocessed run onto its template, and the template's name.

    Raises
    ------
    ScanError
        Where there is no such file, or more than one.
    """
    pattern = output_path(run.entities, "to_template", template="*").name
    matches = sorted(run.image.parent.glob(pattern))
    if len(matches) != 1:
        listed = ", ".join(path.name for path in matches) or "none"
        raise ScanError(f"expected one {pattern} beside the image, as bids_dmrigen writes it, found {listed}")
    head, _, tail = pattern.partition("*")
    return matches[0], matches[0].name.removeprefix(head).removesuffix(tail)


def shells_on_template(scan: Scan, transform: Path, bvals: Sequence[float]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return a scan's ADC and brain mask for each b-value, on the template's 2 mm grid.

    Each volume is used for the nearest b-value, unless that is further away than `REACH`.

    Parameters
    ----------
    scan
        Preprocessed series with its brain mask.
    transform
        From `find_transform`.
    bvals
        (K,) s/mm².

    Returns
    -------
    Index in `bvals` -> ADC (X, Y, Z) float32, mm²/s, and brain (X, Y, Z) bool; only b-values that the scan has.
    """
    from .ants_tools import to_ants, warp

    targets, table = np.asarray(bvals, dtype=np.float64), scan.gradients
    nearest = np.abs(table.bvals[:, None] - targets).argmin(axis=1)
    near = ~table.is_b0 & (np.abs(table.bvals - targets[nearest]) <= REACH * targets[nearest])
    reference = to_ants(np.zeros(GRID_SHAPE, np.float32), GRID_AFFINE)

    def onto_template(volume: np.ndarray) -> np.ndarray:
        return warp(to_ants(volume * scan.mask, scan.affine), reference, [transform]).numpy()

    if not near.any():
        return {}
    share = onto_template(np.ones(scan.mask.shape, np.float32))  # brain in the neighbourhood of a voxel
    brain, maps = share > 0.5, {}
    for k in np.unique(nearest[near]):
        volumes = np.flatnonzero(near & (nearest == k))
        adc = onto_template(apparent_diffusion(scan.mean_b0(), scan.data[..., volumes], table.bvals[volumes]))
        maps[int(k)] = np.where(brain, adc / np.maximum(share, 0.5), 0).astype(np.float32), brain
    return maps


def mean_of_runs(
    runs: Iterable[tuple[str, Sequence[float], dict[int, tuple[np.ndarray, np.ndarray]]]], bvals: Sequence[float]
) -> tuple[np.ndarray, list[int], list[int]]:
    """Return the mean ADC over subjects: all weigh the same, however many runs each one has.

    Parameters
    ----------
    runs
        For each run the subject, the b-values of its shells (for the message) and the result of `shells_on_template`.
        The runs of one subject follow each other, so that only two means per b-value are kept in memory.
    bvals
        (K,) s/mm².

    Returns
    -------
    adc
        (X, Y, Z, K) mm²/s.
    n_runs, n_subjects
        How many runs and subjects each b-value's mean is from.

    Raises
    ------
    ScanError
        Where no run has one of the b-values; the message lists those that were measured.
    """
    means, n_runs, seen = [MeanOverBrains() for _ in bvals], [0 for _ in bvals], set()
    for _, subject_runs in groupby(runs, key=itemgetter(0)):
        within = [MeanOverBrains() for _ in bvals]
        for _, shells, maps in subject_runs:
            seen |= {round(b) for b in shells}
            for k, (adc, brain) in maps.items():
                within[k].add(adc, brain)
        for k, mean in enumerate(within):
            if mean.n:
                means[k].add(mean.mean(), mean.brain())
                n_runs[k] += mean.n
    missing = [f"{b:g}" for b, mean in zip(bvals, means, strict=True) if not mean.n]
    if missing:
        available = ", ".join(str(b) for b in sorted(seen)) or "no usable run"
        raise ScanError(NO_SHELL.format(missing=", ".join(missing), found=available))
    return np.stack([mean.mean() for mean in means], axis=-1), n_runs, [mean.n for mean in means]
