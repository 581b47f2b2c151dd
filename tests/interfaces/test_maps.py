"""Tensor maps on disk: one head, however it lies in the file, has one set of world directions."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.tables import write_gradients
from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.interfaces.maps import TensorMaps

from ..conftest import tiny_gradients, tiny_series

TILT = np.deg2rad(20)
ROTATION = np.array([[np.cos(TILT), 0, np.sin(TILT)], [0, 1, 0], [-np.sin(TILT), 0, np.cos(TILT)]])


@pytest.fixture(scope="module")
def head():
    """World directions of the gradients, and a series acquired with them on a right-handed grid."""
    gradients = tiny_gradients(20, 1)
    return gradients, tiny_series(gradients, (12, 12, 8), noise=0.0)


def maps(folder, data, affine, world, bvals, **more):
    nib.save(nib.Nifti1Image(data, affine), folder / "dwi.nii")
    nib.save(nib.Nifti1Image((data[..., 0] > 100).astype(np.uint8), affine), folder / "mask.nii")
    write_gradients(GradientTable.from_world(bvals, world, affine), folder / "dwi.bval", folder / "dwi.bvec")
    out = TensorMaps(
        in_file=str(folder / "dwi.nii"), in_bval=str(folder / "dwi.bval"),
        in_bvec=str(folder / "dwi.bvec"), in_mask=str(folder / "mask.nii"), **more,
    ).run(cwd=str(folder)).outputs  # fmt: skip
    return {name: nib.load(getattr(out, name)).get_fdata() for name in ("fa", "dec", "tensor")}


@pytest.mark.parametrize("layout", ["left-handed", "axes exchanged", "stored upside down"])
def test_directions_do_not_depend_on_how_the_head_is_stored(head, tmp_path, layout):
    gradients, data = head
    affine = np.diag([2.0, 2, 2, 1])
    world = gradients.world_directions(affine)
    for name in ("plain", "other"):
        (tmp_path / name).mkdir()
    expected = maps(tmp_path / "plain", data, affine, world, gradients.bvals)
    moved = {
        "left-handed": lambda image: image[::-1],
        "axes exchanged": lambda image: np.moveaxis(image, 2, 0),
        "stored upside down": lambda image: image[:, :, ::-1],
    }[layout]
    # The voxel indices of the new file in terms of the old: where its axes and its first voxel lie.
    index = np.stack(np.meshgrid(*map(np.arange, data.shape[:3]), indexing="ij"), axis=-1)
    positions = moved(index)
    origin, steps = positions[0, 0, 0], [positions[1, 0, 0], positions[0, 1, 0], positions[0, 0, 1]]
    new = np.eye(4)
    new[:3, :3] = affine[:3, :3] @ np.stack([s - origin for s in steps], axis=1)
    new[:3, 3] = affine[:3] @ [*origin, 1]
    found = maps(tmp_path / "other", np.ascontiguousarray(moved(data)), new, world, gradients.bvals)
    for name in expected:
        np.testing.assert_allclose(found[name], moved(expected[name]), atol=2e-6, err_msg=name)


def test_oblique_grid_turns_the_directions_with_the_head(head, tmp_path):
    gradients, data = head
    affine, oblique = np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1])
    oblique[:3, :3] = ROTATION @ oblique[:3, :3]
    world = gradients.world_directions(affine)
    for name in ("plain", "other"):
        (tmp_path / name).mkdir()
    straight = maps(tmp_path / "plain", data, affine, world, gradients.bvals)
    # Head and gradients turn together: the same signals, a turned tensor.
    turned = maps(tmp_path / "other", data, oblique, world @ ROTATION.T, gradients.bvals)
    np.testing.assert_allclose(turned["fa"], straight["fa"], atol=1e-6)
    for voxel in ((6, 6, 4), (6, 2, 4)):
        first, second = (_matrix(m["tensor"][voxel]) for m in (straight, turned))
        assert np.linalg.norm(first) > 1e-4
        np.testing.assert_allclose(second, ROTATION @ first @ ROTATION.T, atol=1e-8)


def test_only_the_volumes_that_are_named_are_fitted(head, tmp_path):
    gradients, data = head
    affine, volumes = np.diag([2.0, 2, 2, 1]), list(range(15))
    world = gradients.world_directions(affine)
    spoilt = data.copy()
    spoilt[..., 15:] *= 0.5
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole = maps(tmp_path / "whole", data[..., :15], affine, world[:15], gradients.bvals[:15])
    part = maps(tmp_path / "part", spoilt, affine, world, gradients.bvals, volumes=volumes)
    for name in whole:
        np.testing.assert_allclose(part[name], whole[name], rtol=1e-4, atol=1e-9)


def _matrix(components):
    xx, xy, yy, xz, yz, zz = components
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
