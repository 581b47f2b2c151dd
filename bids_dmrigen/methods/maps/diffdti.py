"""Diff-DTI: FA, MD and colour FA from three to six directions by a joint diffusion model (Zhang et al. 2024).

`paper` is the paper's: the maps are made from noise, beside the images. `small`, the default, is also told what a ridge
fit says of the tensor, how noisy that is and which directions it stands on, and makes the maps' difference from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.numerics import autocast, resolve_precision
from ...diffusion.samplers import dpm_solver_pp_2m, karras_times, predictor_corrector
from ...diffusion.training import Plan, fixed_score
from ...dwi.gradients import GradientTable, distinct, even_subset
from ...dwi.noise import shell_sigma
from ...dwi.series import Scan, ScanError
from ...nets.fefm import FENSpec, FusedUNet
from ...nets.unet import UNetSpec
from ...simulate.examples import People, numbers_of_step
from ..base import Citation, Generated, MethodSpec, Request, sampling_record, with_weights
from .examples import BVALS, PROCESS, Batch, examples
from .inputs import CHANNELS, IMAGES, LEAST, MAPS, MD_UNIT, MOST, NUMBERS, Known, known_of, noise_levels

MEAN_STEPS, FAST_STEPS, PAPER_STEPS = 1, 24, 1000  # the paper's evaluate twice
CORRECTOR_SNR = 0.075
SLICES_AT_ONCE = 8
CALIBRATION_BATCH, CALIBRATION_SAMPLES = 16, 16
FEWEST_VOXELS = 200  # for a tissue to have factors of its own
TISSUES = ("white matter", "grey matter", "CSF")  # by the maps
WHITE_FA, FLUID_MD = 0.25, 1.5e-3  # above which it is white matter, and (mm²/s) fluid
NORMAL_90 = 1.645  # half a 90 % interval of a normal distribution, standard deviations
FA_TRUST = (1.0, 0.5)  # in the network's correction of FA and colour, from three and from six directions
MD_TRUST = 0.2
MARGIN = 4  # voxels around the brain that the network sees
BEST_B = 1000.0  # s/mm²: of several shells the nearest to it is used
SIZES = {
    "small": UNetSpec(CHANNELS + IMAGES, CHANNELS, base=24, multipliers=(1, 2, 3, 4), blocks=1, attention=(3,),
                      groups=0, bottom=False, heads=4, zero_output=True),
    "paper": UNetSpec(CHANNELS + 1 + MOST, CHANNELS, base=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(2,)),
}  # fmt: skip
FEN = {
    "small": FENSpec(),
    "paper": FENSpec(patch=16, width=512, layers=6, heads=8, directions=False),
}
TOO_FEW = "Diff-DTI needs at least {least} different directions on a shell, found {found}"
UNTRAINED_B = "b = {bval:.0f} s/mm² lies outside what the weights were trained on, {low:.0f} to {high:.0f}"
NOT_ALL = "{used} of {found} directions at b = {bval:.0f} s/mm² were used; see Volumes in the sidecar"


class _Spec(MethodSpec):
    def check(self, scan: Scan) -> list[str]:
        warnings = super().check(scan)
        # Three volumes may be of one direction, or of three shells.
        bval, volumes, found = choose_volumes(scan.gradients)
        if len(volumes) < found:
            warnings.append(NOT_ALL.format(used=len(volumes), found=found, bval=bval))
        if not BVALS[0] <= bval <= BVALS[1]:
            warnings.append(UNTRAINED_B.format(bval=bval, low=BVALS[0], high=BVALS[1]))
        return warnings


class DiffDTI:
    """Diff-DTI. `Request.options`: none."""

    spec = _Spec(
        name="diffdti",
        title="Diff-DTI",
        summary=(
            "makes fractional anisotropy, mean diffusivity and colour FA jointly from a b0 and three to six directions "
            "by a diffusion model"
        ),
        citation=Citation(
            key="zhang2024diffdti",
            text=(
                "Zhang L, He J, Liang D, Zheng H, Zhu Y (2024). Diff-DTI: Fast Diffusion Tensor Imaging Using A "
                "Feature-Enhanced Joint Diffusion Model. arXiv:2405.15830"
            ),
            bibtex=(
                "@article{zhang2024diffdti,\n"
                "  title = {{Diff-DTI}: Fast Diffusion Tensor Imaging Using A Feature-Enhanced Joint Diffusion "
                "Model},\n"
                "  author = {Zhang, Lang and He, Jinling and Liang, Dong and Zheng, Hairong and Zhu, Yanjie},\n"
                "  year = {2024},\n  eprint = {2405.15830},\n  archivePrefix = {arXiv}\n}"
            ),
        ),
        min_directions=LEAST,
        good_directions=LEAST,
        needs_weights=True,
        maps=MAPS,
        samplers={
            "paper": "predictor-corrector",
            "fast": "DPM-Solver++(2M)",
            "mean": "none: the mean of the distribution, estimated from noise alone",
        },
    )

    def network(self, size: str, fefm: bool = True) -> FusedUNet:
        """Return an untrained network, always the same; without FEFM it is the paper's ablation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = FusedUNet(SIZES[size], FEN[size] if fefm else None, NUMBERS if size == "small" else 0)
        # By how much samples' standard deviations are multiplied to be errors; see `calibrate`.
        net.register_buffer("spread", torch.ones(MOST - LEAST + 1, len(TISSUES), CHANNELS))
        return net

    def configuration(self, size: str) -> dict[str, Any]:
        """Return what the network of this size is built from and trained within."""
        return {**vars(SIZES[size]), "fen": vars(FEN[size]), "bvals": list(BVALS), "directions": [LEAST, MOST]}

    # -- training

    def plan(self, size: str) -> Plan:
        """Return the training's default budget and settings; `paper` has the paper's rate, clipping and average."""
        common = {"evaluate_every": 250, "patience": 1000, "save_every": 250, "ema": 0.999}
        if size == "paper":
            return Plan(steps=1_000_000, learning_rate=2e-4, warmup=0, **common)
        return Plan(steps=200_000, learning_rate=1e-3, warmup=200, **common)

    def examples(self, source: People | Prepared, size: str, batch: int, seed: int) -> Callable[[int], Batch]:
        """Return index -> batch of examples on the source's device."""
        return lambda index: examples(source, size, batch, numbers_of_step(seed, index, source.device))

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted mean squared error, in the network's units: of the noise (`paper`) or of the maps."""
        t = batch.t.reshape(-1, 1, 1, 1)
        x_t = PROCESS.add_noise(batch.x0, t, batch.noise)
        found = _raw(net, x_t, batch.t, batch.known)
        target = batch.noise
        if batch.known.with_fit:
            skip, out = _preconditioning(batch.t, x_t)
            target = (batch.x0 - skip * x_t) / out
        return ((found - target).square() * batch.weight).sum() / batch.weight.sum()

    def held_out(
        self, source: People | Prepared, size: str, seed: int, batches: int = 8
    ) -> Callable[[nn.Module], float]:
        """Return a score on fixed examples of people who are never trained on."""
        return fixed_score(self.examples(source, size, 32, seed), self.loss, batches)

    @torch.no_grad()
    def calibrate(self, net: FusedUNet, source: People | Prepared, size: str, seed: int, batches: int = 2) -> None:
        """Set the factors of the samples' spread so that a 90 % interval holds 90 % of the true values.

        The interval is the mean of `CALIBRATION_SAMPLES` samples plus and minus 1.645 of their standard deviations, the
        factor included; of people who were not trained on. Every number of directions and every tissue (as the mean
        shows it) has factors of its own, from so many `batches` of each number of directions.
        """
        make, times = self.examples(source, size, CALIBRATION_BATCH, seed + 1), _times("fast", FAST_STEPS)
        net.eval()
        found: dict[int, list[tuple[Tensor, Tensor]]] = {n: [] for n in range(LEAST, MOST + 1)}
        for index in count():
            if all(len(own) == batches for own in found.values()):
                break
            batch = make(index)
            own = found[batch.known.bvecs.shape[1]]
            if len(own) == batches:
                continue
            addresses = [(index, k, 0) for k in range(CALIBRATION_BATCH)]
            samples = []
            for sample in range(CALIBRATION_SAMPLES):
                noise = NoiseSource(
                    seed, "calibrate", str(sample), "diffdti", addresses, batch.x0.shape[1:], source.device
                )
                samples.append(consistent(draw(net, batch.known, "fast", times, noise, "fp32"))[0])
            samples, mean = torch.stack(samples), torch.stack(samples).mean(dim=0)
            truth, inside = batch.known.centre + batch.known.scale * batch.x0, batch.weight[:, 0] > 0
            ratio = (truth - mean).abs() / samples.std(dim=0).clamp_min(1e-6)
            own.append((ratio.movedim(1, 3)[inside], tissue(mean[:, 0], mean[:, 1] * MD_UNIT)[inside]))
        for n, own in found.items():
            ratios, tissues = (torch.cat(parts) for parts in zip(*own, strict=True))
            for k in range(len(TISSUES)):
                chosen = ratios[tissues == k] if (tissues == k).sum() >= FEWEST_VOXELS else ratios
                net.spread[n - LEAST, k] = chosen.float().quantile(0.9, dim=0) / NORMAL_90

    # -- generation

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Make the maps of a scan with `net`, or with stored weights where there is none."""
        begun = time.monotonic()
        net, weights = with_weights(self, net, request)
        net = net.to(request.device, memory_format=torch.channels_last).eval()
        warnings = self.spec.check(scan)
        bval, volumes, _ = choose_volumes(scan.gradients)
        steps = request.steps or _default_steps(request)
        # The largest sigma times a small error of bfloat16 would not be small.
        precision = resolve_precision(request.precision, request.device) if request.size == "small" else "fp32"
        maker = _Maker(net, scan, bval, volumes, request, steps, precision)
        mean, std, mismatch = maker.make()
        record = sampling_record(
            self.spec, request, weights, steps, precision, time.monotonic() - begun,
            evaluations=steps if request.sampler == "fast" else 2 * steps,
            Volumes={"b0": np.flatnonzero(scan.gradients.is_b0).tolist(), f"b={bval:.0f}": volumes.tolist()},
            NoiseLevel=[round(float(level), 4) for level in maker.noise],
        )  # fmt: skip
        if std is not None:
            own = np.round(net.spread[len(volumes) - LEAST].double().cpu().numpy(), 3)
            names = ("fa", "md", "dec")
            parts = np.split(own, [1, 2], axis=1)  # colour FA has three
            record["SpreadFactors"] = {
                name: {t: p[k].tolist() for k, t in enumerate(TISSUES)} for name, p in zip(names, parts, strict=True)
            }
        acquired = np.zeros(CHANNELS, bool)
        return Generated(mean, std, None, MAPS, acquired, record, {"colour_mismatch": mismatch}, tuple(warnings))


class _Maker:
    """Makes the maps of one scan, slice by slice."""

    def __init__(self, net, scan: Scan, bval: float, volumes: np.ndarray, request: Request, steps: int, precision: str):
        self.net, self.scan, self.request, self.precision = net, scan, request, precision
        self.volumes, self.bval = volumes, bval
        self.noise = self._noise()
        self.b0 = scan.mean_b0()
        self.unit = float(self.b0[scan.mask].mean())
        self.bvecs = torch.as_tensor(scan.gradients.world_directions(scan.affine)[volumes], dtype=torch.float32)
        self.times = _times(request.sampler, steps)
        self.box, self.slices = scan.brain_window(MARGIN)

    @torch.no_grad()  # inference mode would not reach the threads of the tensor maps
    def make(self) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Return mean and (of several samples) spread (X, Y, Z, 5), and how far colour FA and FA disagreed."""
        scan, request = self.scan, self.request
        mean = np.zeros((*scan.mask.shape, CHANNELS), np.float32)
        std = np.zeros_like(mean) if request.n_samples > 1 else None
        factor_of = self.net.spread[len(self.volumes) - LEAST].cpu()  # (tissues, 5)
        mismatch, voxels, done = 0.0, 0, 0
        for part in np.split(self.slices, range(SLICES_AT_ONCE, len(self.slices), SLICES_AT_ONCE)):
            known = self._known(part)
            inside = torch.from_numpy(np.ascontiguousarray(scan.mask[self.box][:, :, part])).permute(2, 0, 1)[:, None]
            samples = []
            for k in range(request.n_samples):
                maps, difference = consistent(self._sample(known, part, k))
                samples.append(maps * inside)
                mismatch += float((difference * inside[:, 0]).sum())
                voxels += int(inside.sum())
            samples = torch.stack(samples).permute(0, 3, 4, 1, 2)  # (samples, h, w, slices, 5)
            found = samples.mean(dim=0)
            mean[self.box][:, :, part] = found.numpy()
            if std is not None:
                factors = factor_of[tissue(found[..., 0], found[..., 1] * MD_UNIT)]
                std[self.box][:, :, part] = (samples.std(dim=0) * factors).numpy()
            done += len(part)
            if request.progress is not None:
                request.progress("slices", done, len(self.slices))
        for volume in (mean, std):
            if volume is not None:
                volume[..., 1] *= MD_UNIT
        return mean, std, mismatch / max(voxels, 1)

    def _noise(self) -> Tensor:
        """Return the noise levels (2,): the median over the slices."""
        data = torch.from_numpy(np.ascontiguousarray(self.scan.data[..., self.volumes], dtype=np.float32))
        levels = noise_levels(data.permute(2, 3, 0, 1), torch.from_numpy(self.scan.mask).permute(2, 0, 1))
        found = levels.nanmedian(dim=0).values
        if not found.isfinite().all():  # no slice shows enough brain
            found = torch.full((2,), shell_sigma(self.scan, self.volumes))
        return found

    def _known(self, part: np.ndarray) -> Known:
        """Return what is known of some slices."""
        around = np.clip(part[:, None] + [-1, 0, 1], 0, self.scan.mask.shape[2] - 1)  # (S, 3)

        def block(volume: np.ndarray) -> Tensor:  # (h, w, S, 3, ...)
            return torch.from_numpy(np.ascontiguousarray(volume[self.box][:, :, around], dtype=np.float32))

        device, n = self.request.device, len(part)
        return known_of(
            block(self.b0).permute(2, 0, 1, 3).to(device),
            block(self.scan.data[..., self.volumes]).permute(2, 4, 0, 1, 3).to(device),
            self.bvecs.to(device).expand(n, -1, -1),
            torch.full((n,), self.bval, device=device),
            self.noise.to(device).expand(n, -1),
            torch.full((n,), self.unit, device=device),
            self.request.size,
        )

    def _sample(self, known: Known, part: np.ndarray, sample: int) -> Tensor:
        """Return one sample (S, 5, h, w) of the maps of some slices, MD in units of `MD_UNIT`."""
        request = self.request
        addresses = [(0, int(z), sample) for z in part]
        shape = (CHANNELS, *known.centre.shape[2:])
        noise = NoiseSource(request.seed, request.subject, request.run, "diffdti", addresses, shape, request.device)
        return draw(self.net, known, request.sampler, self.times, noise, self.precision).cpu()


def draw(
    net: nn.Module, known: Known, sampler: str, times: Sequence[int], noise: Callable[[int], Tensor], precision: str
) -> Tensor:
    """Return maps (S, 5, H, W) as the network makes them from noise: MD in units of `MD_UNIT`, colour FA of any length.

    Parameters
    ----------
    net
        In evaluation mode.
    known
        Of S slices.
    sampler
        "fast" or "paper".
    times
        Of the evaluations, the first the process's last.
    noise
        Number of the draw -> standard normal noise (S, 5, H, W).
    precision
        "fp32" or "bf16".
    """

    def denoise(x: Tensor, t: int) -> Tensor:
        when = torch.full((len(x),), t, device=x.device)
        with autocast(x.device, precision):
            raw = _raw(net, x, when, known).float()
        if not known.with_fit:
            return PROCESS.to_x0(x, t, raw, "noise")
        skip, out = _preconditioning(when, x)
        return skip * x + out * raw

    start = noise(0) * PROCESS.marginal(times[0])[1].to(known.centre)
    if sampler == "fast":
        found = dpm_solver_pp_2m(denoise, PROCESS, start, times).x0
    else:
        found = predictor_corrector(denoise, PROCESS, start, times, noise, 1, CORRECTOR_SNR).x0
    share = trust(known.bvecs.shape[1]) if known.with_fit else [1.0] * CHANNELS
    return (known.centre + known.centre.new_tensor(share)[:, None, None] * known.scale * found).float()


def trust(n: int) -> tuple[float, ...]:
    """Return the share (5,) of the network's correction that is taken from n directions.

    Simulated people are smoother than real ones, so what is learnt from them corrects too much. Chosen on real scans
    that no figure is reported for (docs/decisions.md): all of FA and colour where three directions leave much open,
    less where six leave noise alone to be taken away; of MD little.
    """
    fa = FA_TRUST[0] + (FA_TRUST[1] - FA_TRUST[0]) * (n - LEAST) / (MOST - LEAST)
    return (fa, MD_TRUST, fa, fa, fa)


def choose_volumes(gradients: GradientTable) -> tuple[float, np.ndarray, int]:
    """Return the b-value of the shell that is used, its volumes, and how many different directions it has.

    The shell nearest to b = 1000 s/mm² with at least three different directions; of more than six the six whose
    products determine a tensor best, by condition number.

    Raises
    ------
    ScanError
        Where no shell has three.
    """
    shells = [(bval, volumes[distinct(gradients.bvecs[volumes])]) for bval, volumes in gradients.shells()]
    enough = [(abs(bval - BEST_B), bval, volumes) for bval, volumes in shells if len(volumes) >= LEAST]
    if not enough:
        raise ScanError(TOO_FEW.format(least=LEAST, found=max((len(v) for _, v in shells), default=0)))
    _, bval, volumes = min(enough, key=lambda shell: shell[0])
    found = len(volumes)
    if found > MOST:
        volumes = np.sort(volumes[best_conditioned(gradients.bvecs[volumes], MOST)])
    return float(bval), volumes, found


def best_conditioned(bvecs: np.ndarray, n: int) -> np.ndarray:
    """Return indices of n of the (N, 3) directions whose tensor design has a small condition number.

    An even subset, improved by exchanges of one until none helps.
    """
    x, y, z = np.asarray(bvecs, dtype=np.float64).T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    chosen = list(even_subset(bvecs, n))
    best = np.linalg.cond(design[chosen])
    while True:
        rest = np.setdiff1d(np.arange(len(design)), chosen)
        tried = [[*chosen[:k], int(other), *chosen[k + 1 :]] for k in range(n) for other in rest]
        if not tried:
            return np.array(chosen)
        conditions = np.linalg.cond(design[np.array(tried)])
        if conditions.min() >= best * (1 - 1e-9):
            return np.array(chosen)
        best, chosen = conditions.min(), tried[int(conditions.argmin())]


def tissue(fa: Tensor, md: Tensor) -> Tensor:
    """Return indices into `TISSUES`: fluid diffuses fast, white matter is anisotropic; MD in mm²/s."""
    return torch.where(md > FLUID_MD, 2, torch.where(fa > WHITE_FA, 0, 1))


def consistent(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps (S, 5, H, W) within their ranges, colour FA as long as FA, and by how much it was not (S, H, W)."""
    fa, md, colour = maps[:, :1].clamp(0, 1), maps[:, 1:2].clamp_min(0), maps[:, 2:].clamp_min(0)
    length = colour.norm(dim=1, keepdim=True)
    return torch.cat([fa, md, colour * fa / length.clamp_min(1e-6)], dim=1), (length - fa).abs()[:, 0]


def _raw(net: nn.Module, x: Tensor, t: Tensor, known: Known) -> Tensor:
    """Return the network's output; what it sees of x_t has about unit variance at every time."""
    sigma = PROCESS.marginal(t.cpu())[1].to(x).reshape(-1, 1, 1, 1)
    seen = torch.cat([x / (1 + sigma.square()).sqrt(), known.images], dim=1)
    return net(seen, t.float(), known.acquired, known.bvecs, known.bvals, known.numbers)


def _preconditioning(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors with x_0 = skip x_t + out network, for x_0 of unit variance (Karras et al. 2022, Table 1)."""
    sigma = PROCESS.marginal(t.cpu())[1].to(x).reshape(-1, 1, 1, 1)
    return 1 / (1 + sigma.square()), sigma / (1 + sigma.square()).sqrt()


def _default_steps(request: Request) -> int:
    """Return the sampler's steps: one image is the mean of what could be drawn, several show its spread."""
    if request.sampler == "paper":
        return PAPER_STEPS
    return MEAN_STEPS if request.n_samples == 1 else FAST_STEPS


def _times(sampler: str, steps: int) -> list[int]:
    if sampler == "paper":
        return list(range(steps, 0, -1)) if steps == PROCESS.steps else karras_times(PROCESS, PROCESS.steps, steps)
    return karras_times(PROCESS, PROCESS.steps, steps)
