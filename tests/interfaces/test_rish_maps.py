"""RISH maps on disk: what each degree is called, and where nothing is written."""

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bids_dmrigen.dwi.rish import rish_maps
from bids_dmrigen.interfaces.rish_maps import RishMaps
from bids_dmrigen.spatial.io import read_scan

from ..conftest import tiny_gradients, tiny_series, write_run


@pytest.mark.parametrize(("n_directions", "degrees"), [(12, (0, 2)), (15, (0, 2, 4))])
def test_a_map_for_every_degree_that_is_determined(tmp_path, n_directions, degrees):
    gradients = tiny_gradients(n_directions, 1)
    data = tiny_series(gradients, (8, 9, 5))
    image = str(write_run(tmp_path, "sub-1", data, gradients))
    mask = nib.Nifti1Image((data[..., 0] > 100).astype(np.uint8), nib.load(image).affine)
    nib.save(mask, tmp_path / "mask.nii")
    table = [image.replace("nii.gz", end) for end in ("bval", "bvec")]
    outputs = RishMaps(
        in_file=image, in_bval=table[0], in_bvec=table[1], in_mask=str(tmp_path / "mask.nii")
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    expected = rish_maps(read_scan(image, *table, tmp_path / "mask.nii")[0])
    for degree in (0, 2, 4):
        path = getattr(outputs, f"rish{degree}")
        assert isdefined(path) == (degree in degrees)
        if degree in degrees:
            found = nib.load(path)
            np.testing.assert_array_equal(found.affine, mask.affine)
            np.testing.assert_array_equal(found.get_fdata(), expected[degree])
            assert not found.get_fdata()[mask.get_fdata() == 0].any()
