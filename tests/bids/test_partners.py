"""Which image corrects the susceptibility distortion of a run: declared, guessed, or none with the reason."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.query import find_runs, open_layout
from bids_dmrigen.spatial.susceptibility import read_opposite_b0

from ..conftest import tiny_gradients, tiny_series

SHAPE = (8, 8, 4)
AFFINE = np.diag([-2.0, 2, 2, 1])
AP = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05}
PA = {"PhaseEncodingDirection": "j", "TotalReadoutTime": 0.05}
DWI, FMAP = "dwi/{}_dwi", "fmap/{}_epi"
SIX = np.eye(3).repeat(2, axis=0)


def write(stem, sidecar, bvals=None, n=None, affine=AFFINE):
    """Write an image at the stem; with b-values, their tables and as many volumes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    gradients = tiny_gradients(6, 2)
    series = tiny_series(gradients, SHAPE)
    volumes = len(bvals) if bvals is not None and n is None else n
    data = series[..., 0] if volumes is None else np.resize(series, (*SHAPE, volumes))
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), f"{stem}.nii.gz")
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(sidecar))
    if bvals is not None:
        bvals = np.asarray(bvals, float)
        directions = np.zeros((len(bvals), 3))
        directions[bvals > 50] = np.resize(SIX, (int((bvals > 50).sum()), 3))
        np.savetxt(f"{stem}.bval", bvals[None], fmt="%g")
        np.savetxt(f"{stem}.bvec", directions.T, fmt="%g")


def series(subject, name, sidecar, bvals=(0, 0, *[1000] * 6), session="", **kinds):
    write(
        subject / session / "dwi" / f"{subject.name}{f'_{session}' if session else ''}_{name}_dwi",
        sidecar,
        bvals,
        **kinds,
    )


def epi(subject, name, sidecar, bvals=None, suffix="epi", folder="fmap", session="", **kinds):
    stem = f"{subject.name}{f'_{session}' if session else ''}_{name}_{suffix}"
    write(subject / session / folder / stem, sidecar, bvals, **kinds)


def runs(subject):
    return {run.name.removeprefix("sub-01_"): run for run in find_runs(open_layout(subject.parent))}


def used(run):
    return run.partner and run.partner.image.name.removeprefix("sub-01_")


def test_b_values_of_a_fieldmap_epi_are_read(subject):
    """ABCD-like data: one b0 and six weighted volumes in an EPI of fmap/."""
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA | {"IntendedFor": "bids::sub-01/dwi/sub-01_dir-AP_dwi.nii.gz"}, [0, *[1000] * 6])
    run = runs(subject)["dir-AP"]
    assert run.partner.bval.name == "sub-01_dir-PA_epi.bval"
    assert run.partner.declared == "IntendedFor"


@pytest.mark.parametrize(
    ("bvals", "n", "reason"),
    [
        ([1000] * 7, None, "has no b0 (lowest b = 1000"),
        ([0, *[1000] * 6], 5, "has 5 volumes, and sub-01_dir-PA_epi.bval"),
    ],
)
def test_a_fieldmap_epi_without_a_b0_is_not_used(subject, bvals, n, reason):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA | {"IntendedFor": "dwi/sub-01_dir-AP_dwi.nii.gz"}, bvals, n=n)
    run = runs(subject)["dir-AP"]
    assert run.partner is None
    assert reason in run.no_partner


def test_identifiers_link_runs_of_other_acquisitions_and_sessions(subject):
    series(subject, "acq-12dir_dir-AP", AP | {"B0FieldIdentifier": "pepolar0", "B0FieldSource": ["x", "pepolar0"]},
           session="ses-a")  # fmt: skip
    series(subject, "acq-12dir_dir-PA", PA, [0, 0], session="ses-a")
    series(subject, "acq-b0_dir-PA", PA | {"B0FieldIdentifier": "pepolar0"}, [0, 0], session="ses-b")
    run = runs(subject)["ses-a_acq-12dir_dir-AP"]
    assert used(run) == "ses-b_acq-b0_dir-PA_dwi.nii.gz"
    assert run.partner.declared == "B0FieldSource"


def test_identifiers_go_before_intended_for_which_goes_before_the_rest(subject):
    link = {"IntendedFor": ["dwi/sub-01_dir-AP_dwi.nii.gz"]}
    series(subject, "dir-AP", AP | {"B0FieldSource": "pepolar0"})
    series(subject, "dir-PA", PA)
    epi(subject, "acq-a_dir-PA", PA | link)
    epi(subject, "acq-b_dir-PA", PA | {"B0FieldIdentifier": "pepolar0"})
    assert used(runs(subject)["dir-AP"]) == "acq-b_dir-PA_epi.nii.gz"
    (subject / "fmap/sub-01_acq-b_dir-PA_epi.nii.gz").unlink()
    assert used(runs(subject)["dir-AP"]) == "acq-a_dir-PA_epi.nii.gz"
    (subject / "fmap/sub-01_acq-a_dir-PA_epi.nii.gz").unlink()
    run = runs(subject)["dir-AP"]
    assert (used(run), run.partner.declared) == ("dir-PA_dwi.nii.gz", "")


def test_an_identifier_that_no_image_has_is_said(subject):
    series(subject, "dir-AP", AP | {"B0FieldSource": "pepolar1"})
    epi(subject, "dir-PA", PA | {"B0FieldIdentifier": "pepolar0"})
    run = runs(subject)["dir-AP"]
    assert run.partner is None
    assert "B0FieldSource ['pepolar1'] of the run is the B0FieldIdentifier of no image" in run.no_partner
    assert "its B0FieldIdentifier (pepolar0) does not name this run" in run.no_partner


def test_intended_for_holds_across_sessions(subject):
    series(subject, "dir-AP", AP, session="ses-a")
    epi(subject, "dir-PA", PA | {"IntendedFor": "ses-a/dwi/sub-01_ses-a_dir-AP_dwi.nii.gz"}, session="ses-b")
    assert used(runs(subject)["ses-a_dir-AP"]) == "ses-b_dir-PA_epi.nii.gz"


def test_with_nothing_declared_the_image_with_most_entities_in_common_is_used(subject):
    series(subject, "acq-a_dir-AP_run-01", AP)
    series(subject, "acq-b_dir-PA_run-02", PA, [0, 0])
    assert used(runs(subject)["acq-a_dir-AP_run-01"]) == "acq-b_dir-PA_run-02_dwi.nii.gz"
    series(subject, "acq-a_dir-PA_run-02", PA, [0, 0])
    assert used(runs(subject)["acq-a_dir-AP_run-01"]) == "acq-a_dir-PA_run-02_dwi.nii.gz"
    series(subject, "acq-a_dir-PA_run-01", PA, [0, 0])
    assert used(runs(subject)["acq-a_dir-AP_run-01"]) == "acq-a_dir-PA_run-01_dwi.nii.gz"


def test_a_single_band_reference_and_an_epi_that_is_declared_for_nothing_are_used(subject):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA)
    assert used(runs(subject)["dir-AP"]) == "dir-PA_epi.nii.gz"
    epi(subject, "dir-PA", PA, suffix="sbref", folder="dwi")
    assert used(runs(subject)["dir-AP"]) == "dir-PA_sbref.nii.gz"


def test_another_session_is_used_only_where_it_is_declared(subject):
    series(subject, "dir-AP", AP, session="ses-a")
    series(subject, "dir-PA", PA, [0, 0], session="ses-b")
    epi(subject, "dir-PA", PA, session="ses-b")
    run = runs(subject)["ses-a_dir-AP"]
    assert run.partner is None
    assert run.no_partner == "no image with phase encoding j belongs to this run"


def test_an_epi_that_is_meant_for_something_else_is_named(subject):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA | {"IntendedFor": "dwi_main"})
    run = runs(subject)["dir-AP"]
    assert run.partner is None
    assert "sub-01_dir-PA_epi.nii.gz has the opposite direction, but its IntendedFor (dwi_main)" in run.no_partner


@pytest.mark.parametrize(("content", "reason"), [(None, "datalad get"), (b"no image", "cannot be read as an image")])
def test_a_partner_that_is_not_there_or_damaged_is_said(subject, content, reason):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA | {"IntendedFor": "dwi/sub-01_dir-AP_dwi.nii.gz"})
    image = subject / "fmap/sub-01_dir-PA_epi.nii.gz"
    image.unlink()
    if content is None:
        image.symlink_to("../../.git/annex/objects/nowhere")
    else:
        image.write_bytes(content)
    run = runs(subject)["dir-AP"]
    assert run.partner is None
    assert reason in run.no_partner
    assert "grid" not in run.no_partner


@pytest.mark.parametrize(
    ("run_says", "partner_says", "reason"),
    [
        ({"EffectiveEchoSpacing": 7e-4, "ReconMatrixPE": 101}, {"TotalReadoutTime": 0.07}, None),
        ({"EffectiveEchoSpacing": 7e-4, "ReconMatrixPE": 101}, {"EffectiveEchoSpacing": 14e-4, "ReconMatrixPE": 101},
         "another read-out time (0.14 s, this run 0.07 s)"),
        ({"EffectiveEchoSpacing": 7e-4}, {"EffectiveEchoSpacing": 14e-4},
         "another echo spacing (0.0014 s, this run 0.0007 s)"),
        ({"EffectiveEchoSpacing": 7e-4}, {"TotalReadoutTime": 0.14}, None),
    ],
)  # fmt: skip
def test_read_out_times_are_compared_from_whatever_is_there(subject, run_says, partner_says, reason):
    series(subject, "dir-AP", {"PhaseEncodingDirection": "j-"} | run_says)
    series(subject, "dir-PA", {"PhaseEncodingDirection": "j"} | partner_says, [0, 0])
    run = runs(subject)["dir-AP"]
    assert (run.partner is None) == bool(reason)
    assert (reason or "") in run.no_partner


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("cut", "cannot be read"), ("nan", "no finite value"), ("zero", "is 0 everywhere"), ("complex", "complex64")],
)
def test_a_damaged_image_of_opposite_direction_is_not_used(subject, kind, reason):
    series(subject, "dir-AP", AP)
    epi(subject, "run-1_dir-PA", PA)
    epi(subject, "run-2_dir-PA", PA | {"IntendedFor": "dwi/sub-01_dir-AP_dwi.nii.gz"})
    path = subject / "fmap/sub-01_run-2_dir-PA_epi.nii.gz"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        value = {"nan": np.float32(np.nan), "zero": np.float32(0), "complex": np.complex64(1j)}[kind]
        nib.save(nib.Nifti1Image(np.full(SHAPE, value), AFFINE), path)
    assert used(runs(subject)["dir-AP"]) == "run-1_dir-PA_epi.nii.gz"
    (subject / "fmap/sub-01_run-1_dir-PA_epi.nii.gz").unlink()
    run = runs(subject)["dir-AP"]
    assert run.partner is None
    assert f"{path.name} " in run.no_partner
    assert reason in run.no_partner


def test_only_the_b0_of_a_series_is_looked_at(subject):
    series(subject, "dir-AP", AP)
    series(subject, "dir-PA", PA, [1000, 0, *[1000] * 6])
    path = subject / "dwi/sub-01_dir-PA_dwi.nii.gz"
    data = np.array(nib.load(path).dataobj, np.float32)
    data[..., 0] = 0
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    assert used(runs(subject)["dir-AP"]) == "dir-PA_dwi.nii.gz"
    data[..., 1] = 0
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    assert "is 0 everywhere" in runs(subject)["dir-AP"].no_partner


@pytest.mark.parametrize(
    ("bvals", "reason"),
    [
        ([0, *[1] * 6], "expected s/mm²"),
        ([-5, *[1000] * 6], "expected finite b-values of 0 or more, found -5"),
        ([0, np.inf], "expected finite b-values"),
        ([0, np.nan], "expected finite b-values"),
    ],
)
def test_b_values_of_a_partner_that_are_none_are_refused(subject, bvals, reason):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA, [0, *[1000] * (len(bvals) - 1)])
    np.savetxt(subject / "fmap/sub-01_dir-PA_epi.bval", [bvals], fmt="%g")
    run = runs(subject)["dir-AP"]
    assert run.partner is None
    assert reason in run.no_partner


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_a_partner_may_have_five_axes(subject, shape):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA, [1000, 0, 0])
    path = subject / "fmap/sub-01_dir-PA_epi.nii.gz"
    data = np.asarray(nib.load(path).dataobj)
    data[..., 0] = 0  # not the b0
    nib.save(nib.Nifti1Image(data.reshape(*SHAPE, *shape), AFFINE), path)
    partner = runs(subject)["dir-AP"].partner
    assert partner.image == path
    assert read_opposite_b0(path, partner.bval, 50)[0].shape == SHAPE


@pytest.mark.parametrize(
    ("target", "is_used"),
    [
        ("bids::sub-01/dwi/sub-01_dir-AP_dwi.nii.gz", True),
        ("bids::sub-02/dwi/sub-01_dir-AP_dwi.nii.gz", False),
        ("../dwi/sub-01_dir-AP_dwi.nii.gz", True),
        ("dwi\\sub-01_dir-AP_dwi.nii.gz", True),
        ("", True),  # says nothing: the image is of the session
        ([None], True),
    ],
)
def test_intended_for_holds_for_the_run_of_this_subject(subject, target, is_used):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA | {"IntendedFor": target})
    assert bool(runs(subject)["dir-AP"].partner) == is_used


@pytest.mark.parametrize("name", ["", [None], {"a": 1}])
def test_an_identifier_that_is_no_name_links_nothing(subject, name):
    series(subject, "dir-AP", AP | {"B0FieldSource": name})
    epi(subject, "dir-PA", PA | {"B0FieldIdentifier": name})
    assert runs(subject)["dir-AP"].partner.declared == ""


def test_why_an_image_is_no_partner_is_said(subject):
    series(subject, "dir-AP", AP)
    epi(subject, "acq-a_dir-AP", AP | {"IntendedFor": "dwi/sub-01_dir-AP_dwi.nii.gz"})
    epi(subject, "acq-b_dir-PA", {})
    for echo in (1, 2):
        epi(subject, f"dir-PA_echo-{echo}", PA, suffix="sbref", folder="dwi")
    reason = runs(subject)["dir-AP"].no_partner
    for said in (
        "sub-01_acq-a_dir-AP_epi.nii.gz has phase encoding j-, and this run needs j",
        "sub-01_acq-b_dir-PA_epi.nii.gz: PhaseEncodingDirection is missing",
        "sub-01_dir-PA_echo-1_sbref.nii.gz is one of 2 images with the same entities",
    ):
        assert said in reason
