"""The demo dataset: valid BIDS, reproducible, and its truth is true."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.cli.demo import Protocol, write_demo
from bids_dmrigen.spatial.io import read_scan

SMALL = Protocol(n_directions=7, n_b0=1, shape=(26, 32, 24), voxel_mm=6.6, t1w_mm=4, atlas_mm=4)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "data", seed=3, protocol=SMALL)


@pytest.fixture(scope="module")
def truth(demo):
    return demo / "derivatives" / "truth"


def scan_of(folder, stem):
    return read_scan(*(folder / f"{stem}.{e}" for e in ("nii.gz", "bval", "bvec")))[0]


@pytest.mark.parametrize("part", [".", "derivatives/truth"])
def test_the_validator_finds_no_error(demo, part):
    beside_python = Path(sys.executable).parent
    validator = shutil.which("bids-validator-deno") or shutil.which("bids-validator-deno", path=beside_python)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    result = subprocess.run([validator, str(demo / part), "--json"], capture_output=True, text=True)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []


def test_subjects_have_what_the_readme_promises(demo):
    images = sorted(p.relative_to(demo).as_posix() for p in demo.glob("sub-*/*/*.nii.gz"))
    assert images == [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/fmap/sub-01_dir-AP_epi.nii.gz",
        "sub-02/dwi/sub-02_dwi.nii.gz",
    ]
    dwi = json.loads((demo / "sub-01/dwi/sub-01_dwi.json").read_text())
    epi = json.loads((demo / "sub-01/fmap/sub-01_dir-AP_epi.json").read_text())
    assert (dwi["PhaseEncodingDirection"], epi["PhaseEncodingDirection"]) == ("j", "j-")
    assert epi["B0FieldIdentifier"] == dwi["B0FieldSource"]
    assert (demo / epi["IntendedFor"][0].removeprefix("bids::")).is_file()


def test_one_subject_is_oblique_and_left_handed_the_other_is_not(demo):
    first, second = (nib.load(demo / f"sub-0{s}/dwi/sub-0{s}_dwi.nii.gz").affine[:3, :3] for s in (1, 2))
    assert np.linalg.det(first) < 0 < np.linalg.det(second)
    assert np.abs(first[0, 1]) + np.abs(first[1, 2]) > 0.1


@pytest.mark.parametrize("subject", ["sub-01", "sub-02"])
def test_the_first_volume_differs_from_the_clean_one_by_noise_and_distortion_only(demo, truth, subject):
    noisy = scan_of(demo / subject / "dwi", f"{subject}_dwi")
    clean = scan_of(truth / subject / "dwi", f"{subject}_desc-clean_dwi")
    mask = nib.load(truth / subject / "dwi" / f"{subject}_desc-brain_mask.nii.gz").get_fdata() > 0
    np.testing.assert_allclose(noisy.gradients.bvecs, clean.gradients.bvecs, atol=1e-6)
    correlation = np.corrcoef(noisy.data[mask][:, 0], clean.data[mask][:, 0])[0, 1]
    assert correlation > (0.85 if subject == "sub-01" else 0.95)


def test_distortion_is_opposite_in_the_reverse_phase_b0(demo, truth):
    """The mean of both runs lies nearer to the truth than either, and the difference follows the field."""
    forth = scan_of(demo / "sub-01/dwi", "sub-01_dwi").data[..., 0]
    back = nib.load(demo / "sub-01/fmap/sub-01_dir-AP_epi.nii.gz").get_fdata()
    clean = scan_of(truth / "sub-01/dwi", "sub-01_desc-clean_dwi").data[..., 0]
    field = nib.load(truth / "sub-01/dwi/sub-01_desc-displacement_dwimap.nii.gz").get_fdata()
    strong = np.abs(field) > 3

    def error(volume):
        return np.abs(volume - clean)[strong].mean()

    assert error((forth + back) / 2) < min(error(forth), error(back))
    # To first order a shift d changes the signal by -d(I d)/dy, with opposite signs in the two runs.
    predicted = -2 * np.gradient(clean * field / SMALL.voxel_mm, axis=1)
    assert np.corrcoef((forth - back)[strong], predicted[strong])[0, 1] > 0.7


def test_true_maps_are_in_their_ranges(truth):
    for subject in ("sub-01", "sub-02"):
        folder = truth / subject / "dwi"
        fa, md = (
            nib.load(folder / f"{subject}_model-tensor_param-{p}_desc-clean_dwimap.nii.gz").get_fdata()
            for p in ("fa", "md")
        )
        mask = fa > 0
        assert 0.15 < fa[mask].mean() < 0.4
        assert 0.6e-3 < np.median(md[mask]) < 1.0e-3
        lines = (folder / f"{subject}_desc-confounds_timeseries.tsv").read_text().splitlines()
        assert len(lines) == 1 + SMALL.n_b0 + SMALL.n_directions


def test_the_same_seed_gives_the_same_data(demo, tmp_path):
    again = write_demo(tmp_path / "again", seed=3, protocol=SMALL)
    for name in ("sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz"):
        first, second = (np.asarray(nib.load(root / name).dataobj) for root in (demo, again))
        np.testing.assert_array_equal(first, second)


def test_a_directory_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_demo(tmp_path)
