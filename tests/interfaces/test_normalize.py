"""Normalisation: a coarse scan cut from the template itself, moved by a known amount, finds its way back."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.interfaces import normalize
from bids_dmrigen.interfaces.normalize import (
    Normalize,
    apply_to_scan,
    load_template,
    register_to_t1w,
    t1w_brain,
)
from bids_dmrigen.qc.metrics import dice
from bids_dmrigen.spatial.ants_tools import read_matrix, write_matrix
from bids_dmrigen.spatial.io import read_image

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


@pytest.fixture(scope="module")
def scan(template):
    """A b0-like contrast (fluid bright, white matter dark), its mask, and the T1w in the scanner's world."""
    rng = np.random.default_rng(0)
    blurred = ndimage.gaussian_filter(template.t1w, 0.8)
    b0 = seen(template.mask * (1.2 - blurred), template) * 1000 + rng.normal(0, 10, SCAN_SHAPE)
    return np.maximum(b0, 0).astype(np.float32), seen(template.mask, template) > 0.5


def corner_error(found, true, points):
    homogeneous = np.column_stack([points, np.ones(len(points))])
    return np.linalg.norm(homogeneous @ (found - true)[:3].T, axis=1).max()


def test_b0_finds_its_t1w(scan, template):
    b0, mask = scan
    t1w_affine = np.linalg.inv(TO_TEMPLATE) @ template.affine  # the T1w shares the scanner's world ...
    moved = np.eye(4)
    moved[:3, 3] = [5, -4, 6]  # ... but for a head that moved between the two
    found = register_to_t1w(b0, SCAN_AFFINE, mask, template.t1w, moved @ t1w_affine)
    brain = np.argwhere(mask)[::50] @ SCAN_AFFINE[:3, :3].T + SCAN_AFFINE[:3, 3]
    assert corner_error(found, np.linalg.inv(moved), brain + np.array([5, -4, 6])) < 1.5


def test_an_extracted_t1w_is_its_own_brain(template, tmp_path):
    brain = t1w_brain(template.t1w, template.affine, template, tmp_path)
    assert dice(brain, template.mask) > 0.97


@pytest.mark.parametrize("with_t1w", [False, True])
def test_normalize_both_ways(scan, template, tmp_path, monkeypatch, with_t1w):
    monkeypatch.setattr(normalize, "WORKING_MM", 4.0)  # a quarter of a minute less
    b0, mask = scan
    nib.save(nib.Nifti1Image(b0, SCAN_AFFINE), tmp_path / "b0.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), SCAN_AFFINE), tmp_path / "mask.nii")
    arguments = {"in_reference": tmp_path / "b0.nii", "in_mask": tmp_path / "mask.nii"}
    if with_t1w:
        grid = np.linalg.inv(TO_TEMPLATE) @ template.affine
        small = ndimage.zoom(template.t1w, 0.5, order=1, grid_mode=True, mode="nearest")
        coarse = grid @ np.diag([2, 2, 2, 1.0])
        coarse[:3, 3] += grid[:3, :3] @ [0.5, 0.5, 0.5]
        nib.save(nib.Nifti1Image(small[..., None], coarse), tmp_path / "t1w.nii")  # some converters add an axis
        arguments["in_t1w"] = tmp_path / "t1w.nii"
    outputs = Normalize(**arguments).run(cwd=tmp_path).outputs
    with open(outputs.out_report) as stream:
        report = json.load(stream)
    assert report["Dice"] > 0.95
    assert report["ThroughT1w"] is with_t1w
    # Left stays left: a half-brain of the template lands on the same half of the scan.
    x = template.affine[0, 0] * np.arange(template.mask.shape[0]) + template.affine[0, 3]
    half = template.mask & (x[:, None, None] > 0)
    nib.save(nib.Nifti1Image(half.astype(np.uint8), template.affine), tmp_path / "half.nii")
    brought = apply_to_scan(tmp_path / "half.nii", outputs.out_from_template, tmp_path / "b0.nii", labels=True)
    assert dice(brought > 0.5, seen(half, template) > 0.5) > 0.93
    # The scan on the template's grid is dark where the template is bright.
    forth, _ = read_image(outputs.out_reference_template)
    coarse = load_template()
    assert forth.shape == coarse.mask.shape
    assert np.corrcoef(forth[coarse.mask], coarse.t1w[coarse.mask])[0, 1] < -0.4
    if with_t1w:
        there, back = read_matrix(outputs.out_to_t1w), read_matrix(outputs.out_from_t1w)
        np.testing.assert_allclose(there @ back, np.eye(4), atol=1e-5)
        assert corner_error(there, np.eye(4), np.zeros((1, 3))) < 2


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


def test_an_empty_mask_is_refused(scan, tmp_path):
    nib.save(nib.Nifti1Image(scan[0], SCAN_AFFINE), tmp_path / "b0.nii")
    nib.save(nib.Nifti1Image(np.zeros(SCAN_SHAPE, np.uint8), SCAN_AFFINE), tmp_path / "mask.nii")
    with pytest.raises(ScanError, match="brain mask"):
        Normalize(in_reference=tmp_path / "b0.nii", in_mask=tmp_path / "mask.nii").run(cwd=tmp_path)
