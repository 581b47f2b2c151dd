"""The tools beside the app: what they print, what they refuse, and their exit statuses."""

import json
import subprocess
import sys
from shutil import copy

import numpy as np
import pytest

from bids_dmrigen.cli.tools import main
from bids_dmrigen.diffusion.weights import PACKAGED, Card, save_weights
from bids_dmrigen.methods.denoise.difusion_model import DiFusion
from tests.conftest import tiny_gradients, tiny_series, write_run

CARD = Card(
    method="difusion", size="small", configuration={}, trained_on={"subjects": 3}, steps=7, minutes=0.5, seed=0,
    hardware="a test", held_out={"loss": 0.25}, licence="Apache-2.0",
)  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    return save_weights(tmp_path / "weights", "trial", DiFusion().network("small"), CARD)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom bids_dmrigen.cli.tools import main\n"
        "try:\n    main(['evaluate', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nibabel', 'nipype', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "FA error ↓: mean absolute difference of FA in the mask" in " ".join(done.stdout.split())


def test_weights_are_listed_shown_and_verified(weights, capsys):
    folder = str(weights.parent)
    assert main(["weights", "list", "--weights-dir", folder]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert "loss 0.25" in lines[0]
    assert main(["weights", "show", "trial", "--weights-dir", folder]) == 0
    assert '"hardware": "a test"' in capsys.readouterr().out
    assert main(["weights", "verify", str(weights)]) == 0
    assert "whole and unchanged, fits difusion small" in capsys.readouterr().out


def test_damaged_or_absent_weights_have_a_separate_exit_status(weights, capsys):
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["weights", "verify", str(weights)]) == 4
    assert "SHA-256" in capsys.readouterr().err
    assert main(["weights", "show", "absent"]) == 4
    assert "no weights 'absent'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("qid2", {"size": "enormous"}, "says size 'enormous', expected small or paper"),
        ("qid2", {"method": "nonsense"}, "weights of method 'nonsense', which is none of this program"),
        ("qid2", {"method": "interp"}, "interp has no network"),
        ("qid2", {"configuration": {"references": None}}, "references is null"),
        ("qid2", {"configuration": {"references": []}}, "references: --qid2-references: expected int, found []"),
        ("qid2", {"configuration": {"references": 10**9}}, "references: --qid2-references: expected 3, 6, found"),
        ("qid2", {"configuration": {"width": "x"}}, "(width is unknown)"),
        ("qid2", {"configuration": {"heads": 8}}, "(heads is 8, expected 4)"),
        ("rishldm", {"configuration": {"unet": {"base": None}}}, "(unet.base is None, expected 32)"),
    ],
)
def test_cards_of_no_network_of_this_program_are_refused(tmp_path, capsys, method, change, message):
    for suffix in (".json", ".safetensors"):
        copy(PACKAGED / f"{method}-small{suffix}", tmp_path / f"odd{suffix}")
    card = tmp_path / "odd.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    assert main(["weights", "verify", str(card.with_suffix(".safetensors"))]) == 4
    assert message in capsys.readouterr().err


def test_cards_with_numbers_without_end_are_left_out_of_the_list(weights, capsys):
    card = weights.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"held_out": {"loss": 10**400}}))
    assert main(["weights", "list", "--weights-dir", str(weights.parent)]) == 0
    out, err = capsys.readouterr()
    assert f"left out: {card}" in err
    assert "trial" not in out


def test_evaluate_reads_a_scan_and_writes_everything(tmp_path, capsys):
    gradients = tiny_gradients(20)
    image = write_run(tmp_path, "dense", tiny_series(gradients), gradients)
    out = tmp_path / "out"
    assert (
        main(["evaluate", str(image), "--keep", "8", "--methods", "--simple", "ols", "smooth", "--out", str(out)]) == 0
    )
    assert "FA PSNR (dB) ↑" in capsys.readouterr().out
    result = json.loads((out / "results.json").read_text())
    assert result["settings"]["keep"] == [8]
    assert 0 < result["results"][0]["fa_error"] < 0.3
    assert [row["method"] for row in result["results"]] == ["ols", "smooth"]
    assert set(result["best_simple"]["8"]) >= {"fa_psnr", "left_out_fa_psnr", "dwi_psnr", "contrast_error"}
    assert (out / "index.html").is_file()
    assert (
        main(["evaluate", str(image), "--keep", "20", "--methods", "--simple", "ols", "smooth", "--out", str(out)]) == 1
    )
    assert "no shell has more" in capsys.readouterr().err
    assert main(["evaluate", str(image), "--keep", "8", "--methods", "--simple", "--out", str(out)]) == 1
    assert "name nothing to evaluate" in capsys.readouterr().err
    command = ["evaluate", str(image), "--keep", "8", "--methods", "difusion", "--out", str(out)]
    assert main([*command, "--weights", "difusion=absent"]) == 4


def test_evaluate_takes_folders_and_a_series_of_ones_own(tmp_path, capsys):
    gradients = tiny_gradients(20)
    for subject, seed in (("1", 0), ("2", 1)):
        folder = tmp_path / f"sub-{subject}" / "dwi"
        write_run(folder, f"sub-{subject}", tiny_series(gradients, (16, 18, 8), seed=seed), gradients)
    odd = write_run(tmp_path / "sub-3", "sub-3", tiny_series(tiny_gradients(6), (16, 18, 8)), tiny_gradients(6))
    call = ["evaluate", str(tmp_path), "--keep", "8", "--methods", "sh", "--simple", "ols", "smooth"]
    assert main([*call, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{odd}: 8 directions are to be kept, but no shell has more" in printed
    assert "sh against the best simple estimate of each scan" in printed
    assert "interval over 2 scans" in printed
    assert (tmp_path / "out/sub-2_dwi/results.json").is_file()
    image = tmp_path / "sub-1/dwi/sub-1_dwi.nii.gz"
    own = write_run(tmp_path / "own", "own", tiny_series(gradients, (16, 18, 8), noise=0), gradients)
    call = ["evaluate", str(image), "--keep", "8", "--methods", "--simple", "ols", "--out", str(tmp_path / "one")]
    assert main([*call, "--series", f"mine={own}"]) == 0
    assert "mine is best here" in capsys.readouterr().out
    results = json.loads((tmp_path / "one/results.json").read_text())
    assert results["verdicts"]["8"].startswith("With 8 directions, mine is best here")
    assert "mine is best here" in (tmp_path / "one/index.html").read_text()
    assert main([*call, "--series", f"ols={own}"]) == 1
    assert "with a name that no other arm has" in capsys.readouterr().err


def test_evaluate_runs_a_method_on_the_kept_volumes(tmp_path, monkeypatch):
    from bids_dmrigen import methods
    from bids_dmrigen.methods.base import Generated

    seen = {}

    class Dummy:
        spec = methods.spec_of("interp")

        def network(self, size):
            return None

        def generate(self, net, scan, request):
            seen.update(net=net, volumes=scan.data.shape[3], directions=np.array(request.options["directions"]))
            return Generated(scan.data, None, scan.gradients, (), np.ones(len(scan.gradients), bool), {})

    monkeypatch.setattr(methods, "load", lambda name: Dummy())
    gradients = tiny_gradients(20)
    image = write_run(tmp_path, "dense", tiny_series(gradients), gradients)
    assert main(["evaluate", str(image), "--keep", "8", "--methods", "interp", "--out", str(tmp_path / "o")]) == 0
    assert (seen["net"], seen["volumes"], seen["directions"].shape) == (None, 10, (12, 3))


def test_simulated_subjects_are_a_dataset_with_truth(tmp_path, monkeypatch, capsys):
    import nibabel as nib

    from bids_dmrigen.cli import simulate
    from bids_dmrigen.simulate.atlas_file import save_atlas
    from tests.simulate.conftest import make_ball

    monkeypatch.setattr(simulate, "HEAD_MM", (60.0, 64.0, 56.0))
    atlas, out = str(save_atlas(tmp_path / "ball.safetensors", make_ball())), tmp_path / "out"
    options = ["--n", "2", "--directions", "3", "4", "--bvals", "700", "2000", "--b0", "1", "--voxel-mm", "4"]
    assert main(["simulate", str(out), *options, "--snr", "inf", "--atlas", atlas]) == 0
    for label in ("01", "02"):
        stem = f"sub-{label}/dwi/sub-{label}"
        np.testing.assert_array_equal(np.loadtxt(out / f"{stem}_dwi.bval"), [0] + 3 * [700] + 4 * [2000])
        series, clean = (
            nib.load(folder / f"{stem}{name}_dwi.nii.gz").get_fdata()
            for folder, name in ((out, ""), (out / "derivatives" / "truth", "_desc-clean"))
        )
        np.testing.assert_allclose(series, clean, atol=0.51)  # whole numbers, otherwise the truth
    assert main(["simulate", str(out), *options]) == 1  # not empty
    assert main(["simulate", str(tmp_path / "x"), "--directions", "3", "4", "--bvals", "700"]) == 1
    assert "2 numbers of directions but 1 b-values; give one number per b-value" in capsys.readouterr().err
