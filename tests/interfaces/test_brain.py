"""Brain mask and bias field on files."""

import nibabel as nib
import numpy as np

from bids_dmrigen.bids.tables import write_gradients
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.interfaces.brain import BiasField, BrainMask
from bids_dmrigen.spatial.io import read_image
from tests.spatial.test_brain_mask import AFFINE, brain_phantom


def test_interfaces_keep_the_ratio_of_volumes(tmp_path):
    b0, dwi, _, _ = brain_phantom()
    image = nib.Nifti1Image(np.stack([b0, dwi], -1), AFFINE)
    nib.save(image, tmp_path / "dwi.nii")
    table = GradientTable([0, 1000], np.r_[np.zeros((1, 3)), even_directions(1)])
    write_gradients(table, tmp_path / "dwi.bval", tmp_path / "dwi.bvec")
    files = {f"in_{part}": tmp_path / f"dwi.{end}" for part, end in
             (("file", "nii"), ("bval", "bval"), ("bvec", "bvec"))}  # fmt: skip
    mask = BrainMask(**files).run(cwd=tmp_path).outputs.out_mask
    assert nib.load(mask).get_data_dtype() == np.uint8
    outputs = BiasField(**files, in_mask=mask).run(cwd=tmp_path).outputs
    corrected, _ = read_image(outputs.out_file)
    field, _ = read_image(outputs.out_field)
    np.testing.assert_allclose(corrected * field[..., None], image.get_fdata(), rtol=1e-5)
