"""Diffusion-weighted images from a b0 and a registered population atlas, the classical way: nothing is learnt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ...dwi.gradients import GradientTable
from ...dwi.series import Scan, ScanError
from ..base import Generated, Method, Request
from ..spec import Citation
from .task import BVALUES, DIRECTIONS, GRID_MM, SynthesisSpec, wanted_table

if TYPE_CHECKING:
    from torch import nn

    from ...simulate.atlas import Atlas

VOLUMES_AT_ONCE = 8
NO_ANATOMY = "the atlas needs a population's tissue and fibre directions in the template's space; found none"

SPEC = SynthesisSpec(
    name="atlas",
    title="Registered fibre atlas",
    line="images of any b-value and direction from the b0 and a registered fibre atlas (nothing is learnt)",
    summary=(
        "predicts diffusion-weighted images from the b0 by the attenuation that the tissue and fibre directions of "
        "a registered atlas would show; nothing is learnt"
    ),
    # Reference of the built-in anatomy. For a user's own anatomy the methods text asks for its reference.
    citation=Citation(
        key="mni",
        text=(
            "Fonov V et al. (2011). Unbiased average age-appropriate atlases for pediatric studies. "
            "NeuroImage 54:313-327. doi:10.1016/j.neuroimage.2010.07.033"
        ),
        bibtex=(
            "@article{mni,\n"
            "  title = {Unbiased average age-appropriate atlases for pediatric studies},\n"
            "  author = {Fonov, Vladimir and Evans, Alan C and Botteron, Kelly and Almli, C Robert and "
            "McKinstry, Robert C and Collins, D Louis},\n  journal = {NeuroImage},\n"
            "  year = {2011},\n  volume = {54},\n  pages = {313--327},\n"
            "  doi = {10.1016/j.neuroimage.2010.07.033}\n}"
        ),
    ),
    min_directions=0,
    good_directions=0,
    needs_weights=False,
    samplers={"fast": "none: a registered atlas", "paper": "none: a registered atlas"},
    options=(BVALUES, DIRECTIONS),
    population=("fibres",),
    grid_mm=GRID_MM,
    sizes=("small",),
    draws=False,
)


class AtlasPrediction(Method):
    """The prediction: the atlas's signal relative to its b0, times the scan's b0."""

    spec = SPEC

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Predict the wanted images of a scan in the template's space; `request.options`: `table`, as for `PhyDiff`.

        Raises
        ------
        ScanError
            Where the population has no anatomy.
        """
        from ..making import classical_record

        begun = time.monotonic()
        if request.population is None or request.population.anatomy is None:
            raise ScanError(NO_ANATOMY)
        table = request.options.get("table") or wanted_table(scan)
        b0, mean = scan.mean_b0(), np.zeros((*scan.mask.shape, len(table)), np.float32)
        for part in np.split(np.arange(len(table)), range(VOLUMES_AT_ONCE, len(table), VOLUMES_AT_ONCE)):
            attenuation = self._attenuation(request.population.anatomy, scan, table[part])
            mean[..., part] = b0[..., None] * attenuation  # around the brain too: resampling to another grid needs it
        record = classical_record(SPEC, begun)
        return Generated(mean, None, table, (), np.zeros(len(table), bool), record)

    @staticmethod
    def _attenuation(anatomy: Atlas, scan: Scan, table: GradientTable) -> np.ndarray:
        """Return (X, Y, Z, N) S / S0 on the scan's grid; that of free water where the atlas has no brain."""
        import torch

        from ...simulate.signal import CSF_DIFFUSIVITY, simulate_signal
        from .inputs import read_at

        with_b0 = GradientTable(np.r_[0.0, table.bvals], np.concatenate([np.zeros((1, 3)), table.bvecs]))
        signal = simulate_signal(anatomy, with_b0, scan.affine).movedim(3, 0)  # (1 + N, x, y, z)
        # Signals are interpolated, not their ratio, so that the edge of the atlas has the attenuation of brain.
        index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in scan.mask.shape), indexing="ij")).float()
        affine = torch.as_tensor(scan.affine, dtype=torch.float32)
        places = torch.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3, None, None, None]
        # `read_at` takes slices: (Z, 3, X, Y).
        sampled = read_at(signal, anatomy.affine, places.permute(3, 0, 1, 2)).permute(2, 3, 0, 1)  # (X, Y, Z, 1 + N)
        water = torch.exp(-torch.tensor(table.bvals.tolist()) * CSF_DIFFUSIVITY)
        has_signal = sampled[..., :1] > 1e-3 * float(signal[0].max())
        return torch.where(has_signal, sampled[..., 1:] / sampled[..., :1].clamp_min(1e-12), water).numpy()


def build() -> AtlasPrediction:
    """Return the method."""
    return AtlasPrediction()
