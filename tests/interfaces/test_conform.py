"""What comes through the first step untouched."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.interfaces.conform import Conform, MeanB0

from ..conftest import tiny_gradients, tiny_series, write_run

OBLIQUE = nib.affines.from_matvec([[0, 0, 2.0], [-2, 0.2, 0], [0.2, 2, 0]], [1, 2, 3])


@pytest.mark.parametrize("affine", [np.diag([-2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1]), OBLIQUE])
def test_conform_keeps_values_geometry_and_directions(tmp_path, affine):
    gradients = tiny_gradients(6, 1)
    data = tiny_series(gradients, (9, 8, 10))
    run = write_run(tmp_path / "in", "sub-1", data, gradients, affine)
    stem = str(run).removesuffix(".nii.gz")
    node = Conform(in_file=str(run), in_bval=f"{stem}.bval", in_bvec=f"{stem}.bvec")
    (tmp_path / "out").mkdir()
    out = node.run(cwd=str(tmp_path / "out")).outputs
    image = nib.load(out.out_file)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), data)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(np.loadtxt(out.out_bvec).T, gradients.bvecs, atol=1e-5)
    mean = MeanB0(in_file=out.out_file, in_bval=out.out_bval, in_bvec=out.out_bvec)
    b0 = nib.load(mean.run(cwd=str(tmp_path / "out")).outputs.out_file)
    np.testing.assert_allclose(b0.get_fdata(), data[..., 0], rtol=1e-6)
