"""Networks that are trained on the run that they denoise, and on nothing else."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion import numerics
from ...diffusion.noise import generator
from ...diffusion.numerics import resolve_precision
from ...diffusion.training import Plan, Trained, train
from ...dwi.noise import estimate_sigma
from ...dwi.series import Scan, ScanError
from ...dwi.stack import Stack, slice_stack
from ...nets.unet import UNetSpec
from ..base import Generated, Method, Request
from .difusion import STEPS
from .task import DenoiseSpec

CROP = 64  # side of the training patches, voxels
BATCH = 8
HELD_OUT = 24  # (slice, volume) pairs that score the training
# Of the U-Nets of the compared arms: that of Di-Fusion in size `small`.
UNET: dict[str, Any] = {
    "base": 32,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "attention": (),
    "groups": 0,
    "bottom": False,
}

ALL_ALONE = "{name} learns a volume from others of its shell, and no shell of this run has two"

Pairs = list[tuple[int, int]]  # slices and volumes


class RunTraining:
    """Training on slices of one run.

    Parameters
    ----------
    name
        Name of the method, for the addresses of its random numbers.
    stack
        The run.
    request
        The settings; `options` may have "training_steps" and "learning_rate".
    targets
        Volumes that are denoised.

    Attributes
    ----------
    held_out, trainable
        (slice, volume) pairs that score the training, and those that train.
    weight
        (Z, H, W) weight of each voxel in the loss.
    """

    learning_rate = 1e-3

    def __init__(self, name: str, stack: Stack, request: Request, targets: np.ndarray):
        self.name, self.stack, self.request, self.targets = name, stack, request, targets
        self.precision = resolve_precision(request.precision, request.device)
        pairs = [(z, int(j)) for z in stack.slices for j in targets]
        n = min(HELD_OUT, max(1, len(pairs) // 12))
        self.weight = stack.mask.float()
        chosen = self.random("held-out").choice(len(pairs), n, replace=False)
        self.held_out = [pairs[i] for i in sorted(chosen)]
        self.trainable = sorted(set(pairs) - set(self.held_out))

    def random(self, what: str, **address: int) -> np.random.Generator:
        """Return random numbers that depend on the request, on what they are for, and on an address."""
        r = self.request
        return generator(r.seed, r.subject, r.run, f"{self.name} {what}", **address)

    @abstractmethod
    def examples(self, pairs: Pairs, rng: np.random.Generator, crop: bool) -> dict[str, Tensor]:
        """Return the network's input "image" and "level", "target" and "weight" for pairs: whole slices or patches."""

    def patch(self, z: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """Return a patch around a random brain pixel of the slice."""
        pixels = self.stack.mask[z].nonzero()
        centre = pixels[int(rng.integers(len(pixels)))].tolist()
        starts = [
            int(np.clip(c - CROP // 2, 0, max(0, size - CROP)))
            for c, size in zip(centre, self.stack.mask.shape[1:], strict=True)
        ]
        return slice(starts[0], starts[0] + CROP), slice(starts[1], starts[1] + CROP)

    def train(self, net: nn.Module, checkpoint: Path | None = None, share: float = 1.0) -> Trained:
        """Train the network in place for a share of the budget, scored on the held-out slices."""
        held_out = self.examples(self.held_out, self.random("score"), crop=False)

        def batch(step: int) -> dict[str, Tensor]:
            rng = self.random("train", sample=step)
            chosen = rng.integers(0, len(self.trainable), BATCH)
            return self.examples([self.trainable[i] for i in chosen], rng, crop=True)

        @torch.no_grad()
        def score(model: nn.Module) -> float:
            total = 0.0
            for k in range(len(self.held_out)):
                part = {name: value[k : k + 1] for name, value in held_out.items()}
                total += float(_loss(model, part)) * float(part["weight"].sum())
            return total / float(held_out["weight"].sum())

        options, tell = self.request.options, self.request.progress
        steps, minutes = max(1, round(share * int(options.get("training_steps", STEPS)))), self.request.minutes
        plan = Plan(
            steps=steps,
            minutes=None if minutes is None else share * minutes,
            learning_rate=float(options.get("learning_rate", self.learning_rate)),
            precision=self.precision,
            save_every=min(Plan.save_every, max(1, steps // 8)),  # a short training can be resumed, too
        )
        progress = None if tell is None else lambda done, total, left: tell("training", done, total)
        return train(net, batch, _loss, score, plan, checkpoint, progress=progress)


class OnRun(Method):
    """A compared denoiser that is trained on the run alone.

    Parameters
    ----------
    spec
        The specification.
    work
        Training and denoising of a run.
    """

    def __init__(self, spec: DenoiseSpec, work: type[RunDenoising]):
        self.spec, self._work = spec, work

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Train on the scan and denoise it; where there is no result, the acquired signal stays."""
        begun = time.monotonic()
        warnings = self.spec.check(scan)
        sigma = estimate_sigma(scan).sigma
        stack = slice_stack(scan, UNetSpec(1, **UNET).divisor, request.device)
        work = self._work(self.spec.name, scan, stack, request, sigma / stack.scale)
        estimate, trained, evaluations = work.denoised(checkpoint_of(scan, request))
        acquired = np.asarray(scan.data, np.float32)
        found = stack.on_grid(estimate, np.ascontiguousarray(acquired[..., work.targets]))
        mean, usable = acquired.copy(), scan.mask[..., None] & (acquired[..., work.targets] > 0) & (found > 0)
        mean[..., work.targets] = np.where(usable, found, acquired[..., work.targets])
        record = {
            "Size": request.size,
            "Weights": {"Name": "trained on this run"},
            "Sampler": {"Name": self.spec.samplers["fast"], "Steps": evaluations, "NetworkEvaluations": evaluations},
            "Seed": request.seed,
            "Samples": 1,
            "Training": training_record(trained),
            "NoiseLevel": round(sigma, 4),
            "Device": str(request.device),
            "Numerics": numerics.record(request.device, work.precision),
            "Seconds": round(time.monotonic() - begun, 1),
        }
        unchanged = ~np.isin(np.arange(len(scan.gradients)), work.targets)
        return Generated(mean, None, scan.gradients, (), unchanged, record, warnings=tuple(warnings))


class RunDenoising(RunTraining):
    """Training and denoising of one run by a compared arm.

    Parameters
    ----------
    name, stack, request
        As for `RunTraining`.
    scan
        The scan of the stack.
    sigma
        Standard deviation of the noise, in the stack's units.
    """

    def __init__(self, name: str, scan: Scan, stack: Stack, request: Request, sigma: float):
        targets = self.wanted(scan)
        if not len(targets):
            raise ScanError(ALL_ALONE.format(name=name))
        super().__init__(name, stack, request, targets)
        self.sigma = sigma

    def wanted(self, scan: Scan) -> np.ndarray:
        """Return the volumes that are denoised: all."""
        return np.arange(len(scan.gradients))

    @abstractmethod
    def denoised(self, checkpoint: Path | None) -> tuple[np.ndarray, Trained, int]:
        """Train, and return the denoised targets (Z, J, H, W), the training, and evaluations for each image."""

    def batch_of(
        self, parts: list[tuple[Tensor, Tensor, Tensor]], rng: np.random.Generator, crop: bool
    ) -> dict[str, Tensor]:
        """Return examples of (image (C, h, w), target (1, h, w), weight (h, w)); patches are mirrored at random."""
        image, target, weight = (torch.stack(values) for values in zip(*parts, strict=True))
        weight = weight[:, None]
        for dims in ((-1,), (-2,)):
            if crop and rng.random() < 0.5:
                image, target, weight = image.flip(dims), target.flip(dims), weight.flip(dims)
        image = image.contiguous(memory_format=torch.channels_last)
        return {"image": image, "level": image.new_ones(len(image)), "target": target, "weight": weight}

    def window(self, z: int, rng: np.random.Generator, crop: bool) -> tuple[slice, slice]:
        """Return rows and columns of a patch, or of the whole slice."""
        return self.patch(z, rng) if crop else (slice(None), slice(None))


def checkpoint_of(scan: Scan, request: Request) -> Path | None:
    """Return the checkpoint of this training: beside the requested file, with a digest of all inputs in its name."""
    if request.checkpoint is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for array in (scan.data, scan.mask, scan.gradients.bvals, scan.gradients.bvecs):
        digest.update(np.ascontiguousarray(array).data)
    # The resolved precision, not "auto": training starts anew on other hardware.
    precision = resolve_precision(request.precision, request.device)
    settings = (request.size, request.seed, request.subject, request.run, request.options, request.weights)
    digest.update(repr((*settings, precision, request.device.type)).encode())
    path = Path(request.checkpoint)
    return path.with_name(f"{path.stem}-{digest.hexdigest()}.safetensors")


def training_record(trained: Trained) -> dict[str, Any]:
    """Return a training, for `Generated.record`."""
    return {
        "Steps": trained.steps,
        "Minutes": round(trained.minutes, 2),
        "StoppedBecause": trained.stopped_because,
        "HeldOutLoss": trained.held_out_loss,
        "HeldOutLossAtStart": trained.start_loss,
    }


def _loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean squared error over the brain (L_simple), weighted."""
    error = (net(batch["image"], batch["level"]).float() - batch["target"]) ** 2
    return (error * batch["weight"]).sum() / batch["weight"].sum()
