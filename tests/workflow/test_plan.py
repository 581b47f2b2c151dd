"""What is planned for which run, and why."""

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.run import FieldMap, Partner, Run
from bids_dmrigen.bids.sidecars import image_sidecar
from bids_dmrigen.methods import options
from bids_dmrigen.methods.enhance.task import BAD_SIZE
from bids_dmrigen.workflow.participant import unfinished
from bids_dmrigen.workflow.plan import describe, plan_run, plan_runs
from bids_dmrigen.workflow.run import port_key
from bids_dmrigen.workflow.settings import Settings, SettingsError, _vectors_in

from ..conftest import neighbours_weights, tiny_gradients, tiny_series, write_run


def settings(**changes):
    method_options = {o.name: changes.pop(o.name) for o in options() if o.name in changes}
    changes = {"out_dir": Path("/out"), **changes}
    return Settings(bids_dir=Path("/in"), analysis_level="participant", method_options=method_options, **changes)


def methods_of(plan):
    return tuple(method.name for method in plan.methods)


def method_of(plan, name):
    return next(method for method in plan.methods if method.name == name)


def make_run(tmp_path, n_directions=12, shape=(10, 10, 10), subject="1", **extra):
    gradients = tiny_gradients(n_directions, 1)
    image = write_run(tmp_path, f"sub-{subject}", tiny_series(gradients, shape), gradients)
    stem = str(image).removesuffix(".nii.gz")
    return Run({"subject": subject}, image, Path(stem + ".bval"), Path(stem + ".bvec"), **extra)


def promised(plan):
    return {output.path.name for output in plan.outputs}


def test_every_promise_has_a_distinct_name(tmp_path):
    plan = plan_run(make_run(tmp_path), settings(methods=("difusion",), n_samples=2), "TPL")
    assert len(promised(plan)) == len(plan.outputs)
    for end in ("std", "q05", "q95"):
        assert f"sub-1_model-tensor_param-rd_desc-difusion{end}_dwimap.nii.gz" in promised(plan)
    assert "sub-1_model-tensor_param-fa_desc-difusion_dwimap.nii.gz" in promised(plan)
    assert "sub-1_from-TPL_to-dwi_mode-image_xfm.h5" in promised(plan)
    assert not any("T1w" in name for name in promised(plan))


def test_t1w_and_partner_change_the_plan(tmp_path):
    run = make_run(tmp_path, t1w=Path("/in/sub-1_T1w.nii.gz"), partner=Partner(Path("/in/sub-1_epi.nii.gz"), "j-"))
    plan = plan_run(run, settings(), "TPL")
    assert plan.does("susceptibility")
    assert "sub-1_from-dwi_to-T1w_mode-image_xfm.mat" in promised(plan)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("IntendedFor", "from sub-1_phasediff.nii.gz (declared by IntendedFor)"),
        ("", "from sub-1_phasediff.nii.gz (nothing declares it: it is of the same session)"),
    ],
)
def test_a_field_map_changes_the_plan(tmp_path, declared, reason):
    plan = plan_run(make_run(tmp_path, fieldmap=field_map(declared)), settings(), "TPL")
    assert plan.does("susceptibility")
    assert plan.steps["susceptibility"].reason == reason


def field_map(declared=""):
    folder = Path("/in/fmap")
    images = folder / "sub-1_phasediff.nii.gz", folder / "sub-1_magnitude1.nii.gz"
    return FieldMap("phasediff", images[:1], images[1], (0.004, 0.006), declared=declared)


def test_a_partner_that_a_field_map_replaces_is_no_failure(tmp_path):
    run, reverse = reverse_pair(tmp_path)
    run = replace(run, partner=None, spare_partner=run.partner, fieldmap=field_map("IntendedFor"))
    plan = plan_runs([run, reverse], settings(), "TPL")[1]
    assert plan.fault is None
    assert "sub-AP, for which a field map is used" in plan.note


def reverse_pair(tmp_path, tables=True, bval=0):
    """Return a run and its partner of opposite phase encoding, in this case b0s alone."""
    reverse = make_run(tmp_path, 6, subject="PA")
    reverse.bval.write_text("0 " + 6 * f"{bval} ")
    partner = Partner(reverse.image, "j", reverse.bval if tables else None, reverse.bvec if tables else None)
    if not tables:
        reverse = replace(reverse, bval=None, bvec=None, fault="its .bval and .bvec file is missing")
    return make_run(tmp_path, subject="AP", partner=partner), reverse


def test_a_partner_of_one_volume_is_no_failure(tmp_path):
    pair = reverse_pair(tmp_path)
    whole = nib.load(pair[1].image)
    nib.save(nib.Nifti1Image(whole.get_fdata(dtype=np.float32)[..., 0], whole.affine), pair[1].image)
    assert plan_runs(pair, settings(), "TPL")[1].note
    assert "expected a 4-D series" in plan_runs(pair[1:], settings(), "TPL")[0].fault


@pytest.mark.parametrize("tables", [True, False])
def test_a_partner_with_only_b0s_is_not_a_failure(tmp_path, tables):
    pair = reverse_pair(tmp_path, tables)
    run, reverse = plan_runs(pair, settings(), "TPL")
    assert run.does("susceptibility")
    assert ("no b-values" in run.steps["susceptibility"].reason) != tables
    assert (reverse.fault, reverse.outputs) == (None, ())
    assert "susceptibility correction of sub-AP" in reverse.note
    assert describe(reverse) == ["sub-PA", f"  {reverse.note}"]
    alone, other = plan_runs([replace(pair[0], partner=None), pair[1]], settings(), "TPL")
    assert alone.fault is None
    assert other.fault
    assert other.note is None


def test_two_runs_of_only_b0s_are_no_partners_for_each_other(tmp_path):
    _, one = reverse_pair(tmp_path / "one")
    _, two = reverse_pair(tmp_path / "two")
    pair = [replace(one, partner=Partner(two.image, "j-")), replace(two, partner=Partner(one.image, "j"))]
    assert all("volumes are b0" in plan.fault for plan in plan_runs(pair, settings(), "TPL"))


def test_b0s_alone_are_enough_for_methods_that_start_from_them(tmp_path):
    _, reverse = reverse_pair(tmp_path)
    with_atlas = settings(methods=("atlas", "interp"), phydiff_directions="12")
    plan = plan_run(reverse, with_atlas, "TPL")
    assert plan.fault is None
    assert methods_of(plan) == ("atlas",)
    assert "interp" in plan.refused
    assert not plan.does("maps")
    assert "sub-PA_desc-atlas_dwi.nii.gz" in promised(plan)
    assert "sub-PA_model-tensor_param-fa_desc-atlas_dwimap.nii.gz" in promised(plan), "of what is made"
    assert "--methods phydiff" in plan_run(reverse, settings(), "TPL").fault
    run, partner = plan_runs(reverse_pair(tmp_path / "pair"), with_atlas, "TPL")
    assert run.outputs
    assert "susceptibility correction" in partner.note
    assert not partner.outputs


def test_maps_are_fitted_to_one_shell_of_the_generated_series(tmp_path):
    run = make_run(tmp_path, n_directions=4)
    asked = {"methods": ("atlas",), "phydiff_bvalues": (700.0, 1100.0, 3000.0)}
    few = settings(phydiff_directions="5", **asked)
    assert not any("dwimap" in name for name in promised(plan_run(run, few, "TPL")))
    plan = plan_run(run, settings(phydiff_directions="6", **asked), "TPL")
    assert sum("dwimap" in name for name in promised(plan)) == 6
    n = len(plan.gradients)
    assert method_of(plan, "atlas").plan.fitted == [0, *range(n + 6, n + 12)]
    (fa,) = [o for o in plan.outputs if o.fields.get("param") == "fa"]
    assert "b = 1100 s/mm²" in image_sidecar(fa.key, [], **fa.fields)["Description"]


def test_b0s_of_a_file_of_directions_are_passed_over(tmp_path):
    ordinary = tmp_path / "ordinary.bvec"
    ordinary.write_text("0 1 0 0 0.6 0 0.8 0.6\n0 0 1 0 0.8 0.6 0 0\n0 0 0 1 0 0.8 0.6 0.8\n")
    plan = plan_run(make_run(tmp_path), settings(methods=("atlas",), phydiff_directions=str(ordinary)), "TPL")
    assert plan.fault is None
    assert any("param-fa_desc-atlas" in name for name in promised(plan))
    for text, said in (("0 0\n0 0\n0 0\n", "only vectors of length 0"), ("1 0 3\n0 1 0\n0 0 0\n", "length")):
        ordinary.write_text(text)
        _vectors_in.cache_clear()
        with pytest.raises(SettingsError, match=f"--qid2-directions: .*ordinary.bvec.*{said}"):
            settings(qid2_directions=str(ordinary))


def test_a_flat_series_of_only_b0s_cannot_be_processed(tmp_path):
    flat = make_run(tmp_path, 6, shape=(12, 12, 1))
    flat.bval.write_text("0 " * 7)
    assert "volumes are b0" in plan_run(flat, settings(methods=("atlas",)), "TPL").fault


def test_results_on_the_templates_grid_too(tmp_path):
    both = settings(methods=("atlas", "diffdti"), output_spaces=("dwi", "template"))
    plan, plain = (plan_run(make_run(tmp_path), s, "TPL") for s in (both, replace(both, output_spaces=("dwi",))))
    added = promised(plan) - promised(plain)
    assert promised(plan) > promised(plain)
    assert added == {
        "sub-1_space-TPL_desc-brain_mask.nii.gz",
        *(f"sub-1_space-TPL_desc-atlas_dwi.{end}" for end in ("nii.gz", "bval", "bvec")),
        *(f"sub-1_space-TPL_model-tensor_param-{p}_desc-preproc_dwimap.nii.gz" for p in ("fa", "md", "ad", "rd")),
        *(f"sub-1_space-TPL_model-tensor_param-{p}_desc-atlas_dwimap.nii.gz" for p in ("fa", "md", "ad", "rd")),
        *(f"sub-1_space-TPL_model-tensor_param-{p}_desc-diffdti_dwimap.nii.gz" for p in ("fa", "md", "ad", "rd")),
    }
    for output in plan.outputs:
        image_sidecar(output.key, [], **output.fields) if output.key != "metrics" else None
    flat = plan_run(make_run(tmp_path / "flat", shape=(12, 12, 1)), both, "TPL")
    assert not any("space-" in name for name in promised(flat))


def test_a_fault_of_the_partner_itself_stays(tmp_path):
    run, reverse = reverse_pair(tmp_path, bval=1000)
    reverse.bvec.write_text("0 1\n0 0\n0 0\n")
    plans = plan_runs([run, reverse], settings(), "TPL")
    assert [bool(plan.fault) for plan in plans] == [False, True]


@pytest.mark.parametrize(
    ("changes", "step", "reason"),
    [
        ({"denoise": "none"}, "denoise", "--denoise none"),
        ({"gibbs": False}, "gibbs", "--no-gibbs"),
        ({"motion": False}, "motion", "--no-motion"),
        ({"bias": False}, "bias", "--no-bias"),
        ({}, "susceptibility", "no partner"),
        ({"skip_preprocessing": True}, "motion", "--skip-preprocessing"),
    ],
)
def test_steps_left_out_have_a_reason(tmp_path, changes, step, reason):
    plan = plan_run(make_run(tmp_path), settings(**changes), "TPL")
    assert not plan.does(step)
    assert reason in plan.steps[step].reason
    assert any(line.strip().startswith(f"skips {step}: {reason}") for line in describe(plan))


def test_preprocessed_runs_are_only_masked_and_normalised(tmp_path):
    run = make_run(tmp_path, preprocessed=True, mask=Path("/in/mask.nii.gz"))
    plan = plan_run(run, settings(), "TPL")
    for step in ("denoise", "gibbs", "susceptibility", "motion", "bias", "mask"):
        assert not plan.does(step), step
    assert plan.does("normalize")
    assert plan.does("maps")


def test_eight_slices_are_enough_to_register(tmp_path):
    plan = plan_run(make_run(tmp_path, shape=(12, 8, 8)), settings(), "TPL")
    assert all(plan.does(step) for step in ("motion", "bias", "normalize"))
    assert not plan_run(make_run(tmp_path, shape=(12, 8, 7)), settings(), "TPL").does("motion")


def test_a_series_takes_four_bytes_per_voxel_in_memory(tmp_path):
    plan = plan_run(make_run(tmp_path, shape=(10, 9, 8)), settings(), "TPL")
    assert plan.volume_gb == pytest.approx(10 * 9 * 8 * 13 * 4e-9)


def test_flat_images_are_not_registered(tmp_path):
    plan = plan_run(make_run(tmp_path, shape=(12, 12, 1)), settings(), "TPL")
    for step in ("motion", "bias", "normalize"):
        assert not plan.does(step)
        assert "1 slices along one axis" in plan.steps[step].reason
    assert plan.does("maps")


def test_too_few_directions(tmp_path):
    plan = plan_run(make_run(tmp_path, n_directions=5), settings(), "TPL")
    assert not plan.does("maps")
    assert "at least one b0 (or a second shell) and six" in plan.steps["maps"].reason
    assert plan.steps["normalize"].reason == "no T1w; b0 to template"
    assert not unfinished([replace(plan, outputs=())], tmp_path)  # maps were not asked for


def test_directions_that_determine_no_tensor(tmp_path):
    run = make_run(tmp_path, n_directions=8)
    table = np.zeros((3, 9))
    table[:2, 1:] = np.cos(np.arange(8)), np.sin(np.arange(8))  # all in one plane
    np.savetxt(run.bvec, table)
    plan = plan_run(run, settings(), "TPL")
    assert not plan.does("maps")
    assert "do not lie on one cone" in plan.steps["maps"].reason


def test_a_method_that_cannot_work_on_a_run_leaves_the_rest(tmp_path):
    run, asked = make_run(tmp_path, n_directions=5), settings(methods=("difusion",))
    plan, plain = plan_run(run, asked, "TPL"), plan_run(run, settings(), "TPL")
    assert plan.fault is None
    assert not plan.does("difusion")
    assert "at least 6 diffusion-weighted volumes, found 5" in plan.steps["difusion"].reason
    assert plan.outputs == plain.outputs
    assert plan.steps["denoise"] == plain.steps["denoise"]  # nothing follows that has to see the noise
    assert any(line.startswith("  skips difusion: difusion needs") for line in describe(plan))
    error = unfinished([replace(plan, outputs=())], tmp_path)["sub-1"]
    assert error.step == "difusion"
    assert "found 5; everything else is done" in error.message


def test_a_denoiser_that_cannot_work_on_a_run_leaves_the_rest(tmp_path):
    run = make_run(tmp_path, n_directions=5)
    plan = plan_run(run, settings(denoise="difusion"), "TPL")
    assert (plan.fault, plan.does("denoise"), plan.does("motion")) == (None, False, True)
    assert "found 5" in plan.steps["denoise"].reason
    assert plan.refused.keys() == {"difusion"}
    assert "difusion" not in plan.steps  # it was not asked to generate
    assert not plan_run(replace(run, preprocessed=True), settings(denoise="difusion"), "TPL").refused


@pytest.mark.parametrize("n_directions", [3, 6])
def test_a_method_that_generates_maps_promises_them_whether_or_not_a_tensor_can_be_fitted(tmp_path, n_directions):
    plan = plan_run(make_run(tmp_path, n_directions), settings(methods=("diffdti",), n_samples=2), "TPL")
    of_method = {name for name in promised(plan) if "diffdti" in name}
    stem = "sub-1_model-tensor_param-{}_desc-diffdti{}_dwimap.nii.gz"
    maps = ("fa", "md", "ad", "rd", "dec", "tensor")
    uncertain = {stem.format(param, end) for param in maps[:4] for end in ("std", "q05", "q95")}
    assert of_method == {stem.format(param, "") for param in maps} | uncertain
    assert plan.does("diffdti")
    assert plan.does("maps") == (n_directions == 6)
    assert any("desc-preproc_dwimap" in name for name in promised(plan)) == (n_directions == 6)
    assert f"  writes sub-1/dwi/{stem.format('fa', 'q05')}" in describe(plan)
    single = plan_run(plan.run, settings(methods=("diffdti",), n_samples=1), "TPL")
    assert {name for name in promised(single) if "diffdti" in name} == of_method - uncertain


def test_samples_are_promised_where_they_are_asked_for(tmp_path):
    asked = {"methods": ("diffdti", "qid2", "interp"), "n_samples": 2, "write_samples": True}
    plan = plan_run(make_run(tmp_path), settings(**asked), "TPL")
    of_samples = {name for name in promised(plan) if "sample" in name}
    assert of_samples == {
        *(f"sub-1_desc-qid2sample{k}_dwi.{end}" for k in (1, 2) for end in ("nii.gz", "bval", "bvec")),
        *(f"sub-1_model-tensor_param-tensor_desc-diffdtisample{k}_dwimap.nii.gz" for k in (1, 2)),
    }
    assert len({port_key(output) for output in plan.outputs}) == len(plan.outputs)
    assert plan.space_gb > plan_run(plan.run, settings(**asked | {"write_samples": False}), "TPL").space_gb


def test_a_method_of_maps_that_draws_nothing_promises_no_spread(tmp_path):
    weights = neighbours_weights(tmp_path / "weights")
    both = settings(methods=("neighbours", "diffdti"), weights=(f"neighbours={weights}",), n_samples=2)
    plan = plan_run(make_run(tmp_path, n_directions=6), both, "TPL")
    names = {name for name in promised(plan) if "neighbours" in name}
    stem = "sub-1_model-tensor_param-{}_desc-neighbours_dwimap.nii.gz"
    maps = {stem.format(param) for param in ("fa", "md", "ad", "rd", "dec", "tensor")}
    assert names == maps | {"sub-1_param-unknown_desc-neighbours_dwimap.nii.gz"}
    assert any("diffdtistd" in name for name in promised(plan))


def test_a_method_in_which_nothing_is_random_promises_no_spread(tmp_path):
    plan = plan_run(make_run(tmp_path), settings(methods=("difusion", "interp", "atlas"), n_samples=2), "TPL")
    assert {name for name in promised(plan) if "std_" in name} == {
        f"sub-1_model-tensor_param-{param}_desc-difusionstd_dwimap.nii.gz" for param in ("fa", "md", "ad", "rd")
    }


def test_without_three_different_directions_no_maps_are_made(tmp_path):
    asked = settings(methods=("diffdti",))
    run = make_run(tmp_path, n_directions=2)
    plan = plan_run(run, asked, "TPL")
    assert plan.fault is None
    assert "at least 3 diffusion-weighted volumes, found 2" in plan.refused["diffdti"]
    assert plan.outputs == plan_run(run, settings(), "TPL").outputs
    repeated = make_run(tmp_path / "repeated", n_directions=6)
    table = np.loadtxt(repeated.bvec)
    table[:, 3:] = -table[:, [1, 2, 1, 2]]
    np.savetxt(repeated.bvec, table)
    assert "3 different directions on a shell, found 2" in plan_run(repeated, asked, "TPL").refused["diffdti"]
    error = unfinished([replace(plan, outputs=())], tmp_path)["sub-1"]
    assert (error.step, "everything else is done" in error.message) == ("diffdti", True)


def test_few_directions_are_warned_of(tmp_path):
    plan = plan_run(make_run(tmp_path, n_directions=8), settings(methods=("difusion",)), "TPL")
    assert "8 directions" in plan.warnings[0]


def test_singular_affine_is_a_fault(tmp_path):
    gradients = tiny_gradients(6, 1)
    image = write_run(tmp_path, "sub-1", tiny_series(gradients, (8, 8, 8)), gradients)
    content = bytearray(gzip.decompress(image.read_bytes()))
    content[280:328] = np.zeros(12, np.float32).tobytes()  # srow_x, srow_y, srow_z
    content[252:256] = np.array([0, 2], np.int16).tobytes()  # qform_code, sform_code
    plain = tmp_path / "sub-1_dwi.nii"
    plain.write_bytes(content)
    stem = str(plain).removesuffix(".nii")
    run = Run({"subject": "1"}, plain, Path(stem + ".bval"), Path(stem + ".bvec"))
    assert "singular" in plan_run(run, settings(), "TPL").fault


def test_an_unforeseen_error_is_the_fault_of_its_run(tmp_path, monkeypatch):
    def odd(*_):
        raise KeyError("odd")

    monkeypatch.setattr("bids_dmrigen.workflow.plan._steps", odd)
    plan = plan_run(make_run(tmp_path), settings(), "TPL")
    assert plan.fault.startswith("KeyError: 'odd'")
    assert "raise KeyError" in plan.trace
    assert any("raise KeyError" in line for line in describe(plan))


def test_a_missing_t1w_gives_a_warning(tmp_path):
    plan = plan_run(make_run(tmp_path, notes=("T1w: x.nii is a link to nothing",)), settings(), "T")
    assert plan.warnings == ("T1w: x.nii is a link to nothing",)


def test_a_method_of_the_templates_space_is_refused_where_nothing_can_be_registered(tmp_path):
    plan = plan_run(make_run(tmp_path, shape=(20, 22, 4)), settings(methods=("atlas", "interp")), "TPL")
    assert methods_of(plan) == ("interp",)
    assert "registration needs" in plan.refused["atlas"]


def test_names_of_results_on_a_finer_grid_contain_its_voxel_size(tmp_path):
    asked = {"methods": ("bspline", "interp", "rishldm"), "n_samples": 2}
    run = make_run(tmp_path, 15)
    finer = plan_run(run, settings(rishldm_voxel_size=1.25, **asked), "TPL")
    names = promised(finer)
    assert len(names) == len(finer.outputs)
    assert finer.refused == {}
    fine = ["desc-bspline_dwi.nii.gz", "desc-rishldm_dwi.bvec", "desc-brain_mask.nii.gz"]
    fine += ["model-tensor_param-fa_desc-bspline_dwimap.nii.gz", "model-sh_param-rish4_desc-rishldm_dwimap.nii.gz"]
    coarse = ("desc-brain_mask.nii.gz", "desc-interp_dwi.nii.gz", "model-sh_param-rish4_desc-preproc_dwimap.nii.gz")
    assert names > {f"sub-1_res-1p25mm_{name}" for name in fine} | {f"sub-1_{name}" for name in coarse}
    assert not [name for name in names if "rishldmstd" in name]  # it draws no samples
    assert not [name for name in names if ("bspline" in name or "rishldm" in name) and "_res-" not in name]
    assert method_of(finer, "rishldm").finer_gb == pytest.approx(finer.volume_gb * (3 / 1.25) ** 3)
    assert method_of(finer, "interp").finer_gb == 0
    assert finer.space_gb > plan_run(run, settings(**asked), "TPL").space_gb
    assert "  does rishldm: small, fast sampler, voxels of 1.25 mm" in describe(finer)
    for output in finer.outputs:
        sidecar = {} if output.key == "metrics" else image_sidecar(output.key, [], **output.fields)
        assert ("Resolution" in sidecar) == (bool(sidecar) and "_res-" in output.path.name)
    (mask,) = [o for o in finer.outputs if o.key == "mask" and o.fields]
    assert "1.25 mm" in image_sidecar("mask", [], **mask.fields)["Description"]


def test_on_the_runs_own_voxels_no_name_changes(tmp_path):
    run = make_run(tmp_path)
    plain = plan_run(run, settings(methods=("rishldm", "rish")), "TPL")
    assert not any("_res-" in name for name in promised(plain))
    same = plan_run(run, settings(methods=("rishldm", "rish"), rishldm_voxel_size=3.0), "TPL")
    assert same.outputs == plain.outputs
    assert "sub-1_model-sh_param-rish2_desc-rishldm_dwimap.nii.gz" in promised(plain)
    assert not any("rish4" in name for name in promised(plain)), "12 directions do not determine degree 4"
    assert not any("model-sh" in name for name in promised(plan_run(run, settings(methods=("rish",)), "TPL")))


def test_a_coarser_grid_is_refused_for_the_run_and_everything_else_is_done(tmp_path):
    run, asked = make_run(tmp_path), settings(methods=("bspline", "rishldm", "interp"), rishldm_voxel_size=3.5)
    plan = plan_run(run, asked, "TPL")
    assert methods_of(plan) == ("interp",)
    for method in ("bspline", "rishldm"):
        assert plan.refused[method] == BAD_SIZE.format(flag="--rishldm-voxel-size", wanted=3.5, zooms="3 x 3 x 3")
        assert any(line.startswith(f"  skips {method}: --rishldm-voxel-size 3.5") for line in describe(plan))
    assert plan.outputs == plan_run(run, settings(methods=("interp",)), "TPL").outputs
    alone = plan_run(run, settings(methods=("bspline", "rish")), "TPL")
    assert methods_of(alone) == ("rish",)
    assert "nothing to do on the scan's own voxels" in alone.refused["bspline"]


def test_results_on_the_templates_grid_have_its_voxels(tmp_path):
    both = settings(methods=("bspline",), rishldm_voxel_size=1.5, output_spaces=("dwi", "template"))
    names = promised(plan_run(make_run(tmp_path), both, "TPL"))
    assert "sub-1_space-TPL_model-tensor_param-fa_desc-bspline_dwimap.nii.gz" in names
    assert not [name for name in names if "space-" in name and "res-" in name]


def test_what_is_odd_about_a_series_is_said_in_its_plan(tmp_path):
    run = make_run(tmp_path)
    bvals = np.r_[0, np.linspace(375, 470, 12)]
    np.savetxt(run.bval, bvals[None])
    plan = plan_run(run, settings(methods=("interp",)), "TPL")
    assert any("the 12 volumes at b = 375 to 470 s/mm² are no shells" in warning for warning in plan.warnings)
    assert "adds directions to shells" in plan.refused["interp"]


def test_trace_images_at_the_end_can_be_left_out(tmp_path):
    run = make_run(tmp_path)
    bvecs = np.loadtxt(run.bvec)
    bvecs[:, -1] = 0
    np.savetxt(run.bvec, bvecs)
    assert "give --leave-out-trace" in plan_run(run, settings(), "TPL").fault
    plan = plan_run(run, settings(leave_out_trace=True), "TPL")
    assert plan.shape == (10, 10, 10, 12)
    assert len(plan.table) == 12
    assert any("the last 1 of 13 volumes" in warning for warning in plan.warnings)


@pytest.mark.parametrize(("factor", "said"), [(1e6, "divided by 1e6"), (1e-3, "multiplied by 1000"), (1, "")])
def test_b_values_in_another_unit(tmp_path, factor, said):
    run = make_run(tmp_path)
    np.savetxt(run.bval, np.loadtxt(run.bval)[None] * factor)
    fault = plan_run(run, settings(), "TPL").fault
    assert said in (fault or "")
    assert bool(fault) == bool(said)
