"""To a finer grid and back: the mask lies where it did, what was up-sampled comes back, maps keep their values."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.interfaces.finer import FinerMask, OntoScan
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.spatial.io import image_on_grid, write_image

from ..conftest import tiny_gradients, tiny_series

AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.3, x=-0.2) @ np.diag([-2.0, 2.0, 3.0]), [10, -20, 5])


@pytest.fixture
def scan(tmp_path):
    """A series and its mask, on disk too."""
    gradients = tiny_gradients(6, 1)
    data = 400 + tiny_series(gradients, (12, 10, 8))  # no spline overshoots below 0
    mask = data[..., 0] > 500
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "dwi.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), tmp_path / "mask.nii")
    return Scan(data, AFFINE, gradients, mask)


def finer(scan, folder, edge=1.3):
    """Write the up-sampled series and the mask on its grid; return the series and both paths."""
    generated = load("bspline").generate(None, scan, Request(options={"voxel_mm": edge}))
    like = image_on_grid(generated.grid.mask.shape, generated.grid.affine, nib.load(folder / "dwi.nii"))
    series = write_image(folder / "finer.nii", generated.mean, like)
    mask = FinerMask(in_mask=str(folder / "mask.nii"), voxel_mm=edge).run(cwd=str(folder / "m")).outputs.out_mask
    return generated, str(series), mask


def test_the_mask_is_that_of_the_methods(scan, tmp_path):
    (tmp_path / "m").mkdir()
    generated, _, mask = finer(scan, tmp_path)
    found = nib.load(mask)
    np.testing.assert_array_equal(found.get_fdata() > 0, generated.grid.mask)
    np.testing.assert_allclose(found.affine, generated.grid.affine, atol=1e-5)


def test_an_upsampled_series_gets_its_original_values_back(scan, tmp_path):
    (tmp_path / "m").mkdir()
    generated, series, mask = finer(scan, tmp_path)
    values = np.where(generated.grid.mask, 0.7, 0)
    colours = np.stack([values, 0.5 * values, 0 * values], 3)
    like = nib.load(mask)
    maps = [str(write_image(tmp_path / f"{n}.nii", v, like)) for n, v in (("fa", values), ("dec", colours))]
    outputs = OntoScan(
        in_series=[series], in_maps=maps, in_mask=mask, reference=str(tmp_path / "dwi.nii")
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    back = nib.load(outputs.out_series[0])
    np.testing.assert_allclose(back.get_fdata(), scan.data, rtol=1e-3, atol=0.05)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
    fa, dec = (nib.load(path).get_fdata() for path in outputs.out_maps)
    assert fa.shape == scan.mask.shape
    assert dec.shape == (*scan.mask.shape, 3)
    np.testing.assert_allclose(fa[scan.mask], 0.7, rtol=1e-5)
    np.testing.assert_allclose(dec[scan.mask], np.tile([0.7, 0.35, 0], (scan.mask.sum(), 1)), atol=1e-5)


def test_a_map_is_interpolated_at_the_right_positions(scan, tmp_path):
    (tmp_path / "m").mkdir()
    generated, _, mask = finer(scan, tmp_path)
    index = np.moveaxis(np.indices(generated.grid.mask.shape), 0, -1)
    slope = nib.affines.apply_affine(generated.grid.affine, index) @ [1.0, 2.0, 3.0] + 200  # of the world position
    path = str(write_image(tmp_path / "slope.nii", slope * generated.grid.mask, nib.load(mask)))
    onto = OntoScan(in_maps=[path], in_mask=mask, reference=str(tmp_path / "mask.nii"))
    found = nib.load(onto.run(cwd=str(tmp_path)).outputs.out_maps[0]).get_fdata()
    here = np.moveaxis(np.indices(scan.mask.shape), 0, -1)
    expected = nib.affines.apply_affine(AFFINE, here) @ [1.0, 2.0, 3.0] + 200
    deep = np.zeros_like(scan.mask)
    deep[4:8, 4:6, 3:5] = scan.mask[4:8, 4:6, 3:5]
    assert deep.sum() > 10
    np.testing.assert_allclose(found[deep], expected[deep], rtol=1e-4)
