"""Stored results are complete and finite, or absent."""

import errno

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.store import forget_figures, intact, remember, store


def image(path, values):
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), np.eye(4)), path)
    return path


def test_values_that_are_not_finite_are_not_stored(tmp_path):
    source = image(tmp_path / "a.nii", [[[1.0, np.nan]]])
    with pytest.raises(ValueError, match="not finite; not stored"):
        store(source, tmp_path / "out/x.nii.gz", None)
    assert not (tmp_path / "out/x.nii.gz").exists()


def test_a_full_disk_names_the_folder_and_leaves_no_file(tmp_path, monkeypatch):
    source = image(tmp_path / "a.nii", np.ones((2, 2, 2)))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="no space left in the output folder"):
        store(source, tmp_path / "out/x.nii.gz", None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_result_that_another_call_overwrote_is_not_intact(tmp_path):
    assert not intact(tmp_path), "nothing was remembered"
    source = image(tmp_path / "a.nii", np.ones((2, 2, 2)))
    written = store(source, tmp_path / "out/x.nii.gz", {"Description": "x"})
    assert [path.name for path in written] == ["x.nii.gz", "x.json"]
    assert remember(tmp_path, written) == [str(path) for path in written]
    assert intact(tmp_path)
    written[1].write_text("{}")
    assert not intact(tmp_path)
    written[0].unlink()
    assert not intact(tmp_path)


def test_only_the_figures_of_the_run_are_forgotten(tmp_path):
    folder = tmp_path / "sub-1/figures"
    folder.mkdir(parents=True)
    kept = ["sub-1_desc-record_dwi.json", "sub-1_desc-summary_dwi.html", "sub-1_run-2_desc-fa_dwi.svg"]
    for name in (*kept, "sub-1_desc-fa_dwi.svg", "sub-1_desc-skipped_dwi.html"):
        (folder / name).write_text("x")
    forget_figures(tmp_path, {"subject": "1"})
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
