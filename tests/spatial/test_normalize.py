"""Normalisation: a coarse scan that is cut from the template and moved by a known amount is registered to it."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dmrigen.spatial.ants_tools import write_matrix
from bids_dmrigen.spatial.normalize import apply_to_scan, load_template, register_to_t1w, t1w_brain
from bids_dmrigen.spatial.similarity import dice

# World of the scanner to world of the template: nodded, shifted, a little larger.
ANGLE = np.deg2rad(8.0)
TO_TEMPLATE = np.array(
    [
        [1.0, 0, 0, 6],
        [0, np.cos(ANGLE), -np.sin(ANGLE), -24],
        [0, np.sin(ANGLE), np.cos(ANGLE), 15],
        [0, 0, 0, 1],
    ]
)
SCAN_AFFINE = np.array([[-4.5, 0, 0, 84], [0, 4.5, 0.0, -80], [0, 0, 4.5, -95], [0, 0, 0, 1.0]])
SCAN_SHAPE = (36, 46, 40)


@pytest.fixture(scope="module")
def template():
    return load_template()


def seen(image, template, order=1):
    """Return a template image on the scan's grid."""
    matrix = np.linalg.inv(template.affine) @ TO_TEMPLATE @ SCAN_AFFINE
    return ndimage.affine_transform(
        np.asarray(image, np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=SCAN_SHAPE, order=order
    )


def scan_of(template):
    """A b0-like contrast (fluid bright, white matter dark), its mask, and the T1w in the scanner's world."""
    rng = np.random.default_rng(0)
    blurred = ndimage.gaussian_filter(template.t1w, 0.8)
    b0 = seen(template.mask * (1.2 - blurred), template) * 1000 + rng.normal(0, 10, SCAN_SHAPE)
    return np.maximum(b0, 0).astype(np.float32), seen(template.mask, template) > 0.5


def corner_error(found, true, points):
    homogeneous = np.column_stack([points, np.ones(len(points))])
    return np.linalg.norm(homogeneous @ (found - true)[:3].T, axis=1).max()


def test_b0_finds_its_t1w(template):
    b0, mask = scan_of(template)
    t1w_affine = np.linalg.inv(TO_TEMPLATE) @ template.affine  # the T1w shares the scanner's world ...
    moved = np.eye(4)
    moved[:3, 3] = [5, -4, 6]  # ... but for a head that moved between the two
    found = register_to_t1w(b0, SCAN_AFFINE, mask, template.t1w, moved @ t1w_affine)
    brain = np.argwhere(mask)[::50] @ SCAN_AFFINE[:3, :3].T + SCAN_AFFINE[:3, 3]
    assert corner_error(found, np.linalg.inv(moved), brain + np.array([5, -4, 6])) < 1.5


def test_an_extracted_t1w_is_its_own_brain(template, tmp_path):
    brain = t1w_brain(template.t1w, template.affine, template, tmp_path)
    assert dice(brain, template.mask) > 0.97


def test_apply_to_scan_keeps_labels_and_volumes(tmp_path):
    atlas = np.zeros((20, 20, 20, 2), np.float32)
    atlas[5:10, 5:10, 5:10, 0] = 7
    atlas[10:15, 10:15, 10:15, 1] = 3
    affine = np.diag([2.0, 2, 2, 1])
    nib.save(nib.Nifti1Image(atlas, affine), tmp_path / "atlas.nii")
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), affine), tmp_path / "ref.nii")
    shift = np.eye(4)
    shift[:3, 3] = [4, 0, -2]  # reference point to atlas point, RAS
    transform = write_matrix(tmp_path / "shift.mat", shift)
    found = apply_to_scan(tmp_path / "atlas.nii", transform, tmp_path / "ref.nii", labels=True)
    np.testing.assert_array_equal(found, np.roll(atlas, (-2, 1), axis=(0, 2)))
