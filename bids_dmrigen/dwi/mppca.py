"""MP-PCA of blocks of volumes, fast enough for training: noise is what random matrices explain (Veraart et al. 2016).

DIPY's visits one patch after another. Here patches share their sums: moments of all patches are box sums of products of
volumes, and overlapping patches are averaged by box sums of projections. Where patches lie inside the volume the
result is that of DIPY.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

VOXELS_PER_VOLUME = 2.5  # a patch has at least so many voxels for each volume
AT_ONCE = 2**14  # patches whose eigenvalues are computed together


def box_radii(n: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the radii of the smallest box with `VOXELS_PER_VOLUME` voxels for each of n volumes.

    Where an axis is shorter than the box, the box is larger along the others.
    """
    limits = [(extent - 1) // 2 for extent in shape]
    radius = 1
    while True:
        x, y, z = (min(radius, limit) for limit in limits)
        if (2 * x + 1) * (2 * y + 1) * (2 * z + 1) >= VOXELS_PER_VOLUME * n or radius >= max(limits):
            return x, y, z
        radius += 1


def mppca(signal: Tensor, mask: Tensor, radii: tuple[int, int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Return volumes without the components that noise explains, and the variance of the noise.

    Of every patch X (n volumes, m voxels) the covariance has the eigenvalues l_1 <= ... <= l_n. The largest p with
    l_p - l_1 < 4 sqrt(p / m) mean(l_1 ... l_p) gives the noise's variance v, that mean. The k components of variance
    (1 + sqrt(n / m))² v or more are signal. A voxel is the mean over the patches that contain it, each with the weight
    1 / (1 + k).

    Parameters
    ----------
    signal
        (B, n, X, Y, Z) volumes with noise of one level.
    mask
        (B, X, Y, Z) bool; samples outside it are in no patch.
    radii
        Radii of the patches, voxels; None for `box_radii`.

    Returns
    -------
    tuple
        (B, n, X, Y, Z) denoised volumes, as given outside the mask and where a patch has fewer than two voxels; and
        (B, X, Y, Z) variances, 0 there.
    """
    n, radii = signal.shape[1], radii or box_radii(signal.shape[1], tuple(signal.shape[2:]))
    inside = mask[:, None].to(signal.dtype)
    # The mean of each volume is taken away first: moments of large numbers lose digits.
    centre = (signal * inside).sum(dim=(2, 3, 4), keepdim=True) / inside.sum(dim=(2, 3, 4), keepdim=True).clamp_min(1)
    values = (signal - centre) * inside
    rows, columns = torch.triu_indices(n, n, device=signal.device)
    members = _box_sum(inside, radii).clamp_min(1)
    sums = _box_sum(values, radii) / members
    products = _box_sum(values[:, rows] * values[:, columns], radii) / members
    at = mask.nonzero(as_tuple=True)
    mean = sums.movedim(1, 4)[at]  # (V, n)
    count = members[:, 0][at]
    projections = torch.empty((len(mean), len(rows)), dtype=signal.dtype, device=signal.device)
    weights, variances = torch.empty_like(count), torch.empty_like(count)
    second = products.movedim(1, 4)[at]
    for part in torch.arange(len(mean), device=signal.device).split(AT_ONCE):
        covariance = _full(second[part], n) - mean[part, :, None] * mean[part, None, :]
        kept, weights[part], variances[part] = _signal_part(covariance, count[part])
        projections[part] = kept[:, rows, columns]
    weights = weights * (count >= 2)
    rest = mean - torch.einsum("vij,vj->vi", _full(projections, n), mean)
    columns_of = torch.cat([projections, rest, variances[:, None], torch.ones_like(weights)[:, None]], dim=1)
    stacked = signal.new_zeros((*mask.shape, columns_of.shape[1]))
    stacked[at] = columns_of * weights[:, None]
    averaged = _box_sum(stacked.movedim(4, 1), radii).movedim(1, 4)[at]
    total = averaged[:, -1:]
    averaged = averaged / total.clamp_min(1e-12)
    pairs = len(rows)
    found = torch.einsum("vij,vj->vi", _full(averaged[:, :pairs], n), values.movedim(1, 4)[at])
    found = found + averaged[:, pairs : pairs + n] + centre.reshape(len(signal), n)[at[0]]
    denoised, variance = signal.clone(), torch.zeros_like(inside[:, 0])
    given = signal.movedim(1, 4)[at]
    denoised.movedim(1, 4)[at] = torch.where(total > 0, found, given)
    variance[at] = averaged[:, -2] * (total[:, 0] > 0)
    return denoised, variance


def _signal_part(covariance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the projections (V, n, n) to the components above the noise, weights and variances (V,) of patches."""
    n = covariance.shape[1]
    values, vectors = torch.linalg.eigh(covariance)
    number = torch.arange(1, n + 1, dtype=values.dtype, device=values.device)
    # A patch of m voxels has m - 1 eigenvalues above 0; the others are left out.
    empty = (n - (count - 1)).clamp(0, n - 1).long()[:, None]
    used = torch.arange(n, device=values.device) >= empty
    values = values * used
    many = (number - empty).clamp_min(1)
    # Not `cumsum`, which is not deterministic on GPUs.
    means = values @ torch.ones((n, n), dtype=values.dtype, device=values.device).triu() / many
    spread = values - values.gather(1, empty) - 4 * (many / count[:, None]).sqrt() * means
    noise = (spread < 0) & used
    last = (noise * number).max(dim=1, keepdim=True).values.clamp_min(1)  # components up to this one are noise
    variance = means.gather(1, last.long() - 1)[:, 0]
    limit = (1 + (n / count).sqrt()).square() * variance
    signal = (values >= limit[:, None]).to(values.dtype)
    kept, weights = vectors * signal[:, None], 1 / (1 + signal.sum(dim=1))
    return kept @ kept.mT, weights, variance


def _full(upper: Tensor, n: int) -> Tensor:
    """Return symmetric matrices (V, n, n) from their upper triangles (V, n (n + 1) / 2)."""
    rows, columns = torch.triu_indices(n, n, device=upper.device)
    matrix = upper.new_empty((len(upper), n, n))
    matrix[:, rows, columns] = upper
    matrix[:, columns, rows] = upper
    return matrix


def _box_sum(volumes: Tensor, radii: tuple[int, int, int]) -> Tensor:
    """Return the sums (B, C, X, Y, Z) over the box around every voxel; zero outside."""
    for axis, radius in enumerate(radii):
        if radius:
            kernel, padding = [1, 1, 1], [0, 0, 0]
            kernel[axis], padding[axis] = 2 * radius + 1, radius
            volumes = F.avg_pool3d(volumes, kernel, 1, padding, divisor_override=1)
    return volumes
