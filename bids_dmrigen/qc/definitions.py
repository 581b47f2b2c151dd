"""Label, unit, better direction and definition of every reported number, from the tables in `data/`."""

from __future__ import annotations

from pathlib import Path

from ..methods.spec import Definition


def read_definitions(name: str) -> dict[str, Definition]:
    """Return key -> definition, from a table in `qc/data`."""
    text = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return {
        key: Definition(label, unit, None if better == "n/a" else better, definition)
        for key, label, unit, better, definition in rows
    }


DEFINITIONS = read_definitions("definitions.tsv")  # of the reports
EVALUATION = read_definitions("evaluation.tsv")  # of `dmrigen evaluate`
