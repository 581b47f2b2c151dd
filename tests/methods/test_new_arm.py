"""A new arm is one file and one row in the registry: training, weights, evaluation, the app and its report follow."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen import methods
from bids_dmrigen.cli import app, tools
from bids_dmrigen.cli.parser import build_parser
from bids_dmrigen.simulate.atlas_file import save_atlas

from ..conftest import tiny_gradients, tiny_series, write_dataset, write_run
from ..simulate.conftest import make_ball


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(methods.REGISTRY, "toy", "tests.methods.toy")


def test_a_new_arm_goes_through_everything(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = build_parser().format_help()
    assert "toy every volume mixed with the mean of its shell" in " ".join(text.split())
    assert "--toy-strength" in text

    atlas = save_atlas(tmp_path / "ball.safetensors", make_ball())
    train = ["train", "toy", "--out", "weights", "--atlas", str(atlas), "--subjects", "1", "--batch", "2"]
    assert tools.main([*train, "--device", "cpu", "--precision", "fp32"]) == 0
    assert tools.main(["weights", "verify", "toy-small", "--weights-dir", "weights"]) == 0

    gradients = tiny_gradients(20)
    dense = write_run(tmp_path, "dense", tiny_series(gradients), gradients)
    evaluate = ["evaluate", str(dense), "--keep", "8", "--methods", "toy", "--simple", "ols", "--out", "evaluation"]
    assert tools.main([*evaluate, "--weights-dir", "weights", "--toy-strength", "0.25", "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "evaluation/results.json").read_text())["results"]
    assert {row["method"] for row in results} == {"toy", "ols"}
    assert not any(row["fault"] for row in results)

    write_dataset(tmp_path / "data", ("01",))
    call = ["data", "out", "participant", "--methods", "toy", "--toy-strength", "0.25", "--weights-dir", "weights"]
    call += ["--skip-preprocessing", "--skip-bids-validation", "--nipype-plugin", "Linear", "--device", "cpu"]
    assert app.main(call) == 0
    folder = tmp_path / "out/sub-01/dwi"
    record = json.loads((folder / "sub-01_desc-toy_dwi.json").read_text())["GenerativeModel"]
    assert record["Method"] == "Toy mixing"
    share = record["Checks"]["own_share"]
    assert share == pytest.approx(0.25 * 0.4, abs=0.02)
    mixing = nib.load(folder / "sub-01_param-mixing_desc-toy_dwimap.nii.gz").get_fdata()
    assert mixing.max() == pytest.approx(share, rel=1e-5)
    assert json.loads((folder / "sub-01_param-mixing_desc-toy_dwimap.json").read_text())["Units"] == "arbitrary"
    acquired, generated = (
        nib.load(folder / f"sub-01_desc-{name}_dwi.nii.gz").get_fdata()[..., 2:] for name in ("preproc", "toy")
    )
    np.testing.assert_allclose(generated, (1 - share) * acquired + share * acquired.mean(axis=3)[..., None], rtol=1e-4)
    metrics = json.loads((folder / "sub-01_desc-quality_metrics.json").read_text())
    assert metrics["own_share_toy"]["definition"] == "the number that the network learnt"
    page = (tmp_path / "out/sub-01.html").read_text()
    assert "Toy mixing" in page
    assert (tmp_path / "out/sub-01/figures/sub-01_desc-extratoy_dwi.svg").is_file()
    assert "toy2026" in (tmp_path / "out/logs/CITATION.bib").read_text()
    assert "mixes every diffusion-weighted volume" in (tmp_path / "out/logs/CITATION.md").read_text()
    assert "toy_strength = 0.25" in (tmp_path / "out/logs/settings.toml").read_text()
