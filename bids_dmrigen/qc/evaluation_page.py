"""The output of `dmrigen evaluate`: results.json, results.csv, and a page with tables and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..diffusion.storage import write_text
from ..dwi.series import Scan
from ..methods import SIMPLE
from .comparison import against_reference
from .evaluation import SCORES, Evaluation, Outcome, table
from .pages import page_template
from .regions import summary
from .verdict import verdict


def write_results(
    folder: Path,
    result: Evaluation,
    scan: Scan,
    settings: dict[str, Any],
    regions: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write all results of an evaluation; return the page.

    Parameters
    ----------
    folder
        An existing folder.
    result, scan
        The evaluation, and its scan.
    settings
        Settings of the call, which are written too.
    regions
        Scores in regions, as from `regions.region_scores`.
    """
    shells = [{"b": round(b), "directions": len(volumes)} for b, volumes in scan.gradients.shells()]
    about = {"volumes": len(scan.gradients), "b0": int(scan.gradients.is_b0.sum()), "shells": shells}
    about |= {"voxels": int(result.mask.sum()), "note": result.note}
    document = {
        "software": f"bids_dmrigen {__version__}",
        "settings": settings,
        "scan": about,
        "definitions": {key: asdict(definition) for key, definition in SCORES.items()},
        "results": [_row(outcome) | {"record": outcome.record} for outcome in result.outcomes],
        "best_simple": {
            str(keep): {
                key: {"method": arm, "mean": round(mean, 5)} for key, (arm, mean, _) in result.best_simple(keep).items()
            }
            for keep in dict.fromkeys(outcome.keep for outcome in result.outcomes)
        },
        "verdicts": {
            str(keep): verdict(result, keep, list(dict.fromkeys(outcome.arm for outcome in result.outcomes)))
            for keep in dict.fromkeys(outcome.keep for outcome in result.outcomes)
        },
    }
    if regions:
        document["regions"] = list(regions)
        write_text(folder / "regions.csv", _csv(regions))
    write_text(folder / "results.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    rows = [_row(outcome) | {"warnings": "; ".join(outcome.warnings)} for outcome in result.outcomes]
    write_text(folder / "results.csv", _csv(rows))
    return _write_page(folder, result, scan, settings, about, regions)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a row of numbers; NaN (does not apply) and infinity (equal images) become None."""
    scores = {key: round(value, 5) if np.isfinite(value) else None for key, value in outcome.scores.items()}
    label = {"method": outcome.arm, "keep": outcome.keep, "selection": outcome.rotation + 1}
    tail = {"seconds": round(outcome.seconds, 2), "fault": outcome.fault, "warnings": list(outcome.warnings)}
    return label | scores | tail


def _write_page(
    folder: Path,
    result: Evaluation,
    scan: Scan,
    settings: dict[str, Any],
    about: dict[str, Any],
    regions: Sequence[Mapping[str, Any]],
) -> Path:
    arms = list(dict.fromkeys(outcome.arm for outcome in result.outcomes))
    sections = []
    for keep in dict.fromkeys(outcome.keep for outcome in result.outcomes):
        shown = [o for o in result.outcomes if o.keep == keep and o.rotation == 0 and not o.fault]
        figures = []
        for name, label in (("fa", "FA"), ("dec", "colour FA")) if shown else ():
            estimates = {o.arm: o.maps[name] for o in shown}
            generated = frozenset(o.arm for o in shown if o.record)
            path = folder / f"keep-{keep}_{name}.svg"
            title = f"{label}: all acquired volumes, and {keep} directions per shell"
            against_reference(result.reference[name], estimates, scan.affine, result.mask, title, path, generated)
            figures.append(path.name)
        header, *rows = table(result, keep, arms)
        sentence, in_regions = verdict(result, keep, arms), summary(regions, keep) if regions else []
        warnings = sorted({f"{o.arm}: {w}" for o in result.outcomes if o.keep == keep for w in o.warnings})
        sections.append({"keep": keep, "header": header, "rows": rows, "figures": figures, "warnings": warnings,
                         "verdict": sentence, "regions": in_regions})  # fmt: skip
    page = page_template("evaluation.html.j2").render(
        sections=sections,
        definitions=SCORES.values(),
        simple={arm: SIMPLE[arm] for arm in arms if arm in SIMPLE},
        settings=settings,
        about=about,
        version=__version__,
    )
    return write_text(folder / "index.html", page)
