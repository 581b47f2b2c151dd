"""The group report: the table, its description, the outliers, one run and many."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bids_dmrigen.bids import names
from bids_dmrigen.qc import group
from bids_dmrigen.qc.metrics import describe, describe_all


def _dataset(root, n, odd=None):
    rng = np.random.default_rng(0)
    for k in range(n):
        run = {"subject": f"{k:03d}", "direction": "AP"}
        snr = 20 + rng.normal() if k != odd else 5.0
        metrics = {"b0_snr": describe("b0_snr", snr), "n_volumes": describe("n_volumes", 13)}
        metrics |= describe_all({"ndc": rng.uniform(0.8, 0.9)}, "preproc")
        metrics |= describe_all({"ndc": rng.uniform(0.9, 0.95)}, "qid2") if k % 2 else {}
        path = root / names.output_path(run, "metrics")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(metrics))
        (root / names.report_path(run["subject"])).write_text("<html></html>")
    return root


def test_table_and_its_description(tmp_path):
    page, table, description = group.group_report(_dataset(tmp_path, 12, odd=4))
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == [
        "participant_id",
        "session_id",
        "run",
        "b0_snr",
        "n_volumes",
        "ndc_preproc",
        "ndc_qid2",
    ]
    assert len(lines) == 13
    assert lines[5][:4] == ["sub-004", "n/a", "sub-004_dir-AP", "5"]
    assert lines[1][6] == "n/a"  # that run was not given to the method
    columns = json.loads(description.read_text())
    assert list(columns) == lines[0]
    assert columns["ndc_qid2"]["BetterDirection"] == "higher"
    assert "qid2" in columns["ndc_qid2"]["Description"]
    assert columns["n_volumes"]["Units"] == "count"
    assert page.name == "group.html"


def test_outlying_run_is_named_and_linked(tmp_path):
    page = group.group_report(_dataset(tmp_path, 12, odd=4))[0].read_text(encoding="utf-8")
    listed = re.search(r'<section id="outliers">(.*?)</section>', page, re.DOTALL).group(1)
    assert '<a href="sub-004.html">sub-004_dir-AP</a>' in listed
    assert "below, worse" in listed
    assert listed.count("<tr><th>") == 1 + 1  # its head and this run


@pytest.mark.parametrize("n", [1, 3, 500])
def test_one_run_and_many(tmp_path, n):
    page = group.group_report(_dataset(tmp_path, n))[0].read_text(encoding="utf-8")
    assert page.count("<circle") == 3 * n + n // 2
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)
        assert "nan" not in svg
    if n < group.MIN_RUNS:
        assert "none is called an outlier" in page


def test_outlier_rules():
    rng = np.random.default_rng(0)
    many = np.r_[rng.normal(size=50), 9.0, np.nan]
    assert np.flatnonzero(group.outliers(many)).tolist() == [50]
    few = np.array([1.0, 1.1, 0.9, 1.05, 5.0])
    assert np.flatnonzero(group.outliers(few)).tolist() == [4]
    assert not group.outliers(np.array([1.0, 1.0, 9.0])).any()
    assert not group.outliers(np.full(20, 3.3)).any()
    protocol = np.r_[np.full(19, 31.0), 13.0]  # a MAD of 0 must not hide the odd one
    assert np.flatnonzero(group.outliers(protocol)).tolist() == [19]
    assert np.flatnonzero(group.outliers(np.array([31.0, 31, 31, 31, 13]))).tolist() == [4]


def test_unreadable_metrics_are_reported_and_do_not_stop_the_rest(tmp_path):
    _dataset(tmp_path, 2)
    broken = tmp_path / names.output_path({"subject": "000", "direction": "PA"}, "metrics")
    broken.write_text('{"b0_snr": ')
    page = group.group_report(tmp_path)[0].read_text(encoding="utf-8")
    assert "sub-000_dir-PA_desc-quality_metrics.json cannot be read" in page


def test_dataset_without_metrics(tmp_path):
    with pytest.raises(group.GroupError, match="run the participant level first"):
        group.group_report(tmp_path)
