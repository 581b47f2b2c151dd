"""Cubic splines between parallel grids: SciPy's, and the grids' places."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_dmrigen.dwi.spline import condensed, even_points, points_of_size, resampled


@pytest.mark.parametrize("wanted", [(18, 15, 7), (5, 12, 21)])
def test_interpolation_is_scipys(wanted):
    volume = np.random.default_rng(0).normal(size=(9, 12, 7))
    points = [even_points(n, m) for n, m in zip(volume.shape, wanted, strict=True)]
    expected = ndimage.map_coordinates(volume, np.meshgrid(*points, indexing="ij"), order=3, mode="mirror")
    np.testing.assert_allclose(resampled(torch.from_numpy(volume), points), expected, atol=1e-12)


def test_a_volume_and_a_single_layer_stay_on_the_same_grid():
    volume = torch.randn(2, 4, 5, 1)
    assert resampled(volume, [np.arange(float(n)) for n in volume.shape[1:]]) is volume
    stretched = resampled(volume, [np.arange(4.0), np.arange(5.0), even_points(1, 3)])
    torch.testing.assert_close(stretched, volume.expand(-1, -1, -1, 3))


def test_voxels_of_a_size_cover_the_extent_around_the_same_middle():
    np.testing.assert_allclose(even_points(4, 8), np.arange(-0.25, 3.5, 0.5))
    np.testing.assert_allclose(points_of_size(4, 0.5), np.arange(-0.25, 3.5, 0.5))
    np.testing.assert_allclose(points_of_size(4, 1.0), np.arange(4))
    points = points_of_size(10, 0.7)
    assert len(points) * 0.7 >= 10 > (len(points) - 1) * 0.7
    assert points[0] + points[-1] == pytest.approx(9)


def test_condensing_undoes_upsampling_and_averages_noise():
    rng = np.random.default_rng(0)
    shape = (9, 12, 7)
    volume = torch.from_numpy(rng.normal(size=(2, *shape)))
    for voxel in (0.4, 0.67, 0.95, 1.0):
        points = [points_of_size(n, voxel) for n in shape]
        torch.testing.assert_close(condensed(resampled(volume, points), points, shape), volume)
    points = [points_of_size(n, 0.5) for n in shape]
    noise = torch.from_numpy(rng.normal(size=(20, *(len(p) for p in points))))
    assert condensed(noise, points, shape).std() < 0.6, "eight voxels for one"
    for voxel in (0.99, 0.999):
        points = [points_of_size(n, voxel) for n in shape]
        noise = torch.from_numpy(rng.normal(size=[len(p) for p in points]))
        assert condensed(noise, points, shape).std() < 1.5
