"""`dmrigen train`: on simulated subjects and on prepared scans, from given weights, under torchrun, torch alone."""

import csv
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_dmrigen import methods
from bids_dmrigen.cli.tools import main
from bids_dmrigen.diffusion import training
from bids_dmrigen.diffusion.arrays import write_prepared
from bids_dmrigen.diffusion.weights import list_weights, read_card, verify_weights
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods.enhance.rishldm_model import RishLatentDiffusion
from bids_dmrigen.simulate.atlas_file import save_atlas
from tests.cli.trainable import Mean
from tests.conftest import tiny_gradients, tiny_series, write_dataset, write_run
from tests.simulate.conftest import make_ball


@pytest.fixture
def trainable(monkeypatch):
    monkeypatch.setitem(methods.REGISTRY, "mean", "tests.cli.trainable")


@pytest.fixture
def atlas(tmp_path):
    return save_atlas(tmp_path / "ball.safetensors", make_ball())


def command(out, *options):
    return ["train", "mean", "--out", str(out), "--batch", "2", "--device", "cpu", "--precision", "fp32", *options]


@pytest.mark.usefixtures("trainable")
def test_subjects_then_a_user_s_own_scans(tmp_path, atlas, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(first, "--atlas", str(atlas), "--subjects", "1", "--steps", "30")) == 0
    card = read_card(first / "mean-small.safetensors")
    assert (card.method, card.steps, card.seed, card.configuration) == ("mean", 30, 0, {"size": "small"})
    assert card.trained_on == {
        "examples": "simulated subjects", "atlas": "ball.safetensors", "subjects": 1, "batch": 2, "lesioned": 0.3,
        "numerics": {"Precision": "fp32", "TF32": False, "Deterministic": True},
    }  # fmt: skip
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
    options_of_both = ("--data", str(arrays), "--atlas", str(atlas), "--subjects", "1", "--steps", "10")
    assert main(command(both, *options_of_both)) == 0
    mixed = read_card(both / "mean-small.safetensors").trained_on
    assert (mixed["examples"], mixed["subjects"]) == ("prepared scans and simulated subjects", 1)
    assert mixed["train"] == ["sub-02"]
    anatomies, third = tmp_path / "anatomies.safetensors", tmp_path / "third"
    assert main(["prepare", str(dataset), str(anatomies), "--anatomies"]) == 0
    assert main(command(third, "--anatomies", str(anatomies), "--steps", "10")) == 0
    made = read_card(third / "mean-small.safetensors").trained_on
    assert made["examples"] == "anatomies of scans"
    assert made["anatomies"] == {"file": "anatomies.safetensors", "train": ["sub-02"], "held out": ["sub-01"]}
    capsys.readouterr()
    assert main(command(second, *options)) == 0  # it goes on where it stopped: nothing is left to do
    assert "ended after 20 steps" in capsys.readouterr().out


class TwoParts(torch.nn.Module):
    """A number that is drawn to the signals, one that is drawn to the first, and where this one was as that began."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Mean().network("small"), Mean().network("small")
        self.register_buffer("begun_from", torch.zeros(1))

    def forward(self, part):
        return getattr(self, part)(torch.zeros(1))


class First(Mean):
    """A training of the first number."""

    name, constants = "first", ()

    def share(self, size):
        return 0.5

    def __init__(self, net):
        self.net = net

    def begin(self, source, batch, seed):
        for name, own in self.net.named_parameters():
            own.requires_grad_(name.startswith(self.name))

    def loss(self, net, batch):
        return (net("first") - batch.mean()).square().mean()


class Second(First):
    """A training of the second number, on examples that the first makes."""

    name, constants = "second", ("begun_from",)

    def begin(self, source, batch, seed):
        super().begin(source, batch, seed)
        self.net.begun_from.copy_(self.net("first").detach())

    def examples(self, source, size, batch, seed):
        return lambda index: self.net("first").detach()

    def loss(self, net, batch):
        return (net("second") - batch).square().mean()


class InParts(Mean):
    def network(self, size):
        return TwoParts()

    def trainings(self, net):
        return [First(net), Second(net)]


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setitem(methods.REGISTRY, "mean", "tests.cli.trainable")
    monkeypatch.setattr(methods, "load", lambda name: InParts())
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=count().__next__))  # a second for a step


def weights_in(folder):
    return {name: float(value) for name, value in load_file(folder / "mean-small.safetensors").items()}


@pytest.mark.usefixtures("in_parts")
def test_a_method_in_parts_is_trained_part_after_part(tmp_path, atlas, capsys):
    options = ("--atlas", str(atlas), "--subjects", "1", "--steps", "20")
    assert main(command(tmp_path, *options)) == 0
    assert {f"{kind}-{part}" for kind in ("log", "checkpoint") for part in ("first", "second")} <= {
        path.stem for path in tmp_path.iterdir()
    }
    card, found = read_card(tmp_path / "mean-small.safetensors"), weights_in(tmp_path)
    assert card.steps == 40
    assert card.held_out["second start"] == pytest.approx((5 - found["first.bias"]) ** 2)
    assert card.held_out["second best"] == pytest.approx((found["second.bias"] - found["first.bias"]) ** 2)
    assert card.held_out["second best"] < card.held_out["second start"]
    assert card.held_out["first best"] < card.held_out["first start"]
    assert "second ended after 20 steps" in capsys.readouterr().out


@pytest.mark.usefixtures("in_parts")
def test_parts_that_go_on_take_those_after_them_along(tmp_path, atlas, capsys):
    options = ("--atlas", str(atlas), "--subjects", "1")
    runs = []
    for minutes in ("1", "1", "2", "2"):
        assert main(command(tmp_path, *options, "--minutes", minutes)) == 0
        anew = "second: its training data have changed" in capsys.readouterr().out
        runs.append((read_card(tmp_path / "mean-small.safetensors"), weights_in(tmp_path), anew))
    (short, of_short, _), (card, found, _) = runs[0], runs[2]
    assert [anew for _, _, anew in runs] == [False, False, True, False]
    assert (runs[0][1], runs[2][1]) == (runs[1][1], runs[3][1])  # nothing was left to do
    assert (runs[3][0].steps, runs[3][0].held_out) == (card.steps, card.held_out)
    # The first part's gain holds, and the second one's examples and score are those that it makes now.
    assert (short.steps, card.steps) == (30 + 30, 60 + 30 + 60)
    assert card.held_out["first best"] < short.held_out["first best"]
    assert abs(found["first.bias"] - of_short["first.bias"]) > 0.1
    assert found["begun_from"] == pytest.approx(found["first.bias"])
    expected = [(part["second.bias"] - found["first.bias"]) ** 2 for part in (of_short, found)]
    assert [card.held_out[f"second {when}"] for when in ("start", "best")] == pytest.approx(expected)


def test_pairs_are_for_the_method_that_is_trained_on_them(tmp_path, capsys):
    for method, options, message in (
        ("rishldm", ("--data", "poor.safetensors"), "give the good scans"),
        ("qid2", ("--data", "poor.safetensors", "--good", "good.safetensors"), "are trained on pairs (rishldm, "),
        ("rishldm", ("--good", "good.safetensors"), "goes with --data"),
    ):
        assert main(["train", method, "--out", str(tmp_path), *options]) == 1
        assert message in capsys.readouterr().err


def test_of_pairs_a_subject_that_is_in_both_is_held_out(tmp_path, monkeypatch):
    table = tiny_gradients(20)
    scan = Scan(tiny_series(table), np.eye(4), table, np.ones(tiny_series(table).shape[:3], bool))
    for name, subjects in (("poor", "abc"), ("good", "bc")):
        write_prepared(tmp_path / f"{name}.safetensors", [(f"sub-{s}", s, scan, 1.0) for s in subjects])
    monkeypatch.setattr(RishLatentDiffusion, "trainings", lambda self, net: [])  # nothing is trained
    files = ["--data", str(tmp_path / "poor.safetensors"), "--good", str(tmp_path / "good.safetensors")]
    assert main(["train", "rishldm", "--out", str(tmp_path / "o"), "--device", "cpu", *files]) == 0
    trained_on = read_card(tmp_path / "o" / "rishldm-small.safetensors").trained_on
    assert (trained_on["train"], trained_on["held out"]) == (["sub-c"], ["sub-b"])


@pytest.mark.usefixtures("trainable")
def test_missing_weights_and_atlases_have_a_separate_exit_status(tmp_path, atlas, capsys):
    assert main(command(tmp_path / "o", "--init", "absent")) == 4
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
    options = command(tmp_path / "out", "--atlas", str(atlas), "--subjects", "1", "--steps", "10")[1:]
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


@pytest.mark.usefixtures("trainable")
def test_weights_are_calibrated_without_training(tmp_path, atlas, capsys, monkeypatch):
    first, second, seen = tmp_path / "first", tmp_path / "second", []

    def calibrate(self, net, sources, size, seed):
        seen.extend(len(source) for source in sources)
        with torch.no_grad():
            next(net.parameters()).add_(1)

    options = ("--atlas", str(atlas), "--subjects", "1")
    assert main(command(first, *options, "--steps", "5", "--no-calibration")) == 0
    monkeypatch.setattr(Mean, "calibrate", calibrate)
    given = str(first / "mean-small.safetensors")
    assert main(command(second, *options, "--init", given, "--calibrate-only")) == 0
    assert seen == [1]
    before, after = (read_card(folder / "mean-small.safetensors") for folder in (first, second))
    assert (after.steps, after.minutes, after.held_out) == (before.steps, before.minutes, before.held_out)
    assert after.trained_on["calibrated_on"]["examples"] == "simulated subjects"
    assert after.sha256 != before.sha256
    assert not list(second.glob("log*")), "nothing was trained"
    assert main(command(second, *options, "--calibrate-only")) == 1
    assert "--init" in capsys.readouterr().err
