"""Sidecars of maps: fitted maps are called a fit, generated ones are not."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.sidecars import generative_model, image_sidecar, kept_volumes, template_record
from bids_dmrigen.interfaces.sink import Sink
from bids_dmrigen.methods import spec_of
from bids_dmrigen.methods.base import Generated, LeftOut

SOURCE = "bids::sub-1/dwi/sub-1_desc-preproc_dwi.nii.gz"


def test_a_fitted_map_is_a_fit_and_a_generated_one_is_not():
    fitted = image_sidecar("map", [SOURCE], param="dec", source="preproc")
    sidecar = image_sidecar("map", [SOURCE], param="dec", source="diffdti", title="Diff-DTI")
    assert fitted["Model"]["Parameters"] == {"FitMethod": "wls"}
    assert "from the preproc series" in fitted["Description"]
    assert "wls" not in json.dumps(sidecar)
    assert "made by Diff-DTI from b0 and the directions" in sidecar["Description"]
    assert "no tensor was fitted" in sidecar["Model"]["Description"]
    for key in ("OrientationEncoding", "Units", "SkullStripped", "Sources"):
        assert sidecar[key] == fitted[key]


@pytest.mark.parametrize(("key", "said"), [("std", "Standard error of md"), ("low", "5 %"), ("high", "95 %")])
def test_the_uncertainty_of_a_map_has_its_unit(key, said):
    sidecar = image_sidecar(f"map_{key}", [SOURCE], param="md", method="diffdti", title="Diff-DTI")
    assert sidecar["Units"] == "mm^2/s"
    assert sidecar["SkullStripped"]
    assert said in sidecar["Description"]
    assert "made by Diff-DTI" in sidecar["Description"]


def test_a_sample_of_the_tensor_says_the_order_of_its_components():
    sidecar = image_sidecar("map_sample", [SOURCE], number="3", method="diffdti", title="Diff-DTI")
    tensor = image_sidecar("map", [SOURCE], param="tensor", source="diffdti", title="Diff-DTI")
    for name in ("ComponentOrder", "OrientationEncoding", "Units"):
        assert sidecar[name] == tensor[name]
    assert "Sample 3" in sidecar["Description"]


def test_the_record_joins_every_map(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2, 3), np.float32), np.eye(4)), tmp_path / "dec.nii")
    record = {"Synthetic": True, "GenerativeModel": {"Method": "Diff-DTI", "Volumes": {"b0": [0], "b=1000": [1, 2, 3]}}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    target = "sub-1/dwi/sub-1_model-tensor_param-dec_desc-diffdti_dwimap"
    Sink(
        out_dir=str(tmp_path / "out"),
        in_files=[str(tmp_path / "dec.nii")],
        targets=[f"{target}.nii.gz"],
        sidecars=[image_sidecar("map", [SOURCE], param="dec", source="diffdti", title="Diff-DTI")],
        in_record=str(tmp_path / "record.json"),
    ).run(cwd=str(tmp_path))
    stored = json.loads((tmp_path / f"out/{target}.json").read_text())
    assert stored["GenerativeModel"] == record["GenerativeModel"]
    assert stored["Synthetic"] is True
    assert stored["Sources"] == [SOURCE]
    assert stored["OrientationEncoding"]["Type"] == "dec"


def test_the_sidecar_of_a_rish_map_describes_its_fit_and_its_voxels():
    sidecar = image_sidecar("rish_map", [SOURCE], param="rish2", source="preproc", shell="1000", order="4")
    assert "of degree 2" in sidecar["Description"]
    assert "from the preproc series at b = 1000 s/mm²" in sidecar["Description"]
    assert sidecar["Model"]["Parameters"]["SphericalHarmonicDegree"] == 4
    assert sidecar["Model"]["Parameters"]["Shells"] == [1000]
    assert "Resolution" not in sidecar
    finer = image_sidecar("rish_map", [], param="rish2", source="rishldm", shell="1000", order="4", voxel_mm="1.25")
    assert finer["Resolution"].startswith("Cubes of 1.25 mm")
    assert image_sidecar("generated_bval", [], method="rishldm", title="RISH", voxel_mm="1.25") == {}


def test_a_reader_of_the_record_finds_which_volumes_were_acquired_and_which_generated():
    """The keys are those of docs/outputs.md: whoever uses the data tells real from synthetic by them."""
    series = np.zeros((2, 2, 2, 5), np.float32)
    acquired = np.array([True, False, True, False, True])
    generated = Generated(series, None, None, (), acquired, {}, left_out=LeftOut(np.array([2]), series[..., :1]))
    sidecar = generative_model(spec_of("qid2"), generated)
    record = sidecar["GenerativeModel"]
    assert sidecar["Synthetic"] is True
    assert record["AcquiredVolumes"] == [0, 2, 4] == kept_volumes(record)
    assert record["GeneratedVolumes"] == [1, 3]
    assert record["LeftOutVolumes"] == [2]
    second = generative_model(spec_of("qid2"), generated, source=sidecar)["GenerativeModel"]
    assert "AcquiredVolumes" not in second, "what was kept of a generated series was not acquired"
    assert second["InputVolumes"] == [0, 2, 4] == kept_volumes(second)
    assert second["Input"] == record
    model = template_record(sidecar)["GenerativeModel"]
    assert model["ResampledVolumes"] == [0]
    assert model["GeneratedVolumes"] == [1, 2]
    assert not {"AcquiredVolumes", "LeftOutVolumes"} & set(model)
