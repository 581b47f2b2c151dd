"""Prepared scans: what comes back is what went in, and random slices are slices of it."""

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.simulate.examples import numbers_of_step
from tests.conftest import tiny_gradients, tiny_series

AFFINE = np.array([[-2.9, 0.3, 0, 40], [0.3, 2.9, 0.2, -50], [0, -0.2, 3.0, 10], [0, 0, 0, 1]])


def make_scan(seed, n=8):
    gradients = tiny_gradients(n, 2)
    data = tiny_series(gradients, seed=seed)
    mask = tiny_series(gradients, noise=0)[..., 0] > 0
    mask[:3], mask[:, :, -4:] = False, False
    return Scan(data, AFFINE, gradients, mask)


@pytest.fixture
def scans():
    return [make_scan(0), make_scan(1, 11), make_scan(2)]


@pytest.fixture
def path(scans, tmp_path):
    subjects = ("a", "a", "b")
    entries = [(f"run-{k}", subject, scan, 5.0) for k, (subject, scan) in enumerate(zip(subjects, scans, strict=True))]
    assert write_prepared(tmp_path / "scans.safetensors", entries) == 3
    return tmp_path / "scans.safetensors"


def test_scans_come_back_where_they_were(path, scans):
    prepared = Prepared(path)
    assert len(prepared) == 3
    for k, original in enumerate(scans):
        scan = prepared.scan(k)
        np.testing.assert_allclose(scan.gradients.bvecs, original.gradients.bvecs, atol=1e-6)
        assert scan.mask.sum() == original.mask.sum()
        # Compare voxel by voxel through world coordinates: that tests crop and affine together.
        here, there = np.argwhere(scan.mask), np.argwhere(original.mask)
        np.testing.assert_allclose(here @ scan.affine[:3, :3].T + scan.affine[:3, 3],
                                   there @ AFFINE[:3, :3].T + AFFINE[:3, 3], atol=1e-4)  # fmt: skip
        expected = original.data[original.mask]
        np.testing.assert_allclose(scan.data[scan.mask], expected, rtol=2**-11, atol=1e-3)
        assert prepared.about[k]["sigma"] * prepared.about[k]["scale"] == pytest.approx(5)


@pytest.mark.parametrize("size", [(12, 10), (40, 8, 5)])
def test_random_slices_are_windows_of_a_scan(path, size):
    prepared = Prepared(path)
    for step in range(6):
        batch = prepared.slices(numbers_of_step(0, step), 5, size)
        again = prepared.slices(numbers_of_step(0, step), 5, size)
        assert torch.equal(batch.signal, again.signal)
        assert batch.signal.shape == (5, len(batch.bvals), *size)
        assert batch.mask.shape == (5, *size)
        assert batch.mask.flatten(1).any(dim=1).all()
        assert not batch.signal.movedim(1, -1)[~batch.mask].any()
        torch.testing.assert_close(batch.axes.T @ batch.axes, torch.eye(3), atol=1e-2, rtol=0)
        shown = np.unique(batch.signal[:, 0][batch.mask].numpy().astype(np.float16))
        assert any(np.isin(shown, stored_b0(prepared, k)).all() for k in range(3))


def stored_b0(prepared, k):
    scan = prepared.scan(k)
    return (scan.data[scan.mask][:, 0] / prepared.about[k]["scale"]).astype(np.float16)


def test_a_whole_slice_is_the_scan_s(tmp_path, scans):
    write_prepared(tmp_path / "one.safetensors", [("run", "a", scans[0], 5.0)])
    prepared = Prepared(tmp_path / "one.safetensors")
    scan = prepared.scan(0)
    batch = prepared.slices(numbers_of_step(1, 0), 1, scan.mask.shape[:2])
    signal = batch.signal[0].permute(1, 2, 0).numpy() * prepared.about[0]["scale"]
    differences = np.abs(scan.data - signal[:, :, None]).max(axis=(0, 1, 3))
    assert differences.min() < 1e-3 < np.sort(differences)[1]


def test_held_out_are_other_subjects_or_with_one_subject_other_slices(path, tmp_path, scans):
    train, held_out = Prepared(path, part="train"), Prepared(path, part="held out")
    assert [bool(c.any()) for c in held_out.counts] == [True, True, False]
    assert [bool(c.any()) for c in train.counts] == [False, False, True]
    write_prepared(tmp_path / "one.safetensors", [("run", "a", scans[0], 5.0)])
    parts = [Prepared(tmp_path / "one.safetensors", part=part) for part in ("train", "held out")]
    brain = [count[0] > 0 for count in (p.counts for p in parts)]
    assert not (brain[0] & brain[1]).any()
    assert brain[0].any()
    assert brain[1].any()


def test_held_out_are_the_subjects_that_are_named(path):
    names = sorted({about["subject"] for about in Prepared(path).about})
    for part, expected in (("held out", names[-1:]), ("train", names[:-1])):
        prepared = Prepared(path, part=part, held_out=names[-1:])
        used = {a["subject"] for a, count in zip(prepared.about, prepared.counts, strict=True) if count.any()}
        assert sorted(used) == expected
    for named in ([*names], ["nobody"]):
        with pytest.raises(ValueError, match="cannot be held out; name some of them"):
            Prepared(path, part="train", held_out=named)


def test_of_some_subjects_alone_none_else_is_drawn(path):
    for part, expected in (("all", [False, False, True]), ("held out", [False, False, True])):
        assert [bool(c.any()) for c in Prepared(path, part=part, subjects={"b", "z"}).counts] == expected
    train, held_out = (Prepared(path, part=part, subjects={"b"}).counts[2] > 0 for part in ("train", "held out"))
    assert train.any()
    assert not (train & held_out).any()
    assert not any(c.any() for c in Prepared(path, subjects=()).counts)


def test_data_that_cannot_be_prepared_or_read_are_reported(tmp_path, scans):
    with pytest.raises(ValueError, match="no scan to prepare"):
        write_prepared(tmp_path / "x.safetensors", [])
    dark = Scan(0 * scans[0].data, AFFINE, scans[0].gradients, scans[0].mask)
    with pytest.raises(ValueError, match="run: the median b0"):
        write_prepared(tmp_path / "x.safetensors", [("run", "a", dark, 1.0)])
    (tmp_path / "y.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="dmrigen prepare"):
        Prepared(tmp_path / "y.safetensors")
