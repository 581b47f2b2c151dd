"""Linear harmonisation: the spherical harmonics of each degree are multiplied by one number.

S = sum over l of ratio_l C_lm Y_lm (after Mirzaalian et al. 2016), on the scan's voxels or on finer ones. The ratios
are part of the weights of RISH latent diffusion. Each is the root mean square of |C_l| over the good scans of the
training pairs, divided by that over the poor scans.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import numpy as np

from ...dwi.gradients import LEAST_DIRECTIONS, distinct
from ...dwi.series import Scan
from ..base import Generated, Method, Request
from ..spec import Citation
from . import rishldm
from .task import GOOD, VOXEL_SIZE, RishSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...nets.rish_ldm import RishLDM

SPEC = RishSpec(
    name="rish",
    title="Linear RISH harmonisation",
    line="the shell with its spherical harmonics scaled degree by degree (one number each is learnt)",
    summary=(
        "multiplies the signal's spherical harmonics of each degree by one number, the ratio of their strengths "
        "in good and in poor scans of the same subjects"
    ),
    citation=Citation(
        key="mirzaalian2016",
        text=(
            "Mirzaalian H, Ning L, Savadjiev P, Pasternak O, Bouix S, Michailovich O et al. (2016). Inter-site and "
            "inter-scanner diffusion MRI data harmonization. NeuroImage 135:311-323. "
            "doi:10.1016/j.neuroimage.2016.04.041"
        ),
        bibtex=(
            "@article{mirzaalian2016,\n"
            "  title = {Inter-site and inter-scanner diffusion {MRI} data harmonization},\n"
            "  author = {Mirzaalian, Hengameh and Ning, Lipeng and Savadjiev, Peter and Pasternak, Ofer and "
            "Bouix, Sylvain and Michailovich, Oleg and others},\n  journal = {NeuroImage},\n"
            "  year = {2016},\n  volume = {135},\n  pages = {311--323},\n"
            "  doi = {10.1016/j.neuroimage.2016.04.041}\n}"
        ),
    ),
    min_directions=LEAST_DIRECTIONS,
    good_directions=GOOD,
    needs_weights=True,
    samplers={"fast": "none: a weighted sum", "paper": "none: a weighted sum"},
    options=(VOXEL_SIZE,),
    draws=False,
    weights_from=rishldm.SPEC.name,
)


class LinearHarmonisation(Method):
    """Linear harmonisation. `Request.options`: `voxel_mm`, edge of the result's voxels; None for the scan's own."""

    spec = SPEC

    def network(self, size: str) -> RishLDM:
        """Return the networks whose weights contain the ratios."""
        from .rishldm_model import RishLatentDiffusion

        return cast("RishLDM", RishLatentDiffusion().network(size))

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Harmonise the shells of a scan with the ratios of `net`, or of stored weights where `net` is None."""
        import torch

        from ..making import with_weights
        from .resampling import generated, upsampled
        from .rishldm_model import RishLatentDiffusion

        begun = time.monotonic()
        networks, weights = with_weights(RishLatentDiffusion(), net, request)
        ratios = cast("RishLDM", networks).ratios.cpu().double()
        warnings = SPEC.check(scan)
        series, grid = upsampled(SPEC, scan, request)
        inside = torch.from_numpy(scan.mask if grid is None else grid.mask)
        world = torch.from_numpy(scan.gradients.world_directions(scan.affine))
        changed = np.zeros(len(scan.gradients), bool)
        for _, volumes in scan.gradients.shells():
            if len(distinct(scan.gradients.bvecs[volumes])) < LEAST_DIRECTIONS:
                continue
            changed[volumes] = True
            shell = series[torch.from_numpy(volumes)][:, inside]  # (N, V)
            scaled = harmonised(world[volumes], ratios).float() @ shell
            for volume, values in zip(volumes.tolist(), scaled.clamp_min(0), strict=True):
                series[volume][inside] = values
        rounded = [round(float(r), 4) for r in ratios]
        return generated(
            SPEC, scan, series, grid, changed, begun, warnings, Size=request.size, Weights=weights, Ratios=rounded
        )


def harmonised(directions: Tensor, ratios: Tensor) -> Tensor:
    """Return weights (N, N) that multiply degree l of a shell's volumes by ratio_l.

    Parameters
    ----------
    directions
        (N, 3) unit vectors.
    ratios
        (3,) for l = 0, 2, 4; not used for degrees that the directions do not determine.
    """
    from ...dwi.harmonics import harmonics, order_for, scaled, undamped_weights
    from .inputs import ORDER

    order = order_for(len(distinct(directions.numpy())), ORDER)
    fit = scaled(undamped_weights(directions, order), ratios[: order // 2 + 1, None], order, dim=0)
    return harmonics(directions, order) @ fit


def build() -> LinearHarmonisation:
    """Return the method."""
    return LinearHarmonisation()
