"""Di-Fusion: self-supervised denoising of a run from the run alone, made optimal in its fusion and its prior."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.noise import generator
from ..diffusion.processes import rev_warmup70
from ..diffusion.samplers import run_walk, run_walk_times
from ..diffusion.training import Plan, Trained, resolve_precision, train
from ..dwi.fusion import fuse, noise_from_residual
from ..dwi.prediction import LOG_FLOOR, NEIGHBOURS, LeaveOneOut, leave_one_out
from ..dwi.series import Scan
from ..nets.unet import UNet, UNetSpec
from .base import Citation, Generated, MethodSpec, Request

LATTER = 300  # T_c: only the last 300 of the 1000 diffusion steps are used
FLIPS = ((), (-1,), (-2,), (-2, -1))
TIMES = {"paper": tuple(run_walk_times(LATTER)), "fast": (300, 200, 100, 0)}
CHANNELS = 7 + NEIGHBOURS
MARGIN = 4  # voxels kept around the mask's bounding box
CROP = 64  # training patches
HELD_OUT_SLICES = 24

SPECS = {
    "small": UNetSpec(
        CHANNELS, base=32, multipliers=(1, 2, 2), blocks=1, attention=(), groups=0, bottom=False, zero_output=True
    ),
    "paper": UNetSpec(CHANNELS, zero_output=True),
}


@dataclass(frozen=True, eq=False)
class Stack:
    """A run laid out for slice-wise work: cropped to the brain, padded for the network, scaled by the b0.

    Parameters
    ----------
    data
        (Z, N, H, W) signals in units of `scale`.
    mask
        (Z, H, W) bool.
    box
        Slices (x, y, z) of the scan that the stack covers, before padding.
    scale
        Signal units of the scan per unit here: the median b0 in the mask.
    targets
        Volumes that are denoised.
    """

    data: Tensor
    mask: Tensor
    box: tuple[slice, slice, slice]
    scale: float
    targets: np.ndarray
    predictors: LeaveOneOut
    spread: float  # rms of x - prediction in the mask

    @property
    def slices(self) -> np.ndarray:
        """Indices of the slices that hold brain."""
        return np.flatnonzero(self.mask.flatten(1).any(dim=1).cpu().numpy())

    def block(self, z: int, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """Return (3, N, h, w): a patch of slice z and of the slices below and above it (the edge repeats)."""
        around = np.clip([z - 1, z, z + 1], 0, len(self.data) - 1)
        return self.data[around][:, :, rows, columns]


def prepare(scan: Scan, divisor: int, device: torch.device) -> Stack:
    """Lay a scan out as a `Stack`."""
    inside = np.argwhere(scan.mask)
    low = np.maximum(inside.min(axis=0) - (MARGIN, MARGIN, 0), 0)
    high = np.minimum(inside.max(axis=0) + 1 + (MARGIN, MARGIN, 0), scan.mask.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    mask = torch.from_numpy(np.ascontiguousarray(scan.mask[box].transpose(2, 0, 1)))
    data = np.ascontiguousarray(np.asarray(scan.data[box], dtype=np.float32).transpose(2, 3, 0, 1))
    scale = float(np.median(scan.mean_b0()[scan.mask])) or 1.0
    h, w = mask.shape[1:]
    pad = (0, -w % divisor, 0, -h % divisor)
    stack = F.pad(torch.from_numpy(data / scale), pad, mode="replicate").to(device)
    mask = F.pad(mask, pad).to(device)
    is_b0 = scan.gradients.is_b0
    targets = np.arange(len(is_b0)) if is_b0.sum() > 1 else np.flatnonzero(~is_b0)
    brain = stack.permute(0, 2, 3, 1)[mask]  # (V, N)
    predictors = leave_one_out(brain, scan.gradients).to(device)
    residual = brain - brain @ predictors.linear[:, :-1].T - predictors.linear[:, -1]
    return Stack(stack, mask, box, scale, targets, predictors, float(residual[:, targets].std()))


def conditions(stack: Stack, block: Tensor, volumes: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return what the network is told about volumes, and the prediction it starts from.

    Nothing here has seen the volume itself, so that its noise is independent of all of it and the acquired
    volume is a valid Noise2Noise target.

    Parameters
    ----------
    block
        (3, N, h, w) from `Stack.block`.
    volumes
        (J,) volume indices.

    Returns
    -------
    (J, CHANNELS - 1, h, w) and (J, h, w)
    """
    known, s = stack.predictors, stack.spread
    here = block[1]
    weights = known.linear[volumes]
    around = torch.einsum("jn,znhw->zjhw", weights[:, :-1], block) + weights[None, :, -1, None, None]
    p = around[1]
    log = torch.einsum("jn,nhw->jhw", known.log_tensor[volumes], here.clamp_min(LOG_FLOOR).log())
    mean = torch.einsum("jn,nhw->jhw", known.mean[volumes], here)
    b0 = torch.einsum("jn,nhw->jhw", known.b0[volumes], here)
    near = known.nearest[volumes]  # (J, k)
    neighbours = here[np.maximum(near, 0)] - p[:, None]
    neighbours = neighbours * torch.from_numpy(near >= 0).to(p)[:, :, None, None]
    channels = [p, b0, (around[0] - p) / s, (around[2] - p) / s, (log.clamp_max(1).exp() - p) / s, (mean - p) / s]
    return torch.cat([torch.stack(channels, dim=1), neighbours / s], dim=1), p


class DiFusion:
    """Di-Fusion (Wu et al. 2025)."""

    spec = MethodSpec(
        name="difusion",
        title="Di-Fusion",
        summary=(
            "denoises the diffusion-weighted series by a diffusion model that is trained on the run itself, "
            "each volume against a prediction from all the others"
        ),
        citation=Citation(
            key="wu2025difusion",
            text=(
                "Wu C, Kong D, Xu T, et al. (2025). Self-Supervised Diffusion MRI Denoising via Iterative and "
                "Stable Refinement. International Conference on Learning Representations. arXiv:2501.13514"
            ),
            bibtex=(
                "@inproceedings{wu2025difusion,\n"
                "  title = {Self-Supervised Diffusion {MRI} Denoising via Iterative and Stable Refinement},\n"
                "  author = {Wu, Chenxu and others},\n"
                "  booktitle = {International Conference on Learning Representations},\n"
                "  year = {2025},\n  eprint = {2501.13514},\n  archivePrefix = {arXiv}\n}"
            ),
        ),
        min_directions=6,
        good_directions=12,
        needs_weights=False,
        gives_series=True,
        samplers={"paper": "run-walk, 76 evaluations of 4 flips", "fast": "run-walk, 4 evaluations, a flip each"},
    )

    def network(self, size: str) -> UNet:
        """Return an untrained network: at first it predicts nothing, so the result is the classical estimate."""
        return UNet(SPECS[size])

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Train on the scan (from `net` where one is given) and denoise it."""
        begun = time.monotonic()
        warnings = self.spec.check(scan)
        torch.manual_seed(request.seed)
        net = (self.network(request.size) if net is None else net).to(request.device)
        net = net.to(memory_format=torch.channels_last)
        precision = resolve_precision(request.precision, request.device)
        stack = prepare(scan, net.spec.divisor, request.device)
        work = _Work(stack, request, precision)
        trained = work.train(net)
        estimates, evaluations = work.denoise(net)
        groups = _groups(scan, stack.targets)
        mean, std, sigma = np.array(scan.data, dtype=np.float32), None, {}
        if request.n_samples > 1:
            std = np.zeros_like(mean)
        for name, volumes in groups.items():
            acquired = np.ascontiguousarray(scan.data[..., volumes], dtype=np.float32)
            samples = [self._on_grid(stack, e, acquired, volumes) for e in estimates]
            sigma[name] = noise_from_residual(acquired, samples[0], scan.mask)
            floor = bool(request.options.get("floor", True))
            fused = [fuse(acquired, sample, scan.mask, sigma[name], floor) for sample in samples]
            mean[..., volumes] = np.mean(fused, axis=0)
            if std is not None:
                std[..., volumes] = np.std(fused, axis=0, ddof=1)
        record = {
            "Size": request.size,
            "Weights": {"Name": "trained on this run"},
            "Sampler": {"Name": self.spec.samplers[request.sampler], "Steps": len(work.times),
                        "NetworkEvaluations": evaluations},
            "Seed": request.seed,
            "Samples": request.n_samples,
            "Training": _training_record(trained),
            "Device": str(request.device),
            "Precision": precision,
            "NoiseLevel": {name: round(value, 4) for name, value in sigma.items()},
            "Seconds": round(time.monotonic() - begun, 1),
        }
        return Generated(
            mean=mean,
            std=std,
            gradients=scan.gradients,
            maps=(),
            acquired=~np.isin(np.arange(len(scan.gradients)), stack.targets),
            record=record,
            checks={"difusion_evaluations": float(evaluations), "difusion_held_out_loss": trained.held_out_loss},
            warnings=tuple(warnings),
        )


    @staticmethod
    def _on_grid(stack: Stack, estimate: np.ndarray, acquired: np.ndarray, volumes: np.ndarray) -> np.ndarray:
        """Return an estimate (Z, N, H, W) of some volumes on the scan's grid and in its units."""
        full = acquired.copy()
        x, y, _ = (s.stop - s.start for s in stack.box)
        full[stack.box] = stack.scale * estimate[:, volumes, :x, :y].transpose(2, 3, 0, 1)
        return full


def _groups(scan: Scan, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Volumes that share their noise statistics: the b0s (where they are denoised) and each shell."""
    groups = {f"b{round(b)}": volumes for b, volumes in scan.gradients.shells()}
    b0s = np.flatnonzero(scan.gradients.is_b0)
    return ({"b0": b0s} if np.isin(b0s, targets).all() else {}) | groups


def _training_record(trained: Trained) -> dict:
    return {
        "Steps": trained.steps,
        "Minutes": round(trained.minutes, 2),
        "StoppedBecause": trained.stopped_because,
        "HeldOutLoss": trained.held_out_loss,
        "HeldOutLossAtStart": trained.start_loss,
    }


class _Work:
    """Training and sampling on one stack."""

    def __init__(self, stack: Stack, request: Request, precision: str):
        self.stack, self.request, self.precision = stack, request, precision
        self.process = rev_warmup70()
        self.times = TIMES[request.sampler]
        rng = self._random("held-out")
        pairs = [(z, j) for z in stack.slices for j in stack.targets]
        n = min(HELD_OUT_SLICES, max(1, len(pairs) // 12))
        self.held_out = [pairs[i] for i in sorted(rng.choice(len(pairs), n, replace=False))]
        self.trainable = sorted(set(pairs) - set(self.held_out))

    def _random(self, what: str, **address) -> np.random.Generator:
        r = self.request
        return generator(r.seed, r.subject, r.run, f"difusion {what}", **address)

    def _noisy(self, p: Tensor, x: Tensor, mask: Tensor, t: Tensor, rng: np.random.Generator) -> Tensor:
        """x_t = alpha p + sigma mess(x - p - mean): the run's own noise, its pixels shuffled (Eq. 7, 8)."""
        shuffled = torch.zeros_like(p)
        for k in range(len(p)):
            residual = (x[k] - p[k])[mask[k]]
            if len(residual):
                pool = (residual - residual.mean())
                order = torch.from_numpy(rng.integers(0, len(pool), p[k].numel())).to(p.device)
                shuffled[k] = pool[order].reshape(p[k].shape)
        return self.process.add_noise(p, t[:, None, None], shuffled)

    def example(self, pairs, rng, crop: bool) -> dict[str, Tensor]:
        parts = []
        for z, j in pairs:
            rows, columns = self._window(z, rng) if crop else (slice(None), slice(None))
            block = self.stack.block(z, rows, columns)
            given, p = conditions(self.stack, block, np.array([j]))
            parts.append((given, p, block[1, [j]], self.stack.mask[[z], rows, columns]))
        given, p, x, mask = (torch.cat(part) for part in zip(*parts, strict=True))
        t = torch.from_numpy(rng.integers(1, LATTER + 1, len(p)))
        x_t = self._noisy(p, x, mask, t, rng)
        batch = {"given": torch.cat([(x_t - p)[:, None] / self.stack.spread, given], dim=1)}
        batch |= {"target": ((x - p) / self.stack.spread)[:, None], "mask": mask[:, None]}
        if crop:
            for dims in ((-1,), (-2,)):
                if rng.random() < 0.5:
                    batch = {name: value.flip(dims) for name, value in batch.items()}
        batch["level"] = self.process.marginal(t)[0].float().to(p.device)
        batch["given"] = batch["given"].contiguous(memory_format=torch.channels_last)
        return batch

    def _window(self, z: int, rng) -> tuple[slice, slice]:
        """A patch around a random brain pixel of the slice."""
        pixels = self.stack.mask[z].nonzero()
        centre = pixels[int(rng.integers(len(pixels)))].tolist()
        windows = []
        for c, size in zip(centre, self.stack.mask.shape[1:], strict=True):
            length = min(CROP, size)
            start = int(np.clip(c - length // 2, 0, size - length))
            windows.append(slice(start, start + length))
        return tuple(windows)

    def train(self, net: nn.Module) -> Trained:
        request = self.request
        held_out = self.example(self.held_out, self._random("score"), crop=False)

        def batch(step):
            rng = self._random("train", sample=step)
            chosen = rng.integers(0, len(self.trainable), request.options.get("batch", 16))
            return self.example([self.trainable[i] for i in chosen], rng, crop=True)

        @torch.no_grad()
        def score(model):
            total = weight = 0.0
            for k in range(0, len(held_out["given"]), 4):
                part = {name: value[k : k + 4] for name, value in held_out.items()}
                with torch.autocast(request.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    n = float(part["mask"].sum())
                    total, weight = total + n * float(_loss(model, part)), weight + n
            return total / weight

        plan = Plan(
            steps=request.options.get("training_steps", 400),
            minutes=request.minutes,
            precision=self.precision,
            learning_rate=request.options.get("learning_rate", 1e-3),
        )
        tell = request.progress
        progress = None if tell is None else lambda done, total, left: tell("training", done, total)
        return train(net, batch, _loss, score, plan, request.checkpoint, progress=progress)

    @torch.no_grad()
    def denoise(self, net: nn.Module) -> tuple[np.ndarray, int]:
        """Return (samples, X, Y, Z, N) estimates in the scan's units; NaN outside the stack's brain slices."""
        stack, request = self.stack, self.request
        z_n, n, h, w = stack.data.shape
        out = np.zeros((request.n_samples, z_n, n, h, w), dtype=np.float32)
        per_batch = 16
        slices = stack.slices
        for done, z in enumerate(slices):
            block = stack.block(int(z))
            for start in range(0, len(stack.targets), per_batch):
                volumes = stack.targets[start : start + per_batch]
                given, p = conditions(stack, block, volumes)
                for sample in range(request.n_samples):
                    out[sample, z, volumes] = self._sample(net, given, p, block[1, volumes], int(z), volumes, sample)
            if request.progress is not None:
                request.progress("denoising", done + 1, len(slices))
        return out, len(self.times)

    def _sample(self, net, given, p, x, z, volumes, sample) -> np.ndarray:
        stack = self.stack
        t = torch.full((len(volumes),), self.times[0])
        mask = stack.mask[[z]].expand(len(volumes), -1, -1)
        start = torch.cat([
            self._noisy(p[[k]], x[[k]], mask[[k]], t[[k]], self._random("sample", volume=int(j), slice=z, sample=sample))
            for k, j in enumerate(volumes)
        ])
        step = 0

        def denoise(x_t, time):
            nonlocal step
            flips = FLIPS if self.request.sampler == "paper" else (FLIPS[step % 4],)
            step += 1
            stacked = torch.cat([((x_t - p) / stack.spread)[:, None], given], dim=1)
            level = self.process.marginal(time)[0].float().to(p.device).expand(len(p))
            total = 0.0
            for dims in flips:
                image = stacked.flip(dims) if dims else stacked
                with torch.autocast(p.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    answer = net(image.contiguous(memory_format=torch.channels_last), level).float()[:, 0]
                total = total + (answer.flip(dims) if dims else answer)
            return p + stack.spread * total / len(flips)

        return run_walk(denoise, self.process, start, self.times).x0.cpu().numpy()


def _loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error over the brain, in units of the classical prediction's residual."""
    error = (net(batch["given"], batch["level"]).float() - batch["target"]) ** 2
    return (error * batch["mask"]).sum() / batch["mask"].sum()
