"""Head motion on files: transforms, and confounds as BIDS has them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_dmrigen.bids.tables import write_gradients
from bids_dmrigen.interfaces.motion import HeadMotion
from bids_dmrigen.spatial.motion import CONFOUNDS
from bids_dmrigen.spatial.rigid import motion_parameters
from tests.spatial.test_motion import AFFINE, CENTER, moved_head


def test_interface_writes_transforms_and_confounds(tmp_path):
    data, gradients, _, truth = moved_head()
    few = [0, 2, 3]
    nib.save(nib.Nifti1Image(data[..., few], AFFINE), tmp_path / "dwi.nii")
    write_gradients(gradients[few], tmp_path / "dwi.bval", tmp_path / "dwi.bvec")
    result = HeadMotion(in_file=tmp_path / "dwi.nii", in_bval=tmp_path / "dwi.bval", in_bvec=tmp_path / "dwi.bvec").run(
        cwd=tmp_path
    )
    transforms = np.load(result.outputs.out_transforms)
    left = motion_parameters(np.linalg.inv(truth[few]) @ transforms, CENTER)
    assert np.abs(left[:, :3]).max() < 1
    lines = Path(result.outputs.out_confounds).read_text().splitlines()
    assert lines[0].split("\t") == list(CONFOUNDS)
    assert lines[1].split("\t")[6] == "n/a"  # as BIDS has it: the first volume has none before it
    table = pd.read_csv(result.outputs.out_confounds, sep="\t")
    assert len(table) == 3
    assert table.isna().to_numpy().sum() == 1
    assert table["framewise_displacement"][1] > 1
