"""The group report: every run's quality metrics in one table, and a page that shows which runs stand out."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bids import names
from ..diffusion.storage import write_text
from .pages import page_template
from .report import ARROWS, entities_of, format_value

TABLE, SIDECAR, PAGE = "group_metrics.tsv", "group_metrics.json", "group.html"
MIN_RUNS = 4  # with fewer runs, none is called an outlier
MIN_RUNS_ROBUST_Z = 10
ROBUST_Z = 3.5
FENCE = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"
RULE = (
    f"With {MIN_RUNS_ROBUST_Z} runs or more, a value is an outlier where its distance from the median "
    f"exceeds {ROBUST_Z} robust standard deviations (1.4826 MAD; where that is 0, 1.2533 times the mean "
    f"absolute deviation); with {MIN_RUNS} to {MIN_RUNS_ROBUST_Z - 1} runs where it lies more than {FENCE:g} "
    f"interquartile ranges beyond the quartiles; fewer than {MIN_RUNS} runs have none."
)
PLOT_WIDTH, ROW_HEIGHT, LABEL_WIDTH = 320, 46, 64  # pixels
MAX_LABELS = 5


class GroupError(ValueError):
    """A derivative dataset that cannot be summarised."""


@dataclass(frozen=True)
class RunMetrics:
    """The quality metrics of one run and the link to its report."""

    name: str
    entities: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Any]]
    link: str  # relative to the dataset; empty without a report


def group_report(out_dir: str | Path) -> tuple[Path, Path, Path]:
    """Write the table of all runs, its description and the page; return (page, table, description).

    Parameters
    ----------
    out_dir
        Derivative dataset with `*_desc-quality_metrics.json` files.

    Raises
    ------
    GroupError
        Where no run has quality metrics.
    """
    out_dir = Path(out_dir)
    runs, faults = collect(out_dir)
    if not runs:
        raise GroupError(
            f"{out_dir}: no *_{names.DWI['metrics']} was found{': ' + faults[0] if faults else ''}; "
            "run the participant level first"
        )
    columns = _columns(runs)
    write_text(out_dir / TABLE, _table(runs, columns))
    write_text(out_dir / SIDECAR, json.dumps(_describe(columns), indent=2, ensure_ascii=False) + "\n")
    write_text(out_dir / PAGE, _page(runs, columns, faults))
    return out_dir / PAGE, out_dir / TABLE, out_dir / SIDECAR


def collect(out_dir: Path) -> tuple[list[RunMetrics], list[str]]:
    """Return every run with readable quality metrics, by name, and a sentence per unreadable file."""
    runs, faults = [], []
    for path in sorted(out_dir.glob(f"sub-*/**/*_{names.DWI['metrics']}")):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            faults.append(f"{path.relative_to(out_dir)} cannot be read ({error}); process the run again")
            continue
        entities = entities_of(path.name)
        pages = [names.report_path(entities["subject"], entities.get("session"))]
        pages.append(names.report_path(entities["subject"]))
        link = next((page.as_posix() for page in pages if (out_dir / page).is_file()), "")
        runs.append(RunMetrics(names.stem(entities), entities, metrics, link))
    return runs, faults


def outliers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return which of (N,) values are outliers by the rule of this module; NaN never is.

    Parameters
    ----------
    values
        One metric of all runs; NaN for runs without it.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    present = values[finite]
    if present.size < MIN_RUNS:
        return np.zeros(values.shape, bool)
    if present.size < MIN_RUNS_ROBUST_Z:
        low, high = np.percentile(present, [25, 75])
        reach = FENCE * (high - low) + 1e-12 * np.abs(present).max()
        return finite & ((values < low - reach) | (values > high + reach))
    distance = np.abs(values - np.median(present))
    spread = 1.4826 * np.median(distance[finite])
    if spread <= 1e-12 * np.abs(present).max():
        spread = 1.2533 * distance[finite].mean()
    return finite & (distance > ROBUST_Z * spread) & (distance > 0)


def _columns(runs: Sequence[RunMetrics]) -> dict[str, Mapping[str, Any]]:
    """Return metric key -> its first entry, for the metrics of all runs, in order of appearance."""
    columns: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for key, entry in run.metrics.items():
            columns.setdefault(key, entry)
    return columns


def _value(run: RunMetrics, key: str) -> float:
    value = run.metrics.get(key, {}).get("value")
    return float("nan") if value is None else float(value)


def _table(runs: Sequence[RunMetrics], columns: Mapping[str, Any]) -> str:
    lines = ["\t".join(["participant_id", "session_id", "run", *columns])]
    for run in runs:
        session = run.entities.get("session")
        cells = [f"sub-{run.entities['subject']}", f"ses-{session}" if session else "n/a", run.name]
        for key in columns:
            value = _value(run, key)
            cells.append("n/a" if np.isnan(value) else f"{value:.8g}")
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def _describe(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    description = {
        "participant_id": {"Description": "Subject"},
        "session_id": {"Description": "Session, n/a without one"},
        "run": {"Description": "Entities of the diffusion run as in its file names"},
    }
    for key, entry in columns.items():
        text = entry["definition"] + (f"; of the {entry['source']} data" if "source" in entry else "")
        description[key] = {
            "LongName": entry["label"],
            "Description": text,
            "Units": "arbitrary" if entry["unit"] in ("", "1") else entry["unit"],
            "BetterDirection": entry["better"] or "n/a",
        }
    return description


def _page(runs: Sequence[RunMetrics], columns: Mapping[str, Mapping[str, Any]], faults: Sequence[str]) -> str:
    values = {key: np.array([_value(run, key) for run in runs]) for key in columns}
    marked = {key: outliers(column) for key, column in values.items()}
    counts = np.sum(list(marked.values()), axis=0) if marked else np.zeros(len(runs), int)
    few = f"Fewer than {MIN_RUNS} runs: none is called an outlier." if len(runs) < MIN_RUNS else "No outliers."
    return page_template("group.html.j2").render(
        runs=[{"name": r.name, "link": r.link, "count": int(c)} for r, c in zip(runs, counts, strict=True)],
        table=TABLE,
        rule=RULE,
        faults=faults,
        outliers=_outlier_rows(runs, columns, values, marked),
        none_found=few,
        plots=_plots(runs, columns, values, marked),
    )


def _outlier_rows(runs, columns, values, marked) -> list[dict[str, str]]:
    rows = []
    for key, entry in columns.items():
        median = float(np.nanmedian(values[key])) if np.isfinite(values[key]).any() else 0.0
        for k in np.flatnonzero(marked[key]):
            above = values[key][k] > median
            worse = entry["better"] is not None and above == (entry["better"] == "lower")
            side = "above" if above else "below"
            rows.append(
                {
                    "run": runs[k].name,
                    "link": runs[k].link,
                    "label": entry["label"],
                    "source": entry.get("source", ""),
                    "value": format_value({**entry, "value": values[key][k]}),
                    "median": format_value({**entry, "value": median}),
                    "unit": "" if entry["unit"] == "1" else entry["unit"],
                    "side": f"{side}, worse" if worse else side + (", better" if entry["better"] else ""),
                }
            )
    return sorted(rows, key=lambda row: row["run"])


def _plots(runs, columns, values, marked) -> list[dict[str, str]]:
    """Return one plot per metric, with a row for each source."""
    rows_of: dict[str, list[str]] = {}
    for key, entry in columns.items():
        if np.isfinite(values[key]).any():
            rows_of.setdefault(entry["metric"], []).append(key)
    plots = []
    for metric, keys in rows_of.items():
        entry = columns[keys[0]]
        rows = [(columns[key].get("source", ""), values[key], marked[key]) for key in keys]
        plots.append(
            {
                "metric": metric,
                "label": entry["label"],
                "unit": "" if entry["unit"] == "1" else entry["unit"],
                "better": ARROWS[entry["better"]],
                "definition": entry["definition"],
                "svg": strip_plot(rows, [run.name for run in runs], [run.link for run in runs]),
            }
        )
    return plots


def strip_plot(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], labels: Sequence[str], links: Sequence[str]) -> str:
    """Return an SVG with one row of dots per source, all on one axis.

    Parameters
    ----------
    rows
        (label, (N,) values with NaN where absent, (N,) bool outliers).
    labels, links
        Name and page of each of the N runs.
    """
    all_values = np.concatenate([values[np.isfinite(values)] for _, values, _ in rows])
    low, high = float(all_values.min()), float(all_values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    left = LABEL_WIDTH if any(label for label, _, _ in rows) else 8
    height = ROW_HEIGHT * len(rows) + 22

    def x(value: float) -> float:
        return left + (PLOT_WIDTH - left - 8) * (value - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {PLOT_WIDTH} {height}" width="100%" xmlns="http://www.w3.org/2000/svg">']
    for k, row in enumerate(rows):
        parts += _strip_row(row, ROW_HEIGHT * k, x, labels, links)
    base = ROW_HEIGHT * len(rows)
    parts.append(f'<line x1="{left}" x2="{PLOT_WIDTH - 8}" y1="{base}" y2="{base}" stroke="#999"/>')
    n_ticks = 1 if all_values.min() == all_values.max() else 2
    for value, anchor in ((low + margin, "start"), (high - margin, "end"))[:n_ticks]:
        parts.append(
            f'<text x="{x(value):.1f}" y="{base + 15}" font-size="11" fill="#555" text-anchor="{anchor}">'
            f"{value:.4g}</text>"
        )
    return "".join(parts) + "</svg>"


def _strip_row(row, top, x, labels, links) -> list[str]:
    source, values, marked = row
    middle, parts = top + ROW_HEIGHT / 2 + 3, []
    if source:
        parts.append(f'<text x="2" y="{middle + 4}" font-size="11">{html.escape(source)}</text>')
    q1, median, q3 = np.nanpercentile(values, [25, 50, 75]) if np.isfinite(values).any() else (np.nan,) * 3
    if np.isfinite(median):
        parts.append(
            f'<rect x="{x(q1):.1f}" y="{middle - 11}" width="{max(x(q3) - x(q1), 1):.1f}" height="22" '
            'fill="#e8eef4"/>'
            f'<line x1="{x(median):.1f}" x2="{x(median):.1f}" y1="{middle - 13}" y2="{middle + 13}" '
            'stroke="#1b5e9b" stroke-width="1.5"/>'
        )
    named = 0
    for k in np.flatnonzero(np.isfinite(values)):
        # Heights follow a fixed low-discrepancy sequence, so that the page is always the same.
        y = middle + 18 * ((k * 0.618034) % 1 - 0.5)
        colour, radius = ("#c62828", 4) if marked[k] else ("#33475b", 2.6)
        dot = (
            f'<circle cx="{x(values[k]):.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.65">'
            f"<title>{html.escape(labels[k])}: {values[k]:.4g}</title></circle>"
        )
        parts.append(f'<a href="{html.escape(links[k])}">{dot}</a>' if links[k] else dot)
        if marked[k] and named < MAX_LABELS:
            anchor = "end" if x(values[k]) > PLOT_WIDTH / 2 else "start"
            parts.append(
                f'<text x="{x(values[k]):.1f}" y="{top + 9 + 9 * (named % 2)}" font-size="9" fill="#c62828" '
                f'text-anchor="{anchor}">{html.escape(labels[k])}</text>'
            )
            named += 1
    return parts
