"""Images that look like diffusion runs and are none: each is said, and none is taken for another subject."""

import shutil

import pytest

from bids_dmrigen.bids.leftovers import leftovers
from bids_dmrigen.bids.query import find_runs, open_layout


@pytest.mark.parametrize("label", ["ż", "$(id)", "01;b", "01 b", b"\xff\xfe"])
def test_a_subject_folder_of_an_odd_name_is_said_and_not_taken_for_another(dataset, label):
    folder = dataset / f"sub-{label if isinstance(label, str) else label.decode('utf-8', 'surrogateescape')}"
    shutil.copytree(dataset / "sub-01", folder)
    for path in list(folder.rglob("sub-01*")):
        path.rename(path.with_name(path.name.replace("sub-01", folder.name)))
    assert [run.name for run in find_runs(open_layout(dataset))] == ["sub-01", "sub-02"]
    (sentence,) = leftovers(dataset)
    sentence.encode()
    assert "is no BIDS label (letters and digits); not processed" in sentence
    assert leftovers(dataset, ["01"]) == []


def test_an_odd_label_inside_a_name_is_said(dataset):
    for path in (dataset / "sub-01/dwi").iterdir():
        shutil.copy(path, path.with_name(path.name.replace("_dwi", "_acq-a.b_dwi")))
        shutil.copy(path, path.with_name(path.name.replace("_dwi", "_dir-a b_dwi")))
    assert [run.name for run in find_runs(open_layout(dataset))] == ["sub-01", "sub-02"]
    said = leftovers(dataset)
    for odd in ("dir-a b", "acq-a.b"):
        assert any(f"{odd!r} is no BIDS label" in sentence for sentence in said)


def test_a_suffix_in_capitals_is_said(dataset):
    image = dataset / "sub-01/dwi/sub-01_dwi.nii.gz"
    image.rename(image.with_name("sub-01_DWI.nii.gz"))
    (sentence,) = leftovers(dataset)
    assert "sub-01_DWI.nii.gz: the suffix DWI" in sentence
    assert "rename it to sub-01_dwi.nii.gz" in sentence


def test_a_run_without_magnitude_is_said_once(dataset):
    folder = dataset / "sub-01/dwi"
    shutil.copy(folder / "sub-01_dwi.nii.gz", folder / "sub-01_run-2_part-mag_dwi.nii.gz")
    for name in ("part-real", "part-imag", "run-2_part-phase"):
        shutil.copy(folder / "sub-01_dwi.nii.gz", folder / f"sub-01_{name}_dwi.nii.gz")
    assert leftovers(dataset) == []  # of the first run there is a magnitude, without a part
    (folder / "sub-01_dwi.nii.gz").unlink()
    (sentence,) = leftovers(dataset)
    assert "only imag and real" in sentence


def test_the_selection_limits_what_is_said(dataset):
    image = dataset / "sub-01/dwi/sub-01_dwi.nii.gz"
    image.rename(image.with_name("sub-01_DWI.nii.gz"))
    assert leftovers(dataset, ["02"]) == []
    assert len(leftovers(dataset, ["01"])) == 1
    assert leftovers(dataset, ["01"], ["a"]) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dwi/sub-01_dti.nii.gz", "ends in _dwi.nii"),
        ("dwi/sub-01_dwi_AP.nii.gz", "ends in _dwi.nii"),
        ("dwi/DTI_64dir.nii.gz", "ends in _dwi.nii"),
        ("dwi/sub-01_run-2_dwi.NII.GZ", "only .nii and .nii.gz files are read"),
        ("dwi/sub-01_run-2_dwi.img", "only .nii and .nii.gz files are read"),
        ("dwi/sub-01_run-2_dwi.mif.gz", "only .nii and .nii.gz files are read"),
        ("sub-01_dwi.nii.gz", "lies in a folder dwi/"),
        ("ses-1/sub-01_ses-1_dwi.nii.gz", "lies in a folder dwi/"),
        ("DWI/sub-01_dwi.nii.gz", "BIDS has this folder as dwi"),
    ],
)
def test_an_image_that_looks_like_a_run_is_said(dataset, name, said):
    path = dataset / "sub-01" / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(dataset / "sub-02/dwi/sub-02_dwi.nii.gz", path)
    assert [run.name for run in find_runs(open_layout(dataset))] == ["sub-01", "sub-02"]
    (sentence,) = leftovers(dataset)
    assert said in sentence
    assert sentence.startswith(str(path if "folder as" not in said else path.parent))


@pytest.mark.parametrize("name", ["sbref", "acq-dti_ADC", "desc-eddy_dwi", "space-T1w_dwi"])
def test_other_images_of_the_folder_are_not_said(dataset, name):
    shutil.copy(dataset / "sub-02/dwi/sub-02_dwi.nii.gz", dataset / f"sub-01/dwi/sub-01_{name}.nii.gz")
    assert leftovers(dataset) == []


def test_what_stands_at_the_place_of_a_subject_is_said(dataset):
    (dataset / "sub-03").write_text("")
    (dataset / "sub-04").symlink_to("nowhere")
    (dataset / "sub-05").symlink_to("sub-05")
    shutil.copytree(dataset / "sub-01", dataset / "Sub-06")
    said = leftovers(dataset)
    assert len(said) == 4
    for name in ("sub-03", "sub-04", "sub-05", "Sub-06"):
        assert any(f"{dataset / name}" in sentence for sentence in said)
