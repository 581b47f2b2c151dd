"""`dmrigen benchmark`: what is trained, with which examples, what is scored, and what is not done twice."""

import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.cli import benchmark, dense, scoring
from bids_dmrigen.cli.scoring import arms_of_scan
from bids_dmrigen.cli.tools import main
from bids_dmrigen.diffusion.weights import Card, save_weights
from bids_dmrigen.dwi.blocks import in_blocks
from bids_dmrigen.methods import REGISTRY, load, room_of, spec_of
from bids_dmrigen.methods.base import Request
from bids_dmrigen.qc import evaluation
from bids_dmrigen.qc.rooms import ROOMS
from tests.conftest import tiny_gradients, tiny_series, write_run


def untrained(folder, name):
    """Write weights of a network that was never trained, in the place where a training would."""
    card = Card(name, "small", {}, {}, 5, 0.1, 0, "a test", {}, "Apache-2.0")
    return save_weights(folder, f"{name}-small", load(name).network("small"), card)


@pytest.fixture
def calls(monkeypatch):
    """Note the trainings that are called for, and write weights instead."""
    noted = []

    def pretend(call, **_):
        noted.append(call)
        name, folder = call[call.index("bids_dmrigen.cli.train") + 1], call[call.index("--out") + 1]
        untrained(folder, name)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", pretend)
    return noted


@pytest.fixture
def scan(tmp_path):
    gradients = tiny_gradients(16)
    return write_run(tmp_path / "scans", "sub-1", tiny_series(gradients, (16, 18, 8)), gradients)


def test_every_arm_has_a_room_and_every_room_a_question():
    assert {room_of(name) for name in REGISTRY} == set(ROOMS)


def test_the_list_has_every_arm_with_its_size(capsys):
    assert main(["benchmark", "maps", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {name for name in REGISTRY if room_of(name) == "maps"} < set(lines)
    assert int(lines["mlp"].split()[1]) == sum(p.numel() for p in load("mlp").network("small").parameters())
    assert "weighted least squares" in lines["wls"]


def test_the_list_of_denoisers_has_each_once_and_no_number_of_networks_that_the_run_decides(capsys):
    assert main(["benchmark", "denoise", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(names) == len(set(names))
    assert benchmark._parameters("dip") == "-"
    assert benchmark._parameters("mppca") == 0


def test_arms_are_trained_scored_and_compared_once(tmp_path, scan, calls, capsys, monkeypatch):
    out, odd = tmp_path / "out", scan.parent / "sub-odd_dwi.nii.gz"
    odd.write_bytes(scan.read_bytes())  # without b-values
    call = ["benchmark", "maps", "--arms", "lls", "mlp", "--minutes", "3", "--simulated", "0", "--selections", "1"]
    call += ["--scans", str(scan.parent), "--out", str(out), "--device", "cpu", "--precision", "fp32"]
    assert main(call) == 0
    assert [c[c.index("bids_dmrigen.cli.train") + 1] for c in calls] == ["mlp"]
    assert calls[0][calls[0].index("--minutes") + 1] == "3.0"
    results = json.loads((out / "results.json").read_text())
    assert {row["arm"] for row in results["rows"]} == {"lls", "mlp", "reference", *evaluation.RIVALS}
    assert results["costs"]["mlp"]["steps"] == 5
    assert f"{odd}: " in capsys.readouterr().out
    tables = (out / "tables.md").read_text()
    assert "| best simple |" in tables
    assert "### maps, real scans" in tables
    assert "the best arm" in tables
    page = (out / "index.html").read_text()
    for kind in ("fa", "fa_detail", "md", "dec"):
        assert f"pictures/sub-1_dwi_{kind}.svg" in page
        assert (out / f"pictures/sub-1_dwi_{kind}.svg").is_file()
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("scored again"))
    assert main(call) == 0
    assert len(calls) == 1
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]
    capsys.readouterr()


def test_what_has_changed_is_done_again_and_nothing_else(tmp_path, scan, calls, monkeypatch):
    call = ["benchmark", "maps", "--arms", "lls", "mlp", "--simulated", "0", "--selections", "1", "--device", "cpu"]
    call += ["--scans", str(scan), "--out", str(tmp_path / "out"), "--precision", "fp32"]
    monkeypatch.setattr(scoring, "pictures", lambda *_: None)
    seen, evaluate = [], evaluation.evaluate
    monkeypatch.setattr(
        evaluation,
        "evaluate",
        lambda scan, keep, arms, *a, **k: seen.append(set(arms)) or evaluate(scan, keep, arms, *a, **k),
    )
    every = {"lls", "mlp", *evaluation.RIVALS}
    assert main([*call, "--minutes", "3"]) == 0
    assert main([*call, "--minutes", "3", "--arms", "mlp"]) == 0
    assert (seen, len(calls)) == ([every], 1)
    assert main([*call, "--minutes", "4"]) == 0, "another budget"
    assert len(calls) == 2
    mask = scan.with_name("sub-1_mask.nii.gz")
    image = nib.load(scan)
    inside = np.zeros(image.shape[:3], np.uint8)
    inside[4:12, 4:14, :] = 1
    nib.save(nib.Nifti1Image(inside, image.affine), mask)
    assert main([*call, "--minutes", "4"]) == 0
    assert seen == [every, every], "another mask"
    path = tmp_path / "out" / "scans" / "sub-1_dwi" / "mlp.json"
    stored = json.loads(path.read_text())
    stored["rows"][0]["fault"] = "a package is not installed"
    path.write_text(json.dumps(stored))
    assert main([*call, "--minutes", "4"]) == 0
    assert seen[-1] == {"mlp"}, "what failed is tried again"


def test_a_diffusion_model_is_asked_once_and_its_samples_are_another_arm(tmp_path, scan):
    args = SimpleNamespace(out=tmp_path, atlas="embedded", draws=3, seed=0, device="cpu", precision="fp32", minutes=2.0)
    subject = dense.Dense("s", dense.read_dense(scan))
    weights = {name: untrained(tmp_path / name, name) for name in ("diffdti", "diffdtidirect")}
    arms = arms_of_scan(args, ["diffdti", "diffdtidirect"], weights, subject)
    assert {"diffdti", "diffdti, 3 draws", "diffdtidirect"} == set(arms) - set(evaluation.RIVALS)
    few, wanted = subject.scan, subject.scan.gradients
    once, drawn = (arms[name].arm(few, wanted) for name in ("diffdti", "diffdti, 3 draws"))
    assert (once.record["Samples"], drawn.record["Samples"]) == (1, 3)
    assert not np.array_equal(once.mean, drawn.mean)
    assert drawn.samples is None, "their mean is the result"
    args.draws = 0
    assert set(arms_of_scan(args, ["diffdti"], weights, subject)) == {"diffdti", *evaluation.RIVALS}


def test_arms_that_are_trained_on_the_run_have_the_same_time(tmp_path, scan, monkeypatch):
    args = SimpleNamespace(out=tmp_path, atlas="embedded", draws=4, seed=0, device="cpu", precision="fp32", minutes=2.0)
    subject, seen = dense.Dense("s", dense.read_dense(scan)), {}
    for name in ("difusion", "noisier2noise", "dip", "ddm2"):
        method = load(name)
        monkeypatch.setattr(
            type(method), "generate", lambda self, net, scan, request: seen.update({self.spec.name: request})
        )
        arms_of_scan(args, [name], {}, subject)[name].arm(subject.scan, subject.scan.gradients)
    assert {name: request.minutes for name, request in seen.items()} == dict.fromkeys(seen, 2.0)
    assert len(seen) == 4
    assert min(request.options["training_steps"] for request in seen.values()) > 10**6


def test_an_arm_that_cannot_work_on_a_scan_says_why(tmp_path, scan):
    call = ["benchmark", "enhance", "--arms", "bspline", "--simulated", "0", "--selections", "1", "--device", "cpu"]
    assert main([*call, "--scans", str(scan), "--keep", "8", "--out", str(tmp_path / "o")]) == 0
    assert "bspline" in (tmp_path / "o" / "tables.md").read_text()


def test_arms_that_make_finer_voxels_are_given_coarser_ones(tmp_path, scan, capsys):
    call = ["benchmark", "enhance", "--arms", "bspline", "--simulated", "0", "--selections", "1", "--device", "cpu"]
    call += ["--scans", str(scan), "--keep", "8", "--out", str(tmp_path / "o")]
    assert main([*call, "--coarser", "2"]) == 0
    rows = json.loads((tmp_path / "o" / "results.json").read_text())["rows"]
    scores = {row["arm"]: row["scores"] for row in rows if row["arm"] in ("bspline", "wls")}
    assert scores["bspline"]["fa_psnr"] == pytest.approx(scores["wls"]["fa_psnr"], abs=1.5)
    assert main(["benchmark", "enhance", *call[2:], "--coarser", "9"]) == 0
    assert "found a scan of 16 x 18 x 8 voxels" in capsys.readouterr().out
    assert main(["benchmark", "maps", "--coarser", "2", "--arms", "lls", "--out", str(tmp_path)]) == 1
    assert "these arms make no finer voxels: lls" in capsys.readouterr().err


def test_scans_of_one_name_are_told_apart_by_their_folders(tmp_path):
    one, two = tmp_path / "a" / "x_dwi.nii.gz", tmp_path / "b" / "x_dwi.nii.gz"
    assert list(dense.scan_names([one, two, tmp_path / "y_dwi.nii"])) == ["a_x_dwi", "b_x_dwi", "y_dwi"]
    with pytest.raises(ValueError, match="would have one name"):
        dense.scan_names([one, one])


def test_examples_go_to_the_arms_that_can_use_them(tmp_path, calls):
    (tmp_path / "x").touch()
    args = SimpleNamespace(
        out=tmp_path, data=tmp_path / "x", anatomies=tmp_path / "y", held_out=["a"], atlas="embedded"
    )
    vars(args).update(
        atlas="embedded", subjects=4, minutes=1.0, batch=None, device="cpu", precision="fp32", seed=0, jobs=2
    )
    args.room = "maps"
    benchmark.train_all(args, ["mlp", "refinement", "qdl", "rish"], {})
    given = {c[c.index("bids_dmrigen.cli.train") + 1]: c for c in calls}
    assert set(given) == {"mlp", "refinement", "qdl", "rishldm"}, "rish has the weights of rishldm"
    assert {"--data", "--anatomies", "--held-out"} <= set(given["mlp"])
    assert "--data" not in given["refinement"]
    assert "--anatomies" not in given["qdl"]
    assert given["refinement"][given["refinement"].index("--batch") + 1] == "2"
    calls.clear()
    benchmark.train_all(args, ["mlp"], {})
    assert not calls, "what is trained stays"
    ready = untrained(tmp_path / "ready", "rishldm")
    assert benchmark.train_all(args, ["rish"], {"rish": ready}) == {"rish": ready}
    assert not calls, "weights given for rish are those of rishldm"


def test_given_weights_are_used_and_a_failed_training_names_its_log(tmp_path, monkeypatch, scan, capsys):
    ready = untrained(tmp_path / "ready", "mlp")
    call = [
        "benchmark",
        "maps",
        "--arms",
        "mlp",
        "--simulated",
        "0",
        "--scans",
        str(scan),
        "--out",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert main(call) == 1
    printed = capsys.readouterr()
    assert "mlp could not be trained, see" in printed.out
    assert "the results are without mlp" in printed.err
    assert (tmp_path / "o" / "results.json").is_file(), "the other arms are scored"
    assert main([*call, "--weights", f"mlp={ready}", "--selections", "1"]) == 0


def test_an_arm_of_another_room_and_a_missing_folder_are_refused(capsys):
    assert main(["benchmark", "maps", "--arms", "qid2", "--out", "x"]) == 1
    assert "qid2 is not in the room maps; its arms: diffdti" in capsys.readouterr().err
    assert main(["benchmark", "maps"]) == 1
    assert "--out: give a folder" in capsys.readouterr().err


def test_folders_are_searched_for_series_and_an_empty_one_is_named(tmp_path, scan):
    assert dense.image_files([scan.parent]) == dense.image_files([scan]) == [scan]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no file whose name ends with _dwi\.nii"):
        dense.image_files([tmp_path / "empty"])


@pytest.fixture
def small_subjects(monkeypatch):
    monkeypatch.setitem(dense.SIMULATED, "shape", (26, 32, 12))
    monkeypatch.setitem(dense.SIMULATED, "voxel_mm", 6.0)
    monkeypatch.setitem(dense.SIMULATED, "directions", 16)


@pytest.mark.usefixtures("small_subjects")
def test_finer_simulated_scans_cover_what_arms_see():
    (subject,) = dense.simulated("embedded", 1, edge=2)
    assert subject.truth.shape[:3] == (52, 64, 24)
    blocks = in_blocks(replace(subject.scan, data=subject.truth), 2)
    np.testing.assert_allclose(blocks.affine, subject.given.affine)
    inside = subject.given.mask & blocks.mask
    ratio = subject.given.data[inside][:, :4] / blocks.data[inside][:, :4]  # b0s, SNR 20 in white matter
    assert abs(np.median(ratio) - 1) < 0.01
    assert np.ptp(np.percentile(ratio, [16, 84])) < 0.12


@pytest.mark.usefixtures("small_subjects")
def test_simulated_subjects_lie_in_the_template_and_arms_see_their_b0_alone(tmp_path):
    """The registered atlas predicts volumes of a subject that is simulated from it: places and directions are right."""
    pytest.importorskip("ants")
    (subject,) = dense.simulated("embedded", 1, aligned=True)
    place, method = dense.InTemplate(subject, tmp_path), load("atlas")
    arm = place.arm(method, Request(precision="fp32"))
    result = evaluation.evaluate(subject.scan, [0], {"atlas": arm}, truth=subject.truth)
    (outcome,) = result.outcomes
    assert not outcome.fault
    assert outcome.scores["dwi_psnr"] > 14
    assert outcome.scores["direction_angle"] < 35, "57 degrees are chance"
    seen = []
    spying = SimpleNamespace(spec=method.spec, generate=lambda net, scan, request: seen.append(scan) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.arm(spying, Request())(subject.scan, subject.scan.gradients[np.arange(4, 20)])
    assert seen[0].gradients.is_b0.all()


def test_a_thin_scan_cannot_be_registered_and_says_so(tmp_path):
    gradients = tiny_gradients(12)
    data = tiny_series(gradients, (16, 18, 4))
    scan = dense.Scan(data, np.diag([-3.0, 3, 3, 1]), gradients, data[..., 0] > 100)
    arm = dense.InTemplate(dense.Dense("thin", scan), tmp_path).arm(load("atlas"), Request())
    (outcome,) = evaluation.evaluate(scan, [0], {"atlas": arm}).outcomes
    assert "at least 10 slices, found 4" in outcome.fault


def test_twins_are_methods_of_the_same_room():
    twins = {name: spec_of(name).twin for name in REGISTRY if spec_of(name).twin}
    assert twins == {
        "diffdtidirect": "diffdti",
        "qid2direct": "qid2",
        "phydiffdirect": "phydiff",
        "refinement": "rishldm",
    }
    assert all(room_of(name) == room_of(twin) for name, twin in twins.items())
