"""DDM²: its two trainings and what they make of a run; see `ddm2`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.processes import rev_warmup70
from ...diffusion.samplers import ddim
from ...diffusion.training import Trained
from ...dwi.prediction import CHANNELS, conditions, leave_one_out
from ...dwi.series import Scan
from ...dwi.stack import Stack
from ...nets.unet import UNet, UNetSpec
from ..base import Request
from .on_run import UNET, Pairs, RunDenoising

STEPS = 10  # most evaluations of the diffusion model for each image
PROCESS = rev_warmup70()


class ThreeStages(RunDenoising):
    """A network that says volumes from others, and a diffusion model of what it says."""

    def __init__(self, name: str, scan: Scan, stack: Stack, request: Request, sigma: float):
        super().__init__(name, scan, stack, request, sigma)
        self.prediction = leave_one_out(stack.voxels(), scan.gradients).to(request.device)
        self.said: Tensor | None = None  # (Z, N, H, W) after stage I
        self.noise_state = PROCESS.steps  # after stage II

    def wanted(self, scan: Scan) -> np.ndarray:
        """Return the volumes that have another of their kind; a single b0 is not denoised."""
        return np.flatnonzero(scan.gradients.neighbours(1)[:, 0] >= 0)

    def others(self, block: Tensor, volumes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images (J, C, h, w) of a block, in which volumes are not, and their linear prediction (J, h, w)."""
        return conditions(self.prediction, block, volumes, self.sigma)

    def examples(self, pairs: Pairs, rng: np.random.Generator, crop: bool) -> dict[str, Tensor]:
        """Return examples of stage I, or (where it is done) of stage III."""
        parts, levels = [], []
        for z, j in pairs:
            rows, columns = self.window(z, rng, crop)
            block, weight = self.stack.block(z, rows, columns), self.weight[z, rows, columns]
            if self.said is None:
                others, start = self.others(block, np.array([j]))
                parts.append((others[0], (block[1, j][None] - start) / self.sigma, weight))
                continue
            clean = self.said[z, j, rows, columns]
            t = int(rng.integers(1, self.noise_state + 1))
            residual = (block[1, j] - clean)[weight > 0]
            shuffled = residual[torch.from_numpy(rng.permutation(len(residual))).to(residual.device)]
            noise = torch.zeros_like(clean)
            noise[weight > 0] = shuffled / residual.std().clamp_min(1e-6)
            x_t, alpha = PROCESS.add_noise(clean, t, noise)[None], float(PROCESS.marginal(t)[0])
            parts.append((x_t, clean[None] - x_t / alpha, weight))
            levels.append(alpha)
        batch = self.batch_of(parts, rng, crop)
        if levels:
            batch["level"] = batch["level"].new_tensor(levels)
        return batch

    def denoised(self, checkpoint: Path | None) -> tuple[np.ndarray, Trained, int]:
        """Go through the three stages, and return what the third makes of the acquired volumes."""
        device = self.request.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = UNet(UNetSpec(CHANNELS, zero_output=True, **UNET)).to(device)
            second = UNet(UNetSpec(1, zero_output=True, **UNET)).to(device)
        begun = self.train(first, _stage(checkpoint, "-first"), share=0.5)
        self.said = self._say(first)
        self.noise_state = self._matching_time()
        trained = self.train(second, _stage(checkpoint, "-third"), share=0.5)
        trained = replace(trained, steps=begun.steps + trained.steps, minutes=begun.minutes + trained.minutes)
        times = sorted({round(k) for k in np.linspace(1, self.noise_state, min(STEPS, self.noise_state))}, reverse=True)
        out = np.zeros((len(self.stack.data), len(self.targets), *self.stack.mask.shape[1:]), np.float32)
        with torch.no_grad():
            for z in self.stack.slices:
                acquired = self.stack.data[z, self.targets][:, None]

                def denoise(x: Tensor, t: int) -> Tensor:
                    alpha = PROCESS.marginal(t)[0].to(x)
                    return x / alpha + second(x, alpha.expand(len(x))).float()

                # The acquired volume is clean + noise: scaled, it is a sample at the matching time.
                start = acquired * PROCESS.marginal(self.noise_state)[0].to(acquired)
                out[z] = ddim(denoise, PROCESS, start, times).x0[:, 0].cpu().numpy()
        return out, trained, len(times)

    @torch.no_grad()
    def _say(self, net: nn.Module) -> Tensor:
        """Return what stage I says of every target, (Z, N, H, W); other volumes as acquired."""
        said = self.stack.data.clone()
        for z in self.stack.slices:
            block = self.stack.block(z)
            others, start = self.others(block, self.targets)
            added = net(others, others.new_ones(len(others))).float()[:, 0]
            said[z, self.targets] = start + self.sigma * added
        return said

    def _matching_time(self) -> int:
        """Return the time whose noise over its signal is nearest to that of the acquired volumes."""
        assert self.said is not None  # stage I is done
        inside = self.stack.mask[:, None].expand(-1, len(self.targets), -1, -1)
        rest = (self.stack.data - self.said)[:, self.targets][inside]
        alpha, sigma = PROCESS.marginal(torch.arange(1, PROCESS.steps + 1))
        return 1 + int((sigma / alpha - float(rest.std())).abs().argmin())


def _stage(checkpoint: Path | None, name: str) -> Path | None:
    return None if checkpoint is None else checkpoint.with_name(checkpoint.stem + name + checkpoint.suffix)
