"""Image and gradient files, sound and broken."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.tables import read_bvecs, read_gradients, write_gradients
from bids_dmrigen.dwi.gradients import GradientError
from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.spatial.io import image_on_grid, read_image, read_scan, read_volume, write_image
from tests.conftest import tiny_gradients, tiny_series, write_run


@pytest.fixture
def run(tmp_path):
    gradients = tiny_gradients(6, 1)
    return write_run(tmp_path, "sub-1", tiny_series(gradients, (8, 8, 8)), gradients)


def text_files(run):
    stem = run.name.removesuffix(".nii.gz")
    return run.with_name(stem + ".bval"), run.with_name(stem + ".bvec")


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float64, np.uint8])
def test_scaled_and_wide_types_are_read_in_scanner_units(tmp_path, dtype):
    values = np.arange(2 * 3 * 4 * 2, dtype=dtype).reshape(2, 3, 4, 2)
    path = tmp_path / "x.nii"
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<ff", content, 112, 2.5, 10.0)  # scl_slope and scl_inter of the NIfTI-1 header
    path.write_bytes(content)
    data, _ = read_image(path)
    assert data.dtype == np.float32
    np.testing.assert_allclose(data, values.astype(float) * 2.5 + 10)


def test_a_mask_takes_in_voxels_of_which_more_than_half_is_brain(run, tmp_path):
    shares = np.random.default_rng(0).choice([0, 0.2, 0.5, 0.6, 1], (8, 8, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(shares, nib.load(run).affine), tmp_path / "mask.nii.gz")
    scan, _ = read_scan(run, *text_files(run), mask=tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(scan.mask, np.isin(shares, np.float32([0.6, 1])))
    assert read_scan(run, *text_files(run))[0].mask.all()
    flipped = np.diag([-1.0, 1, 1, 1]) @ nib.load(run).affine
    for values, affine in ((shares, flipped), (shares[1:], nib.load(run).affine)):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / "mask.nii.gz")
        with pytest.raises(ScanError, match=r"mask\.nii\.gz: expected a brain mask on the grid of the series"):
            read_scan(run, *text_files(run), mask=tmp_path / "mask.nii.gz")


def test_truncated_gzip_names_the_file(run):
    content = run.read_bytes()
    run.write_bytes(content[: len(content) // 2])
    with pytest.raises(ScanError, match=r"sub-1_dwi\.nii\.gz: cannot be read.*truncated"):
        read_image(run)


def test_truncated_inside_the_stream(run):
    raw = gzip.decompress(run.read_bytes())
    run.write_bytes(gzip.compress(raw[: len(raw) // 2]))
    with pytest.raises(ScanError, match="cannot be read"):
        read_image(run)


def test_three_dimensional_image(run):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), run)
    with pytest.raises(ScanError, match=r"expected a 4-D series .*found shape \(4, 4, 4\)"):
        read_scan(run, *text_files(run))


@pytest.mark.parametrize("which", [0, 1])
def test_missing_text_file(run, which):
    text_files(run)[which].unlink()
    with pytest.raises(GradientError, match="no such file"):
        read_scan(run, *text_files(run))


def test_wrong_length(run):
    bval, bvec = text_files(run)
    bval.write_text("0 1000 1000\n")
    with pytest.raises(GradientError, match=r"\.bval: 3 entries, but the image has 7 volumes"):
        read_gradients(bval, bvec, 7)


def test_transposed_directions_are_understood(run):
    bval, bvec = text_files(run)
    expected = read_gradients(bval, bvec)
    np.savetxt(bvec, np.loadtxt(bvec).T)
    np.testing.assert_array_equal(read_gradients(bval, bvec).bvecs, expected.bvecs)


def test_three_directions_are_read_from_rows(tmp_path):
    # Three by three numbers could be either; the standard is one direction per column.
    directions = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]])
    np.savetxt(tmp_path / "x.bvec", directions.T)
    np.testing.assert_array_equal(read_bvecs(tmp_path / "x.bvec"), directions)


@pytest.mark.parametrize("shape", [(4, 7), (7, 2)])
def test_directions_in_neither_three_rows_nor_three_columns_are_refused(tmp_path, shape):
    np.savetxt(tmp_path / "x.bvec", np.ones(shape))
    with pytest.raises(GradientError, match=r"x\.bvec: expected 3 rows \(or 3 columns\) of numbers, found"):
        read_bvecs(tmp_path / "x.bvec")


def test_column_of_b_values_and_byte_order_mark(run):
    bval, bvec = text_files(run)
    values = bval.read_text().split()
    bval.write_text("\ufeff" + "\n".join(values))
    assert len(read_gradients(bval, bvec)) == len(values)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [(3, "nan", "volumes? \\[3\\]|entries \\[3\\]"), (3, "0.2", r"volumes \[3\] have lengths")],
)
def test_directions_that_are_none(run, column, value, message):
    bval, bvec = text_files(run)
    table = np.loadtxt(bvec)
    table[:, column] = float(value)
    np.savetxt(bvec, table)
    with pytest.raises(GradientError, match=message):
        read_gradients(bval, bvec)


def test_text_that_is_no_table(run):
    bval, bvec = text_files(run)
    bval.write_text("zero one two\n")
    with pytest.raises(GradientError, match="expected rows of numbers"):
        read_gradients(bval, bvec)


@pytest.mark.parametrize("which", [0, 1])
def test_text_in_another_encoding_names_the_file(run, which):
    path = text_files(run)[which]
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(GradientError, match=r"sub-1_dwi\.bv.*cannot be read as text in UTF-8"):
        read_gradients(*text_files(run))


def test_text_that_cannot_be_read_names_the_file(run):
    bval, bvec = text_files(run)
    bval.unlink()
    bval.mkdir()  # root may read every file, but no folder as text
    with pytest.raises(GradientError, match=r"\.bval: expected a text file, found a folder"):
        read_gradients(bval, bvec)


def test_no_b0(run):
    bval, bvec = text_files(run)
    bval.write_text("1000 " * 7)
    table = np.loadtxt(bvec)
    table[:, 0] = [1, 0, 0]
    np.savetxt(bvec, table)
    with pytest.raises(ScanError, match="no b0 volume"):
        read_scan(run, bval, bvec)


def test_round_trip_keeps_geometry_and_values(run, tmp_path):
    affine = nib.affines.from_matvec([[-1.9, 0.3, 0], [0.3, 1.9, 0.2], [0, -0.2, 2.2]], [10, -20, 30])
    data = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    like = nib.Nifti1Image(data.astype(np.int16), affine)
    like.header.set_xyzt_units("mm", "sec")
    like.header["pixdim"][4] = 8.5
    nib.save(like, tmp_path / "like.nii.gz")
    like = nib.load(tmp_path / "like.nii.gz")
    back = nib.load(write_image(tmp_path / "out.nii.gz", data, like))
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), data)
    np.testing.assert_allclose(back.affine, like.affine, atol=1e-5)
    assert back.header.get_zooms()[3] == pytest.approx(8.5)
    assert back.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3)])
def test_a_different_qform_is_kept(tmp_path, shape):
    like = nib.Nifti1Image(np.zeros((5, 6, 7, 3), np.int16), np.eye(4))
    like.set_sform(np.diag([2.0, 2, 2, 1]), code=4)
    like.set_qform(np.diag([-2.5, 2.5, 3, 1]), code=1)
    nib.save(like, tmp_path / "like.nii")
    like = nib.load(tmp_path / "like.nii")
    back = nib.load(write_image(tmp_path / "out.nii", np.zeros(shape), like))
    for get in ("get_sform", "get_qform"):
        expected, found = (getattr(image, get)(coded=True) for image in (like, back))
        np.testing.assert_allclose(found[0], expected[0], err_msg=get)
        assert found[1] == expected[1], get


def test_complex_images_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.complex64), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(ScanError, match=r"x\.nii: expected one real number per voxel, found complex numbers"):
        read_image(tmp_path / "x.nii")


def test_a_volume_may_have_axes_of_one(tmp_path):
    for shape in ((2, 3, 4), (2, 3, 4, 1), (2, 3, 4, 1, 1)):
        nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "x.nii")
        assert read_volume(tmp_path / "x.nii")[0].shape == (2, 3, 4)
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4, 2), np.float32), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(ScanError, match="expected a single volume"):
        read_volume(tmp_path / "x.nii")


def test_gradients_round_trip(tmp_path):
    table = tiny_gradients(7, 2, 928.289)
    write_gradients(table, tmp_path / "a.bval", tmp_path / "a.bvec")
    back = read_gradients(tmp_path / "a.bval", tmp_path / "a.bvec")
    np.testing.assert_allclose(back.bvals, table.bvals, rtol=1e-5)
    np.testing.assert_allclose(back.bvecs, table.bvecs, atol=1e-7)


def test_a_header_on_a_finer_grid_keeps_its_qform_beside_its_sform(tmp_path):
    sform = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -40], [0, 0, 3, 5], [0, 0, 0, 1]])
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.2))
    image = nib.Nifti1Image(np.zeros((6, 5, 4, 3), np.float32), sform)
    image.set_qform(turn @ sform, code=1)
    image.set_sform(sform, code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 7.5
    finer = np.array(sform)
    finer[:3, :3] = np.diag([-1.0, 1.0, 1.0])
    finer[:3, 3] += [0.5, -0.5, -1]
    like = image_on_grid((12, 10, 12), finer, image)
    written = nib.load(write_image(tmp_path / "x.nii", np.ones((12, 10, 12, 3), np.float32), like))
    np.testing.assert_allclose(written.affine, finer, atol=1e-5)
    np.testing.assert_allclose(written.get_qform(), turn @ finer, atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (4, 1)
    assert written.header.get_zooms() == pytest.approx((1, 1, 1, 7.5))
    assert written.header.get_xyzt_units() == ("mm", "sec")
    unplaced = nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), sform)
    unplaced.set_qform(None, code=0)
    np.testing.assert_allclose(image_on_grid((12, 10, 12), finer, unplaced).get_qform(), finer, atol=1e-5)
