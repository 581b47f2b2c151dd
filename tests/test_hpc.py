"""The job array of docs/hpc.md, as SLURM would start it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bids_dmrigen.cli.parser import parse_settings

from .conftest import stand_in

JOB = Path(__file__).parents[1] / "docs" / "dmrigen.sbatch"
# Says what it was called with, then fails as the app does when a run did not complete.
APPTAINER = """#!/bin/sh
printf "%s\\n" "$@"
env | grep APPTAINERENV_
for folder in "$TMPDIR"/dmrigen.*; do touch "$folder/made"; done
exit 1
"""
OF_A_NODE, OF_A_CPU = {"SLURM_MEM_PER_NODE": "8192"}, {"SLURM_MEM_PER_CPU": "2048"}


def run_job(folder: Path, task: int = 0, **environment: str) -> list[str]:
    """Run a task of the job array on two subjects; return Apptainer's arguments and variables."""
    for label in ("02", "01"):
        (folder / "data" / f"sub-{label}").mkdir(parents=True)
    (folder / "data" / "sub-notes.txt").touch()
    stand_in(folder / "bin", "apptainer", APPTAINER)
    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    done = subprocess.run(
        ["bash", JOB, "app.sif", folder / "data", folder / "out", "--methods", "difusion"],
        env=path | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "4"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.splitlines()


def app_settings(said: list[str]):
    words = said[said.index("app.sif") + 1 :]
    return parse_settings([word for word in words if "APPTAINERENV_" not in word])


@pytest.mark.parametrize(("task", "subject"), [(0, "01"), (1, "02")])
def test_each_task_takes_a_subject(tmp_path, task, subject):
    settings = app_settings(run_job(tmp_path, task))
    assert settings.participant_label == (subject,)
    assert (settings.work_dir, settings.methods) == (Path(f"/out/work/sub-{subject}"), ("difusion",))
    assert settings.n_cpus == 4


@pytest.mark.parametrize(
    ("limit", "mem_gb"),
    [(OF_A_NODE, 7.372), (OF_A_CPU, 7.372), ({"SLURM_MEM_PER_NODE": "0"}, None), ({}, None)],
    ids=["--mem", "--mem-per-cpu", "--mem=0", "no limit"],
)
def test_the_app_is_told_less_than_slurm_ends_the_job_at(tmp_path, limit, mem_gb):
    assert app_settings(run_job(tmp_path, **limit)).mem_gb == mem_gb


@pytest.mark.parametrize("gpus", [None, "", "2", "1,3"])
def test_the_container_sees_the_gpus_of_its_job(tmp_path, gpus):
    said = run_job(tmp_path, **({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}))
    handed_in = [line for line in said if line.startswith("APPTAINERENV_")]
    assert handed_in == ([] if gpus is None else [f"APPTAINERENV_CUDA_VISIBLE_DEVICES={gpus}"])


def test_the_container_has_a_folder_on_disk_for_tmp(tmp_path):
    said = run_job(tmp_path)
    data, out, scratch = said[said.index("--bind") + 1].split(",")
    assert (data, out) == (f"{tmp_path / 'data'}:/data:ro", f"{tmp_path / 'out'}:/out")
    assert scratch.startswith(f"{tmp_path}/dmrigen.")
    assert scratch.endswith(":/tmp")
    assert not list(tmp_path.glob("dmrigen.*")), "removed with what was in it"
