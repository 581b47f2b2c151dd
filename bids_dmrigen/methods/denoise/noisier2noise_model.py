"""Noisier2Noise: its training and what it makes of a run; see `noisier2noise`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...diffusion.training import Trained
from ...nets.unet import UNet, UNetSpec
from .on_run import UNET, Pairs, RunDenoising

SLICES = 3  # the slice and its neighbours
DRAWS = 4  # of added noise, whose results are averaged


class Noisier(RunDenoising):
    """A network that says a volume of that volume with more noise."""

    def noisier(self, block: Tensor, rng: np.random.Generator) -> Tensor:
        """Return images with noise of the run's level added."""
        noise = torch.from_numpy(rng.standard_normal(tuple(block.shape)).astype(np.float32)).to(block.device)
        return block + self.sigma * noise

    def examples(self, pairs: Pairs, rng: np.random.Generator, crop: bool) -> dict[str, Tensor]:
        """Return noisier slices; what has to be added to them, in units of the noise, is the target."""
        parts = []
        for z, j in pairs:
            rows, columns = self.window(z, rng, crop)
            block = self.stack.block(z, rows, columns)[:, j]
            noisier = self.noisier(block, rng)
            target = (block[1] - noisier[1])[None] / self.sigma
            parts.append((noisier, target, self.weight[z, rows, columns]))
        return self.batch_of(parts, rng, crop)

    def denoised(self, checkpoint: Path | None) -> tuple[np.ndarray, Trained, int]:
        """Train, and return the mean of 2 f(z) - z over some z."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = UNet(UNetSpec(SLICES, zero_output=True, **UNET)).to(self.request.device)
        trained = self.train(net, checkpoint)
        out = np.zeros(self.stack.data.shape, np.float32)
        with torch.no_grad():
            for z in self.stack.slices:
                block = self.stack.block(z).transpose(0, 1)  # (N, 3, H, W)
                total = torch.zeros_like(block[:, 1])
                for k in range(DRAWS):
                    noisier = self.noisier(block, self.random("sample", slice=z, sample=k))
                    added = net(noisier, noisier.new_ones(len(noisier)))[:, 0].float()
                    total += noisier[:, 1] + 2 * self.sigma * added  # 2 f(z) - z with f(z) = z + sigma added
                out[z] = (total / DRAWS).cpu().numpy()
        return out, trained, DRAWS
