"""Results in their place, with what is recorded of them."""

import json

import nibabel as nib
import numpy as np

from bids_dmrigen.interfaces import sink
from tests.bids.test_store import image


def test_record_joins_the_sidecars(tmp_path):
    source = image(tmp_path / "a.nii", np.arange(8.0).reshape(2, 2, 2))
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"Synthetic": True}))
    (tmp_path / "x.bval").write_text("0 1000\n")
    sink.Sink(
        out_dir=str(tmp_path / "out"),
        in_files=[str(source), str(tmp_path / "x.bval")],
        targets=["sub-1/dwi/sub-1_desc-m_dwi.nii.gz", "sub-1/dwi/sub-1_desc-m_dwi.bval"],
        sidecars=[{"Description": "x"}, {}],
        in_record=str(record),
    ).run(cwd=str(tmp_path))
    folder = tmp_path / "out/sub-1/dwi"
    assert json.loads((folder / "sub-1_desc-m_dwi.json").read_text()) == {"Description": "x", "Synthetic": True}
    assert nib.load(folder / "sub-1_desc-m_dwi.nii.gz").get_fdata()[1, 1, 1] == 7
    assert len(list(folder.iterdir())) == 3
