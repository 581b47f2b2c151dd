"""Normalisation on files, both ways, with and without a T1w."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.interfaces.normalize import Normalize
from bids_dmrigen.spatial import normalize
from bids_dmrigen.spatial.ants_tools import read_matrix
from bids_dmrigen.spatial.io import read_image
from bids_dmrigen.spatial.normalize import apply_to_scan, load_template
from bids_dmrigen.spatial.similarity import dice
from tests.spatial.test_normalize import SCAN_AFFINE, SCAN_SHAPE, TO_TEMPLATE, corner_error, scan_of, seen


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def scan(template):
    return scan_of(template)


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
    # The template on the scan's grid is dark where the scan is bright.
    target = read_image(outputs.out_template_t1w)[0]
    assert np.corrcoef(target[mask], b0[mask])[0, 1] < -0.4
    if with_t1w:
        forward, back = read_matrix(outputs.out_to_t1w), read_matrix(outputs.out_from_t1w)
        np.testing.assert_allclose(forward @ back, np.eye(4), atol=1e-5)
        assert corner_error(forward, np.eye(4), np.zeros((1, 3))) < 2


def test_an_empty_mask_is_refused(scan, tmp_path):
    nib.save(nib.Nifti1Image(scan[0], SCAN_AFFINE), tmp_path / "b0.nii")
    nib.save(nib.Nifti1Image(np.zeros(SCAN_SHAPE, np.uint8), SCAN_AFFINE), tmp_path / "mask.nii")
    with pytest.raises(ScanError, match="brain mask"):
        Normalize(in_reference=tmp_path / "b0.nii", in_mask=tmp_path / "mask.nii").run(cwd=tmp_path)
