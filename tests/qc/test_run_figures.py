"""The figures of a tiny run, with all inputs and with very few."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.qc.run_data import Missing, RunData, RunFiles
from bids_dmrigen.qc.run_figures import draw_figures

from ..conftest import tiny_gradients, tiny_series, write_run
from .runs import AFFINE


def test_all_figures_of_a_complete_run(inputs, tmp_path):
    figures, skipped = draw_figures(RunData(RunFiles(**inputs)), tmp_path)
    keys = [key for key, _ in figures]
    assert skipped == {}
    assert keys == [
        "acquisition", "outliers", "motion", "carpet", "sdc", "mask", "registrationT1w",
        "registrationtemplate", "inputoutputclean", "addedclean", "leftoutclean", "residualclean",
        "histogramclean", "uncertaintyclean",
        "fa", "fahistogram",
    ]  # fmt: skip
    assert all(key.isalnum() for key in keys)  # they become BIDS labels


def test_the_features_that_a_method_changes_are_shown(inputs, tmp_path):
    given = {**inputs, "rish_before": inputs["fa"], "rish_after": inputs["md"], "rish_methods": ["other"]}
    figures, _ = draw_figures(RunData(RunFiles(**given)), tmp_path)
    assert not any(key.startswith("rish") for key, _ in figures), "another method's"
    figures, skipped = draw_figures(RunData(RunFiles(**{**given, "rish_methods": ["clean"]})), tmp_path)
    assert Path(dict(figures)["rishclean"]).stat().st_size > 1000
    assert skipped == {}


def test_features_before_and_after_are_those_of_the_method(inputs):
    before, after = [inputs["fa"][0]] * 2, [inputs["md"][0]] * 2 + [inputs["fa"][0]] * 2
    run = RunData(RunFiles(rish_before=before, rish_after=after, rish_methods=["first", "second"]))
    md, fa = (nib.load(inputs[name][0]).get_fdata(dtype=np.float32) for name in ("md", "fa"))
    for method, expected in (("first", md), ("second", fa)):
        for changed in run.rish(method)[1]:
            np.testing.assert_array_equal(changed, expected)
    with pytest.raises(Missing, match="does not change"):
        run.rish("third")


def test_additional_maps_are_drawn_for_the_method_that_generated_them(inputs, tmp_path):
    given = {**inputs, "extra": inputs["fa"][:1], "extra_methods": ["clean"], "extra_titles": ["Trust"]}
    figures, _ = draw_figures(RunData(RunFiles(**given)), tmp_path)
    assert Path(dict(figures)["extraclean"]).stat().st_size > 1000
    assert "extraclean" not in dict(draw_figures(RunData(RunFiles(**inputs)), tmp_path)[0])


def test_a_field_map_is_shown_beside_the_corrected_b0(inputs, tmp_path):
    given = {name: value for name, value in inputs.items() if not name.startswith("reverse")}
    figures, skipped = draw_figures(RunData(RunFiles(**{**given, "field_magnitude": inputs["sdc_before"]})), tmp_path)
    assert [key for key, _ in figures][4:7] == ["sdc", "fieldmap", "mask"]
    assert "magnitude" in Path(dict(figures)["fieldmap"]).read_text()
    assert skipped == {}


def test_what_is_missing_is_skipped_with_its_reason(inputs, tmp_path):
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask")
    figures, skipped = draw_figures(RunData(RunFiles(**{name: inputs[name] for name in needed})), tmp_path)
    keys = [key for key, _ in figures]
    assert keys == ["acquisition", "carpet", "mask", "skipped"]
    assert skipped["Registration to T1w"] == "no T1w image"
    assert skipped["Slice-wise outliers"] == "no raw series"
    page = dict(figures)["skipped"]
    assert "no motion estimates" in Path(page).read_text(encoding="utf-8")


def test_a_figure_that_cannot_be_drawn_costs_only_itself(inputs, tmp_path):
    broken = tmp_path / "t1w.nii"
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), AFFINE), broken)
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask", "dwiref")
    files = RunFiles(**{name: inputs[name] for name in needed}, t1w=str(broken))
    figures, skipped = draw_figures(RunData(files), tmp_path)
    assert "mask" in [key for key, _ in figures]
    assert skipped["Registration to T1w"].startswith("drawing failed")


def test_a_single_b0_has_no_scheme_and_no_carpet(tmp_path):
    table = tiny_gradients(7, 1)
    data = tiny_series(table)[..., table.is_b0]
    raw = str(write_run(tmp_path, "raw", data, table[table.is_b0], AFFINE))
    nib.save(nib.Nifti1Image((data[..., 0] > 100).astype(np.float32), AFFINE), tmp_path / "mask.nii")
    given = {"preproc_dwi": raw, "mask": str(tmp_path / "mask.nii"), "sigma": 5.0}
    given |= {f"preproc_{end}": raw.replace("nii.gz", end) for end in ("bval", "bvec")}
    figures, skipped = draw_figures(RunData(RunFiles(**given)), tmp_path)
    assert "mask" in {key for key, _ in figures}
    assert skipped["Sampling scheme"] == "no diffusion-weighted volume was acquired"
    assert skipped["Signal of every voxel"] == "the series has one volume"
