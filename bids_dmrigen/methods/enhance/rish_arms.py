"""What RISH latent diffusion is compared with: up-sampling by B-splines alone, and with linear RISH harmonisation."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from ...dwi.gradients import distinct
from ...dwi.harmonics import harmonics, order_for, scaled, undamped_weights
from ...dwi.rish import LEAST_DIRECTIONS
from ...dwi.series import Scan
from ...dwi.spline import resampled
from ...nets.rish_ldm import RishLDM
from ..base import Citation, Generated, Grid, MethodSpec, Request, finer_grid, with_weights
from .inputs import ORDER
from .rishldm import GOOD, RishLatentDiffusion, RishSpec


class SplineUpsampling:
    """Every volume on finer voxels, by cubic B-splines. `Request.options`: `voxel_mm`, their edge."""

    spec = MethodSpec(
        name="bspline",
        title="B-spline up-sampling",
        summary="brings the series to finer voxels by cubic B-spline interpolation; nothing is learnt",
        citation=Citation(
            key="dyrby2014",
            text=(
                "Dyrby TB, Lundell H, Burke MW, Reislev NL, Paulson OB, Ptito M, Siebner HR (2014). Interpolation of "
                "diffusion weighted imaging datasets. NeuroImage 103:202-213. doi:10.1016/j.neuroimage.2014.09.005"
            ),
            bibtex=(
                "@article{dyrby2014,\n"
                "  title = {Interpolation of diffusion weighted imaging datasets},\n"
                "  author = {Dyrby, Tim B and Lundell, Henrik and Burke, Mark W and Reislev, Nina L and "
                "Paulson, Olaf B and Ptito, Maurice and Siebner, Hartwig R},\n  journal = {NeuroImage},\n"
                "  year = {2014},\n  volume = {103},\n  pages = {202--213},\n"
                "  doi = {10.1016/j.neuroimage.2014.09.005}\n}"
            ),
        ),
        min_directions=1,
        good_directions=1,
        needs_weights=False,
        samplers={"fast": "none: interpolation", "paper": "none: interpolation"},
        sizes=("small",),
        draws=False,
        finer="must",
    )

    def network(self, size: str) -> None:
        """Return None: there is no network."""

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Up-sample a scan; `ScanError` where its voxels are to stay as they are."""
        begun = time.monotonic()
        warnings = self.spec.check(scan)
        series, grid = _upsampled(self.spec, scan, request)
        return _generated(self.spec, scan, series, grid, np.ones(len(scan.gradients), bool), {}, begun, warnings)


class LinearHarmonisation:
    """Each degree of the spherical harmonics times one number, on the series or on finer voxels.

    S = sum over l of ratio_l C_lm Y_lm (after Mirzaalian et al. 2016). The ratios of the weights of RISH latent
    diffusion are those of the means, over its training pairs, of the good and the poor scan's |C_l|², and their roots.
    `Request.options`: `voxel_mm`, edge of the result's voxels; None for the scan's own.
    """

    spec = RishSpec(
        name="rish",
        title="Linear RISH harmonisation",
        summary=(
            "multiplies the signal's spherical harmonics of each degree by one number, the ratio of their strengths "
            "in good and in poor scans of the same people"
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
        weights_from=RishLatentDiffusion.spec.name,
        samplers={"fast": "none: a weighted sum", "paper": "none: a weighted sum"},
        draws=False,
        finer="may",
    )

    def network(self, size: str) -> RishLDM:
        """Return the networks that the ratios come with."""
        return RishLatentDiffusion().network(size)

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Harmonise the shells of a scan with the ratios of `net`, or of stored weights where there is none."""
        begun = time.monotonic()
        net, weights = with_weights(RishLatentDiffusion(), net, request)
        ratios = net.ratios.cpu().double()
        warnings = self.spec.check(scan)
        series, grid = _upsampled(self.spec, scan, request)
        inside = torch.from_numpy(scan.mask if grid is None else grid.mask)
        world = torch.from_numpy(scan.gradients.world_directions(scan.affine))
        made_anew = np.zeros(len(scan.gradients), bool)
        for _, volumes in scan.gradients.shells():
            if len(distinct(scan.gradients.bvecs[volumes])) < LEAST_DIRECTIONS:
                continue
            made_anew[volumes] = True
            shell = series[torch.from_numpy(volumes)][:, inside]  # (N, V)
            made = harmonised(world[volumes], ratios).float() @ shell
            for volume, values in zip(volumes.tolist(), made.clamp_min(0), strict=True):
                series[volume][inside] = values
        record = {"Size": request.size, "Weights": weights, "Ratios": [round(float(r), 4) for r in ratios]}
        return _generated(self.spec, scan, series, grid, made_anew, record, begun, warnings)


def harmonised(directions: Tensor, ratios: Tensor) -> Tensor:
    """Return the weights (N, N) with which a shell's volumes give those with each degree l times ratio_l.

    Parameters
    ----------
    directions
        (N, 3) unit vectors.
    ratios
        (3,) of l = 0, 2, 4; those of degrees that the directions do not determine are not used.
    """
    order = order_for(len(distinct(directions.numpy())), ORDER)
    fit = scaled(undamped_weights(directions, order), ratios[: order // 2 + 1, None], order, dim=0)
    return harmonics(directions, order) @ fit


def _upsampled(spec: MethodSpec, scan: Scan, request: Request) -> tuple[Tensor, Grid | None]:
    """Return the series (N, P, Q, R) on the grid that is asked for, a copy, and that grid; None for the scan's own."""
    series = torch.from_numpy(np.array(scan.data, dtype=np.float32)).permute(3, 0, 1, 2)
    edge = spec.edge_mm(scan.zooms_mm, request.options.get("voxel_mm"))
    if edge is None:
        return series, None
    points, grid = finer_grid(scan.mask, scan.affine, edge)
    return resampled(series, points).clamp_min_(0), grid


def _generated(
    spec: MethodSpec, scan: Scan, series: Tensor, grid: Grid | None, made: np.ndarray, record, begun: float, warnings
) -> Generated:
    """Return a series (N, P, Q, R) as what a method made; on finer voxels no volume is an acquired one."""
    record = record | {
        "Sampler": {"Name": spec.samplers["fast"], "Steps": 0, "NetworkEvaluations": 0},
        "Seconds": round(time.monotonic() - begun, 1),
    }
    mean, kept = series.permute(1, 2, 3, 0).contiguous().numpy(), ~made & (grid is None)
    return Generated(mean, None, scan.gradients, (), kept, record, warnings=tuple(warnings), grid=grid)
