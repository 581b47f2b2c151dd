"""Susceptibility on files: what the report says, and what is refused."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.interfaces.susceptibility import FieldMapCorrection, Susceptibility
from bids_dmrigen.spatial.io import read_image
from bids_dmrigen.spatial.susceptibility import read_opposite_b0
from tests.spatial.test_fieldmap import undistorted
from tests.spatial.test_susceptibility import AFFINE, SHAPE, distorted


@pytest.fixture
def files(tmp_path):
    paths = {}
    for name, sign in (("first", 1), ("second", -1)):
        image, _ = distorted(sign)
        series = np.stack([image, 0.5 * image], axis=-1).astype(np.float32)
        nib.save(nib.Nifti1Image(series, AFFINE), tmp_path / f"{name}.nii")
        np.savetxt(tmp_path / f"{name}.bval", [[0, 1000]], fmt="%d")
        np.savetxt(tmp_path / f"{name}.bvec", [[0, 1], [0, 0], [0, 0]], fmt="%d")
        paths[name] = tmp_path / name
    return paths


def run(files, folder, **changes):
    arguments = {
        "in_file": f"{files['first']}.nii",
        "in_bval": f"{files['first']}.bval",
        "in_bvec": f"{files['first']}.bvec",
        "phase_encoding_direction": "j",
        "opposite_file": f"{files['second']}.nii",
        "opposite_bval": f"{files['second']}.bval",
        "opposite_direction": "j-",
        "readout_time": 0.05,
        **changes,
    }
    return Susceptibility(**arguments).run(cwd=folder).outputs


def test_the_interface_reports_the_correlations_before_and_after(files, tmp_path):
    outputs = run(files, tmp_path)
    with open(outputs.out_report) as stream:
        report = json.load(stream)
    assert report["CorrelationCorrected"] > report["CorrelationRaw"]
    assert report["TotalReadoutTime"] == 0.05
    field, image = read_image(outputs.out_field)
    assert field.shape == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


def test_directions_that_are_not_opposite_are_refused(files, tmp_path):
    with pytest.raises(ScanError, match="opposite"):
        run(files, tmp_path, opposite_direction="j")


def test_an_opposite_series_needs_a_b0_and_its_own_bvalues(files, tmp_path):
    np.savetxt(tmp_path / "none.bval", [[1000, 1000]], fmt="%d")
    with pytest.raises(ScanError, match=r"none\.bval: no b0 volume"):
        run(files, tmp_path, opposite_bval=f"{tmp_path}/none.bval")
    np.savetxt(tmp_path / "few.bval", [[0]], fmt="%d")
    with pytest.raises(ScanError, match=r"few\.bval: 1 entries, but the image has 2 volumes"):
        run(files, tmp_path, opposite_bval=f"{tmp_path}/few.bval")


def test_a_field_map_corrects_the_first_series(files, tmp_path):
    """The phase of two echoes 10 ms apart, of a field that moves the signal as `distorted` does."""
    b0, voxels = distorted(1)
    phase = 2 * np.pi * 0.01 * voxels / 0.05
    images = {"phase": np.angle(np.exp(1j * phase)), "magnitude": undistorted(SHAPE)}
    for name, data in images.items():
        nib.save(nib.Nifti1Image(data.astype(np.float32), AFFINE), tmp_path / f"{name}.nii")
    outputs = FieldMapCorrection(
        in_file=f"{files['first']}.nii",
        in_bval=f"{files['first']}.bval",
        in_bvec=f"{files['first']}.bvec",
        phase_encoding_direction="j",
        readout_time=0.05,
        kind="phasediff",
        images=[str(tmp_path / "phase.nii")],
        magnitude=str(tmp_path / "magnitude.nii"),
        echo_times=[0.005, 0.015],
    ).run(cwd=tmp_path).outputs  # fmt: skip
    with open(outputs.out_report) as stream:
        report = json.load(stream)
    assert report["MagnitudeSimilarityCorrected"] > report["MagnitudeSimilarityRaw"]
    before, after, field, magnitude = (
        read_image(path)[0]
        for path in (outputs.out_b0, outputs.out_corrected_b0, outputs.out_field, outputs.out_magnitude)
    )
    np.testing.assert_allclose(before, b0, rtol=1e-5)
    inside = images["magnitude"] > 400
    zoom = np.linalg.norm(AFFINE[:3, 1])
    assert np.abs(field / zoom - voxels)[inside].mean() < 0.05
    assert np.abs(after - images["magnitude"])[inside].mean() < 0.2 * np.abs(b0 - images["magnitude"])[inside].mean()
    assert magnitude.shape == SHAPE


def test_single_values_that_are_not_finite_become_zero(tmp_path):
    data = np.ones((4, 4, 4, 3), np.float32)
    data[1, 2, 3, 0], data[0, 0, 0, 2] = np.nan, np.inf
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "b0.nii.gz")
    (tmp_path / "b0.bval").write_text("0 0 1000")
    mean, _ = read_opposite_b0(tmp_path / "b0.nii.gz", tmp_path / "b0.bval", 50)
    assert mean[1, 2, 3] == pytest.approx(0.5)
    assert np.isfinite(mean).all()
