"""What is left of a run where one of its methods, or the normalisation, failed."""

from pathlib import Path

import pytest

from bids_dmrigen.qc.report import RunError
from bids_dmrigen.workflow.failures import Failure, find_failures, without_failed
from bids_dmrigen.workflow.plan import plan_run

from .test_plan import make_run, methods_of, promised, settings

CRASH = "Node: participant.{run}.{node}\nWorking directory: /w\n\nTraceback:\n  ValueError: first\n{said}\n"


@pytest.fixture
def plan(tmp_path):
    return plan_run(make_run(tmp_path), settings(methods=("difusion", "interp")), "TPL")


def test_crash_files_are_read_in_order_of_time(plan, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, node, said in (("b", "preprocess.motion", "ScanError: too dark"), ("a", "maps_preproc", "KeyError: x")):
        log = logs / f"crash-{name}.txt"
        log.write_text(CRASH.format(run=plan.node_name, node=node, said=said))
    Path(logs / "crash-c.txt").write_text(CRASH.format(run="run_of_another_call", node="x", said=""))
    first, second = find_failures(logs, [plan])
    assert first == Failure("sub-1", "preprocess.motion", RunError("motion", "too dark", str(logs / "crash-b.txt")))
    assert (second.node, second.error.message) == ("maps_preproc", "x")


@pytest.mark.parametrize("node", ["generate_difusion", "replay_difusion_file.gibbs", "maps_difusion"])
def test_a_method_that_failed_is_left_out_and_nothing_else_changes(plan, node):
    rest = without_failed(plan, [node])
    assert methods_of(rest) == ("interp",)
    assert rest.settings.denoiser == plan.settings.denoiser == "none"  # without Di-Fusion it would be MP-PCA
    assert promised(rest) == {name for name in promised(plan) if "difusion" not in name}
    assert rest.does("normalize")


def test_without_the_normalisation_its_transforms_are_not_promised(plan):
    rest = without_failed(plan, ["normalize", "generate_interp"])
    assert not rest.does("normalize")
    assert promised(rest) == {name for name in promised(plan) if "TPL" not in name and "interp" not in name}


def test_without_the_normalisation_nothing_goes_to_the_template(tmp_path):
    plan = plan_run(make_run(tmp_path), settings(methods=("atlas", "interp")), "TPL")
    rest = without_failed(plan, ["normalize"])
    assert methods_of(rest) == ("interp",)
    assert not rest.does("atlas")
    assert promised(rest) == {name for name in promised(plan) if "TPL" not in name and "atlas" not in name}


def test_results_in_the_template_are_dropped_with_their_method_or_the_normalisation(tmp_path):
    both = settings(methods=("atlas", "interp"), output_spaces=("dwi", "template"))
    plan = plan_run(make_run(tmp_path), both, "TPL")
    assert without_failed(plan, ["template_interp"]) is None, "all else is done, figures too"
    rest = without_failed(plan, ["generate_interp"])
    assert promised(rest) == {name for name in promised(plan) if "interp" not in name}
    assert any("space-TPL" in name for name in promised(rest))
    rest = without_failed(plan, ["generate_atlas"])
    assert promised(rest) == {name for name in promised(plan) if "atlas" not in name}
    rest = without_failed(plan, ["normalize"])
    assert not any("TPL" in name for name in promised(rest))
    assert "sub-1_model-tensor_param-fa_desc-preproc_dwimap.nii.gz" in promised(rest)


@pytest.mark.parametrize("node", ["generate_rishldm", "maps_rishldm", "features_rishldm", "onto_rishldm"])
def test_results_on_a_finer_grid_are_dropped_with_their_method(tmp_path, node):
    finer = settings(methods=("rishldm", "bspline"), rishldm_voxel_size=1.5)
    plan = plan_run(make_run(tmp_path), finer, "TPL")
    rest = without_failed(plan, [node])
    assert methods_of(rest) == ("bspline",)
    assert promised(rest) == {name for name in promised(plan) if "rishldm" not in name}


@pytest.mark.parametrize("nodes", [[], ["preprocess.motion"], ["maps_preproc"], ["normalize", "preprocess.bias"]])
def test_without_failures_or_after_a_fatal_one_there_is_no_reduced_plan(plan, nodes):
    assert without_failed(plan, nodes) is None


def test_maps_that_could_not_be_generated_do_not_stop_other_results(tmp_path):
    asked = settings(methods=("diffdti", "interp"), n_samples=2)
    plan = plan_run(make_run(tmp_path), asked, "TPL")
    rest = without_failed(plan, ["generate_diffdti"])
    assert methods_of(rest) == ("interp",)
    assert promised(rest) == {name for name in promised(plan) if "diffdti" not in name}
    assert len(promised(plan)) == len(promised(rest)) + 6 + 3 * 4  # maps, and their uncertainty
    alone = plan_run(make_run(tmp_path / "few", n_directions=3), settings(methods=("diffdti",)), "TPL")
    few = without_failed(alone, ["generate_diffdti"])
    assert promised(few) == promised(plan_run(alone.run, settings(), "TPL"))
