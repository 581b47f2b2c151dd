"""Discovery: sessions, partners, symlinks, filters, and faults that stay with their run."""

import json
import shutil

import numpy as np
import pytest

from bids_dmrigen.bids.query import (
    DatasetError,
    SelectionError,
    find_preprocessed,
    find_runs,
    open_layout,
)

from ..conftest import tiny_gradients, tiny_series, write_dataset, write_run


def runs_of(root, **selection):
    return find_runs(open_layout(root), **selection)


def add(root, stem, sidecar=None, affine=None, session=None):
    gradients = tiny_gradients(6, 1)
    folder = root / stem.split("_")[0] / (f"ses-{session}" if session else "") / "dwi"
    return write_run(folder, stem, tiny_series(gradients, (8, 8, 8)), gradients, affine, sidecar)


def test_sessions_acquisitions_and_runs(dataset):
    add(dataset, "sub-03_ses-a_acq-hi_run-01", session="a")
    add(dataset, "sub-03_ses-b", session="b")
    found = [run.name for run in runs_of(dataset)]
    assert found == ["sub-01", "sub-02", "sub-03_ses-a_acq-hi_run-01", "sub-03_ses-b"]
    assert [r.name for r in runs_of(dataset, participants=["03"], sessions=["b"])] == ["sub-03_ses-b"]
    assert [r.name for r in runs_of(dataset, run_labels=["1"])] == ["sub-03_ses-a_acq-hi_run-01"]


def test_reverse_phase_partner_among_the_runs(dataset):
    add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    add(dataset, "sub-03_dir-PA", {"PhaseEncodingDirection": "j"})
    ap, pa = runs_of(dataset, participants=["03"])
    assert ap.partner.image == pa.image
    assert ap.partner.direction == "j"
    assert ap.partner.bval == pa.bval
    assert pa.partner.image == ap.image


def test_partner_with_another_grid_is_not_used(dataset):
    add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    add(dataset, "sub-03_dir-PA", {"PhaseEncodingDirection": "j"}, affine=np.diag([2.0, 2, 2, 1]))
    ap, _ = runs_of(dataset, participants=["03"])
    assert ap.partner is None
    assert "another grid" in ap.notes[0]


@pytest.mark.parametrize("link", ["IntendedFor", "IntendedFor old", "B0FieldIdentifier"])
def test_fieldmap_epi_is_a_partner(dataset, link):
    sidecar = {"PhaseEncodingDirection": "j-"}
    if link == "B0FieldIdentifier":
        sidecar["B0FieldSource"] = "pepolar0"
    dwi = add(dataset, "sub-03_dir-AP", sidecar)
    fmap = dataset / "sub-03" / "fmap"
    fmap.mkdir()
    shutil.copy(dwi, fmap / "sub-03_dir-PA_epi.nii.gz")
    belongs = {
        "IntendedFor": {"IntendedFor": "bids::sub-03/dwi/sub-03_dir-AP_dwi.nii.gz"},
        "IntendedFor old": {"IntendedFor": ["dwi/sub-03_dir-AP_dwi.nii.gz"]},
        "B0FieldIdentifier": {"B0FieldIdentifier": "pepolar0"},
    }[link]
    (fmap / "sub-03_dir-PA_epi.json").write_text(json.dumps({"PhaseEncodingDirection": "j", **belongs}))
    (run,) = runs_of(dataset, participants=["03"])
    assert run.partner.image.name == "sub-03_dir-PA_epi.nii.gz"
    assert run.partner.bval is None


def test_axis_without_sign_is_said(dataset):
    add(dataset, "sub-03", {"PhaseEncodingAxis": "j"})
    (run,) = runs_of(dataset, participants=["03"])
    assert run.partner is None
    assert "only the axis (j) is known" in run.notes[0]


def test_t1w_of_the_same_session_first(dataset):
    for session in "ab":
        add(dataset, f"sub-03_ses-{session}", session=session)
        anat = dataset / "sub-03" / f"ses-{session}" / "anat"
        anat.mkdir()
        shutil.copy(dataset / "sub-01/dwi/sub-01_dwi.nii.gz", anat / f"sub-03_ses-{session}_T1w.nii.gz")
    for run in runs_of(dataset, participants=["03"]):
        assert f"ses-{run.entities['session']}" in run.t1w.name


def test_missing_text_files_are_the_runs_fault_alone(dataset):
    (dataset / "sub-01/dwi/sub-01_dwi.bvec").unlink()
    broken, sound = runs_of(dataset)
    assert ".bvec file is missing" in broken.fault
    assert sound.fault is None


def test_text_files_of_another_run_are_not_taken(dataset):
    add(dataset, "sub-03_run-1")
    add(dataset, "sub-03_run-2")
    (dataset / "sub-03/dwi/sub-03_run-2_dwi.bval").unlink()
    first, second = runs_of(dataset, participants=["03"])
    assert first.fault is None
    assert ".bval file is missing" in second.fault


def test_symlinked_subject_keeps_its_name(dataset, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(dataset / "dataset_description.json", one)
    (one / "sub-01").symlink_to(dataset / "sub-01")
    (run,) = runs_of(one)
    assert run.name == "sub-01"
    assert run.image.is_relative_to(one)
    assert run.fault is None


def test_filter_file(dataset):
    add(dataset, "sub-03_dir-AP")
    add(dataset, "sub-03_dir-PA")
    found = runs_of(dataset, filters={"dwi": {"direction": "AP"}})
    assert [run.name for run in found] == ["sub-03_dir-AP"]


def test_unmatched_filter_says_what_was_asked(dataset):
    with pytest.raises(SelectionError, match=r"no diffusion run matches filter .*LR"):
        runs_of(dataset, filters={"dwi": {"direction": "LR"}})


def test_unknown_filter_key(dataset):
    with pytest.raises(SelectionError, match="unknown keys"):
        runs_of(dataset, filters={"bold": {}})


def test_unknown_label_names_what_there_is(dataset):
    with pytest.raises(SelectionError, match=r"no subject 99 .*there are: 01, 02"):
        runs_of(dataset, participants=["99"])


def test_no_dwi_at_all(tmp_path):
    root = write_dataset(tmp_path / "empty", subjects=())
    with pytest.raises(DatasetError, match="no diffusion run"):
        runs_of(root)


@pytest.mark.parametrize("content", [None, "{not json"])
def test_broken_description(tmp_path, content):
    if content:
        (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(DatasetError, match=r"dataset_description\.json"):
        open_layout(tmp_path)


def test_qsiprep_derivative(dataset, tmp_path):
    root = tmp_path / "qsiprep"
    gradients = tiny_gradients(6, 1)
    stem = "sub-01_space-ACPC_desc-preproc"
    write_run(root / "sub-01/dwi", stem, tiny_series(gradients, (8, 8, 8)), gradients)
    shutil.copy(root / f"sub-01/dwi/{stem}_dwi.nii.gz", root / "sub-01/dwi/sub-01_space-ACPC_desc-brain_mask.nii.gz")
    description = {"Name": "QSIPrep", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    (root / "dataset_description.json").write_text(json.dumps({**description, "GeneratedBy": [{"Name": "qsiprep"}]}))
    (run,) = find_preprocessed(open_layout(root, derivative=True), runs_of(dataset))
    assert run.preprocessed
    assert run.fault is None
    assert run.mask.name == "sub-01_space-ACPC_desc-brain_mask.nii.gz"
