"""Maps of a tensor that is fitted to the same six directions as learnt methods see: nothing is learnt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...dwi.series import Scan, ScanError
from ..base import Generated, Method, Request
from ..spec import MethodSpec
from .task import MOST, NOT_ALL, TENSOR_MAPS, TOO_FEW, MapsSpec, choose_volumes

if TYPE_CHECKING:
    from torch import nn

SAMPLER = "none: a least-squares fit"


@dataclass(frozen=True)
class FittedSpec(MapsSpec):
    """The specification of a method that fits a tensor."""

    min_directions: int = MOST
    good_directions: int = MOST
    needs_weights: bool = False
    maps: tuple[str, ...] = TENSOR_MAPS
    samplers: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(("fast", "paper"), SAMPLER))
    sizes: tuple[str, ...] = ("small",)
    draws: bool = False

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where no shell has six different directions."""
        warnings = MethodSpec.check(self, scan)
        bval, volumes, n_directions = choose_volumes(scan.gradients, self.title)
        if len(volumes) < MOST:
            raise ScanError(TOO_FEW.format(title=self.title, least=MOST, found=len(volumes)))
        if len(volumes) < n_directions:
            warnings.append(NOT_ALL.format(used=len(volumes), found=n_directions, bval=bval))
        return warnings


class Fitted(Method):
    """A tensor by least squares.

    Parameters
    ----------
    spec
        Its specification.
    fit
        "ols" or "wls".
    before
        What is done to the scan before the fit; None for nothing.
    """

    def __init__(self, spec: FittedSpec, fit: str, before: Callable[[Scan], Scan] | None = None):
        self.spec, self._fit, self._before = spec, fit, before

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Fit the tensor to the b0s and the directions of `choose_volumes`."""
        from ...dwi.tensor import fit_maps
        from ..making import classical_record

        begun = time.monotonic()
        warnings = self.spec.check(scan)
        scan = scan if self._before is None else self._before(scan)
        bval, volumes, _ = choose_volumes(scan.gradients, self.spec.title)
        used = np.sort(np.r_[np.flatnonzero(scan.gradients.is_b0), volumes])
        few = Scan(scan.data[..., used], scan.affine, scan.gradients[used], scan.mask)
        maps = fit_maps(few, self._fit, request.device, TENSOR_MAPS)
        mean = np.concatenate([maps[name].reshape(*scan.mask.shape, -1) for name in TENSOR_MAPS], axis=3)
        shown = {"b0": np.flatnonzero(scan.gradients.is_b0).tolist(), f"b={bval:.0f}": volumes.tolist()}
        record = classical_record(self.spec, begun, Volumes=shown)
        made = np.zeros(mean.shape[3], bool)
        return Generated(mean.astype(np.float32), None, None, TENSOR_MAPS, made, record, warnings=tuple(warnings))
