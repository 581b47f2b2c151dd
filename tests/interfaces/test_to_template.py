"""Maps of a run on the grid over the template that is the same for every run."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.interfaces.to_template import ToTemplate
from bids_dmrigen.spatial.standard_grid import standard_grid
from tests.spatial.test_template_space import AFFINE, MOTION, SHAPE, TEMPLATE, ball


def test_maps_go_where_the_transform_leads_and_are_not_darker_at_the_rim(tmp_path):
    pytest.importorskip("ants")
    from bids_dmrigen.spatial.ants_tools import write_matrix

    mask, points = ball(SHAPE, AFFINE, 32.0)
    brain, _ = ball((44, 52, 40), TEMPLATE, 50.0)
    fa = (0.5 + 0.004 * points[..., 0]) * mask
    for name, data, affine in (("fa", fa, AFFINE), ("mask", mask, AFFINE), ("brain", brain, TEMPLATE)):
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), tmp_path / f"{name}.nii")
    onto = write_matrix(tmp_path / "to.mat", np.linalg.inv(MOTION))
    result = ToTemplate(
        in_files=[str(tmp_path / "fa.nii")], in_mask=str(tmp_path / "mask.nii"), to_template=str(onto),
        template_brain=str(tmp_path / "brain.nii"),
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    resampled = nib.load(result.out_files[0])
    assert resampled.header["sform_code"] == 4
    shape, affine = standard_grid(brain.shape, TEMPLATE)
    assert resampled.shape == shape
    np.testing.assert_allclose(resampled.affine, affine)
    inside = nib.load(result.out_mask).get_fdata() > 0
    assert abs(inside.sum() * 8 / (mask.sum() * abs(np.linalg.det(AFFINE[:3, :3]))) - 1) < 0.05
    world = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    source = world @ np.linalg.inv(MOTION)[:3, :3].T + np.linalg.inv(MOTION)[:3, 3]
    error = resampled.get_fdata()[inside] - (0.5 + 0.004 * source[:, 0])
    assert np.abs(error).max() < 0.02
    assert not resampled.get_fdata()[~inside].any()
