"""The LPS/RAS boundary, against nibabel's affines and scipy's interpolation."""

import os

import numpy as np
import pytest
from scipy import ndimage

from bids_dmrigen.spatial.ants_tools import (
    THREADS_VARIABLE,
    Stage,
    from_ants,
    read_matrix,
    register_linear,
    set_threads,
    to_ants,
    warp,
    write_matrix,
)

AFFINES = {
    "RAS": np.array([[2.0, 0, 0, -30], [0, 2.5, 0, -40], [0, 0, 3, -20], [0, 0, 0, 1]]),
    "oblique LAS": np.array([[-1.9, 0.3, 0.2, 35], [0.3, 1.95, -0.4, -30], [0.26, 0.37, 1.97, -30], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, -2.7, 30], [-2, 0, 0, 40.0], [0, 2, 0, -35], [0, 0, 0, 1]]),
}


def scene(affine, shape=(30, 32, 28), shift=(0, 0, 0), seed=0):
    """Gaussian blobs at fixed world places, moved by `shift`, on any grid."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    image = np.zeros(shape)
    for center, width in zip(rng.uniform(-18, 18, (12, 3)), rng.uniform(5, 9, 12), strict=True):
        image += np.exp(-((world - center - shift) ** 2).sum(-1) / (2 * width**2))
    return image.astype(np.float32)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_images_come_back_with_their_affine(affine):
    data = scene(affine)
    back, found = from_ants(to_ants(data, affine))
    np.testing.assert_array_equal(back, data)
    np.testing.assert_allclose(found, affine, atol=1e-6)


def test_matrices_come_back(tmp_path):
    matrix = np.eye(4)
    matrix[:3] += np.random.default_rng(0).normal(0, 0.1, (3, 4)) * [1, 1, 1, 50]
    for center in ([0, 0, 0], [10, -20, 30]):
        found = read_matrix(write_matrix(tmp_path / "m.mat", matrix, center))
        np.testing.assert_allclose(found, matrix, atol=1e-6)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_matrix_maps_reference_points_to_image_points_in_ras(affine, tmp_path):
    image = scene(affine)
    matrix = np.eye(4)
    matrix[:3, 3] = [4, -3, 2]
    angle = np.deg2rad(6)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    target = AFFINES["RAS"]
    reference = to_ants(np.zeros((30, 32, 28)), target)
    moved = warp(to_ants(image, affine), reference, [write_matrix(tmp_path / "m.mat", matrix)]).numpy()
    index = np.linalg.inv(affine) @ matrix @ target
    expected = ndimage.affine_transform(image, index[:3, :3], index[:3, 3], output_shape=moved.shape, order=1)
    both = (moved > 0) & (expected > 0)  # they differ on the outermost half voxel only
    assert both.mean() > 0.25
    np.testing.assert_allclose(moved[both], expected[both], atol=1e-3)


def test_registration_finds_a_shift_in_ras():
    shift = np.array([3.0, -2.0, 4.0])
    fixed, moving = AFFINES["oblique LAS"], AFFINES["sagittal"]
    found = register_linear(
        to_ants(scene(fixed), fixed),
        to_ants(scene(moving, shift=shift), moving),
        [Stage("Rigid[0.1]", (50, 30), (2, 1), (3, 1), sampling=1.0)],
        start=np.eye(4),
    )
    np.testing.assert_allclose(found[:3, 3], shift, atol=0.3)
    np.testing.assert_allclose(found[:3, :3], np.eye(3), atol=0.01)


def test_threads_are_handed_to_itk(monkeypatch):
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    set_threads(3)
    assert os.environ[THREADS_VARIABLE] == "3"


@pytest.mark.parametrize(("name", "content"), [("x.h5", b"\x89HDF"), ("x.mat", b"abc"), ("nowhere.h5", None)])
def test_a_file_that_holds_no_transform_is_named(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    image = to_ants(np.ones((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(ValueError, match=f"{name}: (cannot be read as a|no such file; expected a) transform"):
        warp(image, image, [path])
