"""The output of `dmrigen benchmark`: results.json, tables.md, and a page with tables, pictures and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..diffusion.storage import write_text
from ..dwi.series import Scan
from ..methods import REGISTRY, SIMPLE, spec_of
from .comparison import against_reference
from .differences import Difference, difference, in_words
from .evaluation import BEST_SIMPLE, SCORES, Evaluation
from .fid import features, frechet_distance
from .pages import page_template
from .rooms import ROOMS

Row = dict[str, Any]
KINDS = {True: "simulated subjects", False: "real scans"}
SHOWN = ("left_out_fa_psnr", "fa_psnr", "fa_ssim", "fa_nmse", "fa_error", "md_psnr", "md_ssim", "ad_psnr", "rd_psnr",
         "dec_psnr", "dec_ssim", "direction_angle", "tensor_snr", "dwi_psnr", "dwi_ssim", "dwi_nmse")  # fmt: skip
MOST_PICTURED = 10
FID, FID_UNIT = "Fréchet distance (1e-4) ↓", 1e-4
# Those of them that a narrow page has room for.
SHORT = ("left_out_fa_psnr", "fa_psnr", "fa_ssim", "fa_error", "md_psnr", "dec_psnr", "direction_angle", "tensor_snr",
         "dwi_psnr")  # fmt: skip


def rows_of(result: Evaluation, scan: str, simulated: bool) -> list[Row]:
    """Return a row for each outcome of a scan, JSON-serialisable.

    `features` are those of FA slices (`fid`), for the first selection; the row "reference" has those of the reference.
    """
    rows: list[Row] = []
    for outcome in result.outcomes:
        scores = {key: float(value) if np.isfinite(value) else None for key, value in outcome.scores.items()}
        row = {"scan": scan, "simulated": simulated, "arm": outcome.arm, "keep": outcome.keep,
               "selection": outcome.rotation, "scores": scores, "seconds": round(outcome.seconds, 2),
               "fault": outcome.fault,
               "evaluations": outcome.record.get("Sampler", {}).get("NetworkEvaluations", 0)}  # fmt: skip
        if not outcome.fault and outcome.rotation == 0:
            row["features"] = features(outcome.maps["fa"], result.mask).round(5).tolist()
        rows.append(row)
    known = features(result.reference["fa"], result.mask).round(5).tolist()
    rows.append({"scan": scan, "simulated": simulated, "arm": "reference", "features": known})
    return rows


def pictures(result: Evaluation, scan: Scan, folder: Path, name: str) -> None:
    """Draw FA of every arm, beside that of all volumes, with differences."""
    shown = [o for o in result.outcomes if o.rotation == 0 and not o.fault]
    shown = [o for o in shown if o.arm not in SIMPLE] + [o for o in shown if o.arm in SIMPLE]
    if not shown:
        return
    estimates = {o.arm: o.maps["fa"] for o in shown[:MOST_PICTURED]}
    generated = frozenset(o.arm for o in shown if o.record)
    path = folder / "pictures" / f"{name.replace(' ', '-')}_fa.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    against_reference(result.reference["fa"], estimates, scan.affine, result.mask, f"FA, {name}", path, generated)


def by_scan(rows: Sequence[Row], simulated: bool, key: str) -> dict[str, dict[str, float]]:
    """Return arm -> scan -> mean score over the selections, without arms that failed on a scan."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["simulated"] == simulated and row["arm"] != "reference" and not row["fault"]:
            value = row["scores"].get(key)
            found.setdefault(row["arm"], {}).setdefault(row["scan"], []).append(np.nan if value is None else value)
    return {arm: {scan: float(np.mean(values)) for scan, values in scans.items()} for arm, scans in found.items()}


def best_simple(scores: Mapping[str, Mapping[str, float]], key: str) -> dict[str, float]:
    """Return scan -> score of the simple estimate that is best there: a user who knew could not do better."""
    choose = max if SCORES[key].better == "higher" else min
    scans = dict.fromkeys(scan for arm in scores if arm in SIMPLE for scan in scores[arm])
    found = {}
    for scan in scans:
        values = [scores[arm][scan] for arm in scores if arm in SIMPLE and np.isfinite(scores[arm].get(scan, np.nan))]
        if values:
            found[scan] = choose(values)
    return found


def distances(rows: Sequence[Row], simulated: bool) -> dict[str, float]:
    """Return arm -> Fréchet distance of its FA slices from those of the references, over its scans."""
    chosen = [row for row in rows if row["simulated"] == simulated and "features" in row]
    reference = {row["scan"]: row["features"] for row in chosen if row["arm"] == "reference"}
    found: dict[str, float] = {}
    for arm in dict.fromkeys(row["arm"] for row in chosen if row["arm"] != "reference"):
        own = {row["scan"]: row["features"] for row in chosen if row["arm"] == arm}
        both = [scan for scan in own if scan in reference]
        first, second = (np.array([f for scan in both for f in source[scan]]) for source in (own, reference))
        found[arm] = frechet_distance(first, second)
    return found


def table(rows: Sequence[Row], simulated: bool, shown: Sequence[str] = SHOWN) -> list[list[str]]:
    """Return the room's table: a header, then a row per arm, mean and (standard deviation over the scans).

    `shown` are the scores that have a column, where an arm has them.
    """
    keys = [
        key for key in shown if any(np.isfinite(v) for s in by_scan(rows, simulated, key).values() for v in s.values())
    ]
    scores = {key: by_scan(rows, simulated, key) for key in keys}
    arms = list(
        dict.fromkeys(row["arm"] for row in rows if row["simulated"] == simulated and row["arm"] != "reference")
    )
    far = distances(rows, simulated)
    out = [["arm", "scans", *(SCORES[key].heading for key in keys), FID]]
    for arm in arms:
        if not any(arm in scores[key] for key in keys):
            faults = [row["fault"] for row in rows if row["arm"] == arm and row.get("fault")]
            out.append([arm, "0", *["-"] * len(keys), faults[0] if faults else "-"])
            continue
        count = max(len(scores[key].get(arm, {})) for key in keys)
        cells = [_cell(list(scores[key].get(arm, {}).values()), key) for key in keys]
        out.append([arm, str(count), *cells, _number(far.get(arm, float("nan")) / FID_UNIT, 2)])
    simple = {key: best_simple(scores[key], key) for key in keys}
    if any(simple.values()):
        cells = [_cell(list(simple[key].values()), key) for key in keys]
        out.append([BEST_SIMPLE, str(max(map(len, simple.values()))), *cells, "-"])
    return out


def answers(rows: Sequence[Row], room: str) -> list[str]:
    """Return sentences: what diffusion adds to each network, and what each method adds to the best simple estimate."""
    found = []
    for simulated, kind in KINDS.items():
        key = ROOMS[room].simulated if simulated else ROOMS[room].real
        scores, label = by_scan(rows, simulated, key), f"{SCORES[key].label}, {kind}"
        for arm in scores:
            twin = spec_of(arm).twin if arm in REGISTRY else ""
            if twin in scores:
                gain = in_words(_paired(scores[twin], scores[arm]), "dB", "scans")
                found.append(f"{label}: {twin} against its own network without diffusion ({arm}): {gain}.")
        simple = best_simple(scores, key)
        ranked = sorted((arm for arm in scores if arm not in SIMPLE), key=lambda arm: -_mean(scores[arm].values()))
        if ranked and simple:
            gain = in_words(_paired(scores[ranked[0]], simple), "dB", "scans")
            found.append(f"{label}: the best arm, {ranked[0]}, against the best simple estimate of each scan: {gain}.")
        elif ranked[1:]:
            gain = in_words(_paired(scores[ranked[0]], scores[ranked[1]]), "dB", "scans")
            found.append(f"{label}: the best arm, {ranked[0]}, against the second, {ranked[1]}: {gain}.")
    return found


def costs_table(rows: Sequence[Row], costs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return what each arm costs: parameters, minutes and steps of training, evaluations and seconds for a scan."""
    out = [["arm", "parameters", "minutes", "steps", "evaluations", "seconds a scan"]]
    for arm, cost in costs.items():
        own = [row for row in rows if row["arm"] == arm and not row.get("fault")]
        seconds = _number(_mean([row["seconds"] for row in own]), 1)
        evaluations = _number(_mean([row["evaluations"] for row in own]), 0)
        trained = [str(cost.get(key, "-")) for key in ("minutes", "steps")]
        out.append([arm, str(cost["parameters"]), *trained, evaluations, seconds])
    return out


def write_benchmark(
    folder: Path, room: str, rows: Sequence[Row], costs: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> Path:
    """Write results.json, tables.md and the page; return the page."""
    sections = [{"title": kind, "rows": table(rows, simulated)} for simulated, kind in KINDS.items()
                if any(row["simulated"] == simulated for row in rows)]  # fmt: skip
    said, cost = answers(rows, room), costs_table(rows, costs)
    document = {"software": f"bids_dmrigen {__version__}", "room": room, "settings": dict(settings), "costs": costs,
                "answers": said, "rows": list(rows)}  # fmt: skip
    write_text(folder / "results.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    parts = [f"## {room}: {ROOMS[room].question}", *(f"- {sentence}" for sentence in said)]
    for section in sections:
        parts += ["", f"### {room}, {section['title']}", "", markdown(section["rows"])]
    parts += ["", f"### {room}, cost", "", markdown(cost), ""]
    write_text(folder / "tables.md", "\n".join(parts))
    page = page_template("benchmark.html.j2").render(
        room=room, question=ROOMS[room].question, sections=sections, answers=said, costs=cost, settings=settings,
        pictures=sorted(f"pictures/{path.name}" for path in (folder / "pictures").glob("*.svg")),
        definitions=[SCORES[key] for key in SHOWN], version=__version__,
    )  # fmt: skip
    return write_text(folder / "index.html", page)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the header first, as a table of Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _paired(first: Mapping[str, float], second: Mapping[str, float]) -> Difference:
    scans = [scan for scan in first if scan in second]
    return difference([first[scan] for scan in scans], [second[scan] for scan in scans])


def _mean(values: Any) -> float:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _cell(values: Sequence[float], key: str) -> str:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    digits = {"dB": 2, "degrees": 1}.get(SCORES[key].unit, 4 if SCORES[key].better == "lower" else 3)
    spread = f" ({np.std(known, ddof=1):.{digits}f})" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"
