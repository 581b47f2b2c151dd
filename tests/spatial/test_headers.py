"""Headers that no scan has are refused before anything is read; damaged files are never read as if whole."""

import gzip
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.images import fault_of
from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.spatial.checks import check_first_volume
from bids_dmrigen.spatial.headers import check_header, series_shape
from bids_dmrigen.spatial.io import open_image, read_image, read_scan
from tests.conftest import tiny_gradients, tiny_series, write_run

AFFINE = np.array([[-1.9, 0.3, 0.4, 90], [0.3, 2.0, -0.4, -100], [0.5, 0.4, 2.4, -60], [0, 0, 0, 1.0]])
SHAPE = (6, 5, 4, 3)


def written(tmp_path, change=lambda header: None, affine=AFFINE, dtype=np.float32, name="dwi.nii"):
    """Write an image whose header was changed; return its path."""
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path / name
    nib.save(image, path)
    content = bytearray(path.read_bytes() if not name.endswith(".gz") else gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    change(header)
    content[:348] = header.structarr.tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))
    return path


def put(field, value, index=None):
    def change(header):
        if index is None:
            header.structarr[field] = value
        else:
            header.structarr[field][index] = value

    return change


def test_a_unit_of_space_that_nifti_does_not_define_is_unknown(tmp_path):
    assert open_image(written(tmp_path, put("xyzt_units", 7))).shape == SHAPE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("srow_x", np.nan, 3), "the header's sform hold NaN or infinity"),
        (put("qoffset_y", np.inf), "the header's qform hold NaN or infinity"),
        (put("quatern_b", np.nan), "the header's qform hold NaN or infinity"),
        (put("pixdim", np.nan, 2), "the header's .*pixdim hold NaN or infinity"),
        (put("xyzt_units", 1), "now in meter"),
        (put("scl_slope", np.inf), "the header's scaling hold NaN or infinity"),
        (put("scl_slope", -np.inf), "the header's scaling hold NaN or infinity"),
        (put("dim", 30000, 1), "its file has .* bytes: the header is damaged"),
    ],
)
def test_headers_that_are_no_scan_s(tmp_path, change, message):
    with pytest.raises(ScanError, match=message):
        open_image(written(tmp_path, change))


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
@pytest.mark.parametrize("qform_code", [0, 1])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_voxels_of_no_size_are_refused_where_the_affine_is_made_from_them(tmp_path, name, qform_code, axis):
    """Nibabel takes 1 mm for a size of 0, without a word in the image."""

    def change(header):
        header["sform_code"], header["qform_code"] = 0, qform_code
        header["pixdim"][axis] = 0

    with pytest.raises(ScanError, match=r"voxels of .*\b0\b.* mm, expected 0\.02 to 25 mm"):
        open_image(written(tmp_path, change, name=name))


@pytest.mark.parametrize(
    ("change", "message"),
    [(put("pixdim", 0, 2), "voxels of 1 x 0 x 1,"), (put("scl_slope", np.inf), "infinite slope")],
)
def test_images_beside_a_run_are_checked_in_the_same_way(tmp_path, change, message):
    path = tmp_path / "T1w.nii"
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4)), path)
    assert fault_of(path) is None
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    header["sform_code"] = 0
    change(header)
    path.write_bytes(header.structarr.tobytes() + path.read_bytes()[348:])
    assert message in fault_of(path)


def test_sizes_that_the_sform_replaces_and_a_slope_that_is_not_used_are_no_fault(tmp_path):
    assert open_image(written(tmp_path, put("pixdim", 0, 3))).shape == SHAPE
    for slope in (np.nan, 0):
        assert open_image(written(tmp_path, put("scl_slope", slope))).shape == SHAPE


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([0.002, 0.002, 0.002, 1]), "voxels of 0.002 x 0.002 x 0.002 mm"),
        (np.diag([200.0, 2, 2, 1]), "voxels of 200 x 2 x 2 mm"),
        (AFFINE @ np.array([[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "from right angles"),
    ],
)
def test_geometry_that_no_scanner_has(tmp_path, affine, message):
    with pytest.raises(ScanError, match=message):
        open_image(written(tmp_path, affine=affine))


def test_a_size_beyond_the_memory_is_refused_before_anything_is_read(tmp_path):
    """A gzip file may be small and hold very much: only the header says how much."""
    path = tmp_path / "dwi.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_shape((20000, 20000, 20000, 2))
    header.set_data_dtype(np.float32)
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4))
    with pytest.raises(ScanError, match="the header claims 20000 x 20000 x 20000 x 2 values"):
        open_image(path)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.complex64, "complex numbers"), ([("R", "u1"), ("G", "u1"), ("B", "u1")], "colours")]
)
def test_values_that_are_no_real_numbers(tmp_path, dtype, kind):
    path = tmp_path / "dwi.nii"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype), AFFINE), path)
    with pytest.raises(ScanError, match=f"expected one real number per voxel, found {kind}"):
        open_image(path)


def test_an_image_that_lies_nowhere_is_warned_of(tmp_path):
    def change(header):
        header["sform_code"] = header["qform_code"] = 0

    path = written(tmp_path, change)
    (warning,) = check_header(nib.load(path), path)
    assert "neither sform nor qform" in warning
    assert check_header(nib.load(written(tmp_path)), path) == []


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 4, 3, 1), (6, 5, 4, 1, 3), (6, 5, 4, 1, 1, 3)])
def test_series_with_another_axis_are_read(tmp_path, shape):
    gradients = tiny_gradients(2, 1)
    path = write_run(tmp_path, "sub-1", tiny_series(gradients, (6, 5, 4)), gradients)
    image = nib.load(path)
    plain, _ = read_scan(path, *(path.with_name(f"sub-1_dwi.{e}") for e in ("bval", "bvec")))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).reshape(shape), image.affine), path)
    scan, _ = read_scan(path, *(path.with_name(f"sub-1_dwi.{e}") for e in ("bval", "bvec")))
    np.testing.assert_array_equal(scan.data, plain.data)


def test_arrays_that_are_no_series():
    with pytest.raises(ScanError, match=r"its 12 slices are 3 .* times 4: the volumes may be stacked"):
        series_shape((6, 5, 12), "dwi.nii", 3)
    with pytest.raises(ScanError, match="a single volume is no diffusion series"):
        series_shape((6, 5, 11), "dwi.nii", 3)
    with pytest.raises(ScanError, match=r"found shape \(6, 5, 4, 3, 2\)"):
        series_shape((6, 5, 4, 3, 2), "dwi.nii")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (0.0, "is 0 everywhere"),
        (7.0, "is 7 everywhere"),
        ("negative", "has no positive value"),
        (np.nan, "no finite value"),
    ],
)
def test_a_first_volume_without_an_image(tmp_path, values, message):
    data = np.full(SHAPE, 1.0, np.float32)
    data[..., 0] = -np.arange(120).reshape(SHAPE[:3]) if values == "negative" else values
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "dwi.nii.gz")
    with pytest.raises(ScanError, match=message):
        check_first_volume(nib.load(tmp_path / "dwi.nii.gz"), "dwi.nii.gz")


def test_no_flipped_bit_of_a_compressed_image_is_overlooked(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "dwi.nii.gz"
    nib.save(nib.Nifti1Image(rng.integers(0, 900, (20, 20, 10, 4)).astype(np.int16), AFFINE), path)
    whole = path.read_bytes()
    expected = read_image(path)[0]
    overlooked = 0
    for at in rng.integers(10, len(whole), 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with suppress(ScanError):
            overlooked += not np.array_equal(read_image(path)[0], expected)
    assert overlooked == 0
