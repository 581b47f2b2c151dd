"""The whole path on the demo dataset: both subjects, every file valid, and nearer to the truth than the input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.names import output_path
from bids_dmrigen.cli import tools
from bids_dmrigen.cli.app import main

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"
TEMPLATE = "MNI152NLin2009aSym"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo dataset, the output of the app, and the options of the call."""
    root = tmp_path_factory.mktemp("demo")
    assert tools.main(["demo", str(root / "data")]) == 0
    # The simulated scans have no Gibbs ringing: removing it would only smooth them, whatever comes before.
    options = ["--methods", "difusion", "--n-samples", "2", "--difusion-steps", "60", "--n-cpus", "2", "--no-gibbs"]
    call = [sys.executable, "-m", "bids_dmrigen.cli.app", str(root / "data"), str(root / "out"), "participant"]
    result = subprocess.run([*call, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return root, [*call, *options], result


def load(root, subject, key, dataset="out", **fields):
    return nib.load(root / dataset / output_path({"subject": subject}, key, **fields)).get_fdata()


def truth(root, subject, param):
    path = output_path({"subject": subject}, "map", param=param, source="clean")
    return nib.load(root / "data/derivatives/truth" / path).get_fdata()


def test_the_app_reports_that_it_finished(demo):
    _, _, result = demo
    assert "Finished: 2 of 2 runs complete" in result.stdout
    assert result.stdout.index("bids_dmrigen") == 0


@pytest.mark.parametrize("dataset", ["data", "data/derivatives/truth", "out"])
def test_validator_reports_no_error(demo, dataset):
    root, _, _ = demo
    if not VALIDATOR.exists():
        pytest.skip("bids-validator-deno is not installed")
    result = subprocess.run([VALIDATOR, root / dataset, "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_second_call_redoes_nothing(demo):
    root, command, _ = demo
    before = {path: path.stat().st_mtime_ns for path in (root / "out").glob("sub-*/dwi/*")}
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not [line for line in result.stdout.splitlines() if line.startswith("[")], "a step was done again"
    assert {path: path.stat().st_mtime_ns for path in (root / "out").glob("sub-*/dwi/*")} == before


@pytest.mark.parametrize("subject", ["01", "02"])
def test_nearer_to_the_truth_than_the_input(demo, subject):
    root, _, _ = demo
    # Head motion and registration set the scan's space apart from the truth's by less than a voxel.
    brain = load(root, subject, "mask") > 0
    reference = truth(root, subject, "fa")
    errors = {
        source: np.abs(load(root, subject, "map", param="fa", source=source) - reference)[brain].mean()
        for source in ("preproc", "difusion")
    }
    assert errors["difusion"] < errors["preproc"], errors


def test_colours_are_those_of_the_anatomy(demo):
    root, _, _ = demo
    for subject in ("01", "02"):
        reference = truth(root, subject, "dec")
        strong = (np.linalg.norm(reference, axis=-1) > 0.5) & (load(root, subject, "mask") > 0)
        colours = load(root, subject, "map", param="dec", source="preproc")[strong]
        cosine = (colours * reference[strong]).sum(-1)
        cosine /= np.linalg.norm(colours, axis=-1) * np.linalg.norm(reference[strong], axis=-1) + 1e-9
        assert np.median(cosine) > 0.95


def test_distortion_is_corrected(demo):
    root, _, _ = demo
    metrics = json.loads((root / "out" / output_path({"subject": "01"}, "metrics")).read_text())
    assert metrics["sdc_correlation_after"]["value"] > metrics["sdc_correlation_before"]["value"]
    assert metrics["registration_dice"]["value"] > 0.9


def test_every_metric_has_unit_definition_and_direction(demo):
    root, _, _ = demo
    for subject in ("01", "02"):
        metrics = json.loads((root / "out" / output_path({"subject": subject}, "metrics")).read_text())
        assert len(metrics) > 15
        for entry in metrics.values():
            assert {"value", "unit", "better", "definition"} <= set(entry)
            assert np.isfinite(entry["value"])


def test_the_uncertainty_of_maps(demo):
    root, _, _ = demo
    inside = load(root, "02", "mask") > 0
    best = load(root, "02", "map", param="fa", source="difusion")[inside]
    error, low, high = (load(root, "02", f"map_{key}", param="fa", method="difusion")[inside]
                        for key in ("std", "low", "high"))  # fmt: skip
    assert 0.001 < np.median(error) < 0.2
    np.testing.assert_allclose(low, np.maximum(best - 1.645 * error, 0), atol=1e-5)
    np.testing.assert_allclose(high, np.minimum(best + 1.645 * error, 1), atol=1e-5)


def test_atlas_comes_into_the_scan(demo, tmp_path):
    root, _, _ = demo
    from bids_dmrigen.spatial.templates import embedded_mni

    arrays, affine = embedded_mni(2)
    nib.save(nib.Nifti1Image(arrays["brain"].astype(np.uint8), affine), tmp_path / "atlas.nii.gz")
    for subject in ("01", "02"):
        transform = root / "out" / output_path({"subject": subject}, "from_template", template=TEMPLATE)
        reference = root / "out" / output_path({"subject": subject}, "dwiref")
        out = tmp_path / f"{subject}.nii.gz"
        arguments = [str(path) for path in (tmp_path / "atlas.nii.gz", transform, reference, out)]
        assert tools.main(["to-scan", *arguments, "--labels"]) == 0
        warped, brain = nib.load(out).get_fdata() > 0, load(root, subject, "mask") > 0
        assert 2 * (warped & brain).sum() / (warped.sum() + brain.sum()) > 0.9


def test_reports_are_whole_and_need_no_network(demo):
    root, _, _ = demo
    for subject in ("01", "02"):
        page = (root / f"out/sub-{subject}.html").read_text()
        for section in ("Acquisition", "Generated: Di-Fusion", "Quality", "Methods", "Errors"):
            assert section in page
        assert "Synthetic" in page
        assert 'src="http' not in page
        assert '<link rel="stylesheet" href="http' not in page


def test_reports_only_and_group(demo):
    root, command, _ = demo
    page = root / "out/sub-01.html"
    page.unlink()
    assert main([*command[3:], "--reports-only"]) == 0
    assert page.is_file()
    assert main([str(root / "data"), str(root / "out"), "group"]) == 0
    assert len((root / "out/group_metrics.tsv").read_text().splitlines()) == 3
    assert (root / "out/group.html").is_file()
