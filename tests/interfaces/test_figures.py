"""The figure and metric interfaces on a tiny run: everything there, and almost nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.interfaces.figures import QualityMetrics, RunFigures
from bids_dmrigen.qc.metrics import DEFINITIONS
from bids_dmrigen.qc.run_data import Missing, RunData, same_volumes

from ..conftest import tiny_gradients, tiny_series, write_run

AFFINE = np.diag([-3.0, 3, 3, 1])
NOISE = 8.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    """All inputs of one run; the same series with little noise stands for what a method made."""
    folder = tmp_path_factory.mktemp("run")
    table = tiny_gradients()
    data = tiny_series(table, noise=NOISE)
    mask = data[..., table.is_b0].mean(axis=3) > 100

    def image(name, values):
        path = folder / f"{name}.nii"
        nib.save(nib.Nifti1Image(np.asarray(values, np.float32), AFFINE), path)
        return str(path)

    raw = str(write_run(folder, "raw", data, table, AFFINE))
    bval, bvec = raw.replace(".nii.gz", ".bval"), raw.replace(".nii.gz", ".bvec")
    made = tiny_series(table, noise=1.0, seed=1)
    made[..., table.is_b0] = data[..., table.is_b0]
    record = {
        "Method": "Clean",
        "AcquiredVolumes": [0, 1, 2],
        "Checks": {"clean_evaluations": 4.0, "clean_direction_contrast": 0.7},
    }
    (folder / "record.json").write_text(json.dumps({"Synthetic": True, "GenerativeModel": record}))
    rng = np.random.default_rng(0)
    np.savez(folder / "left_out.npz", volumes=[3, 7], mean=made[..., [3, 7]])
    header = "trans_x\ttrans_y\ttrans_z\trot_x\trot_y\trot_z\tframewise_displacement"
    rows = [[*rng.normal(0, 0.1, 3), *rng.normal(0, 1e-3, 3), "n/a" if v == 0 else 0.2] for v in range(14)]
    lines = ["\t".join(map(str, row)) for row in rows]
    (folder / "confounds.tsv").write_text("\n".join([header, *lines]) + "\n")
    b0, fa = data[..., 0], rng.uniform(0, 1, mask.shape)
    return {
        "raw_dwi": raw, "raw_bval": bval, "raw_bvec": bvec,
        "preproc_dwi": raw, "preproc_bval": bval, "preproc_bvec": bvec,
        "mask": image("mask", mask), "dwiref": image("dwiref", b0), "sigma": NOISE,
        "confounds": str(folder / "confounds.tsv"), "t1w": image("t1w", 600 - b0),
        "dwiref_in_template": image("moved", b0), "template": image("template", b0),
        "mask_in_template": image("moved_mask", mask), "template_mask": image("template_mask", mask),
        "sdc_before": image("before", b0), "sdc_after": image("after", b0),
        "reverse_before": image("reverse_before", np.roll(b0, 3, axis=1)),
        "reverse_after": image("reverse_after", b0),
        "methods": ["clean"], "generated": [image("made", made)], "generated_bval": [bval],
        "generated_bvec": [bvec], "generated_record": [str(folder / "record.json")],
        "generated_std": [image("std", 0.1 * made)],
        "generated_left_out": [str(folder / "left_out.npz")],
        "map_sources": ["preproc", "clean"],
        "fa": [image("fa", fa), image("fa2", fa * 0.5)],
        "md": [image("md", np.full(mask.shape, 0.8e-3)), image("md2", np.full(mask.shape, 0.9e-3))],
        "dec": [image("dec", np.stack([fa] * 3, 3)), image("dec2", np.stack([fa] * 3, 3))],
    }  # fmt: skip


def test_all_figures_of_a_complete_run(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = RunFigures(**inputs).run().outputs
    keys = [key for key, _ in outputs.figures]
    assert outputs.skipped == {}
    assert keys == [
        "acquisition", "outliers", "motion", "carpet", "sdc", "mask", "registrationT1w",
        "registrationtemplate", "inputoutputclean", "addedclean", "leftoutclean", "residualclean",
        "histogramclean", "spreadclean",
        "fa", "fahistogram",
    ]  # fmt: skip
    assert all(key.isalnum() for key in keys)  # they become BIDS labels


def test_not_available_is_no_number(inputs):
    table = RunData(RunFigures(**inputs).inputs).confounds
    assert table.shape == (14, 7)
    assert np.argwhere(np.isnan(table)).tolist() == [[0, 6]]


def test_the_features_that_rish_latent_diffusion_changes_are_shown(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {**inputs, "rish_before": inputs["fa"], "rish_after": inputs["md"]}
    assert not any(key.startswith("rish") for key, _ in RunFigures(**given).run().outputs.figures), "another method's"
    outputs = RunFigures(**{**given, "methods": ["rishldm"]}).run().outputs
    assert Path(dict(outputs.figures)["rishrishldm"]).stat().st_size > 1000
    assert outputs.skipped == {}


def test_what_is_missing_is_skipped_with_its_reason(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask")
    outputs = RunFigures(**{name: inputs[name] for name in needed}).run().outputs
    keys = [key for key, _ in outputs.figures]
    assert keys == ["acquisition", "carpet", "mask", "skipped"]
    assert outputs.skipped["Registration to T1w"] == "no T1w image"
    assert outputs.skipped["Slice-wise outliers"] == "no raw series"
    page = dict(outputs.figures)["skipped"]
    assert "no motion estimates" in Path(page).read_text(encoding="utf-8")


def test_a_figure_that_cannot_be_drawn_costs_only_itself(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "t1w.nii"
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), AFFINE), broken)
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask", "dwiref")
    outputs = RunFigures(**{name: inputs[name] for name in needed}, t1w=str(broken)).run().outputs
    assert "mask" in [key for key, _ in outputs.figures]
    assert outputs.skipped["Registration to T1w"].startswith("drawing failed")


def test_metrics_of_a_complete_run(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = QualityMetrics(**inputs).run().outputs.out_metrics
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    for key, entry in entries.items():
        assert entry["value"] is not None, key
        assert entry["unit"], key
        assert entry["definition"] == DEFINITIONS[entry["metric"]].text, key
        assert entry["better"] in ("higher", "lower", None)
    value = {key: entry["value"] for key, entry in entries.items()}
    assert (value["n_volumes"], value["n_b0"], value["n_directions"]) == (14, 2, 12)
    assert value["mean_fd"] == pytest.approx(0.2)
    assert value["registration_dice"] == 1.0
    assert value["sdc_correlation_after"] == pytest.approx(1.0)
    assert value["sdc_correlation_before"] < 0.9
    assert value["md_median_preproc"] == pytest.approx(0.8)
    assert value["sample_spread_clean"] == pytest.approx(10.0, rel=1e-3)
    assert value["evaluations_clean"] == 4
    assert value["left_out_error_clean"] == pytest.approx(np.hypot(NOISE, 1) / NOISE, rel=0.1)
    assert value["left_out_psnr_clean"] > 20
    assert value["own_direction_contrast_clean"] == 0.7
    assert value["tensor_residual_clean"] < value["tensor_residual_preproc"]
    assert value["ndc_clean"] > value["ndc_preproc"]
    assert value["residual_std_clean"] == pytest.approx(np.hypot(NOISE, 1) / NOISE, rel=0.1)
    assert abs(value["residual_autocorrelation_clean"]) < 0.1
    assert value["direction_contrast_clean"] == pytest.approx(value["direction_contrast_preproc"], rel=0.1)


def test_a_method_in_which_nothing_is_random_has_no_spread(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    twice = {name: 2 * inputs[name] for name in inputs if name.startswith("generated") and name != "generated_std"}
    given = {**inputs, **twice, "methods": ["fixed", "clean"], "drawn_methods": ["clean"]}
    run = RunData(RunFigures(**given).inputs)
    assert run.spread("clean").any()
    with pytest.raises(Missing, match="nothing in the method is random"):
        run.spread("fixed")
    entries = json.loads(Path(QualityMetrics(**given).run().outputs.out_metrics).read_text(encoding="utf-8"))
    assert "sample_spread_clean" in entries
    assert "sample_spread_fixed" not in entries


@pytest.fixture
def with_maps(inputs, tmp_path) -> dict:
    """The same run, with a method that made maps and no series."""
    mask, affine = nib.load(inputs["mask"]).get_fdata() > 0, AFFINE

    def image(name, values):
        nib.save(nib.Nifti1Image(np.asarray(values, np.float32), affine), tmp_path / name)
        return str(tmp_path / name)

    fa = 0.25 * mask
    record = tmp_path / "maps.json"
    model = {"Maps": ["fa", "md", "dec"], "Volumes": {"b0": [0], "b=1000": [1]}, "Checks": {"colour_mismatch": 0.03}}
    record.write_text(json.dumps({"Synthetic": True, "GenerativeModel": model}))
    added = {
        "fa": image("made_fa.nii", fa),
        "md": image("made_md.nii", 3e-3 * fa),
        "dec": image("made_dec.nii", np.stack([fa, 0 * fa, 0 * fa], 3)),
    }
    spread = {
        "fa_std": [image("fa_std.nii", 0.2 * fa)],
        "md_std": [image("md_std.nii", 4e-4 * fa)],
        "dec_std": [image("dec_std.nii", np.stack([0.2 * fa] * 3, 3))],
    }
    lists = {kind: [*inputs[kind], path] for kind, path in added.items()}
    sources = [*inputs["map_sources"], "mapped"]
    return {**inputs, **lists, "map_sources": sources, "map_methods": ["mapped"], "map_record": [str(record)], **spread}


def test_a_method_that_makes_maps_is_shown_and_measured_beside_the_others(with_maps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    series = [name for name in with_maps if name.startswith(("methods", "generated", "raw", "sdc", "template", "t1w"))]
    given = {name: value for name, value in with_maps.items() if name not in series}  # drawn elsewhere
    outputs = RunFigures(**given).run().outputs
    keys = [key for key, _ in outputs.figures]
    assert [key for key in keys if "mapped" in key] == ["tensorcheckmapped", "volumecheckmapped", "spreadmapped"]
    assert {"fa", "fahistogram"} <= set(keys)
    assert not any("mapped" in title for title in outputs.skipped)
    path = QualityMetrics(**with_maps).run().outputs.out_metrics
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    found = {key.removesuffix("_mapped"): e["value"] for key, e in entries.items() if key.endswith("_mapped")}
    assert found.keys() == {
        "fa_median", "md_median", "fa_difference", "fa_spread", "md_spread", "colour_mismatch",
        "data_residual", "data_residual_fit",
    }  # fmt: skip
    assert (found["fa_median"], found["colour_mismatch"]) == (0.25, 0.03)
    assert found["md_median"] == pytest.approx(0.75)
    assert (found["fa_spread"], found["md_spread"]) == pytest.approx((0.05, 0.1))
    assert found["data_residual"] > found["data_residual_fit"] > 0, "these maps are not those of the data"
    mask, preproc = nib.load(with_maps["mask"]).get_fdata() > 0, nib.load(with_maps["fa"][0]).get_fdata()
    assert found["fa_difference"] == pytest.approx(np.abs(0.25 - preproc[mask]).mean(), rel=1e-4)
    for key in found:
        assert entries[f"{key}_mapped"]["definition"] == DEFINITIONS[key].text


def test_maps_of_a_method_alone_have_nothing_to_be_compared_with(with_maps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask", "map_methods", "map_record")
    given = {name: with_maps[name] for name in kept}
    given |= {kind: with_maps[kind][-1:] for kind in ("fa", "md", "dec")} | {"map_sources": ["mapped"]}
    outputs = RunFigures(**given).run().outputs
    assert {"fa", "fahistogram"} <= {key for key, _ in outputs.figures}
    assert outputs.skipped["mapped: spread of the samples"] == "one sample only (--n-samples)"
    assert outputs.skipped["mapped: a check against the data"] == "no noise level"
    entries = json.loads(Path(QualityMetrics(**given).run().outputs.out_metrics).read_text(encoding="utf-8"))
    assert "fa_median_mapped" in entries
    assert not {"fa_difference_mapped", "fa_spread_mapped", "ndc_mapped"} & set(entries)


def test_metrics_need_only_the_series_and_its_mask(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask")
    path = QualityMetrics(**{name: inputs[name] for name in needed}).run().outputs.out_metrics
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    assert {"n_volumes", "mask_volume", "ndc_preproc", "tensor_residual_preproc"} <= set(entries)
    assert not {"b0_snr", "mean_fd", "registration_dice"} & set(entries)


@pytest.mark.parametrize("kept", ["AcquiredVolumes", "InputVolumes"])  # the latter where a method made the input
def test_residual_pairs_volumes_by_direction_and_leaves_kept_ones_out(inputs, tmp_path, kept):
    table, order = tiny_gradients(), np.r_[0, 1, np.arange(13, 1, -1)]
    data = tiny_series(table, noise=NOISE)
    stem = str(write_run(tmp_path, "made", 0.9 * data[..., order], table[order], AFFINE)).removesuffix(".nii.gz")
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"GenerativeModel": {kept: [0, 1, 2, 3]}}))
    made = {
        "generated": [f"{stem}.nii.gz"],
        "generated_bval": [f"{stem}.bval"],
        "generated_bvec": [f"{stem}.bvec"],
        "generated_record": [str(record)],
    }
    run = RunData(RunFigures(**{**inputs, **made}).inputs)
    assert np.flatnonzero(~run.generated("clean")[2]).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(run.removed("clean"), 0.1 * data[..., order[4:]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["one slice", "empty mask", "constant"])
def test_odd_series_are_measured_as_far_as_possible(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    table = tiny_gradients(7, 1)
    data = tiny_series(table)
    mask = data[..., 0] > 100
    if kind == "one slice":
        data, mask = data[:, :, 8:9], mask[:, :, 8:9]
    elif kind == "empty mask":
        mask = np.zeros_like(mask)
    else:
        data = np.full_like(data, 7.0)
    raw = str(write_run(tmp_path, "raw", data, table, AFFINE))
    nib.save(nib.Nifti1Image(mask.astype(np.float32), AFFINE), "mask.nii")
    given = {"preproc_dwi": raw, "mask": str(tmp_path / "mask.nii"), "sigma": 5.0}
    given |= {f"preproc_{end}": raw.replace("nii.gz", end) for end in ("bval", "bvec")}
    given |= {"methods": ["copy"], "generated": [raw]}
    given |= {f"generated_{end}": [raw.replace("nii.gz", end)] for end in ("bval", "bvec")}
    entries = json.loads(Path(QualityMetrics(**given).run().outputs.out_metrics).read_text(encoding="utf-8"))
    assert entries["n_volumes"]["value"] == 8
    assert ("ndc_preproc" in entries) == (kind != "empty mask")
    assert all(entry["value"] is not None for entry in entries.values())
    figures = RunFigures(**given).run().outputs
    assert {"acquisition", "mask"} <= {key for key, _ in figures.figures}
    failed = [why for why in figures.skipped.values() if "failed" in why]
    assert failed == (["drawing failed: the brain mask is empty"] if kind == "empty mask" else [])


def test_a_single_b0_has_no_scheme_and_no_carpet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tiny_gradients(7, 1)
    data = tiny_series(table)[..., table.is_b0]
    raw = str(write_run(tmp_path, "raw", data, table[table.is_b0], AFFINE))
    nib.save(nib.Nifti1Image((data[..., 0] > 100).astype(np.float32), AFFINE), "mask.nii")
    given = {"preproc_dwi": raw, "mask": str(tmp_path / "mask.nii"), "sigma": 5.0}
    given |= {f"preproc_{end}": raw.replace("nii.gz", end) for end in ("bval", "bvec")}
    figures = RunFigures(**given).run().outputs
    assert "mask" in {key for key, _ in figures.figures}
    assert figures.skipped["Sampling scheme"] == "no diffusion-weighted volume was acquired"
    assert figures.skipped["Signal of every voxel"] == "the series has one volume"


def test_same_volumes_match_by_direction_and_not_by_place():
    table = tiny_gradients(6, 1)
    order = np.array([0, 4, 2, 6, 1, 5, 3])
    shuffled = GradientTable(table.bvals[order], -table.bvecs[order])
    made = np.ones(7, bool)
    made[1] = False
    pairs = same_volumes(table, shuffled, made)
    assert pairs == [(int(order[k]), k) for k in range(2, 7)]
    other_shell = GradientTable(table.bvals * 2, table.bvecs)
    assert same_volumes(table, other_shell, made) == []


def test_a_direction_measured_twice_pairs_with_itself():
    bvals, bvecs = np.r_[0, 1000, 1000.0], np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0.0]])
    table = GradientTable(bvals, bvecs)
    assert same_volumes(table, table, np.ones(3, bool)) == [(1, 1), (2, 2)]
