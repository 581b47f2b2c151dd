"""The figures of a tiny run: everything there, and almost nothing there."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from bids_dmrigen.qc.run_data import RunData, RunFiles
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
        "histogramclean", "spreadclean",
        "fa", "fahistogram",
    ]  # fmt: skip
    assert all(key.isalnum() for key in keys)  # they become BIDS labels


def test_the_features_that_rish_latent_diffusion_changes_are_shown(inputs, tmp_path):
    given = {**inputs, "rish_before": inputs["fa"], "rish_after": inputs["md"]}
    figures, _ = draw_figures(RunData(RunFiles(**given)), tmp_path)
    assert not any(key.startswith("rish") for key, _ in figures), "another method's"
    figures, skipped = draw_figures(RunData(RunFiles(**{**given, "methods": ["rishldm"]})), tmp_path)
    assert Path(dict(figures)["rishrishldm"]).stat().st_size > 1000
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
