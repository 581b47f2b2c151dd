"""Denoisers that learn nothing beforehand: a function of the series as acquired."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...dwi.series import Scan
from ..base import Generated, Method, Request
from .task import DenoiseSpec

if TYPE_CHECKING:
    from torch import nn


class UntrainedDenoiser(Method):
    """A denoiser of another library.

    Parameters
    ----------
    spec
        Its specification.
    denoised
        Scan -> denoised series (X, Y, Z, N); it need not respect the mask, nor be finite.
    """

    def __init__(self, spec: DenoiseSpec, denoised: Callable[[Scan], np.ndarray]):
        self.spec, self._function = spec, denoised

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Denoise a scan; where there is no result, and outside the mask, the acquired signal stays."""
        from ..making import classical_record

        begun = time.monotonic()
        warnings = self.spec.check(scan)
        acquired = np.asarray(scan.data, np.float32)
        mean = self.denoised(scan)
        unchanged = np.array([np.array_equal(mean[..., k], acquired[..., k]) for k in range(acquired.shape[3])])
        record = classical_record(self.spec, begun)
        return Generated(mean, None, scan.gradients, (), unchanged, record, warnings=tuple(warnings))

    def denoised(self, scan: Scan) -> np.ndarray:
        """Return the series (X, Y, Z, N) float32; see `generate`."""
        acquired, found = np.asarray(scan.data, np.float32), np.asarray(self._function(scan), np.float32)
        usable = scan.mask[..., None] & (acquired > 0) & np.isfinite(found) & (found > 0)
        return np.where(usable, found, acquired)
