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
    """A network that makes all volumes of a slice of noise that is always the same."""

    def __init__(self, name: str, scan: Scan, stack: Stack, request: Request, sigma: float):
        super().__init__(name, scan, stack, request, sigma)
        # Slices, not pairs: a slice's volumes are made together.
        self.trainable = [(z, 0) for z in stack.slices]
        self.held_out = self.trainable[:: max(len(self.trainable) // 8, 1)]
        drawn = self.random("hidden").random(stack.data.shape) < HIDDEN
        self.hidden = torch.from_numpy(drawn).to(stack.data.device)

    def seen(self, z: int) -> Tensor:
        """Return the noise (C, H, W) that stands for a slice."""
        shape = (NOISE_CHANNELS, *self.stack.mask.shape[1:])
        drawn = self.random("input", slice=z).standard_normal(shape).astype(np.float32)
        return torch.from_numpy(drawn).to(self.stack.data.device)

    def examples(self, pairs: Pairs, rng: np.random.Generator, crop: bool) -> dict[str, Tensor]:
        """Return slices: without the hidden samples to train, and of them alone to score."""
        image = torch.stack([self.seen(z) for z, _ in pairs]).contiguous(memory_format=torch.channels_last)
        chosen = [z for z, _ in pairs]
        used = ~self.hidden[chosen] if crop else self.hidden[chosen]
        weight = used * self.stack.mask[chosen][:, None]
        return {"image": image, "level": image.new_ones(len(image)), "target": self.stack.data[chosen],
                "weight": weight.float()}  # fmt: skip

    def denoised(self, checkpoint: Path | None) -> tuple[np.ndarray, Trained, int]:
        """Fit the network, and return what it makes of the noise of each slice."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = UNet(UNetSpec(NOISE_CHANNELS, self.stack.data.shape[1], **UNET)).to(self.request.device)
        trained = self.train(net, checkpoint)
        out = np.zeros(self.stack.data.shape, np.float32)
        with torch.no_grad():
            for z in self.stack.slices:
                image = self.seen(z)[None]
                out[z] = net(image, image.new_ones(1))[0].float().cpu().numpy()
        return out, trained, 1
