"""The command line and the settings file."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.cli.app import _validate, main
from bids_dmrigen.cli.parser import UnsupportedLevel, build_parser, parse_settings
from bids_dmrigen.workflow.settings import SettingsError, read_toml


def parse(*options):
    return parse_settings(["/data", "/out", "participant", *options])


def test_defaults():
    settings = parse()
    assert settings.methods == ()
    assert settings.denoiser == "mppca"
    assert settings.motion
    assert str(settings.work) == "/out/work"


def test_labels_with_and_without_prefix():
    assert parse("--participant-label", "sub-01", "02").participant_label == ("01", "02")
    assert parse("--participant_label", "01").participant_label == ("01",)


def test_difusion_gets_the_noisy_series_unless_the_user_asks_otherwise():
    assert parse("--methods", "difusion").denoiser == "none"
    assert parse("--methods", "difusion", "--denoise", "mppca").denoiser == "mppca"


def test_switches():
    settings = parse("--no-gibbs", "--no_motion", "--no-sdc", "--no-bias")
    assert [settings.gibbs, settings.motion, settings.sdc, settings.bias] == [False] * 4


def test_weights_by_method_and_directions_by_number_or_file(tmp_path):
    assert parse("--weights", "difusion=a=b").method_weights == {"difusion": "a=b"}
    assert parse().method_weights == {}
    assert parse("--qid2-directions", "90").method_options["qid2_directions"] == 90
    file = tmp_path / "wanted.bvec"
    file.write_text("1 0\n0 1\n0 0\n")
    assert parse("--qid2-directions", str(file)).method_options["qid2_directions"] == str(file)


def test_settings_file_and_command_line(tmp_path):
    first = parse("--methods", "difusion", "--seed", "7", "--no-gibbs", "--b0-threshold", "20")
    path = tmp_path / "settings.toml"
    path.write_text(first.to_toml())
    assert parse("--config-file", str(path), "--seed", "8").seed == 8
    again = parse("--config-file", str(path))
    assert again.to_toml().replace(f'config_file = "{path}"\n', "") == first.to_toml()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[methods]\nsed = 3\n", "no setting sed"),
        ("[nonsense]\nseed = 3\n", "unknown table"),
        ("[methods\n", "not valid TOML"),
    ],
)
def test_settings_file_with_a_fault(tmp_path, text, message):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_toml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[methods]\nmethods = "difusion"\n', "--methods: expected a list"),
        ('[methods]\nsize = "huge"\n', "--size: expected small, paper, found 'huge'"),
        ('[preprocessing]\ndenoise = "mpcca"\n', "--denoise: expected mppca"),
        ("[selection]\nrun_label = [1]\n", "--run-label: expected a list"),
        ('[methods]\nseed = "3"\n', "--seed: expected"),
    ],
)
def test_settings_file_with_values_that_make_no_sense(tmp_path, text, message):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        parse("--config-file", str(path))


def test_folders_that_cannot_serve():
    with pytest.raises(SettingsError, match="is the output folder too"):
        parse("--derivatives", "before=/out")
    with pytest.raises(SettingsError, match="ANTs cannot read"):
        parse("--work-dir", "/tmp/a,b")
    assert parse("--template-dir", "tpl").template_dir.is_absolute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--n-samples", "0"), "--n-samples: expected at least 1"),
        (("--device", "gpu"), "--device: expected auto"),
        (("--b0-threshold", "0"), "--b0-threshold: expected more than 0"),
        (("--derivatives", "/somewhere"), "expected NAME=PATH"),
        (("--weights", "trial"), "expected METHOD=NAME_OR_PATH"),
        (("--weights", "unknown=trial"), "METHOD one of difusion"),
        (("--qid2-directions", "0"), "expected a number above 0 or a file"),
        (("--rishldm-voxel-size", "0"), "--rishldm-voxel-size: expected more than 0, found 0"),
        (("--rishldm-voxel-size", "inf"), "--rishldm-voxel-size: expected a finite number, found inf"),
        (("--qid2-directions", "99999999"), "--qid2-directions: expected at most 2000 directions"),
        (("--rishldm-voxel-size", "nan"), "--rishldm-voxel-size: expected a finite number, found nan"),
    ],
)
def test_values_that_make_no_sense(options, message):
    with pytest.raises(SettingsError, match=message):
        parse(*options)


def test_output_must_not_be_the_input(tmp_path):
    for arguments in ([f"{tmp_path}/sub-01/dwi"], [f"{tmp_path}/out", "-w", f"{tmp_path}/sub-01"]):
        with pytest.raises(SettingsError, match="is in sub-01 of the input dataset"):
            parse_settings([str(tmp_path), arguments[0], "participant", *arguments[1:]])
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (("file", "is a file"), ("loop", "cannot be used")):
        with pytest.raises(SettingsError, match=f"the output folder .*{name} {said}"):
            parse_settings([str(tmp_path), f"{tmp_path}/{name}", "participant"])
    with pytest.raises(SettingsError, match="the output folder is the input folder"):
        parse_settings([str(tmp_path), f"{tmp_path}/", "participant"])


def test_missing_weights_have_a_separate_exit_status_before_anything_runs(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    command = [str(tmp_path / "data"), str(tmp_path / "out"), "participant", "--dry-run", "--methods", "difusion"]
    assert main([*command, "--weights", "difusion=absent"]) == 4
    assert "no weights 'absent'" in capsys.readouterr().err


def no_adc(folder):
    """Write an image of shares in the place of diffusivities, and return its path."""
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2, 1), np.float32), np.eye(4)), folder / "adc.nii.gz")
    (folder / "adc.json").write_text(json.dumps({"BValues": [1000]}))
    return folder / "adc.nii.gz"


@pytest.mark.parametrize(
    ("method", "option", "make", "message"),
    [
        ("atlas", "--fibre-dir", lambda folder: folder, "T1w.nii.gz: no such file"),
        ("phydiff", "--xtract-dir", lambda folder: folder, "prob-1mm.nii.gz, found no such file"),
        ("phydiff", "--adc-atlas", no_adc, "adc.nii.gz: expected diffusivities in mm²/s, 0 to 0.006, found 1 to 1"),
    ],
)
def test_a_faulty_atlas_is_found_before_anything_runs(tmp_path, capsys, method, option, make, message):
    folder = tmp_path / "data"
    folder.mkdir()
    command = [str(folder), str(tmp_path / "out"), "participant", "--dry-run", option, str(make(folder))]
    assert main([*command, "--methods", method]) == 4
    printed = capsys.readouterr()
    assert message in printed.err
    assert "is not used" not in printed.out
    for methods in ((), ("--methods", "interp")):  # no method works with it
        assert main([*command, *methods]) == 3  # the dataset is none
        assert f"note: {option} is not used: none of the requested methods (" in capsys.readouterr().out


def test_a_missing_validator_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    _validate(tmp_path)
    assert "not installed: the dataset was not validated" in capsys.readouterr().out
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/true")  # says nothing that is JSON
    _validate(tmp_path)
    assert "gave no answer" in capsys.readouterr().out


def test_unsupported_level():
    with pytest.raises(UnsupportedLevel, match="expected participant or group"):
        parse_settings(["/data", "/out", "session"])


def test_abbreviations_and_absent_flags_are_refused():
    for option in ("--meth", "--weight", "--output-space"):
        with pytest.raises(SystemExit) as stop:
            parse(option, "x")
        assert stop.value.code == 2


def test_every_option_has_help_with_its_default():
    for action in build_parser()._actions:
        assert action.help, action.dest


def test_the_first_line_of_a_run_waits_for_nothing_heavy(tmp_path):
    code = (
        "import builtins, sys\nfrom bids_dmrigen.cli.app import main\n"
        "heavy = {'torch', 'nibabel', 'nipype', 'ants', 'dipy', 'bids', 'pandas'}\n"
        "def first(line, **more):\n    sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
        "builtins.print = first\n"
        f"main(['{tmp_path}', '{tmp_path}/out', 'participant'])\nsys.exit('nothing was said')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\nfrom bids_dmrigen.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nibabel', 'nipype', 'ants', 'dipy', 'bids', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
