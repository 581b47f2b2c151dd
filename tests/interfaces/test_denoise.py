"""The denoising interfaces: what they write, what they keep, and that noise goes down."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.interfaces import denoise as module
from bids_dmrigen.interfaces.denoise import Degibbs, Denoise, denoise, patch_radius
from bids_dmrigen.spatial.io import write_gradients

SHAPE, SIGMA = (14, 13, 9), 25.0
AFFINE = np.array([[-2.1, 0.2, 0, 30], [0.2, 2, 0.1, -20], [0, -0.1, 2.5, 5], [0, 0, 0, 1.0]])


def simulated(n_directions=12, seed=0):
    """Return a scan of smooth anatomy in Rician noise, and its truth."""
    rng = np.random.default_rng(seed)
    bvals = np.r_[0, np.full(n_directions, 1000.0)]
    directions = np.r_[np.zeros((1, 3)), even_directions(n_directions)]
    x, y, z = (axis / n for axis, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    fibre = np.stack([np.cos(3 * x + y), np.sin(3 * x + y), 0.5 * z], axis=-1)
    fibre /= np.linalg.norm(fibre, axis=-1, keepdims=True)
    adc = 0.4e-3 + 1.2e-3 * (0.3 + 0.7 * y[..., None]) * (fibre @ directions.T) ** 2
    clean = (700 + 300 * z[..., None]) * np.exp(-bvals * adc)
    noise = rng.normal(0, SIGMA, (2, *clean.shape))
    data = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    data[:2] = 0
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:, 1:] = True
    return Scan(data, AFFINE, GradientTable(bvals, directions), mask), clean


def written(scan, folder):
    """Return input paths of the interface for a scan written as scanners do: integers, a slope and codes."""
    image = nib.Nifti1Image(np.round(scan.data * 4).astype(np.int16), scan.affine)
    image.header.set_slope_inter(0.25, 0)
    image.set_sform(scan.affine, code=1)
    image.set_qform(scan.affine, code=1)
    image.header.set_zooms((*image.header.get_zooms()[:3], 7.5))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / "dwi.nii.gz")
    nib.save(nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine), folder / "mask.nii.gz")
    write_gradients(scan.gradients, folder / "dwi.bval", folder / "dwi.bvec")
    paths = {"in_file": "dwi.nii.gz", "in_mask": "mask.nii.gz", "in_bval": "dwi.bval", "in_bvec": "dwi.bvec"}
    return {name: str(folder / path) for name, path in paths.items()}


@pytest.mark.parametrize(("method", "word"), [("mppca", "MP-PCA"), ("patch2self", "Patch2Self"), ("none", "Not")])
def test_denoise_writes_a_complete_series(tmp_path, monkeypatch, method, word):
    scan, _ = simulated()
    inputs = written(scan, tmp_path)
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.chdir(folder)
    outputs = Denoise(method=method, **inputs).run().outputs
    image, source = nib.load(outputs.out_file), nib.load(inputs["in_file"])
    data = image.get_fdata()
    assert str(folder) in outputs.out_file
    assert outputs.out_file.endswith(".nii")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_zooms()[3] == 7.5
    assert np.isfinite(data).all()
    np.testing.assert_allclose(data[~scan.mask], source.get_fdata()[~scan.mask])
    changed = np.abs(data - source.get_fdata())[scan.mask].mean()
    assert (changed > 1) == (method != "none")
    assert outputs.out_sigma == pytest.approx(SIGMA, rel=0.1)
    assert outputs.out_message.startswith(("Denoised by", "Not denoised"))
    assert word in outputs.out_message
    assert f"{outputs.out_sigma:.4g}" in outputs.out_message
    assert sorted(path.name for path in folder.iterdir()) == ["denoised_dwi.nii"]


@pytest.mark.parametrize("n_directions", [6, 12, 30])
def test_mppca_lowers_the_error_of_short_series(n_directions):
    scan, clean = simulated(n_directions)
    found, message = denoise(scan, "mppca")

    def error(data):
        return np.sqrt(((data - clean)[scan.mask] ** 2).mean())

    assert error(found) < 0.8 * error(scan.data)
    assert ("5 x 5 x 5" if n_directions == 30 else "3 x 3 x 3") in message


def test_without_a_mask_everything_is_denoised_but_zeroed_background():
    scan, _ = simulated()
    everywhere = Scan(scan.data, scan.affine, scan.gradients, np.ones(SHAPE, dtype=bool))
    found, _ = denoise(everywhere, "mppca")
    assert np.isfinite(found).all()
    assert not found[:2].any()
    assert (found[2:] != scan.data[2:]).any(axis=3).all()


def test_too_few_volumes_come_back_as_acquired():
    scan, _ = simulated(3)
    for method in ("mppca", "patch2self"):
        found, message = denoise(scan, method)
        np.testing.assert_array_equal(found, scan.data)
        expected = module.TOO_FEW_VOLUMES.format(method=method, needed=0, found=4)
        assert message.lower().split("least")[0] == expected.split("least")[0]
        assert "found 4" in message


def test_patch2self_warns_below_thirty_volumes():
    for n_directions, warned in ((12, True), (31, False)):
        _, message = denoise(simulated(n_directions)[0], "patch2self")
        assert ("lost direction contrast" in message) == warned


def test_bad_values_never_come_back():
    scan, _ = simulated()
    scan.data[5, 5, 5, 3], scan.data[6, 6, 6, 2] = np.nan, np.inf
    for method in module.METHODS:
        assert np.isfinite(denoise(scan, method)[0]).all()


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown denoising method 'nlm'"):
        denoise(simulated()[0], "nlm")


def test_noise_that_cannot_be_known_is_nan_with_the_reason():
    scan, _ = simulated()
    sigma, message = module.noise_level(Scan(0 * scan.data, scan.affine, scan.gradients, scan.mask))
    assert np.isnan(sigma)
    assert "usable voxels" in message


@pytest.mark.parametrize(
    ("shape", "radius"),
    [
        ((80, 80, 40, 13), [1, 1, 1]),
        ((80, 80, 40, 26), [1, 1, 1]),
        ((80, 80, 40, 27), [2, 2, 2]),
        ((80, 80, 40, 130), [3, 3, 3]),
        ((80, 80, 1, 13), [2, 2, 0]),
        ((80, 80, 3, 100), [3, 3, 1]),
        ((3, 3, 3, 100), [1, 1, 1]),
    ],
)
def test_patches_hold_more_voxels_than_volumes(shape, radius):
    assert patch_radius(shape).tolist() == radius


def test_degibbs_equals_the_function(tmp_path, monkeypatch):
    from bids_dmrigen.dwi.gibbs import remove_gibbs

    scan, _ = simulated()
    inputs = written(scan, tmp_path)
    monkeypatch.chdir(tmp_path)
    outputs = Degibbs(in_file=inputs["in_file"], slice_axis=1, num_threads=2).run().outputs
    source = nib.load(inputs["in_file"]).get_fdata(dtype=np.float32)
    found = nib.load(outputs.out_file)
    np.testing.assert_allclose(found.get_fdata(), remove_gibbs(source, slice_axis=1), atol=1e-2)
    assert found.get_data_dtype() == np.float32
    assert np.abs(found.get_fdata() - source).max() > 1


def test_threads_are_given_back():
    import torch

    before = torch.get_num_threads()
    with module.limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
