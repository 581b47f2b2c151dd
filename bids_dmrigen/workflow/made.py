"""What series a method will make of a run, before it is made: its table, and which of it a tensor is fitted to."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..dwi.gradients import GradientError, GradientTable, even_directions
from .settings import Settings

UPSAMPLERS = ("qid2", "interp", "sh")  # methods that add directions, see --qid2-directions
TENSOR_B = 1000.0  # s/mm², near which the tensor describes white matter best


NO_DIRECTIONS = "{path}: expected b-vectors, three rows of numbers, found none but of length 0"


@cache
def directions(text: str) -> int | tuple[tuple[float, ...], ...]:
    """Return a number of directions, or the b-vectors in a file; those of b0s, of length 0, are passed over.

    Raises
    ------
    GradientError
        Where the file holds no unit vectors.
    """
    from ..spatial.io import read_bvecs

    if text.isdigit():
        return int(text)
    found = read_bvecs(text)
    found = found[np.any(found, axis=1)]
    if not len(found):
        raise GradientError(NO_DIRECTIONS.format(path=text))
    try:
        table = GradientTable(np.full(len(found), TENSOR_B), found)
    except GradientError as error:
        raise GradientError(f"{text}, without rows of length 0: {error}") from None
    return tuple(map(tuple, table.bvecs.tolist()))


def table_made(settings: Settings, method: str, gradients: GradientTable) -> GradientTable:
    """Return the table of the series that a method will make of one with these gradients.

    Directions that it spreads itself stand for those that it will choose: of shells that it fills up these may be
    fewer, and of all it is known only then where they lie.
    """
    from ..methods import load

    if method in UPSAMPLERS:
        bvals, wanted = [b for b, _ in gradients.shells()], settings.qid2_directions
    elif load(method).spec.in_template:
        bvals, wanted = settings.phydiff_bvalues, settings.phydiff_directions
    else:
        return gradients
    wanted = _vectors(wanted)
    return GradientTable(
        np.concatenate([gradients.bvals, *(np.full(len(wanted), b) for b in bvals)]),
        np.concatenate([gradients.bvecs, *[wanted] * len(bvals)]),
        gradients.b0_threshold,
    )


@cache
def _vectors(text: str) -> np.ndarray:
    """Return (N, 3) the directions of a number or a file: the same for every run."""
    wanted = directions(text)
    return even_directions(wanted) if isinstance(wanted, int) else np.asarray(wanted, dtype=np.float64)


def tensor_volumes(settings: Settings, method: str, gradients: GradientTable) -> list[int] | None:
    """Return the volumes of the series that a method's tensor maps are fitted to; None for all.

    Shells that a method makes from b0s alone are a choice of whoever called, from 500 to 3000 s/mm²: a fit to all of
    them, and to what was acquired, would be no tensor. The one nearest to `TENSOR_B` is taken.
    """
    from ..methods import load

    if not load(method).spec.in_template:
        return None
    table, nearest = table_made(settings, method, gradients), nearest_bvalue(settings)
    own = (np.arange(len(table)) >= len(gradients)) & (table.bvals == nearest)
    return np.flatnonzero(table.is_b0 | own).tolist()


def nearest_bvalue(settings: Settings) -> float:
    """Return the b-value, s/mm², of the shell in the template's space that tensor maps are fitted to."""
    return min(settings.phydiff_bvalues, key=lambda b: abs(b - TENSOR_B))
