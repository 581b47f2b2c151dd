"""The networks of RISH latent diffusion, and the generation of shells; see `rishldm` and `stages`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.arrays import Prepared
from ...diffusion.numerics import autocast
from ...dwi.gradients import LEAST_DIRECTIONS, distinct, even_subset
from ...dwi.harmonics import SMOOTHING, harmonics, order_for
from ...dwi.noise import shell_sigma
from ...dwi.rish import LEAST_B0
from ...dwi.series import Scan, ScanError
from ...dwi.spline import resampled
from ...dwi.tensor import WELL_CONDITIONED, condition
from ...nets.rish_ldm import RishLDM, RishLDMSpec
from ...nets.unet import UNetSpec
from ...nets.vqvae import VQVAESpec
from ..base import Generated, Request, Trainable
from ..making import Making
from ..starts import mean_start
from .examples import ZOOMS
from .grid import finer_grid
from .inputs import CONDITION_CHANNELS, DEGREES, ORDER, Shell, cross_power, features, fitted, on_grid, scales, signals
from .pairs import MeasuredPairs
from .rishldm import FAST_STEPS, PAPER_STEPS, SPEC
from .stages import STAGES, Stage, condition_for, levels_of, refined, times_of, translate
from .task import BVALS, GOOD, VOXEL_SIZE, RishSpec

STEPS = (2 * PAPER_STEPS, 2 * FAST_STEPS, 2 * FAST_STEPS)  # evaluations
MARGIN = 8  # voxels around the brain that the networks see
SLAB_VOXELS = 1_000_000  # voxels that super-resolution works on at a time
START, NETWORK = torch.tensor([[1.0, 0.0]] * len(DEGREES)), torch.tensor([[0.0, 1.0]] * len(DEGREES))  # shares of both
PAIRS = "prepared scans"  # in the record of weights that were trained on pairs of scans
SIZES = {
    "small": RishLDMSpec(
        VQVAESpec(widths=(32,)),
        UNetSpec(32, 32, base=32, multipliers=(1, 2, 2), blocks=1, attention=(2,), groups=8, heads=4, context=32,
                 dims=3),
        told=CONDITION_CHANNELS["small"],
    ),
    "paper": RishLDMSpec(
        VQVAESpec(widths=(256, 256)),
        UNetSpec(32, 32, base=128, multipliers=(1, 2, 3, 4), blocks=2, attention=(2, 3), heads=8, context=128, feed=4,
                 dims=3),
        width=64,
    ),
}  # fmt: skip

NO_DEGREE_4 = "b = {bval:.0f} s/mm²: {found} directions do not determine harmonics of degree 4, which take {needed}"
NOTHING_SHOWN = (
    "b = {bval:.0f} s/mm²: half of the directions determines no tensor, and cannot show what of the change is right; "
    "the result is the denoised series"
)
NO_BRAIN = "{title}: no voxel of the brain mask has signal at b = 0; check the mask and the b0s"
NO_GOOD = f"{SPEC.title} is trained on pairs: give the scans of a better scanner too"
FINER_THAN_TRAINED = (
    "voxels are {found:.1f} times smaller than the scan's along an axis; the weights know {most:g} at most"
)


class RishLatentDiffusion(Trainable):
    """RISH latent diffusion.

    `Request.options`: `voxel_mm`, edge of the result's voxels, None for the scan's own; `guidance` and `noise`, three
    numbers each, for degrees 0, 2 and 4.
    """

    spec: RishSpec = SPEC
    steps = STEPS

    def network(self, size: str) -> nn.Module:
        """Return untrained networks, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RishLDM(SIZES[size])

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture of this size and the range of the training data."""
        return {**asdict(SIZES[size]), "bvals": list(BVALS), "directions_at_least": LEAST_DIRECTIONS}

    def trainings(self, net: nn.Module) -> list[Stage]:
        """Return the four trainings, in order."""
        size = "small" if cast("RishLDM", net).spec.told else "paper"
        return [stage(cast("RishLDM", net), size) for stage in STAGES]

    def batch(self, size: str) -> int:
        """Return the examples per step; the paper gives no number, and its GPU had memory for one whole brain."""
        return 1 if size == "paper" else 32

    def measured(self, scans: Prepared, good: Prepared | None = None) -> MeasuredPairs:
        """Return pairs of prepared scans: each poor scan and the good scan of the same subject.

        Raises
        ------
        ValueError
            Where the good scans are missing.
        """
        if good is None:
            raise ValueError(NO_GOOD)
        return MeasuredPairs(scans, good)

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Generate the shells of a scan with `net`, or with stored weights where `net` is None."""
        making: Making[RishLDM] = Making(self, net, replace(request, n_samples=1), self.steps)
        warnings = self.spec.check(scan)
        maker = _Maker(self, making, scan)
        mean, scale, changed = maker.make()
        shares = {f"b={bval:.0f}": [[round(x, 3) for x in s] for s in s.tolist()] for bval, s in maker.shares.items()}
        record = self.record(maker, Scales=scale, SharesOfStartAndNetwork=shares)
        kept = ~changed & (maker.grid is None)
        return Generated(
            mean, None, scan.gradients, (), kept, record, warnings=tuple(warnings + maker.warnings), grid=maker.grid
        )

    def translated(self, maker: _Maker, low: Tensor) -> Tensor:
        """Return features (1, 3, x, y, z) as the diffusion makes them of those of the scan."""
        with autocast(low.device, maker.precision):
            return translate(maker.net, low, maker.levels, maker.times).float()

    def record(self, maker: _Maker, **more: Any) -> dict[str, Any]:
        """Return how the result was made, for `Generated.record`."""
        guidance, noise = ([getattr(level, name) for level in maker.levels] for name in ("guidance", "time"))
        return maker.making.record(maker.evaluations, Guidance=guidance, NoiseTimes=noise, **more)


class _Box(NamedTuple):
    """The part of a scan that the networks see."""

    inside: tuple[slice, slice, slice]  # in the scan
    padding: tuple[int, ...]  # as `F.pad` takes it
    points: list[np.ndarray]  # points of the result's grid, in voxel indices of the part
    of_result: tuple[slice, slice, slice]  # the same points in the result


class _Piece(NamedTuple):
    """A slab of a shell on the result's grid in the box."""

    coefficients: Tensor  # (1, 15, P, Q, r) of the start, relative to S0
    scale: Tensor  # (1, 3, P, Q, r) what the network says the strength of each degree is to be multiplied by
    inside: Tensor  # (P, Q, r) the brain


class _Maker:
    """Generates the shells of one scan."""

    def __init__(self, method: RishLatentDiffusion, making: Making[RishLDM], scan: Scan):
        self.method, self.making = method, making
        self.net, self.scan, self.request, self.precision = making.net, scan, making.request, making.precision
        self.levels, self.warnings = levels_of(self.request.options), []
        self.times = times_of(making.steps, self.levels)
        # Per image: the features of each degree are separate images.
        self.evaluations = max(len(times) * level.cost for times, level in zip(self.times, self.levels, strict=True))
        self.brain = _with_b0(scan)
        self.shares: dict[float, Tensor] = {}  # (3, 2) by b-value; see `shares_of`
        self.points = [np.arange(float(n)) for n in scan.mask.shape]
        self.grid, edge = None, method.spec.edge_mm(scan.zooms_mm, self.request.options.get(VOXEL_SIZE.key))
        if edge is not None:
            self.points, self.grid = finer_grid(scan.mask, scan.affine, edge)
            ratio, most = max(scan.zooms_mm) / edge, max(map(max, ZOOMS))
            if ratio > most + 0.05:
                self.warnings.append(FINER_THAN_TRAINED.format(found=ratio, most=most))
        self.box = self._box()
        self.world = scan.gradients.world_directions(scan.affine)

    @torch.no_grad()
    def make(self) -> tuple[np.ndarray, dict[str, list[float]], np.ndarray]:
        """Return the series, each shell's mean scales, and which volumes are new."""
        mean_scales = {}
        series = torch.from_numpy(np.asarray(self.scan.data, np.float32)).permute(3, 0, 1, 2)
        series = series if self.grid is None else resampled(series, self.points).clamp_min(0)
        series = series.clone() if self.grid is None else series
        changed, inside = np.zeros(len(series), bool), self._inside()
        for bval, volumes in self.scan.gradients.shells():
            if self._directions(volumes) < LEAST_DIRECTIONS:
                continue
            changed[volumes] = True
            generated, mean_scales[f"b={bval:.0f}"] = self._shell(bval, volumes)
            for volume, image in zip(volumes.tolist(), generated, strict=True):
                part = series[volume][self.box.of_result]
                part.copy_(torch.where(inside, image, part))
        return series.permute(1, 2, 3, 0).contiguous().numpy(), mean_scales, changed

    def _shell(self, bval: float, volumes: np.ndarray) -> tuple[Tensor, list[float]]:
        """Return a shell's new volumes (N, P, Q, R) in the box, and the mean scales in the brain."""
        pieces = list(self.pieces(bval, volumes))
        shares = self.shares[bval] = self._shares(pieces, bval, volumes)
        lowest = self.scan.data[..., volumes].min(axis=3)
        b0, start, lowest = map(self.on_result, (self.scan.mean_b0(), self.start[..., volumes], lowest))
        if torch.equal(shares, START):
            self.warnings.append(NOTHING_SHOWN.format(bval=bval))
            return start, [1.0] * len(DEGREES)
        basis = harmonics(torch.as_tensor(self.world[volumes], dtype=torch.float32), ORDER)
        of_start, of_network = shares.reshape(len(DEGREES), 2, 1, 1, 1).unbind(dim=1)
        changes, sums, voxels = [], torch.zeros(len(DEGREES)), 0
        for piece in pieces:
            scale = (of_start + of_network * piece.scale.square()).sqrt()
            changes.append(signals(piece.coefficients, scale - 1, basis)[0])
            sums += (scale[0] * piece.inside).sum(dim=(1, 2, 3))
            voxels += int(piece.inside.sum())
        # Harmonics of few directions can fall below all measured values between the directions.
        series = torch.maximum(start + torch.cat(changes, dim=3) * b0, lowest)
        return series, [round(float(s), 4) for s in sums / max(voxels, 1)]

    @cached_property
    def start(self) -> np.ndarray:
        """(X, Y, Z, N) the denoised series, whose harmonics are changed."""
        return mean_start(self.scan)

    def _shares(self, pieces: Sequence[_Piece], bval: float, volumes: np.ndarray) -> Tensor:
        """Return the shares (3, 2) of start and network in the strength of each degree; see `shares_of`.

        The acquired directions are parted into two halves, whose noise is independent. Where half of the directions
        determines no tensor, the start stays. Degree 4 takes more directions, and is mostly noise in the start: where
        the halves do not determine it, the network alone counts. So it does with weights that were trained on pairs of
        scans: what they make is not what this scanner would acquire.
        """
        if PAIRS in str(self.making.weights.get("TrainedOn", {}).get("examples", "")):
            return NETWORK.clone()
        chosen = even_subset(self.scan.gradients.bvecs[volumes], len(volumes) // 2)
        halves = volumes[chosen], np.delete(volumes, chosen)
        if max(condition(self.scan.gradients.bvecs[half]) for half in halves) > WELL_CONDITIONED:
            return START.clone()
        # Without smoothing, as many coefficients as directions would be little but noise.
        fewest = min(self._directions(half) for half in halves)
        fits = (self._fitted(self.scan.data, bval, half, order_for(2 * fewest // 3, ORDER), 0) for half in halves)
        first, second = (on_grid(fit, self.box.points) for fit in fits)
        common = cross_power(first.coefficients, second.coefficients).cpu()[0]
        coefficients, scale, inside = (torch.cat(parts, dim=-1) for parts in zip(*pieces, strict=True))
        known = (first.determined[0] * second.determined[0]).reshape(-1, 1).cpu() > 0
        return torch.where(known, shares_of(features(coefficients)[0].square(), scale[0], common, inside), NETWORK)

    def pieces(self, bval: float, volumes: np.ndarray) -> Iterator[_Piece]:
        """Yield a shell slab by slab, in the order of the result's layers in the box."""
        shell = self._fitted(self.scan.data, bval, volumes)
        start = self._fitted(self.start, bval, volumes)
        if not shell.determined[0, 2]:
            self.warnings.append(NO_DEGREE_4.format(bval=bval, found=self._directions(volumes), needed=GOOD))
        translated = self.method.translated(self, shell.features)
        slabs = list(self._slabs())
        for done, (first, last, halo) in enumerate(slabs):
            points = [*self.box.points[:2], self.box.points[2][halo]]
            part, inner = on_grid(shell, points), slice(first - halo.start, last - halo.start)
            condition = condition_for(self.net, part)
            with autocast(self.request.device, self.precision):
                wanted = refined(self.net, resampled(translated, points), condition).float()
            coefficients = on_grid(start, points).coefficients
            scale = scales(wanted, coefficients, part.determined)
            yield _Piece(*(x[..., inner].cpu() for x in (coefficients, scale, part.mask[0])))
            if self.request.progress is not None:
                self.request.progress(f"slabs at b = {bval:.0f} s/mm²", done + 1, len(slabs))

    def block(self, values: np.ndarray) -> Tensor:
        """Return an image or a series (X, Y, Z[, N]) in the padded box, (1[, N], x, y, z)."""
        part = torch.from_numpy(np.ascontiguousarray(values[self.box.inside], dtype=np.float32)).to(self.request.device)
        part = part[None] if part.ndim == 3 else part.permute(3, 0, 1, 2)[None]
        return F.pad(part, self.box.padding)

    def on_result(self, values: np.ndarray) -> Tensor:
        """Return an image or a series (X, Y, Z[, N]) on the result's grid in the box, ([N,] P, Q, R)."""
        return resampled(self.block(values)[0].cpu(), self.box.points).clamp_min(0)

    def _fitted(
        self, data: np.ndarray, bval: float, volumes: np.ndarray, order: int | None = None, smoothing: float = SMOOTHING
    ) -> Shell:
        """Return the harmonics of a shell of a series in the padded box."""
        scan, device = self.scan, self.request.device
        b0, one = self.block(scan.mean_b0()), torch.ones(1, device=device)
        bvecs = torch.as_tensor(self.world[volumes], dtype=torch.float32, device=device)[None]
        sigma = shell_sigma(scan, volumes) * one
        count = int(scan.gradients.is_b0.sum()) * one
        dwis, mask = self.block(data[..., volumes]), self.block(self.brain) > 0.5
        size = torch.as_tensor(scan.zooms_mm, dtype=torch.float32, device=device)[None]
        order = order_for(self._directions(volumes), ORDER) if order is None else order
        return fitted(b0, dwis, bvecs, bval * one, sigma, count, mask, size, order, smoothing)

    def _directions(self, volumes: np.ndarray) -> int:
        """Return how many different directions some volumes have."""
        return len(distinct(self.scan.gradients.bvecs[volumes]))

    def _box(self) -> _Box:
        """Return the brain with a margin, padded with zeros to a multiple of the networks' divisor."""
        corners = np.argwhere(self.brain)
        low = np.maximum(corners.min(axis=0) - MARGIN, 0)
        high = np.minimum(corners.max(axis=0) + 1 + MARGIN, self.brain.shape)
        divisor = self.net.spec.divisor
        missing = [-int(b - a) % divisor for a, b in zip(low, high, strict=True)]
        padding = tuple(n for m in reversed(missing) for n in (0, m))
        box_points, of_result = [], []
        for a, b, points in zip(low, high, self.points, strict=True):
            within = np.flatnonzero((points > a - 0.5) & (points < b - 0.5))
            box_points.append(points[within] - a)
            of_result.append(slice(int(within[0]), int(within[-1]) + 1))
        x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return _Box((x, y, z), padding, box_points, (of_result[0], of_result[1], of_result[2]))

    def _inside(self) -> Tensor:
        """Return where the result is new: bool (P, Q, R), on its grid in the box."""
        brain = torch.from_numpy(self.brain[self.box.inside].astype(np.float32))
        return resampled(brain, self.box.points) > 0.5

    def _slabs(self) -> Iterator[tuple[int, int, slice]]:
        """Yield first and last layer (exclusive) of the result's slabs in the box, and the layers they depend on."""
        nx, ny, nz = (len(p) for p in self.box.points)
        reach = self.net.refiner.reach
        size = max(SLAB_VOXELS // (nx * ny), 1)
        for first in range(0, nz, size):
            last = min(first + size, nz)
            yield first, last, slice(max(first - reach, 0), min(last + reach, nz))


def shares_of(power: Tensor, scale: Tensor, common: Tensor, inside: Tensor) -> Tensor:
    """Return how much of the start's strength and of the network's the result has, (3, 2): not negative.

    With e = |C_l|² of the start, e' that of the network, and y what two halves of the directions have in common, the
    result has |C_l|² = a e + b e'. a and b minimise sum (y - a e - b e')² / (e + the median of e): errors of y grow
    with e. The noise of each half is in y only as a product with that of the other, and adds nothing to its mean.

    Parameters
    ----------
    power, scale, common
        (3, X, Y, Z) e, the factor of |C_l| that leads to e', and y; see `inputs.cross_power`.
    inside
        (X, Y, Z) the brain.
    """
    from scipy.optimize import nnls  # here: machines that only train do not have it

    found = []
    for e, factor, y in zip(power, scale, common, strict=True):
        e, factor, y = (values[inside > 0].double().numpy() for values in (e, factor, y))
        root = 1 / np.sqrt(e + np.median(e) + 1e-6)
        found.append(nnls(np.stack([e, e * factor**2], axis=1) * root[:, None], y * root)[0])
    return torch.tensor(np.array(found), dtype=torch.float32)


def _with_b0(scan: Scan) -> np.ndarray:
    """Return the brain (X, Y, Z) without voxels with almost no b0 signal, where S / S0 has no meaning."""
    b0 = scan.mean_b0()
    brain = scan.mask & (b0 > LEAST_B0 * (b0[scan.mask].mean() if scan.mask.any() else 0))
    if not brain.any():
        raise ScanError(NO_BRAIN.format(title=SPEC.title))
    return brain


def build() -> RishLatentDiffusion:
    """Return the method."""
    return RishLatentDiffusion()
