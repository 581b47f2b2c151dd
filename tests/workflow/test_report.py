"""Reports of several calls into one folder, and the methods text of what was done."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bids_dmrigen.bids import names
from bids_dmrigen.bids.run import FieldMap, Run
from bids_dmrigen.qc.report import RunError, read_record, record_path
from bids_dmrigen.workflow import methods_text, report
from bids_dmrigen.workflow.plan import plan_run
from bids_dmrigen.workflow.report import write_dataset_files, write_reports
from bids_dmrigen.workflow.settings import Settings

from .test_plan import make_run, settings


def faulty(tmp_path, subject: str, run: str):
    return Run({"subject": subject, "run": run}, tmp_path / "in.nii", None, None, fault="no b-values; give them")


def call(out_dir, runs, errors=None, expected_missing=(), **changes) -> str:
    """Do as one call of the app does at its end; return the page that it wrote last."""
    one = Settings(bids_dir=out_dir / "in", out_dir=out_dir, analysis_level="participant", **changes)
    plans = [plan_run(run, one, "TPL") for run in runs]
    write_dataset_files(one, {})
    pages, missing = write_reports(one, plans, errors or {})
    assert [what.split(":")[0] for what in missing] == list(expected_missing)
    return pages[-1].read_text(encoding="utf-8") if pages else ""


def test_a_later_call_does_not_forget_the_runs_of_an_earlier_one(tmp_path):
    runs = [faulty(tmp_path, "1", label) for label in "12"]
    page = call(tmp_path, runs[:1], {"sub-1_run-1": RunError("checks", "no b-values; give them")})
    assert "no b-values" in page
    page = call(tmp_path, runs[1:])
    assert "No errors." not in page
    assert "no b-values; give them" in page
    assert "sub-1_run-2" in page
    page = call(tmp_path, runs[:1])  # and now it went well
    assert "No errors." in page
    assert "no b-values" not in page


def test_reports_only_keeps_why_a_run_failed(tmp_path):
    run, missing = faulty(tmp_path, "1", "1"), {"sub-1_run-1": RunError("outputs", "3 promised files are missing")}
    call(tmp_path, [run], {"sub-1_run-1": RunError("motion", "too dark", "crash.txt")})
    assert "too dark" in call(tmp_path, [run], missing, reports_only=True)
    assert read_record(tmp_path, run.entities).error == RunError("motion", "too dark", "crash.txt")
    assert "too dark" not in call(tmp_path, [run], missing)
    assert "3 promised files" in call(tmp_path, [run], missing, reports_only=True)


def test_a_report_that_cannot_be_written_is_named_and_the_others_are_written(tmp_path, monkeypatch, capsys):
    from bids_dmrigen.cli.app import _finish
    from bids_dmrigen.qc import report

    def odd(out_dir, subject, *others):
        if subject == "1":
            raise KeyError("odd")
        return whole(out_dir, subject, *others)

    whole = report.subject_report
    monkeypatch.setattr(report, "subject_report", odd)
    plans = [plan_run(faulty(tmp_path, subject, "1"), settings(), "TPL") for subject in "12"]
    plans = [replace(plan, settings=replace(plan.settings, out_dir=tmp_path)) for plan in plans]
    pages, missing = write_reports(plans[0].settings, plans, {})
    assert [page.name for page in pages] == ["sub-2.html"]
    assert missing == ["report of sub-1: KeyError: 'odd'"]
    assert _finish(settings(), plans, {}, missing, pages, 1.0) == 1
    said = capsys.readouterr()
    assert "FAILED report of sub-1: KeyError: 'odd'" in said.err
    assert "Ended: 2 of 2 runs complete" in said.out


def test_reports_on_a_full_disk_name_the_folder_and_the_remedy(tmp_path, monkeypatch):
    run, out_dir = make_run(tmp_path / "in"), tmp_path / "out"
    plans = [plan_run(run, settings(out_dir=out_dir), "TPL")]

    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(report, "write_text", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096 if path == out_dir else 10**12))
    pages, missing = write_reports(plans[0].settings, plans, {})
    assert not pages
    assert [text.split(":")[0] for text in missing] == ["report of sub-1", "logs/CITATION.md"]
    for text in missing:
        assert f"the output folder {out_dir} has 0.1 MB free; free some space or give another folder" in text
        assert "work folder" not in text  # it has space


def other_run(run):
    return replace(run, entities={"subject": "2"})


def test_methods_and_references_are_of_all_runs_of_the_dataset(tmp_path):
    run = make_run(tmp_path, metadata={"PhaseEncodingDirection": "j"})
    page = call(tmp_path, [run])
    citation, references = tmp_path / "logs/CITATION.md", tmp_path / "logs/CITATION.bib"
    assert "Marchenko-Pastur" in page
    assert "Of sub-1" not in citation.read_text()
    page = call(tmp_path, [other_run(run)], denoise="patch2self", methods=("difusion",))
    assert "Patch2Self" in page
    assert "Marchenko-Pastur" not in page
    one, other = citation.read_text().split("Of sub-2:")
    assert "Of sub-1:" in one
    assert "Marchenko-Pastur" in one
    assert "Patch2Self" in other
    for key in ("mppca", "patch2self", "wu2025difusion"):
        assert references.read_text().count(f"{{{key},") == 1
    call(tmp_path, [other_run(run)])  # and now as the other one: they share one text
    assert citation.read_text().count("Marchenko-Pastur") == 1
    assert "patch2self" not in references.read_text()


def test_reports_only_keeps_the_methods_text(tmp_path):
    run = make_run(tmp_path)
    call(tmp_path, [run], denoise="patch2self")
    assert "Patch2Self" in call(tmp_path, [run], reports_only=True)
    assert "Marchenko-Pastur" not in (tmp_path / "logs/CITATION.md").read_text()


def test_where_nothing_was_done_the_methods_say_so(tmp_path):
    page = call(tmp_path, [faulty(tmp_path, "2", "1")])
    assert "No run could be processed." in page
    assert "No run could be processed." in (tmp_path / "logs/CITATION.md").read_text()


def test_a_record_that_cannot_be_read_costs_no_report(tmp_path):
    run = make_run(tmp_path)
    call(tmp_path, [run])
    (tmp_path / record_path(run.entities)).write_text("{")
    assert "Marchenko-Pastur" in call(tmp_path, [other_run(run)], expected_missing=["logs/CITATION.md"])


def test_the_settings_of_every_call_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers
    for seed in (1, 2):
        call(tmp_path, [], seed=seed)
    last = (tmp_path / "logs/settings.toml").read_text()
    kept = [path.read_text() for path in (tmp_path / "logs").glob("settings-*.toml")]
    assert len(kept) == 2
    assert last in kept
    assert sum("seed = 1" in text for text in kept) == 1


@pytest.mark.parametrize(
    ("sidecars", "expected", "absent"),
    [
        ([{"PhaseEncodingDirection": "j-"}], "along the phase-encoding axis, by", "were not corrected"),
        ([{"PhaseEncodingAxis": "j"}], "along the phase-encoding axis, by", "were not corrected"),
        ([{}], "Eddy currents were not corrected", "the scale"),
        ([{}, {"PhaseEncodingAxis": "i"}], "axis of the runs of which it is known, by", "were not corrected"),
    ],
)
def test_the_methods_text_describes_the_treatment_of_eddy_currents(tmp_path, sidecars, expected, absent):
    plans = [plan_run(make_run(tmp_path, metadata=metadata), settings(), "TPL") for metadata in sidecars]
    text = " ".join(methods_text.paragraphs(plans))
    assert expected in text
    assert absent not in text
    assert "affine" not in text


def test_a_refused_method_is_reported_and_not_cited(tmp_path):
    run = make_run(tmp_path, n_directions=5)
    page = call(tmp_path, [run], methods=("difusion",))
    assert "<th>Di-Fusion</th><td>not done: difusion needs at least 6" in page
    assert "Its outputs are synthetic data" not in page
    assert "Marchenko-Pastur" in page
    both = [run, make_run(tmp_path / "two", subject="2")]
    assert "Its outputs are synthetic data" in call(tmp_path, both, methods=("difusion",))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("phasediff", ["unwrap", "unwrap3d", "ants", "fieldmap"]), ("fieldmap", ["ants", "fieldmap"])],
)
def test_the_methods_text_says_what_was_done_with_a_field_map(tmp_path, kind, keys):
    fieldmap = FieldMap(kind, (tmp_path / "f.nii",), tmp_path / "m.nii")
    text = methods_text.paragraphs([plan_run(make_run(tmp_path, fieldmap=fieldmap), settings(), "TPL")])
    (sentence,) = re.findall(r"Susceptibility distortion[^.]*\.", " ".join(text))
    assert [c.key for c in methods_text.citations([sentence])] == keys
    assert "opposite phase encoding" not in " ".join(text)


def test_without_motion_correction_the_text_does_not_mention_eddy_currents(tmp_path):
    one = settings(motion=False)
    text = " ".join(methods_text.paragraphs([plan_run(make_run(tmp_path), one, "TPL")]))
    assert "ddy currents" not in text


def test_generated_maps_are_not_called_a_fit(tmp_path):
    one = settings(methods=("diffdti",))
    text = " ".join(methods_text.paragraphs([plan_run(make_run(tmp_path, n_directions=3), one, "TPL")]))
    assert "Diff-DTI makes the maps of the diffusion tensor" in text
    assert "Its maps are synthetic data, not a tensor fit: seed 0, network size small" in text
    assert "The uncertainty of its scalar maps comes from 8 samples." in text
    assert "least squares" not in text
    assert [c.key for c in methods_text.citations([text])][-1] == "zhang2024diffdti"
    text = " ".join(methods_text.paragraphs([plan_run(make_run(tmp_path / "6", n_directions=6), one, "TPL")]))
    assert "Tensor maps were fitted by weighted linear least squares" in text


def test_the_report_names_maps_and_says_where_there_is_no_classical_map(tmp_path):
    model = {"Method": "Diff-DTI", "Maps": ["fa", "md", "dec"], "Volumes": {"b0": [0], "b=1000": [1, 2, 3]}}
    for n_directions, subject in ((3, "1"), (6, "2")):
        run = make_run(tmp_path / subject, n_directions, subject=subject)
        path = names.sidecar_path(names.output_path(run.entities, "map", param="fa", source="diffdti"))
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps({"Synthetic": True, "GenerativeModel": model}))
        page = call(tmp_path, [run], methods=("diffdti",))
        assert page.count("synthetic</span> maps: FA, MD, colour FA") == 2  # in the summary, and where they are shown
        assert "<tr><th>Volumes</th><td>b0: 0; b=1000: 1, 2, 3</td></tr>" in page
        assert "kept unchanged" not in page
        said = "there is no classical map to compare with. To be exact: the gradient table determines 4 of"
        assert (said in page) == (n_directions == 3)


def test_every_reference_stands_once():
    from bids_dmrigen.methods import REGISTRY, load

    every = {load(name).spec.citation for name in REGISTRY} | set(methods_text.REFERENCES.values())
    assert len({citation.key for citation in every}) == len(every), "one key, two texts"
    titles = [re.search(r"title = {(.+)}", citation.bibtex).group(1).lower() for citation in every]
    assert len(set(titles)) == len(titles)
    assert all(f"{{{citation.key}," in citation.bibtex for citation in every)


def test_the_atlas_cites_the_template_and_names_its_fibre_directions(tmp_path):
    run, given = make_run(tmp_path), tmp_path / "hcp1065"
    given.mkdir()
    for folder, said in (
        (None, "Its fibre directions were the embedded analytic bundles."),
        (given, "Its fibre directions were those of hcp1065, given with --fibre-dir; cite their source."),
    ):
        one = settings(methods=("atlas", "interp"), fibre_dir=folder)
        text = methods_text.paragraphs([plan_run(run, one, "TPL")])
        assert text[-2].endswith(said)
        assert "fibre directions" not in text[-1]
        assert "[mni]" in text[-2]
        assert str(tmp_path) not in " ".join(text)
        page = methods_text.as_markdown(text)
        assert page.count("- [mni] Fonov V et al. (2011). Unbiased average age-appropriate atlases") == 1
        assert page.count("Fonov") == 1
        assert "Yeh" not in page
