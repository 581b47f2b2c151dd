"""Forward noising processes: the amounts of image and noise at each time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTIONS = ("x0", "noise", "v", "score")
PHYSICS_TERMS = 5  # terms of a power series in the strength: relative error of alpha_bar below 1e-9 at the largest
WRONG_PHYSICS = (
    "physics-guided noise: expected relative attenuations in [0, 1] and a strength in [0, 0.01], found "
    "{low:g} to {high:g} and {strength:g}"
)


class Process(ABC):
    """A Gaussian noising x_t = alpha_t x_0 + sigma_t noise, t = 0 (clean) ... `steps`.

    Whatever `marginal` returns broadcasts against the images, so a process may differ from voxel to voxel;
    everything else follows from it.
    """

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of noising steps T."""

    @abstractmethod
    def marginal(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at integer time t; a tensor of times gives tensors of its shape."""

    def add_noise(self, x0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Return x_t = alpha_t x_0 + sigma_t noise; t broadcasts against x0, as (B, 1, 1, 1) does."""
        alpha, sigma = self._marginal_like(t, x0)
        return alpha * x0 + sigma * noise

    def to_x0(self, x_t: Tensor, t: int | Tensor, prediction: Tensor, kind: str) -> Tensor:
        """Return the clean image that a prediction of this kind ("x0", "noise", "v" or "score") stands for.

        With x_t = alpha x_0 + sigma eps: v = alpha eps - sigma x_0
        (Salimans & Ho 2022), score = -eps / sigma.

        Raises
        ------
        ValueError
            Where the kind is none of these.
        """
        alpha, sigma = self._marginal_like(t, x_t)
        if kind == "x0":
            return prediction
        if kind == "noise":
            return (x_t - sigma * prediction) / alpha
        if kind == "v":
            return (alpha * x_t - sigma * prediction) / (alpha**2 + sigma**2)
        if kind == "score":
            return (x_t + sigma**2 * prediction) / alpha
        raise ValueError(f"unknown kind of prediction {kind!r}; expected one of {PREDICTIONS}")

    def posterior(self, x0: Tensor, x_t: Tensor, t: int | Tensor, s: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x_s given x_0 and x_t, exact for any earlier time s < t.

        With a = alpha_t / alpha_s and b² = sigma_t² - a² sigma_s² (the noise added from s to t):
        mean = (a sigma_s² x_t + alpha_s b² x_0) / sigma_t², variance = b² sigma_s² / sigma_t².
        """
        alpha_t, sigma_t = self._marginal_like(t, x_t)
        alpha_s, sigma_s = self._marginal_like(s, x_t)
        a = alpha_t / alpha_s
        b2 = sigma_t**2 - a**2 * sigma_s**2
        mean = (a * sigma_s**2 * x_t + alpha_s * b2 * x0) / sigma_t**2
        return mean, (b2 * sigma_s**2).clamp_min(0).sqrt() / sigma_t

    def _marginal_like(self, t: int | Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.marginal(t)
        return alpha.to(image.device, image.dtype), sigma.to(image.device, image.dtype)


@dataclass(frozen=True, eq=False)
class VariancePreserving(Process):
    """A process with alpha² + sigma² = 1, from its per-step variances.

    Parameters
    ----------
    betas
        (T,) float64; betas[t - 1] is the variance added in step t, so alpha_t² = prod_{s <= t} (1 - beta_s).
    """

    betas: Tensor

    @property
    def steps(self) -> int:
        """Number of noising steps T."""
        return len(self.betas)

    def marginal(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return (sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)), float64."""
        log_alpha_bar = _from_zero(torch.log1p(-self.betas))[torch.as_tensor(t).cpu()]
        return (log_alpha_bar / 2).exp(), torch.expm1(log_alpha_bar).abs().sqrt()


def rev_warmup70(steps: int = 1000, low: float = 5e-5, high: float = 1e-2) -> VariancePreserving:
    """Return Di-Fusion's process: constant `low` variance in 30 % of the steps, then linear to `high`."""
    flat = round(0.3 * steps)
    ramp = torch.linspace(low, high, steps - flat, dtype=torch.float64)
    return VariancePreserving(torch.cat([torch.full((flat,), low, dtype=torch.float64), ramp]))


def linear(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> VariancePreserving:
    """Return DDPM's process (Ho et al. 2020): per-step variances that rise linearly from `low` to `high`."""
    return VariancePreserving(torch.linspace(low, high, steps, dtype=torch.float64))


@dataclass(frozen=True)
class VarianceExploding(Process):
    """A process that only adds noise: alpha = 1, sigma_t from `low` to `high` (Song et al. 2021).

    Parameters
    ----------
    low, high
        sigma_t = low (high / low)^((t - 1) / (T - 1)) for t = 1 ... T, in the images' units; sigma_0 = 0.
    steps
        T.
    """

    low: float = 0.01
    high: float = 348.0
    steps: int = 1000

    def marginal(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, sigma_t), float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        sigma = self.low * (self.high / self.low) ** ((t - 1) / (self.steps - 1))
        return torch.ones_like(t), torch.where(t > 0, sigma, 0.0)


@dataclass(frozen=True, eq=False)
class PhysicsGuided(Process):
    """Phy-Diff's process: voxels with strong diffusion attenuation get noise a little faster.

    Per step alpha_t = 1 - beta_t - g (1 - u) and alpha_bar_t = prod_{s <= t} alpha_s, with u = exp(-2 b D) of an atlas
    of the apparent diffusion coefficient D, brought to [0, 1] in each image (`relative_attenuation`). So x_t =
    sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Zhang et al. 2024, Eq. 5). Where u = 1 this is the
    process without physics.

    Parameters
    ----------
    betas
        (T,) float64, as of `VariancePreserving`.
    attenuation
        u, in [0, 1]; broadcasts against the images, as (B, 1, H, W) does.
    strength
        g: 1e-3 in the authors' code; at most 1e-2.

    Raises
    ------
    ValueError
        Where u or g lie outside their range.
    """

    betas: Tensor
    attenuation: Tensor
    strength: float = 1e-3

    def __post_init__(self) -> None:
        low, high = float(self.attenuation.min()), float(self.attenuation.max())
        if low < 0 or high > 1 or not 0 <= self.strength <= 1e-2:
            raise ValueError(WRONG_PHYSICS.format(low=low, high=high, strength=self.strength))

    @property
    def steps(self) -> int:
        """Number of noising steps T."""
        return len(self.betas)

    def marginal(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return (sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)), float64; t broadcasts against the attenuation."""
        # ln(1 - beta - w) = ln(1 - beta) - sum_k (w / (1 - beta))^k / k with w = g (1 - u). The sum over the steps is
        # needed once for each power of w, and is the same for all voxels.
        t, keep = torch.as_tensor(t).cpu(), 1 - self.betas
        lost = self.strength * (1 - self.attenuation.double())
        log_alpha_bar = _from_zero(keep.log())[t].to(lost.device)
        for k in range(1, PHYSICS_TERMS + 1):
            log_alpha_bar = log_alpha_bar - lost**k / k * _from_zero(keep**-k)[t].to(lost.device)
        return (log_alpha_bar / 2).exp(), torch.expm1(log_alpha_bar).abs().sqrt()


def relative_attenuation(bval: Tensor, adc: Tensor) -> Tensor:
    """Return u = exp(-2 b D), brought to [0, 1] in each image; 1 in an image where u is constant.

    Parameters
    ----------
    bval
        (B,) s/mm².
    adc
        (B, 1, H, W) mm²/s.
    """
    u = torch.exp(-2 * bval.reshape(-1, 1, 1, 1) * adc)
    low, high = u.amin(dim=(1, 2, 3), keepdim=True), u.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(high > low, (u - low) / (high - low).clamp_min(1e-12), 1.0)


def _from_zero(steps: Tensor) -> Tensor:
    """Return (T + 1,) running sums that start at 0."""
    return torch.cat([steps.new_zeros(1), steps.cumsum(0)])
