"""QID²'s network, its training, and the generation of directions; see `qid2`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.arrays import Prepared
from ...diffusion.noise import NoiseSource
from ...diffusion.samplers import ancestral, dpm_solver_pp_2m, even_times, two_times
from ...diffusion.training import Plan
from ...dwi.noise import shell_sigma
from ...dwi.series import Scan
from ...nets.direction_unet import DirectionUNet
from ...nets.unet import UNetSpec
from ...simulate.examples import SimulatedSubjects, numbers_of_step
from ..base import Generated, Request, TrainedAtOnce
from ..making import Making, Means, denoiser, label, slice_by_slice
from ..starts import mean_start
from .examples import BVALS, DIRECTIONS, PROCESS, Batch, examples
from .inputs import EXTRA, Condition, condition_of
from .qid2 import SPEC
from .task import REFERENCES, Shell, assemble, check_left_out, shells_to_fill, wanted_directions

STEPS = (1000, 1, 2)  # evaluations: paper's sampler; fast sampler for the mean; fast sampler for a sample
IMAGES_AT_ONCE = 24
CHECKED = 4  # acquired directions of a shell that are left out to measure the trust in the network
NO_TRUST = {0.0: 0.0}  # of any shell: what the network starts from
MARGIN = 4  # voxels around the brain that the network sees
NEEDED = SPEC.min_directions  # different directions on a shell
SIZES = {  # with six references
    "small": UNetSpec(1 + 6 + EXTRA, base=24, multipliers=(1, 2, 4), blocks=1, attention=(2,), groups=0,
                      bottom=False, heads=4, context=64, zero_output=True),
    # As in the authors' code, which uses MONAI: levels, blocks, heads of 128, bottom blocks, and a feed-forward network
    # after each attention.
    "paper": UNetSpec(1 + 6, base=128, multipliers=(1, 1, 2), blocks=1, attention=(1, 2), heads=0, head=128,
                      context=256, feed=4),
}  # fmt: skip
UNTRAINED_B = "shells at b = {bvals} s/mm² lie outside what the weights were trained on, {low:.0f} to {high:.0f}"


class QID2(TrainedAtOnce):
    """QID².

    Parameters
    ----------
    references
        Number of nearest directions that the network sees.
    """

    spec = SPEC

    def __init__(self, references: int = REFERENCES.default):
        self.references = references

    def configured(self, options: Mapping[str, Any]) -> QID2:
        """Return the method with the number of references in the options."""
        return QID2(options.get(REFERENCES.key, REFERENCES.default))

    def network(self, size: str) -> nn.Module:
        """Return an untrained network, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return DirectionUNet(self._architecture(size), self.references)

    def _architecture(self, size: str) -> UNetSpec:
        return replace(SIZES[size], in_channels=SIZES[size].in_channels + self.references - 6)

    def configuration(self, size: str) -> dict[str, Any]:
        """Return the architecture of this size and the range of the training data."""
        return {
            **vars(self._architecture(size)),
            REFERENCES.key: self.references,
            "bvals": list(BVALS),
            "directions": list(DIRECTIONS),
        }

    # -- training

    def batch(self, size: str) -> int:
        """Return the examples per step; the paper gives no number, the authors' code uses four."""
        return 4 if size == "paper" else 32

    def scored_on(self, size: str) -> tuple[int, int]:
        """Return the number of fixed batches, and of examples in each; few for `paper`, with whole slices."""
        return (4, 1) if size == "paper" else (8, 32)

    def training_plan(self, size: str) -> Plan:
        """Return the training's default budget and settings; `paper` has the paper's learning rate and betas."""
        common: dict[str, Any] = {
            "evaluate_every": 250,
            "patience": 1000,
            "save_every": 250,
            "warmup": 200,
            "ema": 0.999,
        }
        if size == "paper":
            return Plan(steps=1_000_000, learning_rate=2.5e-5, betas=(0.5, 0.999), **common)
        return Plan(steps=200_000, learning_rate=1e-3, **common)

    def examples(
        self, source: SimulatedSubjects | Prepared, size: str, batch: int, seed: int
    ) -> Callable[[int], Batch]:
        """Return index -> batch of examples on the source's device."""
        return lambda index: examples(source, size, batch, numbers_of_step(seed, index, source.device), self.references)

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted mean squared error of the network's prediction: noise (`paper`) or image (`small`)."""
        condition = batch.condition
        x_t = PROCESS.add_noise(batch.x0, batch.t.reshape(-1, 1, 1, 1), batch.noise)
        prediction = _evaluate(net, x_t, batch.t, condition)
        target = batch.x0 if condition.with_prediction else batch.noise
        return ((prediction - target).square() * batch.weight).sum() / batch.weight.sum()

    # -- generation

    def draw(
        self,
        net: nn.Module,
        condition: Condition,
        sampler: str,
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        precision: str,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return what the network makes of B images, (B, 1, H, W), as `Condition` takes it.

        Parameters
        ----------
        net
            The network, in evaluation mode.
        condition
            Condition of the images.
        sampler
            "fast" or "paper".
        times
            Times of the evaluations, decreasing.
        noise
            Number of the draw -> standard normal noise (B, 1, H, W).
        precision
            "fp32" or "bf16".
        mean
            What it said at the last time, where that is known.
        """
        sample = dpm_solver_pp_2m if sampler == "fast" else ancestral
        kind = "x0" if condition.with_prediction else "noise"
        denoise = denoiser(partial(_evaluate, net, condition=condition), PROCESS, kind, precision, mean)
        return sample(denoise, PROCESS, noise(0), times, noise).x0

    def generate(self, net: nn.Module | None, scan: Scan, request: Request) -> Generated:
        """Fill every shell of the scan with `net`, or with stored weights where `net` is None."""
        making: Making[nn.Module] = Making(self, net, request, STEPS)
        making.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch types leave it out
        trust: dict[float, float] = {}

        def fill(scan: Scan, request: Request) -> Generated:
            return self._fill(making, scan, request, trust)

        def start(scan: Scan, request: Request) -> Generated:
            return self._fill(making, scan, request, NO_TRUST)

        if request.size == "small":
            trust = trust_in_correction(fill, start, scan, request)
        return replace(fill(scan, request), left_out=check_left_out(fill, scan, request, NEEDED))

    def _fill(self, making: Making[nn.Module], scan: Scan, request: Request, trust: dict[float, float]) -> Generated:
        making = making.again(request)
        warnings = self.spec.check(scan)
        shells, more = shells_to_fill(scan, self.spec.title, NEEDED, wanted_directions(request))
        warnings += more + _outside(shells)
        seen = replace(scan, data=mean_start(scan)) if request.size == "small" else scan
        filler = _Filler(self.configured(request.options), making, seen, scan)
        trusted = {shell.bval: _nearest(trust, shell.bval) for shell in shells}

        def fill(sample: int | None) -> np.ndarray:
            generated, first = [], 0
            for shell in shells:
                generated.append(filler.fill(shell, first, trusted[shell.bval], sample))
                first += len(shell.wanted)
            return np.concatenate(generated, axis=3)

        generated, samples = making.result(fill)
        record = making.record(
            len(filler.times(None)),
            References=filler.references,
            TrustInCorrection={f"b={bval:.0f}": round(value, 3) for bval, value in trusted.items()},
            NoiseLevel={f"b={shell.bval:.0f}": round(shell_sigma(scan, shell.volumes), 4) for shell in shells},
        )
        return assemble(scan, shells, generated, samples, record, warnings=tuple(warnings))


class _Filler:
    """Generates the missing directions of one scan, slice by slice, from a series with less noise than `acquired`."""

    def __init__(self, method: QID2, making: Making[nn.Module], scan: Scan, acquired: Scan):
        self.method, self.making, self.request = method, making, making.request
        self.scan, self.acquired = scan, acquired
        # A network that is given may have others than the method's.
        self.references: int = getattr(making.net, "references", method.references)
        self.means = Means()
        self.box, self.slices = scan.brain_window(MARGIN)
        linear_part = np.asarray(scan.affine)[:3, :3]
        self.axes = torch.as_tensor(linear_part / np.linalg.norm(linear_part, axis=0), dtype=torch.float32)
        self.b0 = scan.mean_b0()

    def times(self, sample: int | None) -> list[int]:
        """Return the times of the evaluations for a sample, or (None) for the mean."""
        if sample is None:
            return even_times(PROCESS.steps, self.making.steps)
        steps = self.making.sample_steps
        return two_times(PROCESS) if steps == 2 else even_times(PROCESS.steps, steps)

    @torch.inference_mode()
    def fill(self, shell: Shell, first: int, trust: float, sample: int | None) -> np.ndarray:
        """Return a sample, or (None) the mean, (X, Y, Z, T) of a shell's wanted directions.

        `first` is the index of the shell's first direction among all generated ones; it selects the noise. `trust` is
        the share of the network's correction that is used.
        """
        mask = self.scan.mask
        unit = float(self.scan.data[mask][:, shell.volumes].mean())
        sigma = shell_sigma(self.acquired, shell.volumes)

        def at(part: np.ndarray) -> Tensor:
            z = int(part[0])
            condition = self._condition(shell, z, unit, sigma)
            inside = torch.from_numpy(np.ascontiguousarray(mask[(*self.box, z)]))
            made = self._made(condition, z, first, trust, sample)
            return (made.clamp_min(0) * inside).permute(1, 2, 0)[:, :, None]

        volume = (*mask.shape, len(shell.wanted))
        parts = np.split(self.slices, len(self.slices))
        return slice_by_slice(volume, self.box, parts, self.request, at, label(f"b = {shell.bval:.0f}, slices", sample))

    def _condition(self, shell: Shell, z: int, unit: float, sigma: float) -> Condition:
        """Return the condition of all wanted directions in a slice."""
        around = [min(max(z + k, 0), self.scan.data.shape[2] - 1) for k in (-1, 0, 1)]

        def block(volume: np.ndarray) -> Tensor:  # (h, w, 3, ...)
            return torch.from_numpy(np.ascontiguousarray(volume[self.box][:, :, around], dtype=np.float32))

        signal = block(self.scan.data)[..., shell.volumes].permute(3, 0, 1, 2)  # (N, h, w, 3)
        device = self.request.device
        return condition_of(
            block(self.b0)[None].to(device),
            signal[None].to(device),
            torch.as_tensor(shell.acquired, dtype=torch.float32, device=device)[None] @ self.axes.to(device),
            torch.as_tensor(shell.wanted, dtype=torch.float32, device=device)[None] @ self.axes.to(device),
            torch.tensor([shell.bval], device=device, dtype=torch.float32),
            torch.tensor([sigma], device=device, dtype=torch.float32),
            torch.tensor([unit], device=device),
            self.request.size,
            self.references,
        )

    def _made(self, condition: Condition, z: int, first: int, trust: float, sample: int | None) -> Tensor:
        """Return a sample, or (None) the mean, (T, h, w) of every wanted direction in a slice, in signal units.

        Trust concerns the mean. What samples differ from it is kept whole.
        """
        request, generated = self.request, []
        if trust == 0 and request.n_samples == 1:
            return condition.centre[:, 0].float().cpu()
        name, net, precision = self.method.spec.name, self.making.net, self.making.precision
        for part in torch.arange(len(condition.images)).split(IMAGES_AT_ONCE):
            part_condition, place = condition.part(part), (first + int(part[0]), z)
            addresses = [(first + int(t), z, sample or 0) for t in part]
            shape = (1, *condition.images.shape[2:])
            noise = NoiseSource(request.seed, request.subject, request.run, name, addresses, shape, request.device)
            mean = None if sample is None else self.means.of(place)
            output = self.method.draw(net, part_condition, request.sampler, self.times(sample), noise, precision, mean)
            if sample is None and request.n_samples > 1:
                self.means.keep(place, output)
            output = trust * output if mean is None else output + (trust - 1) * mean.to(output)
            generated.append((part_condition.centre + part_condition.scale * output)[:, 0].float().cpu())
        return torch.cat(generated)


def _evaluate(net: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return net(
        torch.cat([x, condition.images], dim=1), t.float(), condition.bvecs, condition.bvals, condition.log_sigma
    )


def trust_in_correction(
    fill: Callable[[Scan, Request], Generated],
    start: Callable[[Scan, Request], Generated],
    scan: Scan,
    request: Request,
) -> dict[float, float]:
    """Return for each shell the share of the network's correction that the scan confirms, 0 to 1.

    Some acquired directions are left out and generated from the others. With s what the network starts from, q its
    result and y the acquired signal, the trust is the least-squares share
    sum (y - s)(q - s) / sum (q - s)². The noise in y is in neither s nor q, so that it adds variance but no bias.
    Shells with too few directions to leave any out are not in the result.
    """
    check_request = replace(request, n_samples=1, sampler="fast", steps=None, left_out=CHECKED)
    generated = check_left_out(fill, scan, check_request, NEEDED)
    uncorrected = check_left_out(start, scan, check_request, NEEDED)
    if generated is None or uncorrected is None:
        return {}
    trust = {}
    for bval, members in scan.gradients.shells():
        of_shell = np.isin(generated.volumes, members)
        if of_shell.any():
            base = uncorrected.mean[scan.mask][:, of_shell].astype(np.float64)
            change = generated.mean[scan.mask][:, of_shell] - base
            error = scan.data[scan.mask][:, generated.volumes[of_shell]] - base
            trust[bval] = float(np.clip((change * error).sum() / max((change**2).sum(), 1e-12), 0, 1))
    return trust


def _nearest(trust: dict[float, float], bval: float) -> float:
    """Return the trust of the shell at this b-value; 1 where no shell has one."""
    return min((abs(other - bval), value) for other, value in (trust or {bval: 1.0}).items())[1]


def _outside(shells: list[Shell]) -> list[str]:
    """Return a warning where b-values lie outside the trained range."""
    bvals = [round(s.bval) for s in shells if not BVALS[0] <= s.bval <= BVALS[1]]
    return [UNTRAINED_B.format(bvals=bvals, low=BVALS[0], high=BVALS[1])] if bvals else []


def build() -> QID2:
    """Return the method, with the default number of references."""
    return QID2()
