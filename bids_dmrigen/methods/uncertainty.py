"""The uncertainty of a result's maps, from its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..diffusion.noise import generator
from ..dwi.noise import estimate_sigma
from ..dwi.series import Scan, ScanError
from ..dwi.tensor import fit_maps
from ..dwi.uncertainty import SCALARS, map_errors
from .base import Generated, Request


def standard_errors(
    generated: Generated,
    scan: Scan,
    request: Request,
    fitted: Sequence[int] | None = None,
    seen: Callable[[int, np.ndarray], None] | None = None,
    each: Callable[[Mapping[str, np.ndarray]], None] | None = None,
) -> dict[str, np.ndarray]:
    """Return the standard error of every scalar map of a result; see `dwi.uncertainty.map_errors`.

    Maps of a series are those of a tensor that is fitted to each sample. Acquired volumes are the same in all samples,
    but their noise is not known: each sample gets other noise of the same strength.

    Parameters
    ----------
    generated
        A result with samples, on the grid of the scan.
    scan
        What it was made from.
    request
        Addresses the noise.
    fitted
        Volumes of a series that a tensor is fitted to; None for all.
    seen
        Called with the number of each sample and the sample, without that noise.
    each
        Called with the scalar maps and the colour FA of each sample.
    """
    best, acquired = maps_of(generated, generated.mean, scan, fitted), np.flatnonzero(generated.acquired)
    drawn = generated.samples
    assert drawn is not None
    sigma = _sigma(scan) if len(acquired) else 0.0

    def maps_of_samples() -> Iterator[dict[str, np.ndarray]]:
        for k, sample in enumerate(drawn):
            if seen is not None:
                seen(k, sample)
            if sigma:
                noise = generator(request.seed, request.subject, request.run, "acquired", sample=k)
                sample = sample.copy()
                shape = (*sample.shape[:3], len(acquired))
                sample[..., acquired] += sigma * noise.standard_normal(shape, np.float32)
            maps = maps_of(generated, sample, scan, fitted, (*SCALARS, "dec"))
            if each is not None:
                each(maps)
            yield {name: values for name, values in maps.items() if name in SCALARS}

    return map_errors(best, maps_of_samples(), scan.mask, drawn.factors)


def maps_of(
    generated: Generated,
    values: np.ndarray,
    scan: Scan,
    fitted: Sequence[int] | None = None,
    names: tuple[str, ...] = SCALARS,
) -> dict[str, np.ndarray]:
    """Return the maps of a result, or of a sample of it, by name."""
    if generated.maps:
        return {name: volume for name, volume in generated.named_maps(values).items() if name in names}
    assert generated.gradients is not None  # every series has gradients
    chosen = np.arange(values.shape[3]) if fitted is None else np.asarray(fitted)
    series = Scan(values[..., chosen].clip(0), scan.affine, generated.gradients[chosen], scan.mask)
    return fit_maps(series, names=names)


def _sigma(scan: Scan) -> float:
    """Return the standard deviation of a scan's noise; 0 where it cannot be estimated."""
    try:
        return float(estimate_sigma(scan).sigma)
    except ScanError:
        return 0.0
