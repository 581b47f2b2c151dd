"""What earlier calls left in the output folder, and what a later call makes of it."""

import json
from dataclasses import replace

import pytest

from bids_dmrigen.bids import names
from bids_dmrigen.bids.run import Partner
from bids_dmrigen.qc.report import RunError, RunRecord, read_record
from bids_dmrigen.workflow import earlier, methods_text
from bids_dmrigen.workflow.plan import plan_run
from bids_dmrigen.workflow.preprocess import init_preprocess_wf

from ..bids.test_store import rewrite
from .test_plan import make_run, methods_of, settings
from .test_report import call

RUN = {"subject": "1"}


def store_image(out, key, **fields):
    path = out / names.output_path(RUN, key, **fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def store(out, plan, *methods):
    """Leave what a call with this plan leaves: the preprocessed series and results of some methods."""
    series = store_image(out, "preproc")
    names.sidecar_path(series).write_text(json.dumps({"Preprocessing": dict(plan.preprocessing)}))
    for method in methods:
        store_image(out, "generated", method=method)


def test_methods_are_known_by_the_names_of_their_files(tmp_path):
    assert earlier.stored_methods(tmp_path, RUN) == ()
    store_image(tmp_path, "preproc")
    store_image(tmp_path, "mask")
    store_image(tmp_path, "map", param="fa", source="preproc")
    store_image(tmp_path, "sample", method="qid2", number="12")
    for key in ("map_std", "map_low", "map_high"):
        store_image(tmp_path, key, method="qid2", param="fa")
    assert earlier.stored_methods(tmp_path, RUN) == ()
    store_image(tmp_path, "generated", method="rishldm", voxel_mm="1.25")
    store_image(tmp_path, "map", param="fa", source="diffdti")
    store_image(tmp_path, "generated", method="difusion").rename(tmp_path / "sub-1/dwi/sub-1_run-2_desc-sh_dwi.nii.gz")
    assert earlier.stored_methods(tmp_path, RUN) == ("diffdti", "rishldm")


def test_the_denoiser_of_the_stored_series_is_kept_and_it_is_said(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    first = plan_run(run, settings(out_dir=out, methods=("difusion",)), "TPL")
    store(out, first, "difusion")
    later = plan_run(run, settings(out_dir=out, methods=("interp",)), "TPL")
    assert (later.denoiser, later.kept, later.fault) == ("none", ("difusion",), None)
    assert later.steps["denoise"].reason == "--denoise none, as for the series that an earlier call stored"
    assert later.preprocessing == first.preprocessing
    again = plan_run(run, settings(out_dir=out, methods=("difusion", "interp")), "TPL")
    assert (again.kept, again.steps["denoise"].reason) == ((), "--denoise none")


def test_a_method_that_denoised_the_stored_series_is_kept_too(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    store(out, plan_run(run, settings(out_dir=out, denoise="difusion"), "TPL"), "sh")
    later = plan_run(run, settings(out_dir=out), "TPL")
    assert (later.denoiser, later.denoised_by.name) == ("difusion", "difusion")
    assert "seed 0" in later.preprocessing["Denoising"]
    assert "seed 0" in plan_run(run, settings(out_dir=out, seed=1), "TPL").fault


def test_after_a_call_without_preprocessing_the_default_is_what_it_was(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    store(out, plan_run(run, settings(out_dir=out, skip_preprocessing=True), "TPL"))
    later = plan_run(run, settings(out_dir=out), "TPL")
    assert later.denoiser == "mppca"
    assert "is replaced (Denoising: not done -> mppca; Gibbs" in later.warnings[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"denoise": "mppca"}, "Denoising: none -> mppca"),
        ({"gibbs": False}, "Gibbs ringing: sub-voxel shifts -> not done"),
        ({"motion": False}, "Head motion and eddy currents: rigid; the phase-encoding axis is unknown, "),
    ],
)
def test_a_call_that_would_change_the_input_of_stored_results_is_refused(tmp_path, changed, said):
    run, out = make_run(tmp_path), tmp_path / "out"
    store(out, plan_run(run, settings(out_dir=out, methods=("difusion",)), "TPL"), "difusion")
    plan = plan_run(run, settings(out_dir=out, methods=("atlas",), **changed), "TPL")
    assert plan.conflict
    assert said in plan.fault
    assert "--methods atlas difusion" in plan.fault
    assert plan_run(run, settings(out_dir=out, methods=("atlas",), reports_only=True, **changed), "TPL").fault is None
    both = plan_run(run, settings(out_dir=out, methods=("atlas", "difusion"), **changed), "TPL")
    assert both.fault is None
    assert said in both.warnings[-1]


@pytest.mark.parametrize(
    ("key", "fields", "options"),
    [
        ("generated", {"method": "bspline", "voxel_mm": "4"}, {"gibbs": False}),
        ("confounds", {}, {"motion": False}),
        ("template_map", {"param": "fa", "source": "preproc", "template": "TPL"}, {"gibbs": False}),
    ],
)
def test_files_of_the_same_method_that_are_not_made_again_are_not_left_beside_another_series(
    tmp_path, key, fields, options
):
    run, out = make_run(tmp_path), tmp_path / "out"
    first = plan_run(run, settings(out_dir=out, methods=("sh",)), "TPL")
    store(out, first, "sh")
    left = store_image(out, key, **fields)
    assert plan_run(run, settings(out_dir=out, methods=("sh",)), "TPL").fault is None
    plan = plan_run(run, settings(out_dir=out, methods=("sh",), output_spaces=("dwi",), **options), "TPL")
    assert plan.conflict
    assert left.name in plan.fault or "bspline" in plan.fault
    left.unlink()
    assert plan_run(run, settings(out_dir=out, methods=("sh",), output_spaces=("dwi",), **options), "TPL").fault is None


@pytest.mark.parametrize("changed", ["image", "direction", "T1w"])
def test_other_images_beside_the_run_make_another_series(tmp_path, changed):
    beside = [tmp_path / name for name in ("epi.nii.gz", "T1w.nii.gz")]
    for path in beside:
        path.write_bytes(b"0" * 20)
    sidecar = {"PhaseEncodingDirection": "j", "TotalReadoutTime": 0.05}
    run = replace(make_run(tmp_path, metadata=sidecar, t1w=beside[1], partner=Partner(beside[0], "j-")))
    out = tmp_path / "out"
    store(out, plan_run(run, settings(out_dir=out), "TPL"), "difusion")
    assert plan_run(run, settings(out_dir=out), "TPL").fault is None
    if changed == "direction":
        run = replace(run, metadata=sidecar | {"PhaseEncodingDirection": "j-"})
    else:
        rewrite(beside[changed == "T1w"], "1" * 20)
    later = plan_run(run, settings(out_dir=out), "TPL")
    assert later.conflict
    assert ("T1w image: " if changed == "T1w" else "Correction images: ") in later.fault


def test_without_a_word_on_how_the_stored_series_was_made_nothing_is_put_beside_it(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    store_image(out, "generated", method="difusion")
    plan = plan_run(run, settings(out_dir=out, methods=("interp",)), "TPL")
    assert plan.conflict
    assert "does not say how it was made" in plan.fault
    assert methods_of(plan_run(run, settings(out_dir=out, methods=("difusion",)), "TPL")) == ("difusion",)


def test_a_table_that_was_changed_by_hand_is_noticed_though_its_size_and_time_are_the_same(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    first = plan_run(run, settings(out_dir=out), "TPL")
    store(out, first, "difusion")
    text = run.bval.read_text()
    rewrite(run.bval, text.replace("1000", "1001", 1))
    later = plan_run(run, settings(out_dir=out), "TPL")
    assert "(b-values: " in later.fault
    (out / "sub-1/dwi/sub-1_desc-difusion_dwi.nii.gz").unlink()
    later = plan_run(run, settings(out_dir=out), "TPL")
    states = [init_preprocess_wf(plan, threads=1).get_node("conform").inputs for plan in (first, later)]
    assert states[0].get_hashval(hash_method="timestamp") != states[1].get_hashval(hash_method="timestamp")


def test_reports_leave_a_run_alone_that_was_refused(tmp_path):
    run = make_run(tmp_path)
    store(tmp_path, plan_run(run, settings(out_dir=tmp_path, methods=("difusion",)), "TPL"), "difusion")
    call(tmp_path, [run], methods=("difusion",))
    before = read_record(tmp_path, RUN)
    assert call(tmp_path, [run], denoise="mppca") == ""
    assert read_record(tmp_path, RUN) == before


def test_the_record_keeps_what_belongs_to_methods_of_earlier_calls(tmp_path):
    run, runs = make_run(tmp_path), {"difusion": {}, "interp": {}}
    for method in runs:
        plan = plan_run(run, settings(out_dir=tmp_path, methods=(method,)), "TPL")
        call(tmp_path, [run], methods=(method,))
        store(tmp_path, plan, method)
    record = read_record(tmp_path, RUN)
    assert {"difusion", "interp"} <= record.steps.keys()
    assert [text.split()[0] for text in record.methods][-2:] == ["Linear", "Di-Fusion"]
    call(tmp_path, [replace(run, fault="no b-values")], {"sub-1": RunError("checks", "no b-values")})
    assert read_record(tmp_path, RUN) == replace(record, error=RunError("checks", "no b-values"))


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path):
    path = tmp_path / names.figure_path(RUN, "record", "json")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert earlier.stored_record(tmp_path, RUN) == RunRecord(RUN)
    assert earlier.stored_metrics(tmp_path, RUN, ["sh"]) == {}
    assert earlier.stored_reasons(tmp_path, RUN, ["sh"]) == []


def test_metrics_and_reasons_are_taken_by_method(tmp_path):
    metrics = tmp_path / names.output_path(RUN, "metrics")
    metrics.parent.mkdir(parents=True)
    metrics.write_text(json.dumps({"n": {"value": 1}, "a_sh": {"source": "sh"}, "a_qid2": {"source": "qid2"}}))
    assert earlier.stored_metrics(tmp_path, RUN, ["sh"]) == {"a_sh": {"source": "sh"}}
    skipped = tmp_path / names.figure_path(RUN, "skipped", "html")
    skipped.parent.mkdir()
    skipped.write_text("<ul><li>Head motion: no</li><li>sh: spread: one</li><li>rish: spread: none</li></ul>\n")
    assert earlier.stored_reasons(tmp_path, RUN, ["sh"]) == ["<li>sh: spread: one</li>"]
    assert {"residualsh", "tensorchecksh"} <= set(earlier.stored_figures(["sh"]))


def test_stored_maps_come_with_the_mask_of_a_finer_grid(tmp_path):
    own = [store_image(tmp_path, "map", param=param, source="sh") for param in ("fa", "md")]
    assert earlier.stored_maps(tmp_path, RUN, "sh", ("fa", "md")) == ({}, None), "there is no mask"
    store_image(tmp_path, "mask")
    assert earlier.stored_maps(tmp_path, RUN, "sh", ("fa", "md")) == (dict(zip(("fa", "md"), own, strict=True)), None)
    finer = store_image(tmp_path, "map", param="fa", source="rish", voxel_mm="1.25")
    mask = store_image(tmp_path, "mask", voxel_mm="1.25")
    record = tmp_path / names.figure_path(RUN, "record", "json")
    record.parent.mkdir()
    record.write_text(json.dumps({"voxels": {"rish": "1p25mm"}}))
    assert earlier.stored_maps(tmp_path, RUN, "rish", ("fa",)) == ({"fa": finer}, mask)


def test_a_paragraph_is_told_from_those_of_other_methods(tmp_path):
    plan = plan_run(make_run(tmp_path), settings(methods=("rish", "rishldm")), "TPL")
    text = methods_text.paragraphs([plan])
    about = [[methods_text.is_about(part, [method]) for part in text[-3:]] for method in ("rish", "rishldm", "sh")]
    assert about == [[False, True, False], [True, False, True], [False, False, False]]
