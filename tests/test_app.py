"""The app as a subject meets it: broken datasets, kills, full disks, foreign users, no network.

The series are tiny and too flat for registration, so that a call takes seconds; registration has its own tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from .conftest import rishldm_weights, tiny_gradients, tiny_series, write_dataset, write_run

FLAT = (20, 22, 6)
APP = [sys.executable, "-m", "bids_dmrigen.cli.app"]
QUICK = ["--skip-bids-validation", "--n-cpus", "2", "--device", "cpu", "--deterministic"]
QUICK += ["--difusion-steps", "40"]
NOBODY = 65534


def call(data, out, *options, level="participant", **keywords):
    return subprocess.run(
        [*APP, str(data), str(out), level, *QUICK, *options],
        capture_output=True, text=True, timeout=600, check=False, **keywords,
    )  # fmt: skip


def images(out: Path) -> dict[str, np.ndarray]:
    """Return every stored image's values by relative path."""
    return {
        path.relative_to(out).as_posix(): np.asanyarray(nib.load(path).dataobj)
        for path in sorted(out.rglob("sub-*/dwi/*.nii.gz"))
    }


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A dataset with one run without a fault and one run per fault, and the output of the app."""
    root = write_dataset(tmp_path_factory.mktemp("broken") / "data", subjects=("01",), shape=FLAT)
    gradients = tiny_gradients()
    data = tiny_series(gradients, FLAT)

    def add(subject, values=data):
        return write_run(root / f"sub-{subject}" / "dwi", f"sub-{subject}", values, gradients)

    truncated = add("truncated")
    truncated.write_bytes(truncated.read_bytes()[:2000])
    nib.save(nib.Nifti1Image(data[..., 0], np.eye(4)), add("threed"))
    zeros, nans = data.copy(), data.copy()
    zeros[..., 3], nans[..., 5] = 0, np.nan
    add("zeros", zeros)
    add("nans", nans)
    add("nobval").with_name("sub-nobval_dwi.bval").unlink()
    add("short").with_name("sub-short_dwi.bvec").write_text("0 1\n0 0\n0 0\n")
    long = add("notunit").with_name("sub-notunit_dwi.bvec")
    np.savetxt(long, 3 * np.loadtxt(long))
    add("nob0").with_name("sub-nob0_dwi.bval").write_text("1000 " * len(gradients))
    np.savetxt(root / "sub-nob0/dwi/sub-nob0_dwi.bvec", np.tile([[1.0], [0], [0]], len(gradients)))
    utf16 = add("utf16").with_name("sub-utf16_dwi.bvec")
    utf16.write_bytes(utf16.read_text().encode("utf-16"))
    add("oneslice", data[:, :, 3:4])
    integers = add("integers")
    nib.save(nib.Nifti1Image(data.astype(np.uint16), np.diag([3.0, 3, 3, 1])), integers)
    out = root.parent / "out"
    return root, out, call(root, out, "--methods", "difusion")


FAULTS = {
    "truncated": "it may be truncated or damaged (",
    "threed": r"expected a 4-D series",
    "zeros": "volumes [3] (counted from 0) hold nothing but zeros",
    "nans": "volumes [5] (counted from 0) hold nothing but NaN",
    "nobval": ".bval file is missing",
    "short": "2 entries, but the image has 14 volumes",
    "notunit": "have lengths [3.0",
    "nob0": "no b0 volume",
    "utf16": "cannot be read as text in UTF-8",
}


def test_faulty_runs_are_named_and_the_others_complete(broken):
    _, out, result = broken
    assert result.returncode == 1, result.stderr
    assert "3 of 12 runs complete" in result.stdout
    for subject in ("01", "oneslice", "integers"):
        assert f"FAILED sub-{subject}," not in result.stderr
        assert list(out.glob(f"sub-{subject}/dwi/*desc-difusion_dwi.nii.gz"))


@pytest.mark.parametrize("subject", FAULTS)
def test_each_fault_has_one_clear_message(broken, subject):
    _, out, result = broken
    (line,) = [line for line in result.stderr.splitlines() if f"FAILED sub-{subject}," in line]
    assert FAULTS[subject] in line
    report = (out / f"sub-{subject}.html").read_text()
    assert FAULTS[subject].split(" (")[0].replace("[", "").split("]")[0][:15] in report.replace("[", "")
    assert not list(out.glob(f"sub-{subject}/dwi/*.nii.gz"))


def test_acquired_data_survive(broken):
    root, out, _ = broken
    for subject in ("01", "oneslice", "integers"):
        source = nib.load(root / f"sub-{subject}/dwi/sub-{subject}_dwi.nii.gz")
        for desc in ("preproc", "difusion"):
            result = nib.load(out / f"sub-{subject}/dwi/sub-{subject}_desc-{desc}_dwi.nii.gz")
            assert result.shape == source.shape
            np.testing.assert_allclose(result.affine, source.affine, atol=1e-5)
        ratio = np.median(result.get_fdata()[source.get_fdata() > 100] / source.get_fdata()[source.get_fdata() > 100])
        assert 0.9 < ratio < 1.1
        bvec = np.loadtxt(out / f"sub-{subject}/dwi/sub-{subject}_desc-difusion_dwi.bvec")
        assert bvec.shape == (3, source.shape[3])


def test_generated_data_are_marked_as_synthetic(broken):
    _, out, _ = broken
    for name in ("desc-difusion_dwi", "model-tensor_param-fa_desc-difusion_dwimap"):
        sidecar = json.loads((out / f"sub-01/dwi/sub-01_{name}.json").read_text())
        assert sidecar["Synthetic"] is True
        model = sidecar["GenerativeModel"]
        for key in ("Method", "Citation", "Size", "Sampler", "Seed", "Samples", "Device", "Numerics", "Versions"):
            assert key in model, key
    assert "Synthetic" not in json.loads((out / "sub-01/dwi/sub-01_desc-preproc_dwi.json").read_text())


def test_second_call_recomputes_nothing(broken):
    root, out, _ = broken
    before = {p: p.stat().st_mtime_ns for p in out.rglob("sub-01/dwi/*")}
    result = call(root, out, "--methods", "difusion", "--participant-label", "01")
    assert result.returncode == 0, result.stderr
    assert {p: p.stat().st_mtime_ns for p in out.rglob("sub-01/dwi/*")} == before


def test_lost_outputs_are_stored_again(broken):
    root, out, _ = broken
    expected = sorted(path.name for path in out.rglob("sub-01/*/*"))
    shutil.rmtree(out / "sub-01")
    result = call(root, out, "--methods", "difusion", "--participant-label", "01")
    assert result.returncode == 0, result.stderr
    assert "generating" not in result.stdout
    assert sorted(path.name for path in out.rglob("sub-01/*/*")) == expected


def test_sources_name_the_input_of_a_result(broken):
    _, out, _ = broken
    sources = {
        name: json.loads((out / f"sub-01/dwi/sub-01_{name}.json").read_text())["Sources"]
        for name in ("desc-difusion_dwi", "desc-brain_mask", "model-tensor_param-fa_desc-difusion_dwimap")
    }
    assert sources["desc-difusion_dwi"] == ["bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"]
    assert sources["desc-brain_mask"] == ["bids::sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz"]
    assert sources["model-tensor_param-fa_desc-difusion_dwimap"] == ["bids::sub-01/dwi/sub-01_desc-difusion_dwi.nii.gz"]


def test_a_series_denoised_by_a_method_is_synthetic(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    methods = ["--methods", "difusion", "interp", "--qid2-directions", "20"]
    result = call(data, tmp_path / "out", "--denoise", "difusion", *methods)
    assert result.returncode == 0, result.stderr
    for name in ("desc-preproc_dwi", "dwiref", "model-tensor_param-fa_desc-preproc_dwimap"):
        sidecar = json.loads((tmp_path / f"out/sub-01/dwi/sub-01_{name}.json").read_text())
        assert sidecar["Synthetic"] is True, name
        assert sidecar["GenerativeModel"]["Method"] == "Di-Fusion"
    # Di-Fusion as a method starts from the acquired series, the other one from the denoised.
    made = [
        json.loads((tmp_path / f"out/sub-01/dwi/sub-01_desc-{method}_dwi.json").read_text())["GenerativeModel"]
        for method in ("interp", "difusion")
    ]
    assert made[0]["Input"]["Method"] == "Di-Fusion"
    assert made[0]["InputVolumes"] == [*range(14)]
    assert "AcquiredVolumes" not in made[0]
    assert made[1]["AcquiredVolumes"] == []
    assert "Input" not in made[1]


def test_a_failing_method_loses_nothing_but_its_own_results(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    methods = ["--methods", "difusion", "interp", "--qid2-directions"]

    def measured() -> set[str]:
        return json.loads((tmp_path / "out/sub-01/dwi/sub-01_desc-quality_metrics.json").read_text()).keys()

    result = call(data, tmp_path / "out", *methods, "12")  # as many as there are
    assert result.returncode == 1
    assert "FAILED sub-01, generate_interp: " in result.stderr
    assert "every shell already has the requested directions" in result.stderr
    assert result.stdout.count("generating with difusion") == 1
    assert {"ndc_preproc", "ndc_difusion"} <= measured()
    assert "ndc_interp" not in measured()
    assert (tmp_path / "out/sub-01/figures/sub-01_desc-residualdifusion_dwi.svg").is_file()
    again = call(data, tmp_path / "out", *methods, "20")
    assert again.returncode == 0, again.stderr
    assert "generating with difusion" not in again.stdout
    assert {"ndc_preproc", "ndc_difusion", "ndc_interp"} <= measured()


def contents(out: Path) -> dict[str, bytes]:
    """Return the content of every file of the subject by relative path, and of its report."""
    files = [*out.glob("sub-01/**/*"), out / "sub-01.html"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if path.is_file()}


def same(before: dict[str, bytes], after: dict[str, bytes], text: str) -> bool:
    """Return whether all files with this text in their names are there as before; there have to be some."""
    names = [name for name in before if text in name]
    assert names, text
    return all(after.get(name) == before[name] for name in names)


INTERP = ["interp", "--qid2-directions", "20"]


@pytest.mark.parametrize("order", [("difusion", "interp"), ("interp", "difusion")])
def test_a_later_call_keeps_what_an_earlier_one_made(tmp_path, order):
    data, out = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT), tmp_path / "out"
    options = {"interp": INTERP, "difusion": ["difusion"]}
    made = {}
    for method in order:
        result = call(data, out, "--methods", *options[method])
        assert result.returncode == 0, result.stderr
        made[method] = contents(out)
    first, second = order
    before, after = made[first], made[second]
    for text in (f"desc-{first}_", f"{first}_dwi.svg", "desc-preproc_", "desc-brain_mask", "dwiref", "desc-mask_"):
        assert same(before, after, text), text
    metrics = [json.loads(content["sub-01/dwi/sub-01_desc-quality_metrics.json"]) for content in (before, after)]
    assert metrics[0].items() <= metrics[1].items()
    assert {f"ndc_{first}", f"ndc_{second}", f"fa_difference_{first}", f"fa_difference_{second}"} <= metrics[1].keys()
    assert f"sub-01/figures/sub-01_desc-inputoutput{second}_dwi.svg" in after
    figure = after["sub-01/figures/sub-01_desc-fa_dwi.svg"]
    assert figure != before["sub-01/figures/sub-01_desc-fa_dwi.svg"], "it shows the maps of both"
    page = after["sub-01.html"].decode()
    for said in ("Generated: Di-Fusion", "Generated: Linear interpolation", "Generated by Di-Fusion"):
        assert said in page
    assert "[wu2025difusion]" in page
    assert "as for the series that an earlier call stored" in page
    missing = "directions left out" if first == "difusion" else "uncertainty of the maps"
    assert f"<li>{first}: {missing}: " in after["sub-01/figures/sub-01_desc-skipped_dwi.html"].decode()


def test_results_whose_input_would_change_are_kept_or_made_again(tmp_path):
    data, out = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT), tmp_path / "out"
    assert call(data, out, "--methods", *INTERP).returncode == 0
    before = contents(out)
    for options in (["--dry-run"], []):
        refused = call(data, out, "--methods", "sh", "--denoise", "none", *options)
        assert refused.returncode == 1
        said = refused.stdout if options else refused.stderr
        assert f"{out} holds results of interp, which this call does not make again" in said
        assert "(Denoising: mppca -> none)" in said
        assert "(--methods sh interp)" in said
        assert contents(out) == before
    both = call(data, out, "--denoise", "none", "--methods", "sh", *INTERP)
    assert both.returncode == 0, both.stderr
    after = contents(out)
    for name in ("desc-preproc_dwi.nii.gz", "desc-interp_dwi.nii.gz", "param-fa_desc-interp_dwimap.nii.gz"):
        assert not same(before, after, name), name
    assert "is replaced (Denoising: mppca -&gt; none)" in after["sub-01.html"].decode()


def test_results_on_finer_voxels(tmp_path):
    """Name, header and sidecar describe the grid, and results are compared with the scan on the scan's voxels."""
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    weights = ["--weights", f"rishldm={rishldm_weights(tmp_path / 'weights')}"]
    options = ["--skip-preprocessing", *weights, "--rishldm-voxel-size", "2", "--n-samples", "2"]
    result = call(data, tmp_path / "out", "--methods", "rishldm", "bspline", "rish", *options)
    assert result.returncode == 0, result.stderr
    stored = tmp_path / "out/sub-01/dwi"
    preproc = nib.load(stored / "sub-01_desc-preproc_dwi.nii.gz")
    mask = nib.load(stored / "sub-01_res-2mm_desc-brain_mask.nii.gz")
    inside = mask.get_fdata() > 0
    for method in ("rishldm", "bspline", "rish"):
        series = nib.load(stored / f"sub-01_res-2mm_desc-{method}_dwi.nii.gz")
        assert series.shape == (30, 33, 9, preproc.shape[3])
        np.testing.assert_allclose(series.affine, mask.affine)
        fa = nib.load(stored / f"sub-01_res-2mm_model-tensor_param-fa_desc-{method}_dwimap.nii.gz").get_fdata()
        assert fa.shape == inside.shape
        assert not fa[~inside].any()
        sidecar = json.loads((stored / f"sub-01_res-2mm_desc-{method}_dwi.json").read_text())
        assert sidecar["Resolution"].startswith("Cubes of 2 mm")
        assert sidecar["GenerativeModel"]["VoxelSize"] == [2, 2, 2]
    edges = np.array([[-0.5, -0.5, -0.5, 1], [*(n - 0.5 for n in inside.shape), 1]])
    theirs = np.array([[-0.5, -0.5, -0.5, 1], [*(n - 0.5 for n in preproc.shape[:3]), 1]])
    np.testing.assert_allclose(edges @ mask.affine.T, theirs @ preproc.affine.T, atol=1e-4)
    for grid, source in (("", "preproc"), ("res-2mm_", "rishldm")):
        rish = nib.load(stored / f"sub-01_{grid}model-sh_param-rish0_desc-{source}_dwimap.nii.gz").get_fdata()
        assert 0.5 < np.median(rish[rish > 0]) < 10
    metrics = json.loads((stored / "sub-01_desc-quality_metrics.json").read_text())
    assert metrics["residual_std_bspline"]["value"] < 0.1, "nothing else was changed"
    assert {"ndc_rishldm", "fa_difference_rish"} <= metrics.keys()
    assert not any(name.startswith("sample_spread") for name in metrics), "none of these methods draws"
    assert (tmp_path / "out/sub-01/figures/sub-01_desc-rishrishldm_dwi.svg").is_file()
    page = (tmp_path / "out/sub-01.html").read_text()
    assert page.count("It was made on finer voxels than the run") == 3
    assert "drawing failed" not in page
    later = call(data, tmp_path / "out", "--methods", "interp", "--qid2-directions", "20", "--skip-preprocessing")
    assert later.returncode == 0, later.stderr
    assert metrics.items() <= json.loads((stored / "sub-01_desc-quality_metrics.json").read_text()).items()
    page = (tmp_path / "out/sub-01.html").read_text()
    assert page.count("It was made on finer voxels than the run") == 3
    assert "drawing failed" not in page
    validator = Path(sys.executable).parent / "bids-validator-deno"
    if validator.exists():
        answer = subprocess.run([validator, tmp_path / "out", "--json"], capture_output=True, text=True, check=False)
        issues = json.loads(answer.stdout)["issues"]["issues"]
        assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_group_level(broken):
    root, out, _ = broken
    result = call(root, out, level="group")
    assert result.returncode == 0, result.stderr
    table = (out / "group_metrics.tsv").read_text().splitlines()
    assert len(table) == 4
    assert "sub-oneslice" in "".join(table) or "oneslice" in "".join(table)


def test_impossible_requests_are_named_and_the_rest_is_done(tmp_path):
    """A partner that is all b0, runs of too few directions for a method, and a subject without diffusion data."""
    data = write_dataset(tmp_path / "data", subjects=(), shape=FLAT)

    def add(subject, stem, n_directions, direction):
        gradients = tiny_gradients(n_directions)
        sidecar = {"PhaseEncodingDirection": direction, "TotalReadoutTime": "n/a", "SliceEncodingDirection": ""}
        series = tiny_series(gradients, FLAT)
        return write_run(data / f"sub-{subject}/dwi", stem, series, gradients, sidecar=sidecar)

    add("01", "sub-01_dir-AP", 6, "j-")
    reverse = add("01", "sub-01_dir-PA", 3, "j")
    for extension in ("bval", "bvec"):
        reverse.with_name(f"sub-01_dir-PA_dwi.{extension}").unlink()
    add("few", "sub-few", 3, "j-")
    (data / "sub-05/anat").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones(FLAT, np.float32), np.eye(4)), data / "sub-05/anat/sub-05_T1w.nii.gz")
    options = ["--methods", "sh", "--participant-label", "01", "few", "05"]
    dry = call(data, tmp_path / "out", *options, "--dry-run")
    result = call(data, tmp_path / "out", *options)
    assert (dry.returncode, result.returncode) == (1, 1), result.stderr
    assert "note: sub-01_dir-PA holds only b0s" in result.stdout
    assert "Ended: 1 of 2 runs complete" in result.stdout
    failed = [line for line in result.stderr.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 2, result.stderr
    assert failed[0].startswith("FAILED sub-few, sh: sh needs at least 6 diffusion-weighted volumes, found 3")
    assert failed[1].startswith("FAILED sub-05: no diffusion run")
    assert list(tmp_path.glob("out/sub-01/dwi/sub-01_dir-AP_desc-sh_dwi.nii.gz"))
    assert list(tmp_path.glob("out/sub-few/dwi/sub-few_desc-preproc_dwi.nii.gz"))
    assert "found 3" in (tmp_path / "out/sub-few.html").read_text()
    assert not list(tmp_path.glob("out/sub-01/dwi/*dir-PA*"))


def test_qsiprep_result_as_input(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    qsiprep = tmp_path / "qsiprep"
    gradients = tiny_gradients()
    stem = "sub-01_space-ACPC_desc-preproc"
    image = write_run(qsiprep / "sub-01/dwi", stem, tiny_series(gradients, FLAT), gradients)
    inside = nib.load(image).get_fdata()[..., 0] > 200
    mask = image.with_name("sub-01_space-ACPC_desc-brain_mask.nii.gz")
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), nib.load(image).affine), mask)
    description = {"Name": "QSIPrep", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    (qsiprep / "dataset_description.json").write_text(json.dumps({**description, "GeneratedBy": [{"Name": "qsiprep"}]}))
    result = call(data, tmp_path / "out", "--derivatives", f"qsiprep={qsiprep}", "--methods", "difusion")
    assert result.returncode == 0, result.stderr
    stored = nib.load(tmp_path / "out/sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz").get_fdata()
    np.testing.assert_array_equal(stored, nib.load(image).get_fdata())
    np.testing.assert_array_equal(
        nib.load(tmp_path / "out/sub-01/dwi/sub-01_desc-brain_mask.nii.gz").get_fdata() > 0, inside
    )
    sources = json.loads((tmp_path / "out/sub-01/dwi/sub-01_desc-preproc_dwi.json").read_text())["Sources"]
    assert sources == [f"bids:qsiprep:sub-01/dwi/{stem}_dwi.nii.gz"]


def add_an_hour(checkpoint: Path) -> dict:
    """Add an hour to the time that a training has taken, as its checkpoint has it; return what it had."""
    with safe_open(checkpoint, "pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    state = json.loads(metadata["state"])
    metadata["state"] = json.dumps({**state, "seconds": state["seconds"] + 3600})
    save_file(tensors, checkpoint, metadata)
    return state


def test_killed_in_the_middle_and_started_again(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    options = ["--methods", "difusion"]
    assert call(data, tmp_path / "whole", *options).returncode == 0
    process = subprocess.Popen(
        [*APP, str(data), str(tmp_path / "cut"), "participant", *QUICK, *options],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Into the training, which is the longest step and has a state of its own.
    deadline = time.monotonic() + 300
    checkpoint = f"cut/work/**/generate_difusion/training-{'?' * 16}.safetensors"  # not the best weights
    while not (kept := list(tmp_path.glob(checkpoint))):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    state = add_an_hour(kept[0])
    assert 0 < state["step"] < 40, "killed too late to test anything"
    again = call(data, tmp_path / "cut", *options)
    assert again.returncode == 0, again.stderr
    model = json.loads((tmp_path / "cut/sub-01/dwi/sub-01_desc-difusion_dwi.json").read_text())["GenerativeModel"]
    assert model["Training"]["Steps"] == 40
    assert model["Training"]["Minutes"] > 60, "the training began anew"
    whole, cut = images(tmp_path / "whole"), images(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_app_alone_stops_its_workers_too(tmp_path, sent):
    """As a container's engine or a batch system sends it."""
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    options = ["--methods", "difusion", "--difusion-steps", "100000"]
    process = subprocess.Popen(
        [*APP, str(data), str(tmp_path / "out"), "participant", *QUICK, *options],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # Tests that a shell runs in the background ignore this signal, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("out/work/**/generate_difusion/_inputs.pklz")):
        assert time.monotonic() < deadline, "the method did not begin"
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"stopped{f' by {sent.name}' if sent != signal.SIGINT else ''}; call again to continue from here" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not list(tmp_path.glob("out/work/**/generate_difusion/result_*.pklz")), "it was waited for"


def test_two_participants_at_once_in_one_output_folder(tmp_path):
    data = write_dataset(tmp_path / "data", shape=FLAT)
    processes = [
        subprocess.Popen(
            [*APP, str(data), str(tmp_path / "out"), "participant", *QUICK, "--participant-label", label],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for label in ("01", "02")
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert len(images(tmp_path / "out")) == 2 * len([n for n in images(tmp_path / "out") if "sub-01" in n])
    assert all((tmp_path / f"out/sub-{label}.html").is_file() for label in ("01", "02"))


def isolated() -> list[str]:
    """Return the prefix that runs a command in an empty network namespace; skip where the kernel gives us none."""
    for options in ("-n", "-rn"):
        prefix = ["unshare", options]
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], check=False).returncode == 0:
            return prefix
    pytest.skip("unshare cannot take the network away here")


def test_read_only_input_and_no_home_and_no_network(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    subprocess.run(["chmod", "-R", "a-w", str(data)], check=True)
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    environment = {"PATH": os.environ["PATH"], "HOME": "/proc/nowhere"}  # not even root can make a folder there
    result = subprocess.run(
        [*isolated(), *APP, str(data), str(tmp_path / "out"), "participant", *QUICK],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    assert list(tmp_path.glob("out/sub-01/dwi/*desc-preproc_dwi.nii.gz"))
    assert sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*")) == before


FORKSERVER = """
import concurrent.futures, multiprocessing
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    print(concurrent.futures.ProcessPoolExecutor(1, mp_context=context).submit(abs, -3).result())
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to become another user")
def test_foreign_user(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/"}
    probe = subprocess.run([*become, sys.executable, "-c", FORKSERVER], check=False, capture_output=True,
                           cwd="/", env=environment)  # fmt: skip
    if probe.returncode:
        pytest.skip("another user cannot run this Python: it is installed in root's own folder")
    result = subprocess.run(
        [*become, *APP, str(data), str(out), "participant", *QUICK],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    assert list(out.glob("sub-01/dwi/*desc-preproc_dwi.nii.gz"))


def test_disk_full(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)],
                      check=False, capture_output=True).returncode:  # fmt: skip
        pytest.skip("cannot mount a small file system here")
    try:
        result = call(data, small / "out", "--work-dir", str(tmp_path / "work"))
        assert result.returncode == 1
        assert "no space left" in result.stderr.lower()
        assert f"the output folder {small}" in result.stderr
        assert "free some space or give another folder, and call again" in result.stderr
        assert not list(small.rglob("sub-01/dwi/.*")), "a partial file was left"
        kept = call(data, tmp_path / "out", "--work-dir", str(tmp_path / "work"))
        assert kept.returncode == 0, kept.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_full_work_folder_is_seen_before_the_start(tmp_path):
    data = write_dataset(tmp_path / "data", subjects=("01",), shape=FLAT)
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)],
                      check=False, capture_output=True).returncode:  # fmt: skip
        pytest.skip("cannot mount a small file system here")
    try:
        result = call(data, tmp_path / "out", "--work-dir", str(small))
        assert result.returncode == 1
        assert "0.1 MB free" in result.stderr
        assert re.search(r"these 1 runs need about [\d.]+ MB", result.stderr)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--participant-label", "99"], 2, "there are: 01, 02"),
        (["--no-such-option"], 2, "unrecognized arguments"),
        (["--template-dir", "/nonexistent"], 4, "/nonexistent"),
    ],
)
def test_exit_status(dataset, tmp_path, options, status, message):
    result = call(dataset, tmp_path / "out", *options)
    assert result.returncode == status, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_exit_status_of_datasets_and_levels(dataset, tmp_path):
    assert call(tmp_path / "nothing", tmp_path / "out").returncode == 3
    assert call(dataset, dataset).returncode == 2
    assert call(dataset, tmp_path / "out", level="session").returncode == 17
    filters = tmp_path / "filters.json"
    filters.write_text('{"dwi": {"direction": "LR"}}')
    result = call(dataset, tmp_path / "out", "--bids-filter-file", str(filters))
    assert result.returncode == 2
    assert "no diffusion run matches" in result.stderr


def test_a_dataset_of_another_program_is_not_changed(dataset, tmp_path):
    out = tmp_path / "qsiprep"
    out.mkdir()
    description = {"Name": "QSIPrep", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "QSIPrep"}]}
    (out / "dataset_description.json").write_text(json.dumps(description))
    result = call(dataset, out)
    assert result.returncode == 2
    assert "did not write" in result.stderr
    assert json.loads((out / "dataset_description.json").read_text()) == description


def test_dry_run_writes_nothing(dataset, tmp_path):
    result = call(dataset, tmp_path / "out", "--methods", "difusion", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "sub-02_desc-difusion_dwi.nii.gz" in result.stdout
    assert not (tmp_path / "out").exists()


def test_the_methods_text_alone_is_printed(dataset, tmp_path):
    result = call(dataset, tmp_path / "out", "--methods", "difusion", "--boilerplate-only")
    assert result.returncode == 0
    assert "Di-Fusion" in result.stdout
    assert "### References" in result.stdout
