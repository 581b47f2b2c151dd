"""The papers' tables beside ours, from the results of `dmrigen benchmark`.

python benchmarks/papers.py FOLDER ...

Each FOLDER is one that `dmrigen benchmark ROOM --out FOLDER` wrote. For each table of `papers.tsv` and each arm in it:
what the paper states, and means over our simulated subjects and over our real scans. Scans, masks, ranges of values and
budgets differ from those of the papers: what can be compared is the order of the arms, not the numbers. The column
`keep` of the table says which of our results belong to it: those of so many kept directions, or "any". Tables of "R =
3" are for results of `dmrigen benchmark directions --qid2-references 3`. Ablations and levels of noise, whose room is
"-", are printed beside ours by the benchmark of each method.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from bids_dmrigen.qc.benchmark_page import by_scan
from bids_dmrigen.qc.evaluation import SCORES
from bids_dmrigen.qc.rooms import ROOMS

TABLES = Path(__file__).with_name("papers.tsv")


def figures(room: str) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return (table, what is kept) -> arm -> score -> value of the papers' tables of a room."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    with TABLES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["room"] == room:
                arms = found.setdefault((f"{row['paper']}, {row['table']}", row["keep"]), {})
                arms.setdefault(row["arm"], {})[row["score"]] = float(row["value"])
    return found


def paper_beside(paper: str, table: str) -> dict[str, dict[str, float]]:
    """Return arm -> score -> value that a paper states in a table."""
    tables = [*figures("-").items(), *(found for room in ROOMS for found in figures(room).items())]
    return next((arms for (name, _), arms in tables if name == f"{paper}, {table}"), {})


def show_stated(paper: str, table: str) -> None:
    """Print what a paper states in a table, as it stands there."""
    print(f"\n{paper}, {table}, as the paper states it")
    for arm, values in paper_beside(paper, table).items():
        cells = ", ".join(f"{SCORES[key].label if key in SCORES else key} {value:g}" for key, value in values.items())
        print(f"{arm:>34s}  {cells}")


def compared_weights(given: list[str]) -> dict[str, str]:
    """Return name -> file of NAME=FILE, of compared arms that `dmrigen benchmark` trained."""
    return dict(text.split("=", 1) for text in given)


def ours(rows: list, simulated: bool, arm: str, score: str) -> str:
    """Return our mean over the scans, or "-"."""
    values = [v for v in by_scan(rows, simulated, score).get(arm, {}).values() if np.isfinite(v)]
    return f"{np.mean(values):.3f}" if values else "-"


def show(room: str, rows: list, references: int = 6) -> None:
    """Print the tables of a room; of QID², those of so many references."""
    for (table, keep), arms in figures(room).items():
        if "R = " in table and not table.endswith(f"R = {references}"):
            continue
        own = [row for row in rows if keep == "any" or str(row.get("keep")) == keep]
        print(f"\n{table}: paper / ours simulated / ours real")
        scores = list(dict.fromkeys(score for values in arms.values() for score in values))
        print(f"{'':16s}" + "".join(f"{SCORES[score].label:>30s}" for score in scores))
        for arm, values in arms.items():
            cells = (
                f"{values[score]:.3f} / {ours(own, True, arm, score)} / {ours(own, False, arm, score)}"
                if score in values else "-"
                for score in scores
            )  # fmt: skip
            print(f"{arm:16s}" + "".join(f"{cell:>30s}" for cell in cells))


def main() -> None:
    """Print the tables of all rooms."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for folder in parser.parse_args().folders:
        found = json.loads((folder / "results.json").read_text())
        show(found["room"], found["rows"], found["settings"].get("qid2_references") or 6)


if __name__ == "__main__":
    main()
