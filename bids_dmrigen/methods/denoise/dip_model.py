"""Deep image prior: its training and what it makes of a run; see `dip`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...diffusion.training import Trained
from ...dwi.series import Scan
from ...dwi.stack import Stack
from ...nets.unet import UNet, UNetSpec
from ..base import Request
from .on_run import UNET, Pairs, RunDenoising

NOISE_CHANNELS = 16
HIDDEN = 0.05  # share of the samples that the network is not fitted to, and that stop it


class ImagePrior(RunDenoising):
    """A network that makes all volumes of a slice of noise that is always the same, and of the shells' mean images."""

    def __init__(self, name: str, scan: Scan, stack: Stack, request: Request, sigma: float):
        super().__init__(name, scan, stack, request, sigma)
        # Slices, not pairs: a slice's volumes are made together.
        self.trainable = [(z, 0) for z in stack.slices]
        self.held_out = self.trainable[:: max(len(self.trainable) // 8, 1)]
        drawn = self.random("hidden").random(stack.data.shape) < HIDDEN
        self.hidden = torch.from_numpy(drawn).to(stack.data.device)
        # Samples that stop the training are not in the mean images either.
        shown = (~self.hidden).float()
        groups = [volumes for volumes in scan.gradients.groups() if len(volumes) > 1]
        parts = [(stack.data * shown)[:, v].sum(1) / shown[:, v].sum(1).clamp_min(1) for v in groups]
        self.means = torch.stack(parts, dim=1)  # (Z, G, H, W)
        self.mean_of = [next(k for k, volumes in enumerate(groups) if j in volumes) for j in self.targets]

    def wanted(self, scan: Scan) -> np.ndarray:
        """Return the volumes that have others of their kind: the mean image of a single b0 is that b0."""
        return np.sort(np.concatenate([volumes for volumes in scan.gradients.groups() if len(volumes) > 1]))

    def seen(self, z: int) -> Tensor:
        """Return the noise and the mean images (C, H, W) that stand for a slice."""
        shape = (NOISE_CHANNELS, *self.stack.mask.shape[1:])
        drawn = self.random("input", slice=z).standard_normal(shape).astype(np.float32)
        return torch.cat([torch.from_numpy(drawn).to(self.means), self.means[z]])

    def examples(self, pairs: Pairs, rng: np.random.Generator, crop: bool) -> dict[str, Tensor]:
        """Return patches of slices without the hidden samples, to train, or slices of these alone, to score.

        The target is what has to be added to the mean images, in units of the noise.
        """
        used, images, targets, weights = ~self.hidden if crop else self.hidden, [], [], []
        for z, _ in pairs:
            rows, columns = self.window(z, rng, crop)
            images.append(self.seen(z)[:, rows, columns])
            targets.append((self.stack.data[z, self.targets] - self.means[z, self.mean_of])[:, rows, columns])
            weights.append((used[z, self.targets] * self.stack.mask[z])[:, rows, columns])
        image = torch.stack(images).contiguous(memory_format=torch.channels_last)
        return {"image": image, "level": image.new_ones(len(image)), "target": torch.stack(targets) / self.sigma,
                "weight": torch.stack(weights).float()}  # fmt: skip

    def denoised(self, checkpoint: Path | None) -> tuple[np.ndarray, Trained, int]:
        """Fit the network, and return what it makes of each slice."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            channels = NOISE_CHANNELS + self.means.shape[1]
            net = UNet(UNetSpec(channels, len(self.targets), zero_output=True, **UNET)).to(self.request.device)
        trained = self.train(net, checkpoint)
        out = np.zeros((len(self.stack.data), len(self.targets), *self.stack.mask.shape[1:]), np.float32)
        with torch.no_grad():
            for z in self.stack.slices:
                image = self.seen(z)[None]
                said = net(image, image.new_ones(1))[0].float()
                out[z] = (self.means[z, self.mean_of] + self.sigma * said).cpu().numpy()
        return out, trained, 1
