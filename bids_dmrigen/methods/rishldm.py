"""RISH latent diffusion: a shell as a better scanner would show it (Zhu et al. 2024).

How strong the signal's spherical harmonics of each degree are is made anew, in a latent space; where they point stays.
`paper` is the paper's; `small`, the default, has a super-resolution that also sees what was measured and how noisy it
is, and adds to that.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.noise import NoiseSource
from ..diffusion.training import resolve_precision
from ..dwi.gradients import distinct
from ..dwi.harmonics import harmonics, order_for
from ..dwi.noise import shell_sigma
from ..dwi.series import Scan, ScanError
from ..dwi.spline import resampled
from ..nets.rish_ldm import RishLDM, RishLDMSpec
from ..nets.unet import UNetSpec
from ..nets.vqvae import VQVAESpec
from .base import Citation, Generated, MethodSpec, Request, finer_grid, sampling_record, with_weights
from .rishldm_examples import BVALS
from .rishldm_inputs import DEGREES, ORDER, TOLD, Shell, fitted, on_grid, scales, signals
from .rishldm_stages import LEVELS, STAGES, known_for, refined, times_of, translate

LEAST = 6  # directions that determine harmonics of degree 2
GOOD = 15  # and of degree 4
FAST_STEPS, PAPER_STEPS = 4, 50  # there, and as many back
MARGIN = 8  # voxels around the brain that the networks see
SLAB_VOXELS = 1_000_000  # that super-resolution works on at a time
TRUST = (0.25, 0.9, 1.0)  # in the change of each degree's strength; see docs/decisions.md
SIZES = {
    "small": RishLDMSpec(
        VQVAESpec(widths=(32,)),
        UNetSpec(32, 32, base=32, multipliers=(1, 2, 2), blocks=1, attention=(2,), groups=8, heads=4, context=32,
                 dims=3),
        told=TOLD["small"],
    ),
    "paper": RishLDMSpec(
        VQVAESpec(widths=(256, 256)),
        UNetSpec(32, 32, base=128, multipliers=(1, 2, 3, 4), blocks=2, attention=(2, 3), heads=8, context=128, dims=3),
        width=64,
    ),
}  # fmt: skip

TOO_FEW = "b = {bval:.0f} s/mm² has {found} different directions, RISH features need {least}: it was left as it is"
NOTHING = "{title} needs a shell with at least {least} different directions; most found on one: {found}"
NO_DEGREE_4 = "b = {bval:.0f} s/mm²: {found} directions do not determine harmonics of degree 4, which take {needed}"
UNTRAINED_B = "b = {bval:.0f} s/mm² lies outside what the weights were trained on, {low:.0f} to {high:.0f}"


class RishSpec(MethodSpec):
    """Of a method that changes the RISH features of shells."""

    def check(self, scan: Scan) -> list[str]:
        warnings = super().check(scan)
        shells = [(bval, len(distinct(scan.gradients.bvecs[volumes]))) for bval, volumes in scan.gradients.shells()]
        if all(found < LEAST for _, found in shells):
            found = max((found for _, found in shells), default=0)
            raise ScanError(NOTHING.format(title=self.title, least=LEAST, found=found))
        for bval, found in shells:
            if found < LEAST:
                warnings.append(TOO_FEW.format(bval=bval, found=found, least=LEAST))
            elif not BVALS[0] <= bval <= BVALS[1]:
                warnings.append(UNTRAINED_B.format(bval=bval, low=BVALS[0], high=BVALS[1]))
        return warnings


class RishLatentDiffusion:
    """RISH latent diffusion.

    `Request.options`: `voxel_mm`, edge of the result's voxels; None for the scan's own.
    """

    spec = RishSpec(
        name="rishldm",
        title="RISH latent diffusion",
        summary=(
            "makes the strength of the signal's spherical harmonics anew, as a scanner of higher field would show it, "
            "by a latent diffusion model, and keeps where they point"
        ),
        citation=Citation(
            key="zhu2024rish",
            text=(
                "Zhu X, Zhang W, Li Y, O'Donnell LJ, Zhang F (2024). When Diffusion MRI Meets Diffusion Model: A Novel "
                "Deep Generative Model for Diffusion MRI Generation. MICCAI 2024. arXiv:2408.12897"
            ),
            bibtex=(
                "@inproceedings{zhu2024rish,\n"
                "  title = {When Diffusion {MRI} Meets Diffusion Model: A Novel Deep Generative Model for Diffusion "
                "{MRI} Generation},\n"
                "  author = {Zhu, Xi and Zhang, Wei and Li, Yijie and O'Donnell, Lauren J. and Zhang, Fan},\n"
                "  booktitle = {Medical Image Computing and Computer Assisted Intervention},\n  year = {2024},\n"
                "  eprint = {2408.12897},\n  archivePrefix = {arXiv}\n}"
            ),
        ),
        min_directions=LEAST,
        good_directions=GOOD,
        needs_weights=True,
        finer="may",
        samplers={
            "paper": f"DDIM inversion and DDIM, {PAPER_STEPS} steps each",
            "fast": f"DDIM inversion and DDIM, {FAST_STEPS} steps each",
        },
    )

    def network(self, size: str) -> RishLDM:
        """Return untrained networks, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RishLDM(SIZES[size])

    def configuration(self, size: str) -> dict[str, Any]:
        """Return what the networks of this size are built from and trained within."""
        return {**asdict(SIZES[size]), "bvals": list(BVALS), "directions_at_least": LEAST}

    def stages(self, net: RishLDM) -> list:
        """Return the four trainings, in order."""
        return [stage(net) for stage in STAGES]

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Make the shells of a scan anew with `net`, or with stored weights where there is none."""
        begun = time.monotonic()
        net, weights = with_weights(self, net, request)
        net = net.to(request.device).eval()
        warnings = self.spec.check(scan)
        steps = request.steps or (FAST_STEPS if request.sampler == "fast" else PAPER_STEPS)
        precision = resolve_precision(request.precision, request.device)
        maker = _Maker(net, scan, request, steps, precision)
        mean, std, scale, made_anew = maker.make()
        record = sampling_record(
            self.spec, request, weights, steps, precision, time.monotonic() - begun,
            evaluations=maker.evaluations, Scales=scale,
        )  # fmt: skip
        kept = ~made_anew & (maker.grid is None)
        return Generated(
            mean, std, scan.gradients, (), kept, record, warnings=tuple(warnings + maker.warnings), grid=maker.grid
        )


class _Box(NamedTuple):
    """The part of a scan that the networks see."""

    inside: tuple[slice, slice, slice]  # of the scan
    padding: tuple[int, ...]  # as `F.pad` takes it
    points: list[np.ndarray]  # of the result's grid in it, in its own voxel indices
    of_result: tuple[slice, slice, slice]  # where those are in the result


class _Maker:
    """Makes the shells of one scan."""

    def __init__(self, net: RishLDM, scan: Scan, request: Request, steps: int, precision: str):
        self.net, self.scan, self.request, self.precision = net, scan, request, precision
        self.times, self.evaluations, self.warnings = times_of(steps), 0, []
        self.points = [np.arange(float(n)) for n in scan.mask.shape]
        self.grid, edge = None, RishLatentDiffusion.spec.edge_mm(scan.zooms_mm, request.options.get("voxel_mm"))
        if edge is not None:
            self.points, self.grid = finer_grid(scan.mask, scan.affine, edge)
        self.box = self._box()
        self.world = scan.gradients.world_directions(scan.affine)

    @torch.no_grad()
    def make(self) -> tuple[np.ndarray, np.ndarray | None, dict[str, list[float]], np.ndarray]:
        """Return the series, its spread (of several samples), each shell's mean scales, and which volumes are new."""
        n, told = self.request.n_samples, {}
        series = torch.from_numpy(np.asarray(self.scan.data, np.float32)).permute(3, 0, 1, 2)
        series = series if self.grid is None else resampled(series, self.points).clamp_min(0)
        spread = torch.zeros_like(series) if n > 1 else None
        series = series.clone() if self.grid is None else series
        made_anew = np.zeros(len(series), bool)
        for bval, volumes in self.scan.gradients.shells():
            if self._directions(volumes) < LEAST:
                continue
            made_anew[volumes] = True
            mean, std, told[f"b={bval:.0f}"] = self._shell(bval, volumes, n)
            inside = self._mask()
            for volume, m, s in zip(volumes.tolist(), mean, std if n > 1 else mean, strict=True):
                part = series[volume][self.box.of_result]
                part.copy_(torch.where(inside, m, part))
                if spread is not None:
                    spread[volume][self.box.of_result] = s * inside
        arrays = [None if x is None else x.permute(1, 2, 3, 0).contiguous().numpy() for x in (series, spread)]
        return arrays[0], arrays[1], told, made_anew

    def _shell(self, bval: float, volumes: np.ndarray, n: int) -> tuple[Tensor, Tensor | None, list[float]]:
        """Return mean and spread (N, P, Q, R) of a shell's volumes in the box, and the mean scales."""
        shell, b0, lowest = self._fitted(bval, volumes)
        if not shell.determined[0, 2]:
            self.warnings.append(NO_DEGREE_4.format(bval=bval, found=self._directions(volumes), needed=GOOD))
        basis = harmonics(torch.as_tensor(self.world[volumes], dtype=torch.float32), ORDER).to(self.request.device)
        b0, lowest = (resampled(image, self.box.points).clamp_min(0) for image in (b0, lowest))
        total = squares = 0.0
        mean_scale = torch.zeros(len(DEGREES))
        for sample in range(n):
            made, found = self._sample(shell, bval, basis, sample if n > 1 else None)
            # Between the directions of a few, harmonics swing below anything that was measured.
            made = torch.maximum(made * b0, lowest)
            total, squares, mean_scale = total + made, squares + made.square(), mean_scale + found / n
            if self.request.progress is not None:
                self.request.progress(f"samples at b = {bval:.0f} s/mm²", sample + 1, n)
        mean = total / n
        std = ((squares / n - mean.square()).clamp_min(0) * (n / (n - 1))).sqrt() if n > 1 else None
        return mean, std, [round(float(s), 4) for s in mean_scale]

    def _sample(self, shell: Shell, bval: float, basis: Tensor, sample: int | None) -> tuple[Tensor, Tensor]:
        """Return S / S0 (N, P, Q, R) of a shell in the box, and the mean scale (3,) in the brain."""
        device = self.request.device
        low = shell.features
        noise = None if sample is None else self._noise(bval, sample, low)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            made = translate(self.net, low, self.times, noise).float()
        self.evaluations += sum(
            len(times) * (1 + (level.guidance != 0) + (noise is None))
            for times, level in zip(self.times, LEVELS, strict=True)
        )
        trust = torch.tensor(TRUST, device=device)[:, None, None, None]
        parts, sums, voxels = [], torch.zeros(len(DEGREES)), 0
        for first, last, halo in self._slabs():
            points = [*self.box.points[:2], self.box.points[2][halo]]
            part = on_grid(shell, points)
            known = known_for(self.net, part)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                found = refined(self.net, resampled(made, points), known).float()
            scale = 1 + trust * (scales(found, part.coefficients, part.determined) - 1)
            own = slice(first - halo.start, last - halo.start)
            scale, coefficients = scale[..., own], part.coefficients[..., own]
            parts.append(signals(coefficients, scale, basis)[0].cpu())
            inside = part.mask[0, ..., own]
            sums += (scale[0] * inside).sum(dim=(1, 2, 3)).cpu()
            voxels += int(inside.sum())
        return torch.cat(parts, dim=3), sums / max(voxels, 1)

    def _fitted(self, bval: float, volumes: np.ndarray) -> tuple[Shell, Tensor, Tensor]:
        """Return a shell's harmonics in the padded box, and the b0 and the lowest volume (X, Y, Z) there."""
        scan, device = self.scan, self.request.device

        def block(values: np.ndarray) -> Tensor:  # (X, Y, Z[, N]) -> (1[, N], x, y, z)
            part = torch.from_numpy(np.ascontiguousarray(values[self.box.inside], dtype=np.float32)).to(device)
            part = part[None] if part.ndim == 3 else part.permute(3, 0, 1, 2)[None]
            return F.pad(part, self.box.padding)

        b0, one = block(scan.mean_b0()), torch.ones(1, device=device)
        bvecs = torch.as_tensor(self.world[volumes], dtype=torch.float32, device=device)[None]
        sigma = shell_sigma(scan, volumes) * one
        count = int(scan.gradients.is_b0.sum()) * one
        dwis, mask = block(scan.data[..., volumes]), block(scan.mask) > 0.5
        size = torch.as_tensor(scan.zooms_mm, dtype=torch.float32, device=device)[None]
        order = order_for(self._directions(volumes), ORDER)
        shell = fitted(b0, dwis, bvecs, bval * one, sigma, count, mask, size, order)
        return shell, b0[0].cpu(), dwis[0].amin(dim=0).cpu()

    def _directions(self, volumes: np.ndarray) -> int:
        """Return how many different directions some volumes have."""
        return len(distinct(self.scan.gradients.bvecs[volumes]))

    def _noise(self, bval: float, sample: int, low: Tensor):
        """Return degree -> noise for the latents of features (1, 3, x, y, z)."""
        r, spec = self.request, self.net.spec.autoencoder
        shape = (spec.code_width, *(n // spec.divisor for n in low.shape[2:]))

        def noise(degree: int) -> Tensor:
            return NoiseSource(r.seed, r.subject, r.run, "rishldm", [(round(bval), degree, sample)], shape, r.device)(0)

        return noise

    def _box(self) -> _Box:
        """Return the brain with a margin; the networks' divisor is reached by zeros beyond it."""
        corners = np.argwhere(self.scan.mask)
        low = np.maximum(corners.min(axis=0) - MARGIN, 0)
        high = np.minimum(corners.max(axis=0) + 1 + MARGIN, self.scan.mask.shape)
        divisor = self.net.spec.divisor
        missing = [-int(b - a) % divisor for a, b in zip(low, high, strict=True)]
        padding = tuple(n for m in reversed(missing) for n in (0, m))
        own, of_result = [], []
        for a, b, points in zip(low, high, self.points, strict=True):
            within = np.flatnonzero((points > a - 0.5) & (points < b - 0.5))
            own.append(points[within] - a)
            of_result.append(slice(int(within[0]), int(within[-1]) + 1))
        return _Box(
            tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), padding, own, tuple(of_result)
        )

    def _mask(self) -> Tensor:
        """Return the brain (P, Q, R) on the result's grid in the box."""
        mask = torch.from_numpy(self.scan.mask[self.box.inside].astype(np.float32))
        return resampled(mask, self.box.points) > 0.5

    def _slabs(self):
        """Yield the first and last layer of the result's slabs in the box, and the layers that they depend on."""
        nx, ny, nz = (len(p) for p in self.box.points)
        reach = self.net.refiner.reach
        size = max(SLAB_VOXELS // (nx * ny), 1)
        for first in range(0, nz, size):
            last = min(first + size, nz)
            yield first, last, slice(max(first - reach, 0), min(last + reach, nz))
