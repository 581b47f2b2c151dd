"""Files are complete or absent: failures, links, permissions."""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from bids_dmrigen.diffusion.storage import write_atomically, write_tensors, write_text


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def full(part):
        with open(part, "w") as f:
            f.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_its_target_kept(tmp_path):
    target, link = tmp_path / "measured.txt", tmp_path / "out/result.txt"
    target.write_text("measured")
    link.parent.mkdir()
    link.symlink_to(target)
    assert write_text(link, "generated") == link
    assert target.read_text() == "measured"
    assert not link.is_symlink()
    assert link.read_text() == "generated"


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_files_have_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        paths = write_text(tmp_path / "a.txt", "x"), write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o666 & ~mask] * 2


def test_the_part_file_has_the_suffix_and_lies_beside(tmp_path):
    seen = []
    write_atomically(tmp_path / "new/sub-1_dwi.nii.gz", lambda part: seen.append(part) or part.write_text("x"))
    assert seen[0].parent == tmp_path / "new"
    assert seen[0].name.endswith(".nii.gz")
    assert seen[0].name.startswith(".")


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    found = load_file(write_tensors(tmp_path / "a.safetensors", {"one": tied, "other": tied.T}))
    torch.testing.assert_close(found["other"], tied.T.contiguous())
