"""The subject report: sections, runs, honesty about synthetic data, no network."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from bids_dmrigen.bids import names
from bids_dmrigen.qc import report
from bids_dmrigen.qc.metrics import describe, describe_all

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10" width="10pt"/>\n'
RUNS = (
    {"subject": "01", "direction": "AP", "run": "1"},
    {"subject": "01", "direction": "PA"},
    {"subject": "02", "session": "pre"},
)
MODEL = {
    "Method": "Di-Fusion", "Citation": "Wu et al. <2025>", "Seed": 3, "AcquiredVolumes": [0],
    "GeneratedVolumes": [1, 2], "Warnings": ["few directions"],
    "Weights": {"Name": "difusion-small"},
}  # fmt: skip


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def derivatives(tmp_path) -> Path:
    """Three runs with figures and metrics; the first has generated data."""
    _put(tmp_path / "dataset_description.json", json.dumps({"GeneratedBy": [{"Name": "bids_dmrigen"}]}))
    _put(tmp_path / "logs/CITATION.md", "What another call did to another subject.")
    for run in RUNS:
        for key in ("acquisition", "mask", "sdc", "fa"):
            _put(tmp_path / names.figure_path(run, key), SVG)
        metrics = {"n_volumes": describe("n_volumes", 13)} | describe_all({"ndc": 0.91234}, "preproc")
        _put(tmp_path / names.output_path(run, "metrics"), json.dumps(metrics))
    sidecar = names.sidecar_path(names.output_path(RUNS[0], "generated", method="difusion"))
    _put(tmp_path / sidecar, json.dumps({"Synthetic": True, "GenerativeModel": MODEL}))
    _put(tmp_path / names.figure_path(RUNS[0], "inputoutputdifusion"), SVG)
    return tmp_path


def _keep(out_dir: Path, record: report.RunRecord) -> None:
    _put(out_dir / report.record_path(record.entities), json.dumps(asdict(record)))


def _section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL).group(1)


def test_volumes_are_only_called_acquired_where_they_were():
    assert "1 acquired volume kept unchanged" in report.provenance_html(MODEL)
    kept = {"InputVolumes": [0, 1], "Input": {"Method": "Di-Fusion"}, "GeneratedVolumes": [2]}
    text = report.provenance_html(kept)
    assert "2 kept as Di-Fusion made them" in text
    assert "acquired volume" not in text


def test_nested_entries_are_distinguished():
    population = {"adc": {"Name": "packaged", "SHA256": "12ab"}, "tracts": {"Name": "none"}}
    text = report.provenance_html({**MODEL, "Population": population})
    assert "<td>adc: (Name: packaged; SHA256: 12ab); tracts: (Name: none)</td>" in text


def test_report_from_files_alone(derivatives):
    methods = "# Methods\n\nData were **processed** with `ants`.\n\n- Wu 2025\n- Basser 1994\n"
    path = report.subject_report(derivatives, "01", methods=methods)
    page = path.read_text(encoding="utf-8")
    assert path == derivatives / "sub-01.html"
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Summary", "Acquisition", "Preprocessing", "Generated: Di-Fusion", "Maps", "Quality", "Methods",
        "Errors", "Software",
    ]  # fmt: skip
    runs = re.findall(r'<h3 class="run">(.*?)</h3>', _section(page, "Acquisition"))
    assert [re.sub("<.*?>", "", run) for run in runs] == ["Run: direction AP, run 1.", "Run: direction PA."]
    assert "sub-02" not in page
    assert "0.9123" in _section(page, "Quality")
    assert "higher is better" in _section(page, "Quality")
    assert "<b>processed</b>" in page
    assert "<li>Basser 1994</li>" in page
    assert "another subject" not in page


def test_every_figure_that_is_shown_exists(derivatives):
    page = report.subject_report(derivatives, "01").read_text(encoding="utf-8")
    shown = re.findall(r'(?:src|data)="\./([^"]+)"', page)
    assert len(shown) == 9
    assert all((derivatives / name).is_file() for name in shown)


def test_figures_stay_where_they_are_when_the_folder_is_named_relatively(derivatives, monkeypatch):
    monkeypatch.chdir(derivatives.parent)
    page = report.subject_report(derivatives.name, "01").read_text()
    assert not list(derivatives.glob("*.svg"))
    assert 'src="./sub-01/figures/' in page


def test_page_needs_no_network_and_no_scripts(derivatives):
    page = report.subject_report(derivatives, "01").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|data|href)="(?:https?:)?//', page)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_generated_data_are_called_synthetic_and_only_in_their_run(derivatives):
    page = report.subject_report(derivatives, "01").read_text(encoding="utf-8")
    generated = _section(page, "Generated-Di-Fusion")
    assert "Synthetic." in generated
    assert "they were not measured" in generated
    assert "difusion-small" in generated
    assert "Wu et al. &lt;2025&gt;" in generated  # text from files is escaped
    assert generated.count('<h3 class="run">') == 1
    summary = _section(page, "Summary")
    assert "few directions" in summary
    assert summary.count('class="synthetic"') == 1


def test_failed_run_is_named_with_place_and_advice(derivatives):
    failed = report.RunError("Conform", "dwi.bval: 12 entries, 13 volumes; they must agree", "Traceback <x>")
    steps = {"denoise": (True, "mppca"), "motion": (False, "--no-motion")}
    _keep(derivatives, report.RunRecord(RUNS[1], steps, ("odd b-table",)))
    _keep(derivatives, report.RunRecord({"subject": "01", "direction": "LR"}, error=failed))
    page = report.subject_report(derivatives, "01", versions={"torch": "2.13"}).read_text()
    runs = re.findall(r'<h3 class="run">(.*?)</h3>', _section(page, "Summary"))
    assert len(runs) == 3  # two with quality metrics, and the one that did not get that far
    errors = _section(page, "Errors")
    assert "sub-01_dir-LR" in errors
    assert "12 entries, 13 volumes; they must agree" in errors
    assert "Traceback &lt;x&gt;" in errors
    summary = _section(page, "Summary")
    assert "This run failed" in summary
    assert "mppca" in summary
    assert "not done: --no-motion" in summary
    assert "odd b-table" in summary
    assert "2.13" in _section(page, "Software")


def test_a_page_without_errors_says_so_and_repeating_gives_the_same_page(derivatives):
    first = report.subject_report(derivatives, "01").read_text(encoding="utf-8")
    assert "No errors." in _section(first, "Errors")
    assert report.subject_report(derivatives, "01").read_text(encoding="utf-8") == first


def test_report_of_a_session(derivatives):
    path = report.subject_report(derivatives, "02", "pre")
    page = path.read_text(encoding="utf-8")
    assert path.name == "sub-02_ses-pre.html"
    assert "sub-02/ses-pre/figures/sub-02_ses-pre_desc-mask_dwi.svg" in page
    assert "Generated: nothing" not in re.findall(r"<h2>(.*?)</h2>", page)


def test_subject_of_whom_every_run_failed(tmp_path):
    _keep(tmp_path, report.RunRecord({"subject": "09"}, error=report.RunError("checks", "no b0 volume")))
    page = report.subject_report(tmp_path, "09").read_text(encoding="utf-8")
    assert "no b0 volume" in _section(page, "Errors")
    assert "the run stopped before they were computed" in page


@pytest.mark.parametrize(
    "record",
    [
        report.RunRecord({"subject": "1"}),
        report.RunRecord(
            {"subject": "1"}, {"gibbs": (False, "--no-gibbs")}, ("a", "b"), report.RunError("x", "y", "z")
        ),
    ],
)
def test_record_survives_its_file(tmp_path, record):
    _keep(tmp_path, record)
    assert report.read_record(tmp_path, record.entities) == record
    assert report.find_records(tmp_path, "1") == [record]
    assert report.find_records(tmp_path, "1", "pre") == []


def test_results_of_a_run_with_a_longer_name_do_not_count_for_a_run(tmp_path):
    short, long = {"subject": "01"}, {"subject": "01", "run": "2"}
    sidecar = names.sidecar_path(names.output_path(long, "generated", method="difusion"))
    _put(tmp_path / sidecar, json.dumps({"Synthetic": True, "GenerativeModel": MODEL}))
    assert list(report.generated_records(tmp_path, long)) == ["difusion"]
    assert report.generated_records(tmp_path, short) == {}


@pytest.mark.parametrize("shown", ["", "1.5", "1.25"])
def test_the_report_names_the_grid_of_the_last_call_of_a_method(tmp_path, shown):
    run = {"subject": "1"}
    for edge in ("", "1.5", "1.25"):
        grid = {"voxel_mm": edge} if edge else {}
        model = {"Method": "RISH", "GeneratedVolumes": [0]} | ({"VoxelSize": [float(edge)] * 3} if edge else {})
        path = names.sidecar_path(names.output_path(run, "generated", method="rishldm", **grid))
        _put(tmp_path / path, json.dumps({"Synthetic": True, "GenerativeModel": model}))
    voxels = {"rishldm": names.resolution(shown)} if shown else {}
    _keep(tmp_path, report.RunRecord(run, voxels=voxels))
    page = report.subject_report(tmp_path, "1").read_text()
    assert ("was made on finer voxels than the run" in page) == bool(shown)
    assert (f"<th>VoxelSize</th><td>{', '.join([shown] * 3)}</td>" in page) == bool(shown)
    assert report.generated_records(tmp_path, run, {"rishldm": "9mm"}), "of an earlier call: better than none"


def test_chunks_of_a_run_are_distinguished(tmp_path):
    for chunk in "12":
        _keep(tmp_path, report.RunRecord({"subject": "01", "run": "1", "chunk": chunk}))
    summary = _section(report.subject_report(tmp_path, "01").read_text(encoding="utf-8"), "Summary")
    assert [summary.count(f"sub-01_run-1_chunk-{chunk}</td>") for chunk in "12"] == [1, 1]


def test_unreadable_metrics_are_named(derivatives):
    broken = derivatives / names.output_path(RUNS[1], "metrics")
    broken.write_text('{"n_volumes": ')
    with pytest.raises(report.ReportError, match=broken.name):
        report.subject_report(derivatives, "01")


def test_values_are_rounded_for_reading():
    def shown(value, unit="1"):
        return report.format_value({"value": value, "unit": unit})

    assert [shown(0.123456), shown(12345.6), shown(None), shown(13.0, "count")] == [
        "0.1235",
        "12346",
        "n/a",
        "13",
    ]


def test_markdown_of_the_methods_text():
    text = "# Methods\n\nOne *two*\nthree `x<y`, see 2 * 3.\n\n1. first\n2. second\n   continued\n"
    html = report.markdown_html(text)
    assert "<h4>Methods</h4>" in html
    assert "<p>One <i>two</i> three <code>x&lt;y</code>, see 2 * 3.</p>" in html
    assert "<li>first</li><li>second continued</li>" in html


def test_nothing_is_written_through_a_symbolic_link(derivatives, tmp_path_factory):
    """A link may lead out of the dataset: what it leads to keeps its content."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.html"
    elsewhere.write_text("mine")
    page = derivatives / "sub-01.html"
    fragment = derivatives / names.figure_path(RUNS[0], "summary", "html")
    for link in (page, fragment):
        link.unlink(missing_ok=True)
        link.symlink_to(elsewhere)
    assert report.subject_report(derivatives, "01") == page.resolve()
    assert elsewhere.read_text() == "mine"
    assert not page.is_symlink()
    assert not fragment.is_symlink()
