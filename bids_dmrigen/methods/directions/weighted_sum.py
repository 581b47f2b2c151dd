"""Methods whose generated volumes are weighted sums of acquired ones: nothing is learnt."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dwi.series import Scan
from ..base import Generated, Method, Request
from .task import assemble, check_left_out, shells_to_fill, wanted_directions

if TYPE_CHECKING:
    from torch import Tensor, nn


class WeightedSum(Method):
    """A method that fills shells with weighted sums of their volumes."""

    @abstractmethod
    def weights(self, acquired: Tensor, wanted: Tensor, options: Mapping[str, Any], signal: Tensor) -> Tensor:
        """Return the weights (T, N) of a shell's volumes for directions (N, 3) and (T, 3).

        `options` are by key. `signal` (V, N) is that of the brain.
        """

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Fill every shell of the scan."""
        generated = self._fill(scan, request)
        return replace(generated, left_out=check_left_out(self._fill, scan, request, self.spec.min_directions))

    def _fill(self, scan: Scan, request: Request) -> Generated:
        import torch

        from ..making import classical_record
        from .inputs import shell_signal

        begun = time.monotonic()
        warnings = self.spec.check(scan)
        shells, more = shells_to_fill(scan, self.spec.title, self.spec.min_directions, wanted_directions(request))
        generated = []
        for shell in shells:
            acquired, wanted = torch.from_numpy(shell.acquired), torch.from_numpy(shell.wanted)
            signal = shell_signal(scan, shell)
            inside = signal[torch.from_numpy(np.ascontiguousarray(scan.mask))]
            weights = self.weights(acquired, wanted, request.options, inside).float()
            generated.append((signal @ weights.T).clamp_min(0).numpy())
        record = classical_record(self.spec, begun)
        return assemble(scan, shells, np.concatenate(generated, axis=3), None, record, warnings=tuple(warnings + more))
