"""Which field map corrects the susceptibility distortion of a run: declared, guessed, or none with the reason."""

import json

import nibabel as nib
import numpy as np
import pytest

from .test_partners import AFFINE, AP, PA, SHAPE, epi, runs, series, used

ECHOES = {"EchoTime1": 0.00492, "EchoTime2": 0.00738}
MEANT = {"IntendedFor": "bids::sub-01/dwi/sub-01_dir-AP_dwi.nii.gz"}
FULL = np.linspace(0, 4095, int(np.prod(SHAPE))).reshape(SHAPE)


def image(subject, suffix, sidecar=None, values=FULL, session="", name="", affine=AFFINE):
    folder = subject / session / "fmap"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "_".join(part for part in (subject.name, session, name, suffix) if part)
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), affine), folder / f"{stem}.nii.gz")
    if sidecar is not None:
        (folder / f"{stem}.json").write_text(json.dumps(sidecar))
    return folder / f"{stem}.nii.gz"


def phasediff(subject, sidecar=ECHOES, **kinds):
    image(subject, "phasediff", sidecar, **kinds)
    for suffix in ("magnitude1", "magnitude2"):
        image(subject, suffix, **{**kinds, "values": FULL})


@pytest.mark.parametrize(
    ("declared", "by"), [({}, ""), (MEANT, "IntendedFor"), ({"B0FieldIdentifier": "b0"}, "B0FieldSource")]
)
def test_a_phase_difference_is_used_however_it_is_linked(subject, declared, by):
    series(subject, "dir-AP", AP | {"B0FieldSource": "b0"})
    phasediff(subject, ECHOES | declared)
    run = runs(subject)["dir-AP"]
    found = run.fieldmap
    assert (found.kind, found.echo_times_s, found.units) == ("phasediff", (0.00492, 0.00738), "")
    assert [path.name for path in found.images] == ["sub-01_phasediff.nii.gz"]
    assert found.magnitude.name == "sub-01_magnitude1.nii.gz"
    assert found.declared == by
    assert (run.partner, run.no_partner) == (None, "")


def test_two_phases_and_their_echo_times_are_used(subject):
    series(subject, "dir-AP", AP)
    image(subject, "phase1", {"EchoTime": 0.004} | MEANT, values=FULL - 2048)
    image(subject, "phase2", {"EchoTime": 0.006}, values=2 * FULL - 4096)
    image(subject, "magnitude2")
    found = runs(subject)["dir-AP"].fieldmap
    assert (found.kind, found.echo_times_s, found.declared) == ("phases", (0.004, 0.006), "IntendedFor")
    assert [path.name for path in found.images] == ["sub-01_phase1.nii.gz", "sub-01_phase2.nii.gz"]
    assert found.magnitude.name == "sub-01_magnitude2.nii.gz"


@pytest.mark.parametrize(("units", "strongest"), [("Hz", 300), ("rad/s", 2000), ("T", 7e-6)])
def test_a_field_is_used_with_its_units(subject, units, strongest):
    series(subject, "dir-AP", AP)
    image(subject, "fieldmap", {"Units": units}, values=(FULL / 2048 - 1) * strongest)
    image(subject, "magnitude")
    found = runs(subject)["dir-AP"].fieldmap
    assert (found.kind, found.units, found.magnitude.name) == ("fieldmap", units, "sub-01_magnitude.nii.gz")


@pytest.mark.parametrize(("units", "strongest"), [("Hz", 1e9), ("T", 300)])
def test_values_that_are_no_field_in_these_units_are_not_used(subject, units, strongest):
    series(subject, "dir-AP", AP)
    image(subject, "fieldmap", {"Units": units}, values=(FULL / 2048 - 1) * strongest)
    image(subject, "magnitude")
    run = runs(subject)["dir-AP"]
    assert run.fieldmap is None
    assert f"correct the Units ({units}) in the sidecar" in run.no_partner


@pytest.mark.parametrize("suffix", ["fieldmap", "magnitude"])
@pytest.mark.parametrize(
    ("value", "reason"), [(0, "is 0 everywhere"), (np.nan, "has no finite value")], ids=["zero", "nan"]
)
def test_an_empty_field_or_magnitude_is_not_used(subject, suffix, value, reason):
    series(subject, "dir-AP", AP)
    images = {"fieldmap": FULL / 100, "magnitude": FULL}
    for name, values in images.items():
        image(subject, name, {"Units": "Hz"}, values=values * 0 + value if name == suffix else values)
    run = runs(subject)["dir-AP"]
    assert run.fieldmap is None
    assert f"sub-01_{suffix}.nii.gz {reason}" in run.no_partner


@pytest.mark.parametrize(
    ("of_map", "of_image", "kept"),
    [
        (MEANT, {}, "map"),
        ({"B0FieldIdentifier": "b0"}, MEANT, "map"),
        (MEANT, MEANT, "image"),
        ({}, {}, "image"),
        ({}, MEANT, "image"),
        ({"B0FieldIdentifier": "b0"}, {"B0FieldIdentifier": "b0"}, "image"),
    ],
)
def test_what_is_declared_goes_first_and_among_equals_the_image_of_opposite_direction(subject, of_map, of_image, kept):
    series(subject, "dir-AP", AP | {"B0FieldSource": "b0"})
    epi(subject, "dir-PA", PA | of_image)
    phasediff(subject, ECHOES | of_map)
    run = runs(subject)["dir-AP"]
    assert (run.fieldmap is None, run.partner is None) == ((False, True) if kept == "map" else (True, False))
    assert (run.spare_partner is not None) == (kept == "map")


def test_a_declared_field_map_that_cannot_be_used_leaves_the_image_of_opposite_direction(subject):
    series(subject, "dir-AP", AP)
    epi(subject, "dir-PA", PA)
    phasediff(subject, MEANT)
    run = runs(subject)["dir-AP"]
    assert used(run) == "dir-PA_epi.nii.gz"
    assert run.fieldmap is None


def test_intended_for_holds_across_sessions_and_a_guess_does_not(subject):
    series(subject, "dir-AP", AP, session="ses-a")
    phasediff(subject, session="ses-b")
    assert runs(subject)["ses-a_dir-AP"].fieldmap is None
    phasediff(subject, ECHOES | {"IntendedFor": "ses-a/dwi/sub-01_ses-a_dir-AP_dwi.nii.gz"}, session="ses-b")
    assert runs(subject)["ses-a_dir-AP"].fieldmap.declared == "IntendedFor"


def test_the_field_map_with_most_entities_in_common_is_used(subject):
    series(subject, "acq-b_dir-AP", AP)
    for name in ("acq-a", "acq-b"):
        phasediff(subject, name=name)
    assert runs(subject)["acq-b_dir-AP"].fieldmap.images[0].name == "sub-01_acq-b_phasediff.nii.gz"
    assert runs(subject)["acq-b_dir-AP"].fieldmap.magnitude.name == "sub-01_acq-b_magnitude1.nii.gz"


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"IntendedFor": "func/sub-01_task-rest_bold.nii.gz"}, "IntendedFor (func/sub-01_task-rest_bold.nii.gz)"),
        ({"B0FieldIdentifier": "of bold"}, "B0FieldIdentifier (of bold)"),
    ],
)
def test_a_field_map_that_is_meant_for_something_else_is_named(subject, declared, reason):
    series(subject, "dir-AP", AP)
    phasediff(subject, ECHOES | declared)
    run = runs(subject)["dir-AP"]
    assert run.fieldmap is None
    assert f"sub-01_phasediff.nii.gz is a field map, but its {reason} does not name this run" in run.no_partner


def test_the_identifier_of_a_field_map_is_no_unknown_one(subject):
    series(subject, "dir-AP", AP | {"B0FieldSource": "b0"})
    phasediff(subject, {"B0FieldIdentifier": "b0"})
    run = runs(subject)["dir-AP"]
    assert "EchoTime1" in run.no_partner
    assert "is the B0FieldIdentifier of no image" not in run.no_partner


def without(subject, name):
    (subject / "fmap" / f"sub-01_{name}.nii.gz").unlink()


def expect(subject, reason, sidecar=AP):
    series(subject, "dir-AP", sidecar)
    run = runs(subject)["dir-AP"]
    assert run.fieldmap is None
    assert run.partner is None
    assert reason in run.no_partner
    assert run.no_partner.count("not used") == 1


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ({"EchoTime1": 0.005}, "sub-01_phasediff.nii.gz: EchoTime2 not known (missing)"),
        ({"EchoTime2": 0.005, "EchoTime1": "5"}, "EchoTime1 not known ('5')"),
        ({}, "EchoTime1 and EchoTime2 not known (missing, missing)"),
        ({"EchoTime1": 4.92, "EchoTime2": 7.38}, "4.92 and 7.38 are no echo times in s"),
        ({"EchoTime1": 0.00492, "EchoTime2": 0.00493}, "0.00492 and 0.00493 are no echo times in s"),
        ({"EchoTime1": 0.007, "EchoTime2": 0.005}, "0.007 and 0.005 are no echo times in s, the earlier one first"),
    ],
)
def test_echo_times_of_a_phase_difference_are_needed(subject, sidecar, reason):
    phasediff(subject, sidecar)
    expect(subject, reason)


def test_echo_times_of_both_phases_are_needed(subject):
    image(subject, "phase1", {"EchoTime": 0.004})
    image(subject, "phase2", {})
    image(subject, "magnitude1")
    expect(subject, "sub-01_phase1.nii.gz: EchoTime of phase2 not known (missing)")


def test_a_single_phase_is_not_enough(subject):
    image(subject, "phase1", {"EchoTime": 0.004})
    image(subject, "magnitude1")
    expect(subject, "sub-01_phase1.nii.gz has no phase2 beside it")


@pytest.mark.parametrize(
    ("sidecar", "reason"), [({}, "Units are missing from the sidecar"), ({"Units": "ppm"}, "Units 'ppm'")]
)
def test_units_of_a_field_are_needed(subject, sidecar, reason):
    image(subject, "fieldmap", sidecar)
    image(subject, "magnitude")
    expect(subject, f"sub-01_fieldmap.nii.gz: {reason}")


def test_a_magnitude_image_is_needed(subject):
    phasediff(subject)
    for name in ("magnitude1", "magnitude2"):
        without(subject, name)
    expect(subject, "sub-01_phasediff.nii.gz has no magnitude image beside it")


@pytest.mark.parametrize("name", ["phasediff", "magnitude"])
@pytest.mark.parametrize(("content", "reason"), [(None, "datalad get"), (b"no image", "cannot be read as an image")])
def test_images_that_are_not_there_or_damaged_are_said(subject, name, content, reason):
    image(subject, "phasediff", ECHOES)
    image(subject, "magnitude1")
    path = subject / "fmap" / f"sub-01_{'magnitude1' if name == 'magnitude' else name}.nii.gz"
    path.unlink()
    if content is None:
        path.symlink_to("../../.git/annex/objects/nowhere")
    else:
        path.write_bytes(content)
    expect(subject, reason)


def test_images_of_several_volumes_and_of_other_grids_are_not_used(subject):
    phasediff(subject, values=np.stack([FULL, FULL], axis=-1))
    expect(subject, "sub-01_phasediff.nii.gz has shape (8, 8, 4, 2), expected one volume")
    phasediff(subject)
    for name in ("magnitude1", "magnitude2"):
        image(subject, name, values=FULL[1:])
    assert "sub-01_phasediff.nii.gz is not on the grid of sub-01_magnitude1" in runs(subject)["dir-AP"].no_partner


def test_values_that_are_no_phase_are_said(subject):
    phasediff(subject, values=FULL / 10)
    expect(subject, "sub-01_phasediff.nii.gz has values from 0 to 409.5, which are no phase that is known")


def test_the_read_out_time_of_the_run_is_needed(subject):
    phasediff(subject)
    expect(subject, "the read-out time of the run is not known", {"PhaseEncodingDirection": "j"})


def test_the_sign_of_the_phase_encoding_is_needed(subject):
    phasediff(subject)
    series(subject, "dir-AP", {"PhaseEncodingAxis": "j", "TotalReadoutTime": 0.05})
    run = runs(subject)["dir-AP"]
    assert run.fieldmap is None
    assert "PhaseEncodingDirection is missing from the sidecar; only the axis (j) is known" in run.no_partner


def test_a_read_out_time_in_milliseconds_is_said(subject):
    phasediff(subject)
    expect(subject, "TotalReadoutTime 50 of the run is no read-out time in s", AP | {"TotalReadoutTime": 50})


def test_the_phase_of_the_second_echo_alone_is_said(subject):
    image(subject, "phase2", {"EchoTime": 0.006})
    expect(subject, "sub-01_phase2.nii.gz has no phase1 beside it")


def test_a_magnitude_that_is_there_twice_is_said(subject):
    phasediff(subject)
    (subject / "fmap/sub-01_magnitude2.nii.gz").unlink()
    path = subject / "fmap/sub-01_magnitude1.nii.gz"
    nib.save(nib.load(path), path.with_name("sub-01_magnitude1.nii"))
    series(subject, "dir-AP", AP)
    run = runs(subject)["dir-AP"]
    assert run.fieldmap is None
    assert run.no_partner.count("is one of 2 images with the same entities") == 2
