"""Discovery: sessions, partners, inheritance, symlinks, filters, and faults that stay with their run."""

import json
import re
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.leftovers import leftovers
from bids_dmrigen.bids.query import (
    DatasetError,
    SelectionError,
    fault_duplicates,
    find_preprocessed,
    find_runs,
    labels_without_run,
    open_layout,
)

from ..conftest import tiny_gradients, tiny_series, write_dataset, write_run


def runs_of(root, **selection):
    return find_runs(open_layout(root), **selection)


def add(root, stem, sidecar=None, affine=None, session=None):
    gradients = tiny_gradients(6, 1)
    folder = root / stem.split("_")[0] / (f"ses-{session}" if session else "") / "dwi"
    return write_run(folder, stem, tiny_series(gradients, (8, 8, 8)), gradients, affine, sidecar)


def add_epi(root, dwi, sidecar):
    """Put a copy of a series into fmap/ as an EPI that is meant for it."""
    fmap = root / "sub-03" / "fmap"
    fmap.mkdir()
    shutil.copy(dwi, fmap / "sub-03_dir-PA_epi.nii.gz")
    content = sidecar if isinstance(sidecar, str) else json.dumps({"IntendedFor": f"dwi/{dwi.name}", **sidecar})
    (fmap / "sub-03_dir-PA_epi.json").write_text(content)


def add_t1w(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), path)
    return path


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


@pytest.mark.parametrize(
    ("removed", "volumes", "used"),
    [
        ((".bval", ".bvec"), 6, True),
        ((".bval", ".bvec"), 7, False),
        ((".bval",), 3, False),
        ((".bvec",), 3, False),
    ],
)
def test_partner_without_tables_is_all_b0(dataset, removed, volumes, used):
    """dcm2niix writes no tables beside a series of b0s; but a diffusion series may have lost its tables."""
    add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    image = add(dataset, "sub-03_dir-PA", {"PhaseEncodingDirection": "j"})
    whole = nib.load(image)
    nib.save(nib.Nifti1Image(whole.get_fdata(dtype=np.float32)[..., :volumes], whole.affine), image)
    for extension in removed:
        image.with_name(f"sub-03_dir-PA_dwi{extension}").unlink()
    ap, pa = runs_of(dataset, participants=["03"])
    assert (ap.partner is not None) == used
    assert ap.fault is None
    assert f"{' and '.join(removed)} file is missing" in pa.fault
    if used:
        assert (ap.partner.image, ap.partner.bval) == (image, None)
    elif volumes == 7:
        assert "no b-values and 7 volumes" in ap.no_partner


def test_partner_with_another_grid_is_not_used(dataset):
    add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    add(dataset, "sub-03_dir-PA", {"PhaseEncodingDirection": "j"}, affine=np.diag([2.0, 2, 2, 1]))
    ap, _ = runs_of(dataset, participants=["03"])
    assert ap.partner is None
    assert "another grid" in ap.no_partner


@pytest.mark.parametrize(("readout", "refused"), [(0.0505, False), (0.052, True), (None, False), ("0.06", False)])
def test_partner_with_another_readout_time_is_not_used(dataset, readout, refused):
    """Distortion in mm is proportional to the readout time: within 2 % the two images are opposite."""
    add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05})
    reverse = {"PhaseEncodingDirection": "j"} | ({} if readout is None else {"TotalReadoutTime": readout})
    add(dataset, "sub-03_dir-PA", reverse)
    ap, _ = runs_of(dataset, participants=["03"])
    assert (ap.partner is None) == refused
    assert ("0.052 s, this run 0.05 s" in ap.no_partner) == refused


def test_readout_time_of_a_fieldmap_epi(dataset):
    dwi = add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05})
    add_epi(dataset, dwi, {"PhaseEncodingDirection": "j", "TotalReadoutTime": 0.03})
    (run,) = runs_of(dataset, participants=["03"])
    assert run.partner is None
    assert "another read-out time (0.03 s, this run 0.05 s)" in run.no_partner


def test_partner_need_not_be_selected(dataset):
    add(dataset, "sub-03_ses-a_dir-AP", {"PhaseEncodingDirection": "j-"}, session="a")
    add(dataset, "sub-03_ses-a_dir-PA", {"PhaseEncodingDirection": "j"}, session="a")
    add(dataset, "sub-03_ses-b_dir-AP", {"PhaseEncodingDirection": "j-"}, session="b")
    first, second = runs_of(dataset, participants=["03"], filters={"dwi": {"direction": "AP"}})
    assert first.partner.image.name == "sub-03_ses-a_dir-PA_dwi.nii.gz"
    assert second.partner is None  # the other session's is another scan


def test_partner_is_of_the_same_acquisition_run_and_chunk(dataset):
    """Between repeated pairs the head has moved, and with it the field."""
    for label in ("acq-a", "acq-b", "run-1", "run-2"):
        for name, direction in (("AP", "j-"), ("PA", "j")):
            stem = f"sub-03_{label}_dir-{name}" if label.startswith("acq") else f"sub-03_dir-{name}_{label}"
            add(dataset, stem, {"PhaseEncodingDirection": direction})
    for run in runs_of(dataset, participants=["03"]):
        other = run.image.name.replace("dir-AP", "dir-XX").replace("dir-PA", "dir-AP").replace("dir-XX", "dir-PA")
        assert run.partner.image.name == other


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


def test_an_axis_without_a_sign_is_reported(dataset):
    add(dataset, "sub-03", {"PhaseEncodingAxis": "j"})
    (run,) = runs_of(dataset, participants=["03"])
    assert run.partner is None
    assert "only the axis (j) is known" in run.no_partner


@pytest.mark.parametrize(
    ("sidecar", "direction", "axis", "note"),
    [
        ({"PhaseEncodingDirection": "AP"}, None, None, "'AP' of the sidecar is none of i, i-, j, j-, k, k-"),
        ({"PhaseEncodingDirection": ["j"]}, None, None, "['j'] of the sidecar is none of"),
        ({"PhaseEncodingDirection": "AP", "PhaseEncodingAxis": "j"}, None, "j", "'AP' .* only the axis \\(j\\)"),
        ({"PhaseEncodingAxis": "COL"}, None, None, "PhaseEncodingAxis 'COL' is none of i, j, k"),
        ({"PhaseEncodingDirection": "i-", "PhaseEncodingAxis": "j"}, "i-", "i", "no image with phase encoding i "),
    ],
)
def test_phase_encoding_that_bids_does_not_know(dataset, sidecar, direction, axis, note):
    add(dataset, "sub-03", sidecar)
    (run,) = runs_of(dataset, participants=["03"])
    assert (run.phase_encoding, run.phase_encoding_axis) == (direction, axis)
    assert run.fault is None
    assert re.search(note.replace("[", "\\["), run.no_partner)


def test_fieldmap_epi_with_unknown_direction_is_named(dataset):
    dwi = add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    add_epi(dataset, dwi, {"PhaseEncodingDirection": "PA"})
    (run,) = runs_of(dataset, participants=["03"])
    assert run.partner is None
    assert "sub-03_dir-PA_epi.nii.gz: PhaseEncodingDirection 'PA'" in run.no_partner


def test_phase_and_complex_parts_are_no_series(dataset):
    for part in ("mag", "phase", "real", "imag"):
        add(dataset, f"sub-03_part-{part}", {"PhaseEncodingDirection": "j"})
    (run,) = runs_of(dataset, participants=["03"])
    assert run.name == "sub-03_part-mag"


def test_chunks_have_different_names(dataset):
    for chunk in "12":
        add(dataset, f"sub-03_chunk-{chunk}", {"PhaseEncodingDirection": "j" + "-" * (chunk == "2")})
    runs = runs_of(dataset, participants=["03"])
    assert [run.name for run in runs] == ["sub-03_chunk-1", "sub-03_chunk-2"]
    assert [(run.fault, run.partner) for run in runs] == [(None, None)] * 2


def test_derivatives_among_the_raw_files_are_left_out(dataset):
    add(dataset, "sub-01_desc-preproc")
    add(dataset, "sub-01_space-T1w")
    assert [(run.name, run.fault) for run in runs_of(dataset)] == [("sub-01", None), ("sub-02", None)]


def test_runs_of_one_name_are_both_at_fault(dataset):
    add(dataset, "sub-01_echo-1")
    first, second, sound = runs_of(dataset)
    assert (first.name, second.name) == ("sub-01", "sub-01")
    for run in (first, second):
        assert "sub-01_dwi.nii.gz and " in run.fault
        assert "sub-01_echo-1_dwi.nii.gz" in run.fault
        assert "filter file" in run.fault
    assert sound.fault is None
    (chosen,) = runs_of(dataset, participants=["01"], filters={"dwi": {"echo": "1"}})
    assert chosen.fault is None


def test_duplicates_of_two_datasets(dataset):
    one, two = runs_of(dataset)
    again = fault_duplicates([one, two, replace(one, image=one.image.with_name("other.nii.gz"))])
    assert [bool(run.fault) for run in again] == [True, False, True]
    assert fault_duplicates(again) == again


def test_excluded_folders_are_not_indexed(dataset):
    shutil.copytree(dataset / "sub-01", dataset / "out" / "sub-01")
    shutil.copytree(dataset / "sub-01", dataset / "outer" / "sub-01")
    exclude = [dataset / "out", dataset, dataset.parent / "elsewhere"]
    found = [run.image.relative_to(dataset).parts[0] for run in find_runs(open_layout(dataset, exclude=exclude))]
    assert found == ["outer", "sub-01", "sub-02"]


def test_t1w_of_the_same_session_first(dataset):
    for session in "ab":
        add(dataset, f"sub-03_ses-{session}", session=session)
        add_t1w(dataset / f"sub-03/ses-{session}/anat/sub-03_ses-{session}_T1w.nii.gz")
    for run in runs_of(dataset, participants=["03"]):
        assert f"ses-{run.entities['session']}" in run.t1w.name


def test_t1w_that_was_not_fetched_is_not_used(dataset):
    """DataLad leaves a link to nothing where content was not fetched."""
    anat = dataset / "sub-01/anat"
    anat.mkdir()
    (anat / "sub-01_run-1_T1w.nii.gz").symlink_to("nowhere")
    run, other = runs_of(dataset)
    assert (run.t1w, run.fault) == (None, None)
    assert any(note.startswith("T1w: ") and "run-1_T1w.nii.gz is a link" in note for note in run.notes)
    assert not any(note.startswith("T1w: ") for note in other.notes)
    add_t1w(anat / "sub-01_run-2_T1w.nii.gz")
    assert runs_of(dataset)[0].t1w.name == "sub-01_run-2_T1w.nii.gz"


@pytest.mark.parametrize("kind", ["cut", "empty", "series", "flipped", "metres"])
def test_a_damaged_t1w_is_not_used(dataset, kind):
    anat = dataset / "sub-01/anat"
    damaged = add_t1w(anat / "sub-01_run-1_T1w.nii.gz")
    content = damaged.read_bytes()
    reason = "cannot be read as an image"
    if kind == "cut":
        damaged.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), damaged)
        reason = "is 0 everywhere"
    elif kind == "metres":
        image = nib.load(damaged)
        image.header.set_xyzt_units("meter")
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), damaged)
        reason = "unit meter"
    elif kind == "series":
        shutil.copy(dataset / "sub-01/dwi/sub-01_dwi.nii.gz", damaged)
        reason = "expected one volume"
    else:
        damaged.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])  # of the checksum
    run = runs_of(dataset)[0]
    assert (run.t1w, run.fault) == (None, None)
    assert any(note.startswith("T1w: sub-01_run-1_T1w.nii.gz") and reason in note for note in run.notes)
    add_t1w(anat / "sub-01_run-2_T1w.nii.gz")
    assert runs_of(dataset)[0].t1w.name == "sub-01_run-2_T1w.nii.gz"


@pytest.mark.parametrize(("said", "readout"), [(0.05, 0.05), ("n/a", None), (None, None), (0, None), (True, None)])
def test_readout_time_is_a_positive_number_or_unknown(dataset, said, readout):
    add(dataset, "sub-03", {"TotalReadoutTime": said})
    assert runs_of(dataset, participants=["03"])[0].readout_s == readout


@pytest.mark.parametrize(
    ("said", "axis"), [(None, "k"), ("", "k"), ("n/a", "k"), (["i"], "k"), ("i-", "i"), ("j", "j")]
)
def test_slice_axis(dataset, said, axis):
    add(dataset, "sub-03", {"SliceEncodingDirection": said})
    assert runs_of(dataset, participants=["03"])[0].slice_axis == axis


def test_missing_text_files_are_the_runs_fault_alone(dataset):
    (dataset / "sub-01/dwi/sub-01_dwi.bvec").unlink()
    broken, sound = runs_of(dataset)
    assert ".bvec file is missing" in broken.fault
    assert sound.fault is None


def test_text_files_of_another_run_are_not_used(dataset):
    add(dataset, "sub-03_run-1")
    add(dataset, "sub-03_run-2")
    (dataset / "sub-03/dwi/sub-03_run-2_dwi.bval").unlink()
    first, second = runs_of(dataset, participants=["03"])
    assert first.fault is None
    assert ".bval file is missing" in second.fault


def test_inherited_text_files_the_most_specific_one(dataset):
    """A file further down, or with more of the image's entities, stands for the image; another's never does."""
    for acquisition in "ab":
        add(dataset, f"sub-03_acq-{acquisition}")
    folder = dataset / "sub-03/dwi"
    for extension in ("bval", "bvec"):
        (folder / f"sub-03_acq-a_dwi.{extension}").rename(folder / f"sub-03_dwi.{extension}")
        shutil.copy(folder / f"sub-03_dwi.{extension}", dataset / f"dwi.{extension}")
    first, second = runs_of(dataset, participants=["03"])
    assert first.fault is None
    assert (first.bval.name, first.bvec.name) == ("sub-03_dwi.bval", "sub-03_dwi.bvec")
    assert second.bval.name == "sub-03_acq-b_dwi.bval"
    (folder / "sub-03_dwi.bval").unlink()
    assert runs_of(dataset, participants=["03"])[0].bval == dataset / "dwi.bval"


def test_inherited_metadata_deeper_over_shallower(dataset):
    add(dataset, "sub-03_acq-a_dir-AP", {"TotalReadoutTime": 0.05})
    (dataset / "dwi.json").write_text(json.dumps({"PhaseEncodingDirection": "i", "TotalReadoutTime": 0.01, "Site": 1}))
    (dataset / "sub-03/sub-03_dir-AP_dwi.json").write_text('\ufeff{"PhaseEncodingDirection": "j-"}', encoding="utf-8")
    (dataset / "sub-03/sub-03_dir-PA_dwi.json").write_text(json.dumps({"PhaseEncodingDirection": "j"}))
    (run,) = runs_of(dataset, participants=["03"])
    assert run.metadata == {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05, "Site": 1}


@pytest.mark.parametrize("content", ["{not json", "[1, 2]", b"\xff\xfe\x00"])
def test_broken_sidecar_is_the_fault_of_its_run_alone(dataset, content):
    sidecar = dataset / "sub-01/dwi/sub-01_dwi.json"
    sidecar.write_bytes(content if isinstance(content, bytes) else content.encode())
    (dataset / "sub-02/anat").mkdir()
    (dataset / "sub-02/anat/sub-02_T1w.json").write_text("{not json")
    broken, sound = runs_of(dataset)
    assert str(sidecar) in broken.fault
    assert "correct" in broken.fault
    assert sound.fault is None


def test_broken_sidecar_of_a_fieldmap_is_noted(dataset):
    dwi = add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    add_epi(dataset, dwi, "{not json")
    (run,) = runs_of(dataset, participants=["03"])
    assert (run.fault, run.partner) == (None, None)
    assert "sub-03_dir-PA_epi.json: cannot be read as JSON" in run.no_partner


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


def test_an_unmatched_filter_names_the_request(dataset):
    with pytest.raises(SelectionError, match=r"no diffusion run matches filter .*LR"):
        runs_of(dataset, filters={"dwi": {"direction": "LR"}})


def test_unknown_filter_key(dataset):
    with pytest.raises(SelectionError, match="unknown keys"):
        runs_of(dataset, filters={"bold": {}})


@pytest.mark.parametrize(
    ("dwi", "message"),
    [({"EchoTime": 0.08}, r"\['EchoTime'\] are not entities"), (["AP"], "expected an object of entities")],
)
def test_filter_that_is_none(dataset, dwi, message):
    with pytest.raises(SelectionError, match=message):
        runs_of(dataset, filters={"dwi": dwi})


def test_an_unknown_label_names_the_existing_ones(dataset):
    with pytest.raises(SelectionError, match=r"no subject 99 .*there are: 01, 02"):
        runs_of(dataset, participants=["99"])


def test_labels_that_select_nothing_beside_others_are_named(dataset):
    add(dataset, "sub-03_ses-a_run-01", session="a")
    add_t1w(dataset / "sub-05/anat/sub-05_T1w.nii.gz")
    asked = {"participants": ["01", "05"], "sessions": [], "run_labels": []}
    (said,) = labels_without_run(runs_of(dataset, **asked), **asked)
    assert said.startswith("sub-05: no diffusion run")
    asked = {"participants": ["03"], "sessions": ["a"], "run_labels": ["1", "2"]}
    (said,) = labels_without_run(runs_of(dataset, **asked), **asked)
    assert said.startswith("run-2: ")


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


@pytest.fixture
def qsiprep(tmp_path):
    """An empty derivative dataset."""
    root = tmp_path / "qsiprep"
    root.mkdir()
    description = {"Name": "QSIPrep", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    (root / "dataset_description.json").write_text(json.dumps({**description, "GeneratedBy": [{"Name": "qsiprep"}]}))
    return root


def save_mask(image, change=lambda mask, affine: (mask, affine)):
    """Write a brain mask beside a preprocessed series, with voxels and affine changed; return its path."""
    series = nib.load(image)
    mask = np.zeros(series.shape[:3], np.uint8)
    mask[1:] = 1
    path = image.with_name(image.name.replace("desc-preproc_dwi", "desc-brain_mask"))
    nib.save(nib.Nifti1Image(*change(mask, series.affine)), path)
    return path


def mask_is_refused(qsiprep, message):
    (run,) = find_preprocessed(open_layout(qsiprep, derivative=True), [])
    assert run.mask is None
    assert run.fault is None
    (note,) = run.notes
    assert note.startswith("brain mask: sub-01_space-ACPC_desc-brain_mask.nii.gz ")
    assert message in note
    assert "not used" in note


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask, affine: (mask, np.diag([-1.0, 1, 1, 1]) @ affine), "mm from that of"),
        (lambda mask, affine: (mask, affine + 60 * np.eye(4, k=3)), "mm from that of"),
        (lambda mask, affine: (mask, affine * [[1.1], [1], [1], [1]]), "mm from that of"),
        (lambda mask, affine: (mask[:, :-1], affine), "has shape"),
        (lambda mask, affine: (0 * mask, affine), "is 0 everywhere"),
        (lambda mask, affine: (mask * np.float32(0.3), affine), "has no voxel above 0.5"),
    ],
)
def test_a_mask_that_does_not_fit_is_not_used_and_said(qsiprep, change, message):
    save_mask(add(qsiprep, "sub-01_space-ACPC_desc-preproc"), change)
    mask_is_refused(qsiprep, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), "cannot be read as an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot be read as an image"),
        (as_folder, "is not a file"),
        (as_dangling_link, "a link to a file that does not exist"),
    ],
)
def test_a_mask_that_is_no_image_is_not_used_and_said(qsiprep, change, message):
    change(save_mask(add(qsiprep, "sub-01_space-ACPC_desc-preproc")))
    mask_is_refused(qsiprep, message)


def test_a_mask_whose_header_is_rounded_is_used(qsiprep):
    image = add(qsiprep, "sub-01_space-ACPC_desc-preproc")
    path = save_mask(image, lambda mask, affine: (mask, affine + 1e-3 * np.eye(4, k=3)))
    (run,) = find_preprocessed(open_layout(qsiprep, derivative=True), [])
    assert run.mask == path
    assert not run.notes


def test_qsiprep_derivative(dataset, qsiprep):
    image = add(qsiprep, "sub-01_space-ACPC_desc-preproc")
    save_mask(image)
    (run,) = find_preprocessed(open_layout(qsiprep, derivative=True), runs_of(dataset))
    assert run.preprocessed
    assert run.fault is None
    assert run.mask.name == "sub-01_space-ACPC_desc-brain_mask.nii.gz"


def test_preprocessed_runs_are_selected_like_raw_ones(qsiprep):
    for session in "ab":
        for number in "12":
            add(qsiprep, f"sub-03_ses-{session}_run-{number}_space-ACPC_desc-preproc", session=session)
    layout = open_layout(qsiprep, derivative=True)

    def found(**selection):
        return [run.name for run in find_preprocessed(layout, [], **selection)]

    assert found(sessions=["b"], run_labels=["2"]) == ["sub-03_ses-b_run-2"]
    assert found(filters={"dwi": {"session": "a", "run": 1}}) == ["sub-03_ses-a_run-1"]
    with pytest.raises(SelectionError, match="no session c"):
        found(sessions=["c"])
    with pytest.raises(SelectionError, match="no diffusion run matches runs"):
        found(run_labels=["3"])


def test_preprocessed_runs_of_two_spaces(qsiprep):
    """Output names carry no space: both are faults, unless one is chosen."""
    for space in ("ACPC", "T1w"):
        add(qsiprep, f"sub-01_space-{space}_desc-preproc")
    layout = open_layout(qsiprep, derivative=True)
    for run in find_preprocessed(layout, []):
        assert "space-ACPC" in run.fault
        assert "space-T1w" in run.fault
    (chosen,) = find_preprocessed(layout, [], filters={"dwi": {"space": "T1w"}})
    assert chosen.fault is None


@pytest.mark.parametrize("above", ["sub-study2/ds", "ses-3/ds", "sub-my_project/ds", "acq-7/dwi/ds"])
def test_folders_above_the_dataset_say_nothing(tmp_path, above):
    root = write_dataset(tmp_path / above)
    add(root, "sub-03_ses-a_dir-AP", {"PhaseEncodingDirection": "j-"}, session="a")
    add(root, "sub-04_dir-PA", {"PhaseEncodingDirection": "j"})
    found = {run.name: run for run in runs_of(root)}
    assert [*found] == ["sub-01", "sub-02", "sub-03_ses-a_dir-AP", "sub-04_dir-PA"]
    assert found["sub-03_ses-a_dir-AP"].partner is None
    assert [run.name for run in runs_of(root, participants=["04"])] == ["sub-04_dir-PA"]
    assert leftovers(root) == []


def test_a_name_of_another_subject_is_said_and_not_used(dataset):
    add(dataset, "sub-03_dir-AP", {"PhaseEncodingDirection": "j-"})
    gradients = tiny_gradients(6, 1)
    write_run(dataset / "sub-03/dwi", "sub-04_dir-PA", tiny_series(gradients, (8, 8, 8)), gradients, None,
              {"PhaseEncodingDirection": "j"})  # fmt: skip
    run = {run.name: run for run in runs_of(dataset)}
    assert [*run] == ["sub-01", "sub-02", "sub-03_dir-AP"]
    assert run["sub-03_dir-AP"].partner is None
    (said,) = leftovers(dataset)
    assert "sub-04 of the name is not that of its folder" in said


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"t1w": {"subject": "02"}}, "t1w: subject is '02'; it is that of the run"),
        ({"t1w": {"suffix": "dwi"}}, "only T1w is possible"),
        ({"dwi": {"extension": ".json"}}, "dwi: extension is '.json'; only .nii or"),
        ({"dwi": {"run": {"a": 1}}}, "expected a value, or a list of values"),
        ({"t1w": {"run": [[1]]}}, "expected a value, or a list of values"),
    ],
)
def test_filters_that_cannot_be_are_refused(dataset, filters, said):
    with pytest.raises(SelectionError, match=re.escape(said)):
        runs_of(dataset, filters=filters)


def test_filters_may_say_what_is_so_anyway(dataset):
    filters = {"dwi": {"datatype": "dwi", "suffix": "dwi", "extension": [".nii.gz"]}, "t1w": {"suffix": ["T1w"]}}
    assert len(runs_of(dataset, filters=filters)) == 2


def test_a_link_that_leads_to_itself_is_no_subject(dataset):
    (dataset / "sub-09").symlink_to("sub-09")
    assert [run.name for run in runs_of(dataset)] == ["sub-01", "sub-02"]


def test_an_index_that_is_older_than_the_dataset_is_refused(dataset, tmp_path):
    database = tmp_path / "index"
    open_layout(dataset, database)
    assert len(find_runs(open_layout(dataset, database))) == 2
    added = add(dataset, "sub-03")
    with pytest.raises(DatasetError, match=r"index there does not hold 1 image.*sub-03_dwi"):
        open_layout(dataset, database)
    added.unlink()
    open_layout(dataset, database)
    (dataset / "sub-01/dwi/sub-01_dwi.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"index there holds 1 image.*sub-01_dwi"):
        open_layout(dataset, database)
