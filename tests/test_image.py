"""The container image as a cluster runs it: a foreign user, a read-only root, no network (`make test-image`)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.cli import tools

IMAGE = os.environ.get("TEST_IMAGE")
RUN = shlex.split(os.environ.get("TEST_IMAGE_RUN", "docker run"))
pytestmark = pytest.mark.skipif(not IMAGE, reason="make test-image names the image")

# Every shipped weight once, Di-Fusion for a few steps, and no clock in any decision.
OPTIONS = ["--deterministic", "--device", "cpu", "--difusion-steps", "60"]
OPTIONS += ["--methods", "difusion", "qid2", "diffdti", "phydiff", "rishldm"]
OPTIONS += ["--qid2-directions", "30", "--phydiff-bvalues", "1000", "--phydiff-directions", "6"]
PLAIN = ["--deterministic", "--device", "cpu", "--skip-bids-validation", "--denoise", "none"]


def container(folders: dict[Path, str], *command: str, entrypoint: str = "bids_dmrigen") -> list[str]:
    """Return a command that runs in the image as a user it does not know, who has no home and can write nothing else.

    `folders` are those of this machine and where they are in the container; `:ro` behind the latter protects one.
    """
    mounts = [part for here, there in folders.items() for part in ("-v", f"{here}:{there}")]
    limits = ["--user", "1234:1234", "--read-only", "--tmpfs", "/tmp", "--network", "none"]
    return [*RUN, "--rm", *limits, *mounts, "--entrypoint", entrypoint, IMAGE, *command]


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def writable(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("image") / "data"
    assert tools.main(["demo", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def result(data) -> Path:
    """The output of the app in the image for the demo dataset."""
    out = writable(data.parent / "out")
    done = run(container({data: "/data:ro", out: "/out"}, "/data", "/out", "participant", *OPTIONS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Finished: 2 of 2 runs complete" in done.stdout
    assert "not validated" not in done.stdout
    return out


def test_outputs_are_valid(result):
    validator = Path(sys.executable).parent / "bids-validator-deno"
    issues = json.loads(run([str(validator), str(result), "--json"]).stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    description = json.loads((result / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Container"]["Type"] == "docker"


def test_same_result_as_outside(data, result):
    out = data.parent / "outside"
    app = [sys.executable, "-m", "bids_dmrigen.cli.app"]
    done = run([*app, str(data), str(out), "participant", *OPTIONS])
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.relative_to(out) for path in out.glob("sub-*/dwi/*")}
    assert names == {path.relative_to(result) for path in result.glob("sub-*/dwi/*")}
    for name in sorted(name for name in names if name.suffixes[-2:] == [".nii", ".gz"]):
        ours, theirs = (np.asanyarray(nib.load(folder / name).dataobj) for folder in (result, out))
        # Not to the last bit: two builds of Python and of the C library stand under the same packages.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max(), err_msg=str(name))


def test_two_at_once_on_one_output_folder(data, tmp_path):
    """Each has a dataset of one subject, made of links into a folder that only the container has (CBRAIN's way)."""
    out, calls = writable(tmp_path / "out"), []
    for label in ("01", "02"):
        one = tmp_path / label
        one.mkdir()
        for name in ("dataset_description.json", f"sub-{label}"):
            (one / name).symlink_to(f"/full/{name}")
        folders = {data: "/full:ro", one: "/data:ro", out: "/out"}
        command = container(folders, "/data", "/out", "participant", *PLAIN)
        calls.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [call.communicate()[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0], "\n".join(said)
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert {path.name for path in out.glob("*.html")} >= {"sub-01.html", "sub-02.html"}
    done = run(container({data: "/data:ro", out: "/out"}, "/data", "/out", "group"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_tools_need_no_home(tmp_path):
    out = writable(tmp_path / "out")
    done = run(container({out: "/out"}, "demo", "/out/data", entrypoint="dmrigen"))
    assert done.returncode == 0, done.stderr
    assert (out / "data" / "dataset_description.json").is_file()
    done = run(container({}, "weights", "list", entrypoint="dmrigen"))
    assert done.returncode == 0, done.stderr


def test_packages_fit_together():
    assert run(container({}, "check", entrypoint="pip")).returncode == 0


def test_nothing_superfluous_in_the_image():
    """As root, who may look everywhere, and with the image's own /tmp."""
    found = run([*RUN, "--rm", "--user", "0", "--network", "none", "--entrypoint", "sh", IMAGE, "-c", FIND])
    assert found.stdout.split() == ["searched"], found.stdout + found.stderr


# Caches, configuration of the machine that built it, our sources and tests, and code that was not compiled.
FIND = """
find / -xdev \\( -path '*/.cache/*' -o -path '/run/secrets/*' -o -name pip.conf -o -name .netrc \\) -type f 2>/dev/null
find /opt/venv -path '*/bids_dmrigen/*' \\( -name 'test_*' -o -name '.git*' \\)
find /tmp /src /wheel /code -type f 2>/dev/null
find /opt/venv/lib/python3*/site-packages/bids_dmrigen /opt/venv/lib/python3*/site-packages/torch/nn \
    -name '*.py' -size +0 | while read -r file; do
    ls "$(dirname "$file")"/__pycache__/"$(basename "$file" .py)".*.pyc >/dev/null 2>&1 || echo "$file"
done
echo searched
"""
