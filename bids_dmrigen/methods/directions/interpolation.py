"""The classical ways to fill a shell: linear and spherical-harmonic interpolation. They need no weights."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...dwi.harmonics import order_for, prediction_weights
from ...dwi.series import Scan
from ..base import Citation, Generated, MethodSpec, Request
from .task import (
    assemble,
    check_left_out,
    nearest_references,
    shell_signal,
    shells_to_fill,
    wanted_directions,
)

REFERENCES = 6


class _Interpolation:
    """A method whose every generated volume is a weighted sum of acquired ones."""

    spec: MethodSpec

    def network(self, size: str) -> None:
        """Return None: there is no network."""

    @abstractmethod
    def weights(self, acquired: Tensor, wanted: Tensor) -> Tensor:
        """Return the weights (T, N) of a shell's volumes for directions (N, 3) and (T, 3)."""

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Fill every shell of the scan."""
        made = self._fill(scan, request)
        return replace(made, left_out=check_left_out(self._fill, scan, request, self.spec.min_directions))

    def _fill(self, scan: Scan, request: Request) -> Generated:
        begun = time.monotonic()
        warnings = self.spec.check(scan)
        shells, more = shells_to_fill(scan, self.spec.title, self.spec.min_directions, wanted_directions(request))
        made = []
        for shell in shells:
            weights = self.weights(torch.from_numpy(shell.acquired), torch.from_numpy(shell.wanted)).float()
            made.append(((shell_signal(scan, shell) @ weights.T).clamp_min(0).numpy(), None))
        record = {
            "Sampler": {"Name": self.spec.samplers["fast"], "Steps": 0, "NetworkEvaluations": 0},
            "Seconds": round(time.monotonic() - begun, 1),
        }
        return assemble(scan, shells, made, record, warnings=tuple(warnings + more))


class LinearInterpolation(_Interpolation):
    """The interpolation that QID² was compared with."""

    spec = MethodSpec(
        name="interp",
        title="Linear interpolation",
        summary="adds directions by linear interpolation between the nearest acquired ones; nothing is learnt",
        citation=Citation(
            key="chen2024qid2",
            text=(
                "Chen Z, Wang J, Venkataraman A (2024). QID²: An Image-Conditioned Diffusion Model for Q-space "
                "Up-sampling of DWI Data. CDMRI 2024. arXiv:2409.02309"
            ),
            bibtex=(
                "@inproceedings{chen2024qid2,\n"
                "  title = {{QID\\textsuperscript{2}}: An Image-Conditioned Diffusion Model for Q-space Up-sampling "
                "of {DWI} Data},\n  author = {Chen, Zijian and Wang, Jueqi and Venkataraman, Archana},\n"
                "  booktitle = {Computational Diffusion {MRI}},\n  year = {2024},\n  eprint = {2409.02309},\n"
                "  archivePrefix = {arXiv}\n}"
            ),
        ),
        min_directions=6,
        good_directions=6,
        needs_weights=False,
        samplers={"fast": "none: a weighted sum", "paper": "none: a weighted sum"},
        sizes=("small",),
        draws=False,
    )

    def weights(self, acquired: Tensor, wanted: Tensor) -> Tensor:
        """Return the coefficients of wanted = sum_k c_k r_k (least norm), r_k the nearest references, sum c_k = 1.

        References are turned to the wanted direction's side first: a direction and its antipode measure the same.
        """
        nearest = nearest_references(acquired, wanted, min(REFERENCES, len(acquired)))
        references = acquired[nearest]  # (T, R, 3)
        side = torch.where((references @ wanted[:, :, None]) < 0, -1.0, 1.0)
        coefficients = torch.linalg.pinv((side * references).mT) @ wanted[:, :, None]
        coefficients = coefficients[..., 0] / coefficients.sum(dim=1)
        weights = torch.zeros(len(wanted), len(acquired), dtype=acquired.dtype)
        return weights.scatter_(1, nearest, coefficients)


class HarmonicInterpolation(_Interpolation):
    """Interpolation by regularised spherical harmonics: what a careful analyst would use."""

    spec = MethodSpec(
        name="sh",
        title="Spherical-harmonic interpolation",
        summary="adds directions by a regularised fit of spherical harmonics to each shell; nothing is learnt",
        citation=Citation(
            key="descoteaux2007",
            text=(
                "Descoteaux M, Angelino E, Fitzgibbons S, Deriche R (2007). Regularized, fast, and robust analytical "
                "Q-ball imaging. Magnetic Resonance in Medicine 58(3):497-510"
            ),
            bibtex=(
                "@article{descoteaux2007,\n"
                "  title = {Regularized, fast, and robust analytical {Q}-ball imaging},\n"
                "  author = {Descoteaux, Maxime and Angelino, Elaine and Fitzgibbons, Shaun and Deriche, Rachid},\n"
                "  journal = {Magnetic Resonance in Medicine},\n  year = {2007},\n  volume = {58},\n"
                "  pages = {497--510}\n}"
            ),
        ),
        min_directions=6,
        good_directions=15,
        needs_weights=False,
        samplers={"fast": "none: a least-squares fit", "paper": "none: a least-squares fit"},
        sizes=("small",),
        draws=False,
    )

    def weights(self, acquired: Tensor, wanted: Tensor) -> Tensor:
        """Return the weights of a fit of the highest order, up to 4, that the directions determine."""
        return prediction_weights(acquired, wanted, order_for(len(acquired)))
