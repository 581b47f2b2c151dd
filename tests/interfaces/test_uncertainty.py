"""Maps of the acquired grid are put in place, and quantiles follow from best estimates and errors."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.interfaces.uncertainty import Quantiles, UndistortMaps

AFFINE = np.diag([-2.0, 3, 4, 1])
SHAPE = (8, 12, 6)


def write(path, values):
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), AFFINE), path)
    return str(path)


@pytest.mark.parametrize(("direction", "axis"), [("i", 0), ("j-", 1), ("k", 2)])
def test_a_map_is_read_where_the_field_says_that_its_content_is(tmp_path, direction, axis):
    index = np.broadcast_to(np.indices(SHAPE)[axis], SHAPE)
    field = write(tmp_path / "field.nii", np.full(SHAPE, 1.5 * (2, 3, 4)[axis]))  # a voxel and a half
    maps = [write(tmp_path / f"{k}.nii", (k + 1) * index) for k in range(2)]
    node = UndistortMaps(in_files=maps, in_field=field, phase_encoding_direction=direction)
    found = node.run(cwd=str(tmp_path)).outputs.out_files
    inner = index < SHAPE[axis] - 3
    for k, path in enumerate(found):
        np.testing.assert_allclose(nib.load(path).get_fdata()[inner], (k + 1) * (index[inner] + 1.5), atol=1e-4)


def test_quantiles_are_in_the_order_of_the_maps_and_in_their_range(tmp_path):
    best = {"md": np.full(SHAPE, 1e-3), "fa": np.full(SHAPE, 0.9)}
    errors = {"md": np.full(SHAPE, 1e-4), "fa": np.full(SHAPE, 0.2)}
    maps, stds = ([write(tmp_path / f"{end}{name}.nii", v) for name, v in group.items()]
                  for end, group in (("", best), ("std", errors)))  # fmt: skip
    found = Quantiles(names=list(best), in_maps=maps, in_errors=stds).run(cwd=str(tmp_path)).outputs
    low, high = ([nib.load(p).get_fdata()[0, 0, 0] for p in paths] for paths in (found.out_low, found.out_high))
    np.testing.assert_allclose(low, [1e-3 - 1.645e-4, 0.9 - 0.329], rtol=1e-5)
    np.testing.assert_allclose(high, [1e-3 + 1.645e-4, 1], rtol=1e-5)
