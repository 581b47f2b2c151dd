"""Noise of magnitude images: Rician moments, their inverse, and an estimate of the noise level of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .gradients import GradientTable
from .series import Scan, ScanError

FOREGROUND = 0.1  # share of the b0's 99th percentile: darker voxels are background, whatever the mask says
WEAK_CONTRAST = 0.5  # share of the voxels that are used: those with the weakest direction contrast
QUANTILE = 0.2  # quantile of the residual power that is used: it is low, because all that is not noise adds power
MIN_VOXELS = 100
MIN_IN_SLICE = 30
MAX_VOXELS = 100_000  # more would only cost memory: a quantile over these is good to a fraction of a percent
MAX_ITERATIONS = 50
QUADRANTS = 4  # sides of a voxel towards which it is compared with its neighbours

TOO_FEW_VOXELS = (
    "noise cannot be estimated: {found} usable voxels (bright, not constant, inside the mask), at least "
    "{needed} are needed; check the mask and that the volumes differ from one another"
)
NO_FREEDOM = (
    "noise cannot be estimated: {n_b0} b0 and {n_directions} diffusion-weighted volumes hold no two that can "
    "be compared; two b0s or two directions on one shell are needed"
)


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise level of a run.

    Parameters
    ----------
    sigma
        Standard deviation of the Gaussian noise in either channel, in scanner units.
    b0_snr
        Median over the foreground of (mean b0) / sigma.
    n_voxels
        Number of voxels that were used.
    spatial
        True where the volumes are so few that only differences between neighbouring voxels could be used. Edges raise
        such an estimate and interpolation lowers it; expect the right order of magnitude.
    """

    sigma: float
    b0_snr: float
    n_voxels: int
    spatial: bool


def rician_mean(signal: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """Return the expected magnitude of a signal in Rician noise.

    E[M] = sigma sqrt(pi/2) L(-A²/(2 sigma²)) with L(x) = e^{x/2} [(1 - x) I0(-x/2) - x I1(-x/2)]
    (Koay & Basser 2006).

    Parameters
    ----------
    signal
        Noise-free magnitude A, not negative, any shape.
    sigma
        Standard deviation of the noise in either channel, same units, positive.
    """
    half = (signal / sigma).square() / 4
    laguerre: torch.Tensor = (1 + 2 * half) * torch.special.i0e(half) + 2 * half * torch.special.i1e(half)
    mean: torch.Tensor = sigma * (torch.pi / 2) ** 0.5 * laguerre
    return mean


def rician_signal(mean: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """Return the noise-free magnitude whose expected Rician magnitude is `mean`: invert `rician_mean`.

    Means at or below the noise floor, sigma sqrt(pi/2), give a signal of zero.
    """
    means, snrs, _ = _moments()
    ratio = (torch.as_tensor(mean, dtype=torch.float64) / sigma).cpu().numpy()
    # Beyond the table the mean is A + sigma²/(2 A) to better than 1e-6.
    far = (ratio + np.sqrt(np.maximum(ratio**2 - 2, 0))) / 2
    snr = np.where(ratio < means[-1], np.interp(ratio, means, snrs), far)
    return torch.as_tensor(snr, device=mean.device).to(mean.dtype) * sigma


def estimate_sigma(scan: Scan) -> NoiseEstimate:
    """Estimate the noise level of a run from its brain voxels, without any background.

    Each shell is described voxel by voxel by even spherical harmonics of low order, the b0s by their mean.
    What remains is noise: E[residual sum of squares] = sigma² sum_i P_ii xi(A_i / sigma), with P the
    projection onto what the description leaves out and xi the share of the noise variance that survives the
    magnitude (Koay & Basser 2006; 1 at high signal, 0.43 in the background). Only the half of the voxels with the
    weakest direction contrast is used, where a low order is enough; the contrast is independent of the residual, so
    that this choice does not bias the estimate. Sigma is the value that matches a low quantile of the chi²
    distribution, because motion and pulsation add power but never remove any.

    Where there are too few directions for that (six and one b0), the differences of neighbouring voxels in their
    deviations from the shell's mean are used instead.

    The noise is that of the images as they are: interpolation in the scanner lowers it, uncorrected motion
    raises it. Where the noise varies over the brain (parallel imaging), the estimate lies below its mean.

    Raises
    ------
    ScanError
        Where no two volumes can be compared or too few voxels are usable.
    """
    foreground = _foreground(scan)
    typical_b0 = float(np.median(scan.mean_b0()[foreground]))
    projection, contrast_basis = _descriptions(scan.gradients, max_order=4)
    spatial = np.trace(projection) < 0.5
    if spatial:
        projection, contrast_basis = _descriptions(scan.gradients, max_order=0)
    freedom = round(float(np.trace(projection)))
    if freedom < 1:
        n_b0 = int(scan.gradients.is_b0.sum())
        raise ScanError(NO_FREEDOM.format(n_b0=n_b0, n_directions=len(scan.gradients) - n_b0))
    signal = np.asarray(scan.data[foreground], dtype=np.float64)  # (V, N)
    residual = signal @ projection
    fitted = np.maximum(signal - residual, 0)
    if spatial:
        residual = _mixed_differences(scan, foreground) @ projection
        signal, fitted = np.tile(signal, (QUADRANTS, 1)), np.tile(fitted, (QUADRANTS, 1))
    power = (residual**2).sum(axis=1)
    usable = power > 1e-12 * (signal**2).sum(axis=1)  # constant voxels were filled in, not measured
    n_voxels = int(usable.sum()) // (QUADRANTS if spatial else 1)
    if n_voxels < MIN_VOXELS:
        raise ScanError(TOO_FEW_VOXELS.format(found=n_voxels, needed=MIN_VOXELS))
    if not spatial:
        contrast = ((signal @ contrast_basis) ** 2).sum(axis=1) / np.maximum(signal.mean(axis=1), 1e-12) ** 2
        usable &= contrast <= np.quantile(contrast[usable], WEAK_CONTRAST)
        n_voxels = int(usable.sum())
    sigma = _solve(power[usable], fitted[usable], np.diag(projection), freedom)
    return NoiseEstimate(sigma, typical_b0 / sigma, n_voxels, bool(spatial))


def shell_sigma(scan: Scan, volumes: np.ndarray) -> float:
    """Return the noise level of some volumes of a shell; the b0s, which may be of several runs, enter as their mean.

    Raises
    ------
    ScanError
        As `estimate_sigma`.
    """
    data = np.concatenate([scan.mean_b0()[..., None], scan.data[..., volumes]], axis=3)
    first = np.flatnonzero(scan.gradients.is_b0)[0]
    return estimate_sigma(Scan(data, scan.affine, scan.gradients[np.r_[first, volumes]], scan.mask)).sigma


def sigma_of_few(scan: Scan, volumes: np.ndarray) -> float:
    """Return the noise level of few directions, in scanner units.

    Differences between neighbouring voxels give too little where a scan was interpolated. Differences between b0s give
    too much, because the brain pulsates and moves. Where both are there, their geometric mean is taken.

    Parameters
    ----------
    scan
        The series, with its brain mask.
    volumes
        (n,) the directions that are used.

    Raises
    ------
    ScanError
        Where the noise level cannot be estimated.
    """
    b0s = np.flatnonzero(scan.gradients.is_b0)
    near = shell_sigma(scan, volumes)
    if len(b0s) == 1:
        return near
    repeated = Scan(scan.data[..., b0s], scan.affine, scan.gradients[b0s], scan.mask)
    return float(np.sqrt(near * estimate_sigma(repeated).sigma))


def shell_contrast_noise(dwis: torch.Tensor, mask: torch.Tensor, apart: int) -> torch.Tensor:
    """Estimate the noise of a shell with few volumes from differences between voxels, slice by slice.

    The volumes' deviations from their mean are differenced along both axes of the slice, between voxels `apart` voxels
    apart. Anatomy and coil sensitivity mostly cancel. Correlated noise cancels in part too, so that the results at two
    distances show how smooth the noise is. A low quantile is used, as in `estimate_sigma`; the noise floor is not
    corrected for.

    Parameters
    ----------
    dwis
        (S, n, H, W), n of 2 or more.
    mask
        (S, H, W) bool.
    apart
        Distance in voxels.

    Returns
    -------
    torch.Tensor
        (S,) standard deviations; NaN where a slice has fewer than `MIN_IN_SLICE` usable voxels.
    """
    near, far = slice(None, -apart), slice(apart, None)
    deviation = dwis - dwis.mean(dim=1, keepdim=True)
    difference = deviation[..., near, near] - deviation[..., far, near]
    difference = (difference - deviation[..., near, far] + deviation[..., far, far]) / 2
    inside = mask[:, near, near] & mask[:, far, near] & mask[:, near, far] & mask[:, far, far]
    freedom = dwis.shape[1] - 1
    power = difference.square().sum(dim=1)
    usable = inside & (power > 0)  # constant voxels were filled in, not measured
    estimates = [
        p[u].float().quantile(QUANTILE) if u.sum() >= MIN_IN_SLICE else p.new_tensor(torch.nan)
        for p, u in zip(power, usable, strict=True)
    ]
    return (torch.stack(estimates) / _chi_squared_quantile(freedom)).sqrt()


def _foreground(scan: Scan) -> np.ndarray:
    b0 = scan.mean_b0()
    inside = scan.mask & np.isfinite(b0) & (b0 > 0)
    if inside.any():
        inside &= b0 > FOREGROUND * np.quantile(b0[inside], 0.99)
    if inside.sum() < MIN_VOXELS:
        raise ScanError(TOO_FEW_VOXELS.format(found=int(inside.sum()), needed=MIN_VOXELS))
    chosen = np.flatnonzero(inside)
    thinned = np.zeros(inside.size, dtype=bool)
    thinned[chosen[:: -(-len(chosen) // MAX_VOXELS)]] = True
    return thinned.reshape(inside.shape)


def _mixed_differences(scan: Scan, chosen: np.ndarray) -> np.ndarray:
    """Return (4 V, N) second differences over the two finest axes that have neighbours, in units of a voxel.

    Those towards all four sides, so that the result does not depend on the order in which the voxels are stored.
    """
    spacing = np.where(np.array(scan.mask.shape) > 1, scan.zooms_mm, np.inf)  # a single slice has no neighbour
    first, second = np.sort(np.argsort(spacing, kind="stable")[:2])
    index = np.nonzero(chosen)

    def neighbour(axis: int, step: int) -> np.ndarray:
        # At the border the neighbour on the other side serves as well.
        moved = index[axis] + step
        return np.where((moved >= 0) & (moved < scan.mask.shape[axis]), moved, index[axis] - step)

    differences = []
    for sides in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        there, total = [neighbour(axis, step) for axis, step in zip((first, second), sides, strict=True)], np.zeros(())
        for in_first, in_second, sign in ((0, 0, 1), (1, 0, -1), (0, 1, -1), (1, 1, 1)):
            place = list(index)
            place[first] = there[0] if in_first else index[first]
            place[second] = there[1] if in_second else index[second]
            total = total + sign * np.asarray(scan.data[tuple(place)], dtype=np.float64)
        differences.append(total / 2)
    return np.concatenate(differences)


def _descriptions(gradients: GradientTable, max_order: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (N, N) projection onto the residual of the fits of the shells, and a (N, K) contrast basis."""
    n = len(gradients)
    projection, contrast = np.zeros((n, n)), []
    for members in gradients.groups():
        # Order 4 has 15 terms, order 2 has 6: half of a shell's volumes should be left over for the noise.
        order = min(max_order, 4 if len(members) >= 30 else 2)
        basis = _even_polynomials(gradients.bvecs[members], order)
        left, values, _ = np.linalg.svd(basis, full_matrices=False)
        left = left[:, values > 1e-6 * values[0]]
        projection[np.ix_(members, members)] = np.eye(len(members)) - left @ left.T
        directional = np.zeros((n, len(members)))
        directional[members] = left @ left.T - 1 / len(members)
        contrast.append(directional)
    return projection, np.concatenate(contrast, axis=1)


def _even_polynomials(directions: np.ndarray, order: int) -> np.ndarray:
    """Return (N, K) products of even degree `order` of the components: on the sphere they span the even
    spherical harmonics up to that order. Zero vectors (b0) get a constant."""
    if not np.any(directions):
        return np.ones((len(directions), 1))
    x, y, z = directions.T
    powers = [(i, j, order - i - j) for i in range(order + 1) for j in range(order + 1 - i)]
    return np.stack([x**i * y**j * z**k for i, j, k in powers], axis=1)


def _solve(power: np.ndarray, fitted: np.ndarray, leverage: np.ndarray, freedom: int) -> float:
    """Return the sigma for which the quantile of power / sum_i P_ii xi_i equals that of sigma² chi²_n / n."""
    expected = _chi_squared_quantile(freedom) / freedom
    means, _, survivals = _moments()
    sigma = float(np.sqrt(np.quantile(power, QUANTILE) / (freedom * expected)))
    for _ in range(MAX_ITERATIONS):
        survival = np.interp(fitted / sigma, means, survivals) @ leverage
        updated = float(np.sqrt(np.quantile(power / survival, QUANTILE) / expected))
        if abs(updated - sigma) < 1e-4 * sigma:
            break
        sigma = updated
    return updated


def _chi_squared_quantile(freedom: int) -> float:
    """Return the `QUANTILE` of chi² with this number of degrees of freedom."""
    grid = torch.linspace(0, 3 * freedom, 3001, dtype=torch.float64)
    chances = torch.special.gammainc(torch.full_like(grid, freedom / 2), grid / 2)
    return float(np.interp(QUANTILE, chances, grid))


def _moments() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, signal and variance of Rician magnitudes of unit noise, over a grid of signals."""
    snr = torch.cat([torch.arange(0, 8, 0.005), torch.arange(8, 60, 0.05)]).double()
    mean = rician_mean(snr, 1.0)
    return mean.numpy(), snr.numpy(), (2 + snr.square() - mean.square()).numpy()
