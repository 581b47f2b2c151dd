"""`dmrigen prepare --adc-atlas` and `--in-template`: of simulated subjects and of preprocessed runs."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.cli.tools import main
from bids_dmrigen.diffusion.arrays import Prepared
from bids_dmrigen.diffusion.weights import read_card
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.simulate.atlas_file import save_atlas
from bids_dmrigen.spatial.population import read_adc_atlas
from tests.conftest import write_dataset, write_run
from tests.simulate.conftest import AFFINE, make_ball

# 4 mm voxels, left last, and a head that lies 8 mm further to the right and 12 mm lower than the template's.
SCAN_AFFINE = np.array([[-4.0, 0, 0, 50], [0, 4.0, 0, -60], [0, 0, 4.0, -42], [0, 0, 0, 1]])
SHAPE = (24, 30, 22)
SHIFT = np.array([8.0, 0.0, -12.0])
TEMPLATE = "MNI152NLin6Asym"


@pytest.fixture
def atlas(tmp_path):
    return save_atlas(tmp_path / "ball.safetensors", make_ball())


def add_run(root, subject, shells, template=TEMPLATE, run="", noise=0.0):
    """Write a preprocessed run: a ball of isotropic tissue, {b-value: diffusivity}, and its transforms."""
    from bids_dmrigen.spatial.ants_tools import write_matrix

    directions = even_directions(6)
    bvals = np.r_[0.0, np.repeat(list(shells), 6)]
    gradients = GradientTable(bvals, np.r_[np.zeros((1, 3)), *[directions] * len(shells)])
    diffusivity = np.r_[0.0, np.repeat(list(shells.values()), 6)]
    points = np.moveaxis(np.indices(SHAPE), 0, -1) @ SCAN_AFFINE[:3, :3].T + SCAN_AFFINE[:3, 3]
    inside = np.linalg.norm(points - SHIFT, axis=-1) < 25
    data = (900 * inside[..., None] * np.exp(-bvals * diffusivity)).astype(np.float32)
    data *= 1 + noise * np.random.default_rng(0).standard_normal(data.shape, dtype=np.float32)
    folder, stem = root / f"sub-{subject}" / "dwi", f"sub-{subject}" + f"_run-{run}" * bool(run)
    write_run(folder, f"{stem}_desc-preproc", data, gradients, SCAN_AFFINE)
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), SCAN_AFFINE), folder / f"{stem}_desc-brain_mask.nii.gz")
    if template:
        onto = np.eye(4)
        onto[:3, 3] = SHIFT  # what resamples the scan onto the template leads from the template's points to the scan's
        write_matrix(folder / f"{stem}_from-dwi_to-{template}_mode-image_xfm.h5", onto)


@pytest.fixture
def derivative(tmp_path):
    root = tmp_path / "derived"
    root.mkdir()
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "preprocessed", "BIDSVersion": "1.10.0", "DatasetType": "derivative"})
    )
    return root


def adc(source, out, *options):
    return main(["prepare", "--adc-atlas", str(source), str(out), *map(str, options)])


def test_simulated_subjects_become_an_atlas(tmp_path, atlas, capsys):
    out = tmp_path / "adc.nii.gz"
    assert adc(atlas, out, "--subjects", 2, "--bvalues", 2000, 700) == 0
    data, bvals, affine = read_adc_atlas(out)
    np.testing.assert_array_equal(bvals, [700, 2000])
    np.testing.assert_array_equal(affine, AFFINE)
    middle = tuple(n // 2 for n in data.shape[:3])
    assert 0.4e-3 < data[middle][1] < data[middle][0] < 1.1e-3
    assert (data[0] == 0).all()
    assert json.loads((tmp_path / "adc.json").read_text()) == {
        "BValues": [700.0, 2000.0],
        "Units": "mm^2/s",
        "Source": "simulated subjects of ball.safetensors",
        "Subjects": 2,
        "Space": "MNI152",
    }
    assert "2 of 2 subjects" in capsys.readouterr().out
    assert adc(atlas, out, "--subjects", 1, "--bvalues", 1000, "--voxel-mm", 4) == 0
    coarse, _, affine = read_adc_atlas(out)
    assert coarse.shape == (15, 16, 14, 1)
    np.testing.assert_allclose(np.diag(affine)[:3], 4)


def test_preprocessed_runs_are_averaged_in_the_template(tmp_path, derivative, capsys):
    add_run(derivative, "01", {1050: 0.8e-3, 2000: 0.6e-3})
    add_run(derivative, "02", {900: 1.0e-3})
    out = tmp_path / "adc.nii.gz"
    assert adc(derivative, out, "--bvalues", 1000, 2000) == 0
    data, _, affine = read_adc_atlas(out)
    assert (data.shape, affine[0, 0]) == ((91, 109, 91, 2), 2.0)
    points = np.moveaxis(np.indices(data.shape[:3]), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(points, axis=-1)  # the template's ball is about the origin
    np.testing.assert_allclose(data[distance < 22][:, 0], 0.9e-3, rtol=2e-3)
    np.testing.assert_allclose(data[distance < 22][:, 1], 0.6e-3, rtol=2e-3)
    assert (data[distance > 29] == 0).all()
    sidecar = json.loads((tmp_path / "adc.json").read_text())
    expected = {"Source": "derived", "Subjects": [2, 1], "Runs": [2, 1], "Space": TEMPLATE}
    assert {name: sidecar[name] for name in expected} == expected

    capsys.readouterr()
    assert adc(derivative, out) == 1  # no scan has b=3000
    message = capsys.readouterr().err
    assert "no run has a shell near b = 3000 s/mm² (found: 900, 1050, 2000)" in message
    assert adc(derivative, out, "--bvalues", 1000, "--subjects", 3) == 1
    assert "--subjects is for simulated subjects" in capsys.readouterr().err


def test_every_subject_weighs_the_same_however_many_runs(tmp_path, derivative):
    for run, diffusivity in (("1", 0.6e-3), ("2", 0.7e-3), ("3", 0.8e-3)):
        add_run(derivative, "01", {1000: diffusivity}, run=run)
    add_run(derivative, "02", {1000: 1.1e-3, 2000: 0.5e-3})
    assert adc(derivative, tmp_path / "adc.nii.gz", "--bvalues", 1000, 2000) == 0
    data, _, _ = read_adc_atlas(tmp_path / "adc.nii.gz")
    middle = (45, 63, 36)  # the template's origin
    np.testing.assert_allclose(data[middle], [0.9e-3, 0.5e-3], rtol=2e-3)  # over runs it would be 0.8e-3
    sidecar = json.loads((tmp_path / "adc.json").read_text())
    assert (sidecar["Subjects"], sidecar["Runs"]) == ([2, 1], [4, 1])


def test_a_run_without_a_transform_is_left_out_and_two_templates_are_refused(tmp_path, derivative, capsys):
    add_run(derivative, "01", {1000: 0.8e-3})
    add_run(derivative, "02", {1000: 1.0e-3}, template=None)
    out = tmp_path / "adc.nii.gz"
    assert adc(derivative, out, "--bvalues", 1000) == 1
    printed = capsys.readouterr().err
    assert "left out: sub-02: expected one sub-02_from-dwi_to-*_mode-image_xfm.h5" in printed
    sidecar = json.loads((tmp_path / "adc.json").read_text())
    assert (sidecar["Subjects"], sidecar["Runs"]) == ([1], [1])
    add_run(derivative, "02", {1000: 1.0e-3}, template="Own")
    assert adc(derivative, tmp_path / "other.nii.gz", "--bvalues", 1000) == 1
    assert f"runs registered to one template, found {TEMPLATE}, Own" in capsys.readouterr().err
    assert not (tmp_path / "other.nii.gz").exists()


def test_runs_come_onto_the_grid_of_the_template_and_one_method_trains_on_them(tmp_path, derivative, atlas, capsys):
    for subject in "ab":
        add_run(derivative, subject, {1000.0: 0.8e-3}, noise=0.02)
    out = tmp_path / "placed.safetensors"
    assert main(["prepare", "--in-template", str(derivative), str(out)]) == 0
    assert f"voxels of {TEMPLATE}" in capsys.readouterr().out
    scans = Prepared(out)
    assert scans.template == TEMPLATE
    mask, affine = scans.place(0)
    middle = np.argwhere(mask).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(middle, 0, atol=0.5)
    scan = scans.scan(0)
    np.testing.assert_allclose(scan.data[scan.mask][:, 1:].mean() / 900, np.exp(-0.8), rtol=0.02)

    options = ["--out", str(tmp_path / "o"), "--atlas", str(atlas), "--steps", "1", "--batch", "4", "--device", "cpu"]
    assert main(["train", "phydiff", "--data", str(out), *options]) == 0
    trained_on = read_card(tmp_path / "o" / "phydiff-small.safetensors").trained_on
    assert (trained_on["examples"], trained_on["adc_atlas"]) == ("prepared scans", "packaged")
    assert (trained_on["train"], trained_on["held out"]) == (["sub-b"], ["sub-a"])
    assert main(["train", "qid2", "--data", str(out), *options]) == 1
    assert "without --in-template" in capsys.readouterr().err
    on_their_own = tmp_path / "own.safetensors"
    assert main(["prepare", str(derivative), str(on_their_own)]) == 0
    assert main(["train", "phydiff", "--data", str(on_their_own), *options]) == 1
    assert "prepare --in-template" in capsys.readouterr().err


def test_runs_of_two_templates_do_not_share_a_grid(tmp_path, derivative, capsys):
    add_run(derivative, "a", {1000.0: 0.8e-3}, noise=0.02)
    add_run(derivative, "b", {1000.0: 0.8e-3}, template="other", noise=0.02)
    assert main(["prepare", "--in-template", str(derivative), str(tmp_path / "o.safetensors")]) == 1
    assert "registered to one template" in capsys.readouterr().err


def test_an_impossible_adc_atlas_is_refused_with_the_reason(tmp_path, atlas, capsys):
    out = tmp_path / "adc.nii.gz"
    for source, target, options, status, message in (
        (atlas, tmp_path / "adc.safetensors", (), 1, "has to end with .nii.gz"),
        (write_dataset(tmp_path / "raw"), out, (), 1, "found a raw dataset; run bids_dmrigen on it"),
        (tmp_path / "absent", out, (), 4, "no such file"),
        (atlas, out, ("--subjects", 0), 1, "at least one, found 0"),
        (atlas, out, ("--bvalues", 0), 1, "expected increasing values above 50"),
        (atlas, out, ("--voxel-mm", 0), 1, "expected an edge in mm above 0"),
    ):
        assert adc(source, target, *options) == status
        assert message in capsys.readouterr().err
    assert main(["prepare", "--atlas", str(atlas), str(tmp_path / "a.safetensors"), "--subjects", "2"]) == 1
    assert "--subjects is for --adc-atlas alone" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        adc(atlas, out, "--atlas")
    assert stop.value.code == 2
