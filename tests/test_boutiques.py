"""The Boutiques descriptor is the parser's, says so, and runs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import write_dataset

FOLDER = Path(__file__).parents[1] / "boutiques"
DESCRIPTOR = FOLDER / "bids_dmrigen.json"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of bosh, and of the app that it calls
BOSH = shutil.which("bosh", path=PATH)
needs_bosh = pytest.mark.skipif(not BOSH, reason="boutiques is not installed")


def bosh(*arguments) -> str:
    """Run bosh; return its output, on success."""
    command = [BOSH, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": PATH})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def invocation(tmp_path) -> Path:
    """A call on a tiny dataset, too flat to be registered, that takes seconds."""
    values = {
        "bids_dir": str(write_dataset(tmp_path / "data", shape=(20, 22, 6))),
        "output_dir_name": str(tmp_path / "out"),
        "analysis_level": "participant",
        "participant_label": ["01"],
        "skip_bids_validation": True,
        "denoise": "none",
        "no_gibbs": True,
        "no_motion": True,
        "device": "cpu",
        "n_cpus": 1,
    }
    path = tmp_path / "invocation.json"
    path.write_text(json.dumps(values))
    return path


def test_descriptor_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_descriptor", FOLDER / "make_descriptor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = json.loads(DESCRIPTOR.read_text())
    built = module.build()
    for descriptor in (stored, built):
        descriptor.pop("tool-version")  # follows the tags, not the parser
    assert stored == built, "run boutiques/make_descriptor.py"
    keys = {entry["value-key"] for entry in descriptor["inputs"]}
    assert all(key in descriptor["command-line"] for key in keys)


@needs_bosh
def test_descriptor_is_valid_for_bids():
    bosh("validate", "--bids", DESCRIPTOR)


@needs_bosh
def test_simulated_call(invocation, tmp_path):
    said = bosh("exec", "simulate", DESCRIPTOR, "-i", invocation).splitlines()[-1]
    assert said == (
        f"mkdir -p {tmp_path}/out; bids_dmrigen {tmp_path}/data {tmp_path}/out participant --participant-label 01 "
        "--skip-bids-validation --denoise none --no-gibbs --no-motion --n-cpus 1 --device cpu"
    )


@needs_bosh
def test_launched_call(invocation, tmp_path):
    bosh("exec", "launch", "--no-container", DESCRIPTOR, invocation)
    assert (tmp_path / "out" / "sub-01.html").is_file()
    assert not (tmp_path / "out" / "sub-02.html").exists()
