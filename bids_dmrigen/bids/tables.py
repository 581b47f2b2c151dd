"""Gradient tables in FSL's pair of text files, with one clear error per fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..diffusion.storage import TextError, read_text, write_atomically
from ..dwi.gradients import B0_THRESHOLD_S_PER_MM2, LEAST_DIRECTIONS, GradientError, GradientTable, trailing_trace

HIGHEST_B, LOWEST_B = 1e5, 20.0  # s/mm²: above and (for the highest of a series) below this, the unit is another
NO_BVALS = "{path}: expected finite b-values of 0 or more, found {lowest:g} to {highest:g}; correct the table"
LONG = 0.5  # length of a b-vector that is meant as a direction
TOO_HIGH = (
    "{path}: b-values reach {highest:g}, expected at most {most:g} s/mm²; b-values in s/m² are to be divided by 1e6"
)
TOO_LOW = (
    "{path}: b-values reach {highest:g} only, but {n} b-vectors are directions; expected s/mm²: b-values in ms/µm² "
    "are to be multiplied by 1000"
)


def read_gradients(
    bval: str | Path,
    bvec: str | Path,
    n_volumes: int | None = None,
    b0_threshold: float = B0_THRESHOLD_S_PER_MM2,
    leave_out_trace: bool = False,
) -> GradientTable:
    """Return the gradient table of an FSL pair of text files.

    The directions may be in three rows (as they should) or in three columns. With `leave_out_trace` the table ends
    before the volumes at the end of the series that have a b-value but no direction.

    Raises
    ------
    GradientError
        Where a file is missing or unreadable, or the table does not describe `n_volumes` volumes.
    """
    bvals, bvecs = read_bvals(bval), read_bvecs(bvec)
    _check_unit(bvals, bvecs, bval)
    for path, count in ((bval, len(bvals)), (bvec, len(bvecs))):
        if n_volumes is not None and count != n_volumes:
            raise GradientError(f"{path}: {count} entries, but the image has {n_volumes} volumes; they must agree")
    kept = len(bvals) - trailing_trace(bvals, bvecs, b0_threshold) * leave_out_trace
    try:
        return GradientTable(bvals[:kept], bvecs[:kept], b0_threshold)
    except GradientError as error:
        raise GradientError(f"{bval}, {bvec}: {error}") from None


def read_b0_table(bval: str | Path, bvec: str | Path | None = None) -> np.ndarray:
    """Return the (N,) b-values of a series that b0s are taken from, s/mm².

    Raises
    ------
    GradientError
        Where a file cannot be read, or the b-values are none: not finite, negative, or of another unit.
    """
    bvals = read_bvals(bval)
    if not np.isfinite(bvals).all() or (bvals < 0).any():
        raise GradientError(NO_BVALS.format(path=bval, lowest=bvals.min(), highest=bvals.max()))
    _check_unit(bvals, np.zeros((len(bvals), 3)) if bvec is None else read_bvecs(bvec), bval)
    return bvals


def _check_unit(bvals: np.ndarray, bvecs: np.ndarray, path: str | Path) -> None:
    """Refuse b-values that are in another unit than s/mm²; negative ones are not judged."""
    if (bvals < 0).any():
        return
    highest = np.nan_to_num(bvals, nan=0, posinf=np.inf).max()
    weighted = int((np.linalg.norm(np.nan_to_num(bvecs), axis=1) > LONG).sum())
    has_b0 = bool((bvals < 0.1 * highest).any())  # a series of b0s alone may say 5 s/mm² for each
    if HIGHEST_B < highest < np.inf:
        raise GradientError(TOO_HIGH.format(path=path, highest=highest, most=HIGHEST_B))
    if has_b0 and highest <= LOWEST_B and weighted >= LEAST_DIRECTIONS:
        raise GradientError(TOO_LOW.format(path=path, highest=highest, n=weighted))


def read_bvals(path: str | Path) -> np.ndarray:
    """Return the (N,) b-values of a text file, s/mm²."""
    return _read_table(path).reshape(-1)


def read_bvecs(path: str | Path) -> np.ndarray:
    """Return the (N, 3) directions of a text file with three rows (as it should be) or three columns.

    Raises
    ------
    GradientError
        Where the file has neither.
    """
    bvecs = _read_table(path)
    if bvecs.shape[0] == 3:
        return bvecs.T
    if bvecs.shape[1] != 3:
        raise GradientError(f"{path}: expected 3 rows (or 3 columns) of numbers, found {bvecs.shape}")
    return bvecs


def write_gradients(table: GradientTable, bval: str | Path, bvec: str | Path) -> None:
    """Write an FSL pair of text files: b-values in one row, directions in three."""
    write_atomically(bval, lambda part: np.savetxt(part, table.bvals[None], fmt="%.6g"))
    write_atomically(bvec, lambda part: np.savetxt(part, table.bvecs.T, fmt="%.8f"))


def _read_table(path: str | Path) -> np.ndarray:
    try:
        if not Path(path).exists():
            raise GradientError(f"{path}: no such file; a diffusion series needs its .bval and .bvec")
        text = read_text(Path(path)).replace(",", " ")
    except TextError as error:
        raise GradientError(str(error)) from None
    rows = [line.split() for line in text.splitlines() if line.strip()]
    try:
        table = np.array([[float(value) for value in row] for row in rows])
    except ValueError:
        raise GradientError(f"{path}: expected rows of numbers of equal length") from None
    if table.size == 0:
        raise GradientError(f"{path}: the file is empty")
    return table
