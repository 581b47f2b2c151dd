"""Susceptibility: a known displacement, applied by its exact change of variable, is estimated."""

import numpy as np
import pytest

from bids_dmrigen.spatial.brain_mask import brain_mask
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.spatial.resample import sample_volume
from bids_dmrigen.spatial.similarity import pearson
from bids_dmrigen.spatial.susceptibility import (
    _difference,
    _difference_adjoint,
    _residual,
    _stiffen,
    estimate_displacement,
    unwarp,
)

SHAPE = (32, 44, 24)
AFFINE = np.array([[-2.7, 0.3, 0, 40], [0.3, 2.7, 0.4, -50], [0, -0.4, 2.9, -30], [0, 0, 0, 1.0]])


def distorted(sign, axis=1):
    """Return a textured ball as a scanner with this phase-encoding sign sees it, and the displacement, voxels.

    The signal of a true position y goes to y + d, compressed where d falls: read at the inverse map.
    """
    rng = np.random.default_rng(0)
    shape = tuple(np.roll(SHAPE, 1 - axis)) if axis != 1 else SHAPE
    index = np.indices(shape).astype(float)
    middle = [(n - 1) / 2 for n in shape]
    scaled = [(index[a] - middle[a]) / (shape[a] / 2) for a in range(3)]
    truth = np.zeros(shape)
    for spot, height in ((0.35, 2.2), (-0.3, -1.5)):
        along = scaled[axis] - spot
        others = sum(scaled[a] ** 2 for a in range(3) if a != axis)
        truth += height * np.exp(-(along**2 + others) / 0.12)
    # Fixed point of y = place - sign d(y), one line at a time.
    source = index[axis].copy()
    lines = np.moveaxis(truth, axis, -1)
    grid = np.arange(shape[axis])
    for _ in range(60):
        moved = np.moveaxis(source, axis, -1)
        at = np.stack(
            [
                np.interp(m, grid, t)
                for m, t in zip(moved.reshape(-1, len(grid)), lines.reshape(-1, len(grid)), strict=True)
            ]
        )
        source = index[axis] - sign * np.moveaxis(at.reshape(moved.shape), -1, axis)
    stretch = np.gradient(source, axis=axis)
    places = index.copy()
    places[axis] = source
    return head(places, middle, shape, rng) * stretch, truth


def head(places, middle, shape, rng):
    scaled = [(places[a] - middle[a]) / (0.42 * shape[a]) for a in range(3)]
    image = 800 / (1 + np.exp(14 * (np.sqrt(sum(s**2 for s in scaled)) - 1)))
    for center, height in zip(rng.uniform(-0.8, 0.8, (50, 3)), rng.uniform(-0.5, 0.5, 50), strict=True):
        image *= 1 + height * np.exp(-sum((scaled[a] - center[a]) ** 2 for a in range(3)) / 0.03)
    return image


@pytest.mark.parametrize("axis", [0, 1])
def test_known_displacement_is_found(axis):
    first, truth = distorted(1, axis)
    second, _ = distorted(-1, axis)
    noise = np.random.default_rng(3).normal(0, 20, (2, *first.shape))
    found = estimate_displacement(first + noise[0], 1.3 * (second + noise[1]), AFFINE, axis)
    zoom = np.linalg.norm(AFFINE[:3, axis])
    inside = first > 300
    error = found.field_mm[inside] / zoom - truth[inside]
    assert np.abs(truth[inside]).max() > 1.5
    assert np.sqrt((error**2).mean()) < 0.2  # voxels
    before = np.corrcoef(first[inside], second[inside])[0, 1]
    after = np.corrcoef(found.corrected[inside], found.corrected_opposite[inside])[0, 1]
    assert after > 0.98 > before


def test_the_displacement_of_an_undistorted_pair_is_zero():
    image = head(np.indices(SHAPE), [(n - 1) / 2 for n in SHAPE], SHAPE, np.random.default_rng(0))
    found = estimate_displacement(image, image, AFFINE, 1)
    assert np.abs(found.field_mm).max() < 0.05


def test_head_motion_between_the_two_is_not_taken_for_distortion():
    first, truth = distorted(1)
    second, _ = distorted(-1)
    motion = np.eye(4)
    angle = np.deg2rad(2.0)
    motion[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    motion[:3, 3] = [1.5, 0, -1.0]
    second = sample_volume(second, np.linalg.inv(AFFINE) @ np.linalg.inv(motion) @ AFFINE)
    found = estimate_displacement(first, second, AFFINE, 1)
    inside = first > 300
    error = found.field_mm[inside] / np.linalg.norm(AFFINE[:3, 1]) - truth[inside]
    assert np.sqrt((error**2).mean()) < 0.3


def test_unwarp_conserves_the_signal_of_a_line():
    image = np.zeros(SHAPE, np.float32)
    image[:, 12:32] = 100
    y = np.arange(SHAPE[1])
    field = np.broadcast_to((3 * np.exp(-(((y - 22) / 6.0) ** 2)))[None, :, None], SHAPE)
    np.testing.assert_allclose(unwarp(image, field, 1).sum(1), image.sum(1), rtol=0.01)


def test_operators_match_their_definitions():
    rng = np.random.default_rng(0)
    d, v = rng.normal(size=(2, 5, 6, 7))
    # <Av, d> = <v, A'd>, and the Laplacian is the gradient of the roughness.
    assert np.isclose((_difference(d) * v).sum(), (d * _difference_adjoint(v)).sum())
    weights = np.array([0.3, 0.2, 1.0])
    rough = sum(w * (np.diff(d, axis=a) ** 2).sum() for a, w in enumerate(weights))
    assert np.isclose((_stiffen(d, weights) * d).sum(), rough)
    # The derivatives of the residual against finite differences.
    pair = rng.normal(size=(2, 5, 6, 20))
    d, step = 0.3 + 0.01 * rng.normal(size=(2, 5, 6, 20))
    residual, slope, stretch = _residual(pair, d)
    nearby, _, _ = _residual(pair, d + 1e-6 * step)
    np.testing.assert_allclose((nearby - residual) / 1e-6, slope * step + stretch * _difference(step), atol=1e-4)


@pytest.mark.real
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sub-uih/dwi/sub-uih_dir-AP_dwi", "sub-uih/dwi/sub-uih_dir-PA_dwi"),
    ],
)
def test_real_pairs_agree_better_after_correction(real_data, first, second):
    scans = [
        read_scan(*(f"{real_data}/bids/{name}.{end}" for end in ("nii.gz", "bval", "bvec")))[0]
        for name in (first, second)
    ]
    b0, opposite = (scan.mean_b0() for scan in scans)
    found = estimate_displacement(b0, opposite, scans[0].affine, 1)
    mask = brain_mask((found.corrected + found.corrected_opposite) / 2, scans[0].zooms_mm)
    assert pearson(found.corrected, found.corrected_opposite, mask) > 0.95
    assert pearson(b0, opposite, mask) < 0.9
