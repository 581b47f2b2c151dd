"""The quality metrics of a tiny run, with all inputs and with very few."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.methods.maps.task import MISMATCH
from bids_dmrigen.qc.metrics import DEFINITIONS
from bids_dmrigen.qc.run_data import Missing, RunData, RunFiles
from bids_dmrigen.qc.run_figures import draw_figures
from bids_dmrigen.qc.run_metrics import measure

from ..conftest import tiny_gradients, tiny_series, write_run
from .runs import AFFINE, NOISE

OWN_CHECKS = {"evaluations_clean", "own_direction_contrast_clean"}  # of a method that is in no registry


def test_metrics_of_a_complete_run(inputs, tmp_path):
    entries = measure(RunData(RunFiles(**inputs)))
    for key, entry in entries.items():
        assert entry["value"] is not None, key
        definition = DEFINITIONS.get(entry["metric"])
        assert definition is not None or key in OWN_CHECKS, key
        assert entry["unit"] or key in OWN_CHECKS, key
        assert entry["definition"] == (definition.text if definition else entry["definition"]), key
        assert entry["better"] in ("higher", "lower", None)
    value = {key: entry["value"] for key, entry in entries.items()}
    assert (value["n_volumes"], value["n_b0"], value["n_directions"]) == (14, 2, 12)
    assert value["mean_fd"] == pytest.approx(0.2)
    assert value["registration_dice"] == 1.0
    assert value["sdc_correlation_after"] == pytest.approx(1.0)
    assert value["sdc_correlation_before"] < 0.9
    assert value["md_median_preproc"] == pytest.approx(0.8)
    assert value["md_error_clean"] == pytest.approx(0.05)
    assert value["evaluations_clean"] == 4
    assert value["left_out_error_clean"] == pytest.approx(np.hypot(NOISE, 1) / NOISE, rel=0.1)
    assert value["left_out_psnr_clean"] > 20
    assert value["own_direction_contrast_clean"] == 0.7
    assert value["tensor_residual_clean"] < value["tensor_residual_preproc"]
    assert value["ndc_clean"] > value["ndc_preproc"]
    assert value["residual_std_clean"] == pytest.approx(np.hypot(NOISE, 1) / NOISE, rel=0.1)
    assert abs(value["residual_autocorrelation_clean"]) < 0.1
    assert value["direction_contrast_clean"] == pytest.approx(value["direction_contrast_preproc"], rel=0.1)


def test_each_method_has_its_own_standard_errors_and_some_have_none(inputs_with_maps):
    run = RunData(RunFiles(**inputs_with_maps))
    for method, part in (("clean", 0.1), ("mapped", 0.2)):
        best, error = run.uncertainty(method)["fa"]
        inside = best > 0
        np.testing.assert_allclose(error[inside] / best[inside], part * (2 if method == "clean" else 1), rtol=1e-4)
    with pytest.raises(Missing, match="no samples were drawn"):
        run.uncertainty("fixed")
    without = {name: value for name, value in inputs_with_maps.items() if name != "uncertain_methods"}
    assert not [key for key in measure(RunData(RunFiles(**without))) if key.startswith(("fa_error", "md_error"))]


def test_a_method_that_generates_maps_is_shown_and_measured_beside_the_others(inputs_with_maps, tmp_path):
    elsewhere = ("methods", "generated", "raw", "sdc", "template", "t1w")  # where these are drawn
    given = {name: value for name, value in inputs_with_maps.items() if not name.startswith(elsewhere)}
    figures, skipped = draw_figures(RunData(RunFiles(**given)), tmp_path)
    keys = [key for key, _ in figures]
    assert [key for key in keys if "mapped" in key] == ["tensorcheckmapped", "volumecheckmapped", "uncertaintymapped"]
    assert {"fa", "fahistogram"} <= set(keys)
    assert not any("mapped" in title for title in skipped)
    entries = measure(RunData(RunFiles(**inputs_with_maps)))
    found = {key.removesuffix("_mapped"): e["value"] for key, e in entries.items() if key.endswith("_mapped")}
    assert found.keys() == {
        "fa_median", "md_median", "fa_difference", "fa_error", "md_error", "colour_mismatch",
        "data_residual", "data_residual_fit",
    }  # fmt: skip
    assert (found["fa_median"], found["colour_mismatch"]) == (0.25, 0.03)
    assert found["md_median"] == pytest.approx(0.75)
    assert (found["fa_error"], found["md_error"]) == pytest.approx((0.05, 0.1))
    assert found["data_residual"] > found["data_residual_fit"] > 0, "these maps are not those of the data"
    mask, preproc = nib.load(inputs_with_maps["mask"]).get_fdata() > 0, nib.load(inputs_with_maps["fa"][0]).get_fdata()
    assert found["fa_difference"] == pytest.approx(np.abs(0.25 - preproc[mask]).mean(), rel=1e-4)
    for key in found.keys() - {"colour_mismatch"}:
        assert entries[f"{key}_mapped"]["definition"] == DEFINITIONS[key].text


def test_checks_of_its_own_are_defined_by_the_method(inputs_with_maps):
    renamed = {name: ["diffdti" if v == "mapped" else v for v in inputs_with_maps[name]]
               for name in ("map_methods", "map_sources")}  # fmt: skip
    entries = measure(RunData(RunFiles(**{**inputs_with_maps, **renamed})))
    assert entries["colour_mismatch_diffdti"]["definition"] == MISMATCH.text


def test_maps_of_one_method_alone_have_no_comparison(inputs_with_maps, tmp_path):
    kept = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask", "map_methods", "map_record")
    given = {name: inputs_with_maps[name] for name in kept}
    given |= {kind: inputs_with_maps[kind][-1:] for kind in ("fa", "md", "dec")} | {"map_sources": ["mapped"]}
    figures, skipped = draw_figures(RunData(RunFiles(**given)), tmp_path)
    assert {"fa", "fahistogram"} <= {key for key, _ in figures}
    assert "no samples were drawn" in skipped["mapped: uncertainty of the maps"]
    assert skipped["mapped: a check against the data"] == "no noise level"
    entries = measure(RunData(RunFiles(**given)))
    assert "fa_median_mapped" in entries
    assert not {"fa_difference_mapped", "fa_error_mapped", "ndc_mapped"} & set(entries)


def test_metrics_need_only_the_series_and_its_mask(inputs, tmp_path):
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask")
    entries = measure(RunData(RunFiles(**{name: inputs[name] for name in needed})))
    assert {"n_volumes", "mask_volume", "ndc_preproc", "tensor_residual_preproc"} <= set(entries)
    assert not {"b0_snr", "mean_fd", "registration_dice"} & set(entries)


@pytest.mark.parametrize("kind", ["one slice", "empty mask", "constant"])
def test_odd_series_are_measured_as_far_as_possible(tmp_path, kind):
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
    nib.save(nib.Nifti1Image(mask.astype(np.float32), AFFINE), tmp_path / "mask.nii")
    given = {"preproc_dwi": raw, "mask": str(tmp_path / "mask.nii"), "sigma": 5.0}
    given |= {f"preproc_{end}": raw.replace("nii.gz", end) for end in ("bval", "bvec")}
    given |= {"methods": ["copy"], "generated": [raw]}
    given |= {f"generated_{end}": [raw.replace("nii.gz", end)] for end in ("bval", "bvec")}
    entries = measure(RunData(RunFiles(**given)))
    assert entries["n_volumes"]["value"] == 8
    assert ("ndc_preproc" in entries) == (kind != "empty mask")
    assert all(entry["value"] is not None for entry in entries.values())
    figures, skipped = draw_figures(RunData(RunFiles(**given)), tmp_path)
    assert {"acquisition", "mask"} <= {key for key, _ in figures}
    failed = [why for why in skipped.values() if "failed" in why]
    assert failed == (["drawing failed: the brain mask is empty"] if kind == "empty mask" else [])
