"""The denoising interfaces: what they write, and what they keep."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.tables import write_gradients
from bids_dmrigen.dwi.gibbs import remove_gibbs
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.interfaces.denoise import Degibbs, Denoise
from tests.methods.denoise.test_classical import SIGMA, simulated


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
    kept = np.arange(12)  # the library's Patch2Self cannot do all 13
    scan = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
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


def test_degibbs_equals_the_function(tmp_path, monkeypatch):
    scan, _ = simulated()
    inputs = written(scan, tmp_path)
    monkeypatch.chdir(tmp_path)
    outputs = Degibbs(in_file=inputs["in_file"], slice_axis=1, num_threads=2).run().outputs
    source = nib.load(inputs["in_file"]).get_fdata(dtype=np.float32)
    found = nib.load(outputs.out_file)
    np.testing.assert_allclose(found.get_fdata(), remove_gibbs(source, slice_axis=1), atol=1e-2)
    assert found.get_data_dtype() == np.float32
    assert np.abs(found.get_fdata() - source).max() > 1
