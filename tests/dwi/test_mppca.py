"""MP-PCA by box sums: equal to DIPY's, and what it does at borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.mppca import box_radii, mppca


def volumes(n: int, shape=(12, 11, 9), noise: float = 0.05, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy and noise-free volumes (n, X, Y, Z) of rank 2."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 3, k) for k in shape), indexing="ij"))
    images = np.stack([1 + 0.3 * np.sin(grid[0]), 1.5 + np.cos(grid[1] + grid[2])])
    clean = np.tensordot(rng.uniform(0.3, 1, (n, 2)), images, axes=1)
    return torch.from_numpy(clean + noise * rng.normal(size=clean.shape)), torch.from_numpy(clean)


@pytest.mark.parametrize("n", [7, 16])
def test_equals_dipy_where_patches_lie_inside(n):
    from dipy.denoise.localpca import mppca as dipy_mppca

    noisy, _ = volumes(n)
    radii = box_radii(n, tuple(noisy.shape[1:]))
    mask = torch.ones(noisy.shape[1:], dtype=torch.bool)
    denoised, variance = mppca(noisy[None], mask[None])
    expected, sigma = dipy_mppca(
        noisy.movedim(0, 3).numpy(), patch_radius=np.array(radii), return_sigma=True, suppress_warning=True
    )
    inner = tuple(slice(2 * r, -2 * r) for r in radii)
    found = denoised[0].movedim(0, 3).numpy()
    np.testing.assert_allclose(found[inner], np.asarray(expected)[inner], atol=1e-9)
    np.testing.assert_allclose(variance[0].numpy()[inner], np.asarray(sigma)[inner] ** 2, rtol=1e-6)


def test_takes_noise_away_up_to_the_border():
    noisy, clean = volumes(7)
    denoised, variance = mppca(noisy[None], torch.ones((1, *noisy.shape[1:]), dtype=torch.bool))
    border = torch.zeros(noisy.shape[1:], dtype=torch.bool)
    border[:, :, [0, -1]] = True
    error = (denoised[0] - clean).square()[:, border].mean().sqrt()
    assert error < 0.7 * 0.05
    assert 0.04**2 < variance[0][border].median() < 0.06**2


def test_a_block_alone_and_beside_others_is_the_same():
    noisy = torch.stack([volumes(7, seed=k)[0] for k in range(2)])
    mask = torch.ones((2, *noisy.shape[2:]), dtype=torch.bool)
    mask[0, :3] = False
    together, _ = mppca(noisy, mask)
    alone, _ = mppca(noisy[:1], mask[:1])
    torch.testing.assert_close(together[:1], alone)


def test_voxels_outside_the_mask_have_no_effect_and_stay():
    noisy, _ = volumes(7)
    mask = torch.rand(noisy.shape[1:], generator=torch.Generator().manual_seed(1)) < 0.7
    mask[0, 0, 0], mask[:2, :2, :2] = True, False
    mask[0, 0, 0] = True  # alone in its patch
    other = torch.where(mask, noisy, 1e3)
    first, second = mppca(noisy[None], mask[None])[0][0], mppca(other[None], mask[None])[0][0]
    torch.testing.assert_close(first[:, mask], second[:, mask])
    torch.testing.assert_close(second[:, ~mask], other[:, ~mask])
    torch.testing.assert_close(second[:, 0, 0, 0], noisy[:, 0, 0, 0])


@pytest.mark.parametrize(
    ("n", "shape", "radii"),
    [(7, (40, 40, 20), (1, 1, 1)), (7, (40, 40, 1), (2, 2, 0)), (12, (40, 40, 20), (2, 2, 2)),
     (90, (5, 5, 2), (2, 2, 0))],
)  # fmt: skip
def test_boxes_grow_along_long_axes(n, shape, radii):
    assert box_radii(n, shape) == radii
