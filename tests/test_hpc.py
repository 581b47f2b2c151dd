"""The job array of docs/hpc.md, as SLURM would start it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bids_dmrigen.cli.parser import parse_settings

JOB = Path(__file__).parents[1] / "docs" / "dmrigen.sbatch"
APPTAINER = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.mark.parametrize(("task", "subject"), [(0, "01"), (1, "02")])
def test_each_task_takes_a_subject(tmp_path, task, subject):
    for label in ("02", "01"):
        (tmp_path / "data" / f"sub-{label}").mkdir(parents=True)
    (tmp_path / "data" / "sub-notes.txt").touch()
    (tmp_path / "apptainer").write_text(APPTAINER)
    (tmp_path / "apptainer").chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_NODE": "8192"}
    said = subprocess.run(
        ["bash", JOB, "app.sif", tmp_path / "data", tmp_path / "out", "--methods", "difusion"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | slurm,
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert f"{tmp_path / 'data'}:/data:ro,{tmp_path / 'out'}:/out" in said
    settings = parse_settings(said[said.index("app.sif") + 1 :])
    assert settings.participant_label == (subject,)
    assert (settings.work_dir, settings.methods) == (Path(f"/out/work/sub-{subject}"), ("difusion",))
    assert (settings.n_cpus, settings.mem_gb) == (4, 8.0)
