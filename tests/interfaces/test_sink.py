"""Results in their place: complete, finite, or not there at all."""

import errno
import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.interfaces import sink


def image(path, values):
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), np.eye(4)), path)
    return path


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


def test_values_that_are_not_finite_are_not_stored(tmp_path):
    source = image(tmp_path / "a.nii", [[[1.0, np.nan]]])
    with pytest.raises(ValueError, match="not finite; not stored"):
        sink.store(source, tmp_path / "out/x.nii.gz", None)
    assert not (tmp_path / "out/x.nii.gz").exists()


def test_full_disk_says_where_and_leaves_nothing(tmp_path, monkeypatch):
    source = image(tmp_path / "a.nii", np.ones((2, 2, 2)))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="no space left in the output folder"):
        sink.store(source, tmp_path / "out/x.nii.gz", None)
    assert list((tmp_path / "out").iterdir()) == []
