"""What every reported number means: label, unit, better direction and definition, from the tables in `data/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Definition:
    """What a reported number is."""

    label: str
    unit: str
    better: str | None  # "higher", "lower" or None where neither is better
    text: str

    @property
    def heading(self) -> str:
        """The label with unit and better direction, as a table's column is headed."""
        unit = "" if self.unit == "1" else f" ({self.unit})"
        return self.label + unit + {"higher": " ↑", "lower": " ↓", None: ""}[self.better]


def read_definitions(name: str) -> dict[str, Definition]:
    """Return the definitions in a table of `qc/data`, by key."""
    text = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return {
        key: Definition(label, unit, None if better == "n/a" else better, definition)
        for key, label, unit, better, definition in rows
    }


DEFINITIONS = read_definitions("definitions.tsv")  # of the reports
EVALUATION = read_definitions("evaluation.tsv")  # of `dmrigen evaluate`
