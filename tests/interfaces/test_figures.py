"""The figure and metric interfaces: files and values reach the functions of `qc`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from bids_dmrigen.interfaces.figures import QualityMetrics, RunFigures, RunInput
from bids_dmrigen.qc.run_data import RunData, RunFiles
from bids_dmrigen.qc.run_metrics import measure
from tests.qc.runs import complete_run


def test_the_inputs_are_those_of_the_functions():
    fields = {field.name: field.default for field in dataclasses.fields(RunFiles)}
    inputs = RunInput()
    assert set(inputs.copyable_trait_names()) == set(fields)
    given = {name: value for name, value in fields.items() if value not in (None, ())}
    assert {name: getattr(inputs, name) for name in given} == given


def test_a_complete_run_is_drawn_and_measured(tmp_path):
    inputs = complete_run(tmp_path)
    outputs = RunFigures(**inputs).run(cwd=str(tmp_path)).outputs
    assert outputs.skipped == {}
    assert all(Path(path).parent == tmp_path for _, path in outputs.figures)
    path = QualityMetrics(**inputs).run(cwd=str(tmp_path)).outputs.out_metrics
    assert json.loads(Path(path).read_text(encoding="utf-8")) == measure(RunData(RunFiles(**inputs)))


def test_figures_without_their_inputs_are_skipped(tmp_path):
    inputs = complete_run(tmp_path)
    needed = ("preproc_dwi", "preproc_bval", "preproc_bvec", "mask")
    outputs = RunFigures(**{name: inputs[name] for name in needed}).run(cwd=str(tmp_path)).outputs
    assert [key for key, _ in outputs.figures] == ["acquisition", "carpet", "mask", "skipped"]
    assert outputs.skipped["Registration to T1w"] == "no T1w image"
