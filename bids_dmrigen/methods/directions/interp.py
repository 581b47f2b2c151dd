"""Linear interpolation between the nearest acquired directions, with which the QID² paper compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..spec import Citation
from .task import DIRECTIONS, REFERENCES, DirectionsSpec
from .weighted_sum import WeightedSum

if TYPE_CHECKING:
    from torch import Tensor

SPEC = DirectionsSpec(
    name="interp",
    title="Linear interpolation",
    line="more directions by linear interpolation of the nearest ones (nothing is learnt)",
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
    options=(DIRECTIONS, REFERENCES),
    sizes=("small",),
    draws=False,
)


class LinearInterpolation(WeightedSum):
    """Linear interpolation, with which the QID² paper compares."""

    spec = SPEC

    def weights(self, acquired: Tensor, wanted: Tensor, options: Mapping[str, Any], signal: Tensor) -> Tensor:
        """Return the coefficients of wanted = sum_k c_k r_k (least norm), r_k the nearest references, sum c_k = 1.

        References are turned to the wanted direction's side first: a direction and its antipode measure the same.
        """
        import torch

        from .inputs import nearest_references

        n = options.get(REFERENCES.key, REFERENCES.default)
        nearest = nearest_references(acquired, wanted, min(n, len(acquired)))
        references = acquired[nearest]  # (T, R, 3)
        side = torch.where((references @ wanted[:, :, None]) < 0, -1.0, 1.0)
        coefficients = torch.linalg.pinv((side * references).mT) @ wanted[:, :, None]
        coefficients = coefficients[..., 0] / coefficients.sum(dim=1)
        weights = torch.zeros(len(wanted), len(acquired), dtype=acquired.dtype)
        return weights.scatter_(1, nearest, coefficients)


def build() -> LinearInterpolation:
    """Return the method."""
    return LinearInterpolation()
