"""The effects of a scanner on noise-free slices: coil bias, noise, limited k-space; batched, for training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

BIAS_NODES = 3  # per axis: the coil's gain varies no faster than this over a view


@dataclass(frozen=True)
class Imaging:
    """How examples are measured: ranges from which values are drawn for each example.

    Parameters
    ----------
    snr
        b0 signal of white matter over the noise's standard deviation in one channel; drawn log-uniformly.
    bias
        Largest standard deviation of the logarithm of the coil's gain at its nodes.
    coils
        Numbers of channels, combined by sum of squares, one of which a batch gets: Rician noise for 1,
        non-central chi for more.
    truncated
        Share of the examples whose k-space is not acquired in full, and filled with zeros.
    acquired
        Share of k-space that is acquired in those examples, along each axis of the slice.
    partial_fourier
        Share of the truncated examples in which one side of k-space is missing too: at most a quarter of it.
    filtered
        Share of the examples whose k-space is multiplied by a Gaussian, the roll-off. Reconstruction and the
        interpolation of preprocessing have the same effect: the noise of neighbouring voxels is correlated.
    roll_off
        Standard deviation s of the Gaussian, cycles per voxel; the correlation of neighbours is exp(-pi² s²).
    noise_alone
        Roll off the noise, but not the signal. Even after a roll-off, real heads show more detail than simulated ones,
        whose anatomies have none below 2 mm.
    across
        Largest correlation of the noise of neighbouring slices; for blocks of slices only.
    uneven
        Largest standard deviation of the logarithm of a gain at its nodes, where every volume has another gain: head
        and coil move, and some series are joined from several runs.
    displaced
        Largest standard deviation of the displacement that motion correction leaves in every volume, voxels along each
        axis of the slice.
    """

    snr: tuple[float, float] = (8.0, 120.0)
    bias: float = 0.5
    coils: tuple[int, ...] = (1, 1, 1, 1, 1, 4)
    truncated: float = 0.5
    acquired: tuple[float, float] = (0.6, 1.0)
    partial_fourier: float = 0.5
    filtered: float = 0.7
    roll_off: tuple[float, float] = (0.18, 0.6)
    noise_alone: bool = False
    across: float = 0.45
    uneven: float = 0.05
    displaced: float = 0.25


@dataclass(frozen=True, eq=False)
class Measured:
    """Measured slices and the true values of the measurement.

    Parameters
    ----------
    signal
        (B, N, H, W[, D]) magnitudes.
    sigma
        (B,) standard deviation of the Gaussian noise in one channel of the final images.
    bias
        (B, 1, H, W[, D]) gain of the coil: without noise and truncation, `signal` is the clean signal times this.
    expected
        (B, T, H, W[, D]) the signals in `noiseless` of `measure`, after all effects but three: noise, the gain of a
        single volume, and the displacement of a single volume. None where no such signals were given.
    """

    signal: torch.Tensor
    sigma: torch.Tensor
    bias: torch.Tensor
    expected: torch.Tensor | None = None


def measure(
    clean: torch.Tensor,
    white: torch.Tensor,
    generator: torch.Generator,
    imaging: Imaging | None = None,
    noiseless: torch.Tensor | None = None,
) -> Measured:
    """Return noise-free signals as a scanner measures them.

    Noise is white in k-space and is drawn before k-space is truncated or filtered. So it is correlated in space, like
    the noise of a scanner that interpolates, and edges ring or blur.

    Parameters
    ----------
    clean
        (B, N, H, W) or (B, N, H, W, D); k-space has the axes H and W.
    white
        (B,) b0 signal of white matter.
    generator
        Random numbers, on the same device.
    imaging
        None for the default ranges.
    noiseless
        (B, T, H, W[, D]) more noise-free signals of the same views: see `Measured.expected`.
    """
    imaging = imaging or Imaging()
    batch, device = len(clean), clean.device

    def uniform(low=0.0, high=1.0):
        return low + (high - low) * torch.rand(batch, generator=generator, device=device)

    bias = _bias(imaging.bias * uniform(), clean.shape[2:], generator)
    low, high = (torch.log(torch.tensor(s)).item() for s in imaging.snr)
    sigma = white / torch.exp(uniform(low, high))
    acquired, roll_off = _windows(imaging, clean.shape[2:4], uniform)
    filtered = [a * r for a, r in zip(acquired, roll_off, strict=True)]
    windows = acquired if imaging.noise_alone else filtered  # of the signal
    uneven, displaced = imaging.uneven * uniform(), imaging.displaced * uniform()
    correlation = imaging.across * uniform() if clean.ndim == 5 and clean.shape[4] > 1 else None
    coils = imaging.coils[int(torch.randint(len(imaging.coils), (), generator=generator, device=device))]
    signal = torch.empty_like(clean)
    # On a CPU one example at a time stays in the cache.
    for part in [slice(None)] if clean.is_cuda else [slice(i, i + 1) for i in range(batch)]:
        across = None if correlation is None else correlation[part]
        received = clean[part] * bias[part]
        if imaging.uneven:
            received *= _gains(uneven[part], clean.shape[1:], generator)
        axes = [window[part] for window in windows]
        if imaging.displaced:
            ramps = _ramps(displaced[part], clean.shape[1:4], generator)
            axes = [axis * ramp for axis, ramp in zip(axes, ramps, strict=True)]
        noise_axes = [window[part] for window in filtered] if imaging.noise_alone else None
        signal[part] = _magnitude(received, sigma[part], axes, noise_axes, across, coils, generator)
    expected = None
    if noiseless is not None:
        gain = bias[..., : noiseless.shape[4]] if noiseless.ndim == 5 else bias
        expected = torch.fft.ifft2(_multiplied(noiseless * gain, windows), dim=(2, 3)).abs()
    return Measured(signal, sigma, bias, expected)


def _magnitude(signal, sigma, axes, noise_axes, correlation, coils: int, generator: torch.Generator) -> torch.Tensor:
    """Return the magnitude of signals (B, N, H, W[, D]) with noise (B,), after k-space is multiplied along its axes.

    `axes` are (B, 1 or N, H, 1) and (B, 1 or N, 1, W). `noise_axes` are those of the noise, or None for the same.
    `correlation` (B,) is that of the noise of neighbouring slices, or None.
    """
    separate = noise_axes is not None
    noise_axes = noise_axes or axes
    changed = any(bool((axis != 1).any()) for axis in [*axes, *noise_axes])
    # Filtering removes part of the noise, so its standard deviation before the filter is larger.
    passed = [axis[:, 0].abs().square().mean(dim=(1, 2)).sqrt() for axis in noise_axes]
    before = (sigma / (passed[0] * passed[1])).reshape(-1, 1, 1, 1, *[1] * (signal.ndim - 4))
    channels = []
    for coil in range(coils):  # all signal is in one channel: the sum of squares does not depend on which
        real, imaginary = (
            torch.randn(signal.shape, generator=generator, device=signal.device).mul_(before) for _ in range(2)
        )
        if correlation is not None:
            real, imaginary = (_with_neighbours(noise, correlation) for noise in (real, imaginary))
        if coil == 0 and not (separate and changed):
            real += signal
        if changed:
            spectrum = _multiplied(torch.complex(real, imaginary), noise_axes)
            if coil == 0 and separate:
                spectrum += _multiplied(signal, axes)
            magnitude = torch.fft.ifft2(spectrum, dim=(2, 3)).abs()
        else:
            magnitude = torch.hypot(real, imaginary)
        channels.append(magnitude)
    return channels[0] if coils == 1 else torch.stack(channels).square_().sum(dim=0).sqrt_()


def _multiplied(image: torch.Tensor, axes) -> torch.Tensor:
    """Return the k-space (B, N, H, W[, D]) of an image, multiplied along its axes."""
    spectrum = torch.fft.fft2(image, dim=(2, 3))
    for axis in axes:
        spectrum *= axis.reshape(*axis.shape, *[1] * (image.ndim - 4))
    return spectrum


def _with_neighbours(noise: torch.Tensor, correlation: torch.Tensor) -> torch.Tensor:
    """Return white noise (B, N, H, W, D) mixed so that neighbouring slices have this correlation (B,).

    n_1 stays, n_k becomes c n_(k-1) + sqrt(1 - c²) n_k: an autoregressive sequence, c^d between slices d apart.
    """
    c = correlation.reshape(-1, 1, 1, 1)
    mixed = [noise[..., 0]]
    for k in range(1, noise.shape[4]):
        mixed.append(c * mixed[-1] + (1 - c.square()).sqrt() * noise[..., k])
    return torch.stack(mixed, dim=4)


def _bias(strength: torch.Tensor, shape, generator: torch.Generator) -> torch.Tensor:
    """Return (B, 1, *shape) smooth gains; strength (B,)."""
    return _gains(strength, (1, *shape), generator)


def _gains(strength: torch.Tensor, shape, generator: torch.Generator) -> torch.Tensor:
    """Return (B, N, H, W[, D]) smooth gains, one for each volume; strength (B,)."""
    n, height, width, *depth = shape
    nodes = torch.randn((len(strength), n, BIAS_NODES, BIAS_NODES), generator=generator, device=strength.device)
    rows, columns = (_from_nodes(size, strength.device) for size in (height, width))
    gains = (rows @ (strength[:, None, None, None] * nodes) @ columns.T).exp_()
    return gains.reshape(*gains.shape, *[1] * len(depth)).expand(-1, -1, height, width, *depth)


@cache
def _from_nodes(size: int, device: torch.device) -> torch.Tensor:
    """Return (size, nodes): the weights of cubic interpolation along an axis."""
    each = torch.eye(BIAS_NODES, device=device)[None]
    return F.interpolate(each[..., None], size=(size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T


def _ramps(strength: torch.Tensor, shape, generator: torch.Generator) -> list[torch.Tensor]:
    """Return phases (B, N, H, 1) and (B, N, 1, W) that displace every volume by a few voxels; strength (B,)."""
    n, height, width = shape
    moved = strength[:, None, None] * torch.randn((len(strength), n, 2), generator=generator, device=strength.device)
    ramps = []
    for distance, size in zip(moved.unbind(2), (height, width), strict=True):
        phase = -2 * torch.pi * distance[..., None] * torch.fft.fftfreq(size, device=strength.device)
        ramps.append(torch.polar(torch.ones_like(phase), phase))
    return [ramps[0][..., :, None], ramps[1][..., None, :]]


def _windows(imaging: Imaging, shape, uniform) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return two windows of k-space, the acquired part and the roll-off: (B, 1, H, 1) and (B, 1, 1, W) each.

    They are in the order of the FFT.
    """
    truncated = uniform() < imaging.truncated
    filtered = uniform() < imaging.filtered
    missing = uniform(0.0, 0.25) * (uniform() < imaging.partial_fourier)
    acquired, rolled_off = [], []
    for axis, n in enumerate(shape):
        frequency = torch.fft.fftfreq(n, device=missing.device)[None]  # -1/2 to 1/2
        half = torch.where(truncated, uniform(*imaging.acquired), 1.0)[:, None] / 2
        upper = half * torch.where(truncated, 1 - 2 * missing, 1.0)[:, None] if axis == 1 else half
        acquired.append(((frequency >= -half) & (frequency <= upper)).float())
        width = imaging.roll_off[0] * (imaging.roll_off[1] / imaging.roll_off[0]) ** uniform()
        roll_off = torch.exp(-0.5 * (frequency / width[:, None]).square())
        rolled_off.append(torch.where(filtered[:, None], roll_off, 1.0))
    along = [[axes[0][:, None, :, None], axes[1][:, None, None, :]] for axes in (acquired, rolled_off)]
    return along[0], along[1]
