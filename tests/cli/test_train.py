"""`dmrigen train`: on simulated people and on prepared scans, from given weights, under torchrun, with torch alone."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bids_dmrigen import methods
from bids_dmrigen.cli.tools import main
from bids_dmrigen.diffusion.weights import list_weights, read_card, verify_weights
from bids_dmrigen.simulate.atlas_file import save_atlas
from tests.cli.trainable import Mean
from tests.conftest import tiny_gradients, tiny_series, write_dataset, write_run
from tests.simulate.conftest import make_ball


@pytest.fixture
def trainable(monkeypatch):
    monkeypatch.setitem(methods.REGISTRY, "mean", ("absent", "Absent"))
    monkeypatch.setattr(methods, "load", lambda name: Mean())


@pytest.fixture
def atlas(tmp_path):
    return save_atlas(tmp_path / "ball.safetensors", make_ball())


def command(out, *options):
    return ["train", "mean", "--out", str(out), "--batch", "2", "--device", "cpu", "--precision", "fp32", *options]


@pytest.mark.usefixtures("trainable")
def test_people_then_a_user_s_own_scans(tmp_path, atlas, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(first, "--atlas", str(atlas), "--people", "1", "--steps", "30")) == 0
    card = read_card(first / "mean-small.safetensors")
    assert (card.method, card.steps, card.seed, card.configuration) == ("mean", 30, 0, {"size": "small"})
    assert card.trained_on == {"examples": "simulated people", "atlas": "ball.safetensors", "people": 1, "batch": 2}
    assert card.held_out["best"] < card.held_out["start"]
    with open(first / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 10, 20, 30]
    shipped = {card.name for card in list_weights()}
    assert {c.name for c in list_weights(first)} - shipped == {"mean-small"}  # and not the checkpoint

    dataset, arrays = write_dataset(tmp_path / "data"), tmp_path / "data.safetensors"
    assert main(["prepare", str(dataset), str(arrays)]) == 0
    options = ("--data", str(arrays), "--init", "mean-small", "--weights-dir", str(first), "--steps", "20")
    assert main(command(second, *options)) == 0
    tuned = verify_weights(second / "mean-small.safetensors")
    assert tuned.trained_on["started_from"]["sha256"] == card.sha256
    assert tuned.trained_on["train"] == ["sub-02"]
    assert tuned.trained_on["held out"] == ["sub-01"]
    both = tmp_path / "both"
    options_of_both = ("--data", str(arrays), "--atlas", str(atlas), "--people", "1", "--steps", "10")
    assert main(command(both, *options_of_both)) == 0
    mixed = read_card(both / "mean-small.safetensors").trained_on
    assert (mixed["examples"], mixed["people"]) == ("prepared scans and simulated people", 1)
    assert mixed["train"] == ["sub-02"]
    capsys.readouterr()
    assert main(command(second, *options)) == 0  # it goes on where it stopped: nothing is left to do
    assert "ended after 20 steps" in capsys.readouterr().out


class Part(Mean):
    """One of two trainings of the same number."""

    def __init__(self, name, begun):
        self.name, self.share, self.begun = name, 0.5, begun

    def begin(self, source, batch, seed):
        self.begun.append(self.name)


class InParts(Mean):
    plan = property()  # only its parts have one

    def __init__(self):
        self.begun = []

    def stages(self, net):
        return [Part("first", self.begun), Part("second", self.begun)]


def test_a_method_in_parts_is_trained_part_after_part(tmp_path, atlas, monkeypatch, capsys):
    monkeypatch.setitem(methods.REGISTRY, "mean", ("absent", "Absent"))
    method = InParts()
    monkeypatch.setattr(methods, "load", lambda name: method)
    options = ("--atlas", str(atlas), "--people", "1", "--steps", "20")
    assert main(command(tmp_path / "o", *options)) == 0
    assert method.begun == ["first", "second"]
    assert {f"{kind}-{part}" for kind in ("log", "checkpoint") for part in ("first", "second")} <= {
        path.stem for path in (tmp_path / "o").iterdir()
    }
    card = read_card(tmp_path / "o" / "mean-small.safetensors")
    assert card.steps == 40
    assert card.held_out["second start"] == card.held_out["first best"]  # it starts where the first one ended
    assert card.held_out["second best"] < card.held_out["first best"] < card.held_out["first start"]
    assert "second ended after 20 steps" in capsys.readouterr().out
    assert main(command(tmp_path / "o", *options)) == 0  # nothing is left to do
    assert read_card(tmp_path / "o" / "mean-small.safetensors").sha256 == card.sha256


def test_pairs_are_for_the_method_that_is_trained_on_them(tmp_path, capsys):
    for method, options, message in (
        ("rishldm", ("--data", "poor.safetensors"), "give the good scans"),
        ("qid2", ("--data", "poor.safetensors", "--good", "good.safetensors"), "is for rishldm"),
        ("rishldm", ("--good", "good.safetensors"), "goes with --data"),
    ):
        assert main(["train", method, "--out", str(tmp_path), *options]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("trainable")
def test_what_is_missing_has_a_status_of_its_own(tmp_path, atlas, capsys):
    assert main(command(tmp_path / "o", "--init", "nobody")) == 4
    assert main(command(tmp_path / "o", "--atlas", str(tmp_path / "absent.safetensors"))) == 4
    assert main(command(tmp_path / "o", "--atlas", str(tmp_path))) == 4
    assert "T1w.nii.gz" in capsys.readouterr().err
    assert main(command(tmp_path / "o", "--atlas", str(atlas), "--steps", "0")) == 1


def test_a_method_that_trains_on_each_run_is_refused(tmp_path, capsys):
    assert main(["train", "difusion", "--out", str(tmp_path)]) == 1
    assert "nothing to train beforehand" in capsys.readouterr().err


def test_two_processes_with_nothing_but_torch_numpy_and_safetensors(tmp_path, atlas):
    script = Path(__file__).with_name("trainable.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    options = command(tmp_path / "out", "--atlas", str(atlas), "--people", "1", "--steps", "10")[1:]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script), *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((tmp_path / "out" / "mean-small.json").read_text())
    assert card["hardware"].startswith("2 x ")
    assert done.stdout.count("ended after 10 steps") == 1


def test_runs_that_cannot_be_prepared_are_named_with_the_reason(tmp_path, capsys):
    dataset = write_dataset(tmp_path / "data")
    write_run(dataset / "sub-03" / "dwi", "sub-03", tiny_series(tiny_gradients(6)), tiny_gradients(5))
    out = tmp_path / "o.safetensors"
    assert main(["prepare", str(dataset), str(out)]) == 1
    printed = capsys.readouterr()
    assert "left out: sub-03" in printed.err
    assert "7 entries, but the image has 8 volumes" in printed.err
    assert "2 runs" in printed.out
    assert main(["prepare", str(dataset), str(tmp_path / "o.npz")]) == 1
