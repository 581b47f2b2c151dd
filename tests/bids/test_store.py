"""Stored results are complete and finite, or absent."""

import errno
import gzip
import os
from zlib import crc32

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.store import digest, fingerprint, forget_figures, intact, remember, store


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


def rewrite(path, text):
    """Change a file by hand, with size and time of the last change as before."""
    before = path.stat()
    assert len(text) == before.st_size
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_table_of_other_content_is_noticed_though_its_size_and_time_are_the_same(tmp_path):
    table = tmp_path / "x.bval"
    table.write_text("0 1000")
    before = digest(table)
    remember(tmp_path, [table])
    rewrite(table, "0 1000")
    assert intact(tmp_path)
    rewrite(table, "0 2000")
    assert not intact(tmp_path)
    assert digest(table) != before


def test_a_compressed_image_of_the_same_size_has_another_fingerprint(tmp_path):
    paths = [tmp_path / "one.nii.gz", tmp_path / "other.nii.gz"]
    for path, values in zip(paths, (b"0000", b"1000"), strict=True):
        path.write_bytes(gzip.compress(values, compresslevel=0, mtime=0))
    assert [fingerprint(path).split(", ")[1] for path in paths] == [
        f"checksum {crc32(v):08x}" for v in (b"0000", b"1000")
    ]
    assert paths[0].stat().st_size == paths[1].stat().st_size


@pytest.mark.parametrize("place", [0, 2500, 4999])
def test_an_image_of_the_same_size_has_another_fingerprint(tmp_path, place):
    values = np.ones(5000, np.float32)
    before = fingerprint(image(tmp_path / "a.nii", values.reshape(10, 20, 25)))
    values[place] = 2
    after = fingerprint(image(tmp_path / "a.nii", values.reshape(10, 20, 25)))
    assert before.split(",")[0] == after.split(",")[0] == "20352 bytes"
    assert before != after
    assert fingerprint(tmp_path / "none.nii") == "missing"


def test_only_the_figures_of_the_run_are_forgotten(tmp_path):
    folder = tmp_path / "sub-1/figures"
    folder.mkdir(parents=True)
    kept = ["sub-1_desc-record_dwi.json", "sub-1_desc-summary_dwi.html", "sub-1_run-2_desc-fa_dwi.svg"]
    kept += ["sub-1_desc-rishrish_dwi.svg"]
    for name in (*kept, "sub-1_desc-fa_dwi.svg", "sub-1_desc-rishrishldm_dwi.svg", "sub-1_desc-skipped_dwi.html"):
        (folder / name).write_text("x")
    forget_figures(tmp_path, {"subject": "1"}, ["rishrish", "addedrish"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
