"""Di-Fusion's training on one run, its sampling, and the denoised series; see `difusion`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion import numerics
from ...diffusion.numerics import autocast
from ...diffusion.processes import rev_warmup70
from ...diffusion.samplers import Sampled, run_walk, run_walk_times
from ...diffusion.weights import load_weights
from ...dwi.fusion import fuse
from ...dwi.noise import estimate_sigma
from ...dwi.prediction import CHANNELS, conditions, leave_one_out
from ...dwi.series import Scan
from ...dwi.stack import Stack, slice_stack
from ...nets.unet import UNet, UNetSpec
from ..base import Generated, Method, Request, Samples
from ..making import label, sampled
from .difusion import SPEC, VARIANTS
from .on_run import RunTraining, checkpoint_of, training_record

LATTER = 300  # T_c: of the 1000 diffusion steps only the last 300 are used
TIMES = {"paper": tuple(run_walk_times(LATTER)), "fast": (300, 0)}
FLIPS = ((), (-1,), (-2,), (-2, -1))
SLICES_AT_ONCE = 16

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "base": 32,
        "multipliers": (1, 2, 2),
        "blocks": 1,
        "attention": (),
        "groups": 0,
        "bottom": False,
    },
    "paper": {},
}


Stop = Callable[[Tensor, int], Tensor]  # (estimate of x0, step) -> (J,) bool, the walks to end


class Given(NamedTuple):
    """The inputs of the walk of some images: x, the other endpoint x', and the network's condition."""

    x: Tensor  # (J, h, w)
    other: Tensor  # (J, h, w)
    condition: Tensor  # (J, C, h, w)
    mask: Tensor  # (J, h, w)


class DiFusion(Method):
    """Di-Fusion. `Request.options`: variant, training_steps, learning_rate, csnr."""

    spec = SPEC

    def network(self, size: str, variant: str = "extended") -> UNet:
        """Return an untrained network, always the same; the extended one starts with a correction of zero."""
        spec = UNetSpec(1, **(SIZES[size] | {"groups": 32}))
        if variant == "extended":
            spec = UNetSpec(1 + CHANNELS, zero_output=True, **SIZES[size])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return UNet(spec)

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Train on the scan, starting from `net` where it is given, and denoise the scan.

        Raises
        ------
        ValueError
            Where the variant is unknown.
        """
        begun = time.monotonic()
        warnings = self.spec.check(scan)
        variant = request.options.get("variant", "extended")
        if variant not in VARIANTS:
            raise ValueError(f"unknown Di-Fusion variant {variant!r}; choose one of {VARIANTS}")
        weights = {"Name": "trained on this run"}
        if net is None or variant == "published":
            net = self.network(request.size, variant)
            if request.weights is not None:
                _, card = load_weights(net, request.weights, SPEC.name, request.size, request.weights_dir)
                weights = card.record() | {"Name": f"{card.name}, trained further on this run"}
        # torch types leave this argument out
        net = net.to(request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        sigma = estimate_sigma(scan).sigma
        stack = slice_stack(scan, cast("UNet", net).spec.divisor, request.device)
        work = (_Published if variant == "published" else _Extended)(scan, stack, request, sigma)
        trained = work.train(net, checkpoint_of(scan, request))
        times = work.choose_times(net)
        walked, evaluations = work.denoise(net, times, 0)
        mean = work.finish(scan, walked, 0)
        samples = None
        if request.n_samples > 1:  # the walk of number 0 is the result; samples are others
            samples = Samples(request.n_samples, lambda k: work.finish(scan, work.denoise(net, times, 1 + k)[0], 1 + k))
        record = {
            "Size": request.size,
            "Variant": variant,
            "Weights": weights,
            "Sampler": {
                "Name": self.spec.samplers[request.sampler],
                "Steps": len(times),
                "NetworkEvaluations": round(evaluations, 1),
            },
            "Seed": request.seed,
            **sampled(self.spec, request, len(times)),
            "Training": training_record(trained),
            "NoiseLevel": round(sigma, 4),
            "Device": str(request.device),
            "Numerics": numerics.record(request.device, work.precision),
            "Seconds": round(time.monotonic() - begun, 1),
        }
        checks = {
            "difusion_evaluations": evaluations,
            "difusion_held_out_loss": trained.held_out_loss,
            "difusion_held_out_gain": 1 - trained.held_out_loss / trained.start_loss,
            "difusion_direction_contrast": direction_contrast(scan, mean, sigma),
        }
        acquired = ~np.isin(np.arange(len(scan.gradients)), work.targets)
        return Generated(mean, samples, scan.gradients, (), acquired, record, checks, tuple(warnings))


def direction_contrast(scan: Scan, denoised: np.ndarray, sigma: float) -> float:
    """Return how much each denoised volume follows its acquired volume rather than the nearest direction.

    Least squares, in the mask, of denoised j on acquired j and its nearest direction n: a_j / (a_j + a_n),
    averaged over the diffusion-weighted volumes and limited to [0, 1]. sigma² is subtracted from the variances of
    the acquired volumes, so that their noise does not hide the contrast. 1: every direction is kept; 0.5 or less:
    it is smeared over its neighbours. NaN where no volume has a neighbour.
    """
    nearest = scan.gradients.neighbours(1)[:, 0]
    shares = []
    for j in np.flatnonzero(~scan.gradients.is_b0 & (nearest >= 0)):
        signals = np.stack([scan.data[scan.mask, j], scan.data[scan.mask, nearest[j]], denoised[scan.mask, j]])
        covariance = np.cov(signals.astype(np.float64))
        a = np.linalg.lstsq(covariance[:2, :2] - sigma**2 * np.eye(2), covariance[:2, 2], rcond=None)[0]
        shares.append(np.clip(a[0] / (a[0] + a[1]), 0, 1))
    return float(np.mean(shares)) if shares else float("nan")


class _Work(RunTraining):
    """Training and sampling on one stack; what differs between the variants is in the subclasses."""

    scale: float  # unit of the network's output

    def __init__(self, scan: Scan, stack: Stack, request: Request, sigma: float):
        # A volume without another of its kind, such as a single b0, is not denoised.
        self.nearest = scan.gradients.neighbours(1)[:, 0]
        super().__init__(SPEC.name, stack, request, np.flatnonzero(self.nearest >= 0))
        self.sigma, self.process = sigma, rev_warmup70()

    def given(self, block: Tensor, volumes: np.ndarray, mask: Tensor) -> Given:
        """Return the endpoints and conditions of volumes in a block."""
        raise NotImplementedError

    def fused(self, given: Given, t: Tensor) -> Tensor:
        """Return x*_t, the image to which noise is added (Eq. 6)."""
        raise NotImplementedError

    def network_input(self, x_t: Tensor, given: Given) -> Tensor:
        """Return the network's input (J, C, h, w)."""
        raise NotImplementedError

    def base(self, given: Given) -> Tensor:
        """Return the image (J, h, w) that the network's output is added to."""
        raise NotImplementedError

    def finish(self, scan: Scan, walked: np.ndarray, sample: int) -> np.ndarray:
        """Return the series (X, Y, Z, N) of what was sampled (Z, N, H, W); number 0 is the best estimate."""
        raise NotImplementedError

    def noisy(self, given: Given, t: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        """Return x_t = sqrt(abar) x*_t + sqrt(1 - abar) xi, xi = mess((x - x') - mean): the run's own noise,
        its pixels shuffled within the brain (Eq. 7 and 8)."""
        xi = torch.zeros_like(given.x)
        for k, rng in enumerate(rngs):
            inside = given.mask[k]
            residual = (given.x[k] - given.other[k])[inside]
            order = torch.from_numpy(rng.permutation(len(residual))).to(residual.device)
            xi[k][inside] = (residual - residual.mean())[order]
        return self.process.add_noise(self.fused(given, t), t[:, None, None], xi)

    def examples(self, pairs: list[tuple[int, int]], rng: np.random.Generator, crop: bool) -> dict[str, Tensor]:
        """Return network inputs and targets for (slice, volume) pairs, as whole slices or flipped patches."""
        parts, weights = [], []
        for z, j in pairs:
            rows, columns = self.patch(z, rng) if crop else (slice(None), slice(None))
            weights.append(self.weight[z, rows, columns])
            parts.append(
                self.given(self.stack.block(z, rows, columns), np.array([j]), self.stack.mask[z, rows, columns])
            )
        given = Given(*(torch.cat(part) for part in zip(*parts, strict=True)))
        t = torch.from_numpy(rng.integers(1, LATTER + 1, len(pairs)))
        x_t = self.noisy(given, t, [rng] * len(pairs))
        image = self.network_input(x_t, given)
        target = ((given.x - self.base(given)) / self.scale)[:, None]
        weight = torch.stack(weights)[:, None]
        for dims in ((-1,), (-2,)):
            if crop and rng.random() < 0.5:
                image, target, weight = image.flip(dims), target.flip(dims), weight.flip(dims)
        image = image.contiguous(memory_format=torch.channels_last)
        return {"image": image, "level": self._level(t, image), "target": target, "weight": weight}

    def _level(self, t: int | Tensor, like: Tensor) -> Tensor:
        return self.process.marginal(t)[0].to(like.device, torch.float32).expand(len(like))

    def walk(
        self,
        net: nn.Module,
        given: Given,
        times: Sequence[int],
        z: int,
        volumes: Sequence[int] | np.ndarray,
        sample: int,
        stop: Stop | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Sampled:
        """Sample images of slice z; `watch` is called with every estimate of x0."""
        start = torch.full((len(volumes),), times[0])
        rngs = [self.random("sample", volume=int(j), slice=z, sample=sample) for j in volumes]
        base, step = self.base(given), 0

        def denoise(x_t: Tensor, t: int) -> Tensor:
            nonlocal step
            # The fast sampler uses one flip per evaluation, each time another one.
            flips = FLIPS if self.request.sampler == "paper" else (FLIPS[step % len(FLIPS)],)
            step += 1
            image, level = self.network_input(x_t, given), self._level(t, x_t)
            total = torch.zeros_like(x_t)
            for dims in flips:
                turned = image.flip(dims).contiguous(memory_format=torch.channels_last)
                with autocast(x_t.device, self.precision):
                    answer = net(turned, level)
                total += answer.float()[:, 0].flip(dims)
            x0 = base + self.scale * total / len(flips)
            if watch is not None:
                watch(x0)
            return x0

        return run_walk(denoise, self.process, self.noisy(given, start, rngs), times, stop=stop)

    def stop(self, given: Given) -> Stop | None:
        """Return the stopping rule of a walk, or None."""
        return None

    @torch.no_grad()
    def choose_times(self, net: nn.Module) -> tuple[int, ...]:
        """Return the sampler's times; for another number of evaluations they are spread over the same walk."""
        times, steps = TIMES[self.request.sampler], self.request.steps
        if steps is None:
            return times
        if self.request.sampler == "fast":
            return _distinct(np.linspace(LATTER, 0, steps))
        return tuple(times[k] for k in _distinct(np.linspace(0, len(times) - 1, steps)))

    @torch.no_grad()
    def denoise(self, net: nn.Module, times: tuple[int, ...], sample: int) -> tuple[np.ndarray, float]:
        """Return a sample (Z, N, H, W), and the mean number of network evaluations per image."""
        stack, request = self.stack, self.request
        out = np.zeros(stack.data.shape, dtype=np.float32)
        groups = np.array_split(self.targets, -(-len(self.targets) // SLICES_AT_ONCE))
        evaluations, slices = [], stack.slices
        for done, z in enumerate(slices):
            block = stack.block(z)
            for volumes in groups:
                given = self.given(block, volumes, stack.mask[z])
                walked = self.walk(net, given, times, z, volumes, sample, self.stop(given))
                out[z, volumes] = walked.x0.cpu().numpy()
                evaluations.append(walked.evaluations.float().mean().item())
            if request.progress is not None:
                request.progress(label("denoising", sample - 1 if sample else None), done + 1, len(slices))
        return out, float(np.mean(evaluations))


class _Extended(_Work):
    """The `extended` variant: the network corrects a prediction from the other volumes, used as x'."""

    learning_rate = 1e-3

    def __init__(self, scan: Scan, stack: Stack, request: Request, sigma: float):
        super().__init__(scan, stack, request, sigma)
        brain = stack.voxels()
        self.prediction = leave_one_out(brain, scan.gradients).to(request.device)
        residual = brain - brain @ self.prediction.linear[:, :-1].T - self.prediction.linear[:, -1]
        power = residual[:, self.targets].square().mean(dim=1)  # (V,)
        self.scale = max(float(power.median().sqrt()), 1e-6)
        # A few voxels (vessels, the brain's edge) have most of the squared error: the weights balance them.
        self.weight[stack.mask] = 1 / (1 + power / self.scale**2)

    def given(self, block: Tensor, volumes: np.ndarray, mask: Tensor) -> Given:
        condition, p = conditions(self.prediction, block, volumes, self.scale)
        return Given(block[1, volumes], p, condition, mask.expand(len(p), -1, -1))

    def fused(self, given: Given, t: Tensor) -> Tensor:
        # x' replaces x, as in the authors' code: x is not used here, and can be fused optimally at the end.
        return given.other

    def network_input(self, x_t: Tensor, given: Given) -> Tensor:
        return torch.cat([((x_t - given.other) / self.scale)[:, None], given.condition], dim=1)

    def base(self, given: Given) -> Tensor:
        return given.other

    @torch.no_grad()
    def choose_times(self, net: nn.Module) -> tuple[int, ...]:
        """Return the sampler's times up to the evaluation that best predicts the held-out slices."""
        times = super().choose_times(net)
        errors = np.zeros(len(times))
        for z, j in self.held_out:
            given = self.given(self.stack.block(z), np.array([j]), self.stack.mask[z])
            seen: list[Tensor] = []
            self.walk(net, given, times, z, [j], 0, watch=seen.append)
            errors += [float(((x0 - given.x).square() * self.weight[z]).sum()) for x0 in seen]
        return times[: int(errors.argmin()) + 1]

    def finish(self, scan: Scan, walked: np.ndarray, sample: int) -> np.ndarray:
        def noise(volume: int) -> np.ndarray:
            return self.random("fusion", volume=volume, sample=sample).standard_normal(scan.mask.shape, np.float32)

        series = np.array(scan.data, dtype=np.float32)
        for volumes in _kinds(scan, self.targets):
            acquired = np.ascontiguousarray(scan.data[..., volumes], dtype=np.float32)
            found = self.stack.on_grid(walked[:, volumes], acquired)
            numbers = volumes.tolist()
            drawn = (lambda j, numbers=numbers: noise(numbers[j])) if sample else None
            series[..., volumes] = fuse(acquired, found, scan.mask, self.sigma, drawn)
        return series


class _Published(_Work):
    """The `published` variant: the input is x_t alone; the walk ends where x0 differs from x by the noise level."""

    learning_rate = 1e-4
    scale = 1.0

    def given(self, block: Tensor, volumes: np.ndarray, mask: Tensor) -> Given:
        x, other = block[1, volumes], block[1, self.nearest[volumes]]
        return Given(x, other, x[:, None, :0].new_zeros(len(x), 0, *x.shape[1:]), mask.expand(len(x), -1, -1))

    def fused(self, given: Given, t: Tensor) -> Tensor:
        return self.process.posterior(given.x, given.other, t[:, None, None], t[:, None, None] - 1)[0]

    def network_input(self, x_t: Tensor, given: Given) -> Tensor:
        return x_t[:, None]

    def base(self, given: Given) -> Tensor:
        return torch.zeros_like(given.x)

    def stop(self, given: Given) -> Stop | None:
        """Return the rule rms(x0 - x) > CSNR over the brain (Eq. 13); CSNR is the noise level in b0 units."""
        level = float(self.request.options.get("csnr", self.sigma / self.stack.scale))

        def departed(x0: Tensor, step: int) -> Tensor:
            error = ((x0 - given.x).square() * given.mask).flatten(1).sum(1) / given.mask.flatten(1).sum(1)
            return error.sqrt() > level

        return departed

    def finish(self, scan: Scan, walked: np.ndarray, sample: int) -> np.ndarray:
        series, volumes = np.array(scan.data, dtype=np.float32), self.targets
        acquired = np.ascontiguousarray(scan.data[..., volumes], dtype=np.float32)
        found = self.stack.on_grid(walked[:, volumes], acquired)
        series[..., volumes] = np.where(scan.mask[..., None], found, acquired)
        return series


def _distinct(values: np.ndarray) -> tuple[int, ...]:
    """Return the values rounded to whole numbers, without duplicates, in their order."""
    return tuple(dict.fromkeys(values.round().astype(int).tolist()))


def _kinds(scan: Scan, targets: np.ndarray) -> list[np.ndarray]:
    """Return the volumes to denoise, grouped into the b0s and each shell."""
    return [volumes for volumes in scan.gradients.groups() if np.isin(volumes, targets).any()]


def build() -> DiFusion:
    """Return the method."""
    return DiFusion()
