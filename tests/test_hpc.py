"""Clusters as in docs/hpc.md: the job array as SLURM starts it, and SLURM jobs that the app submits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import SGELikeBatchManagerBase

from bids_dmrigen.cli.app import PLUGINS, main
from bids_dmrigen.cli.parser import parse_settings

from .conftest import slurm_stand_ins, stand_in, write_dataset

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
def test_the_app_gets_less_memory_than_the_limit_of_slurm(tmp_path, limit, mem_gb):
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


QUICK = ["--skip-bids-validation", "--skip-preprocessing", "--device", "cpu", "--n-cpus", "1"]
# The app, with a shorter wait for files on shared folders
APP = """
import sys
from bids_dmrigen.workflow import plugin
plugin.POLLING |= {"poll_sleep_duration": 0.1, "job_finished_timeout": 1}
from bids_dmrigen.cli.app import main
sys.exit(main())
"""


def test_a_job_that_slurm_kills_leaves_the_other_runs_alone(tmp_path):
    data = write_dataset(tmp_path / "data", shape=(20, 22, 6))
    killed = 'echo "slurmstepd: error: Detected 1 oom_kill event" > "$log"; echo "Submitted batch job $$"; exit'
    bin_folder = slurm_stand_ins(tmp_path / "bin", "run_sub_01*_conform", killed)
    result = subprocess.run(
        [sys.executable, "-c", APP, data, tmp_path / "out", "participant", *QUICK, "--nipype-plugin", "SLURM"],
        env=os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    (failed,) = [line for line in result.stderr.splitlines() if line.startswith("FAILED")]
    assert failed.startswith("FAILED sub-01, conform: SLURM job ")
    assert failed.endswith("ends with: slurmstepd: error: Detected 1 oom_kill event")
    assert "Ended: 1 of 2 runs complete" in result.stdout
    assert len(list(tmp_path.glob("out/logs/*/crash-*-conform-*.txt"))) == 1
    assert "oom_kill" in (tmp_path / "out/sub-01.html").read_text()
    assert (tmp_path / "out/sub-02.html").is_file()
    assert (tmp_path / "out/sub-02/dwi/sub-02_desc-quality_metrics.json").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Slurm", f"expected one of {', '.join(PLUGINS)}, spelt like this, found Slurm"),
        ("SLURM", "sbatch and squeue cannot be called here (not on PATH); call the app where jobs are submitted"),
        ("LSF", "bsub and bjobs cannot be called here"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_before_anything_is_written(
    dataset, tmp_path, monkeypatch, capsys, name, message
):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main([str(dataset), str(tmp_path / "out"), "participant", "--nipype-plugin", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_the_plugins_are_those_of_nipype_that_wait():
    """Nipype's graph plugins submit everything and return; so the files for the app's report do not exist yet."""
    batch = {plugin for plugin in vars(plugins).values() if isinstance(plugin, type)}
    names = {plugin.__name__.removesuffix("Plugin") for plugin in batch if issubclass(plugin, SGELikeBatchManagerBase)}
    assert set(PLUGINS) == {"MultiProc", "Linear"} | names
