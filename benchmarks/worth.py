"""The page "Is diffusion worth it?", from the results of `dmrigen benchmark`.

python benchmarks/worth.py FOLDER ... > docs/worth.md

Each FOLDER is one that `dmrigen benchmark ROOM --out FOLDER` wrote. Nothing is added to its figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_dmrigen.methods import REGISTRY, room_of, spec_of
from bids_dmrigen.qc.benchmark_page import (
    KINDS,
    SHORT,
    Comparison,
    answers,
    comparisons,
    costs_table,
    markdown,
    table,
)
from bids_dmrigen.qc.rooms import ROOMS

HEAD = """\
# Is diffusion worth it?

Each of the five papers says that its diffusion model beats others, on data that no one else has. Here all of them are
trained for the same time on the same examples, in one command, and scored on the same scans:

    dmrigen benchmark ROOM --out FOLDER --data scans.safetensors --anatomies anatomies.safetensors --scans DENSE ...
    python benchmarks/worth.py FOLDER ... > docs/worth.md

A method is compared with its own network, trained as a regression on the same examples: what is left is what
diffusion adds. RISH latent diffusion, which is several networks, is compared with its last one alone, `refinement`.
The diffusion model appears twice: asked once, which is a regression too, and as the mean of several samples. And the
best arm is compared with the best simple estimate of each scan, in hindsight ([evidence.md](evidence.md)). Intervals
are those of paired differences over scans. Each network is trained once, so they do not hold what another training
would give. Trainings are short, so that all arms fit: shipped weights were trained longer, and are in
[evidence.md](evidence.md).
"""
LENGTH = "Training: {minutes}, each arm once. Selections of directions for each scan: {selections}."

ANSWERS = """\
## The answers

Differences in dB, with 95 % intervals; bold where more than chance. The score is FA PSNR, on real scans against the
volumes left out, and in directions and synthesis the PSNR of the images. Without learning: the best simple estimate of
each scan, in synthesis the registered atlas. Of so many intervals one may miss 0 by chance.
"""
LARGER = """\
What the arms see has voxels of {edge} times the edge (`--coarser {edge}`): means of blocks of a real scan, and an \
acquisition of its own of a simulated subject. They are asked for the voxels of the scan. The tensor of a simple \
estimate is up-sampled by cubic splines."""


# How scans were made that are part of others: samples of a whole brain take hours on a CPU.
MADE = {
    "sub-canon_slices-middle_dwi": "`mrconvert sub-canon_desc-merged_dwi.nii.gz OUT -coord 2 14:27`; so its mask.",
    "sub-canon_directions-6_dwi": "b0s and six directions, `mrconvert sub-canon_desc-merged_dwi.nii.gz OUT -coord 3 "
    "0,13,15,26,34,39,49,52,57,59,65,69,78`.",
}


# Why an arm may be absent from a run that asks for all of its room.
ABSENT = {"bm4d": "its package allows non-commercial use only and was not installed"}


def budget(costs: dict, settings: dict) -> str:
    """Return for how long, and on what, the learnt arms of a room were trained, from the cards of their weights."""
    cards = [cost for cost in costs.values() if "minutes" in cost]
    if not cards:
        return f"none before the runs, {settings['minutes']:g} minutes on each run"
    minutes = sorted({round(cost["minutes"]) for cost in cards})
    on = ", ".join(dict.fromkeys(str(cost["hardware"]) for cost in cards))
    return f"{' to '.join(map(str, dict.fromkeys((minutes[0], minutes[-1]))))} minutes ({on})"


def special(room: str, settings: dict) -> str:
    """Return how a call differed from the room's question, or ""."""
    keep, edge = settings.get("keep"), settings.get("coarser", 1)
    of = f"; here from {keep}" if keep is not None and (keep,) != ROOMS[room].keep else ""
    return of + (f", from voxels {edge} times as large" if edge > 1 else "")


def summary(folders: Sequence[Path]) -> str:
    """Return the table of all answers."""
    out = [["room", "scans", "diffusion, asked once, over its regression", "mean of its samples, over its regression",
            "best arm, over the best without learning"]]  # fmt: skip
    for folder in folders:
        found = json.loads((folder / "results.json").read_text())
        room, rows = found["room"], found["rows"]
        for simulated, kind in KINDS.items():
            cells = {one.kind: one for one in comparisons(rows, room) if one.simulated == simulated}
            if cells:
                best = cells.get("simple") or cells.get("unlearnt")
                name = f"{best.first}: " if best else ""
                own = [cell(cells.get(key)) for key in ("once", "drawn")]
                out.append([room + special(room, found["settings"]), kind, *own, name + cell(best)])
    return markdown(out)


def cell(one: Comparison | None) -> str:
    """Return a difference with its interval, bold where it is more than chance."""
    if one is None:
        return "-"
    gain, many = one.gain, np.isfinite(one.gain.low)
    text = f"{gain.mean:+.2f}" + (f" ({gain.low:+.2f} to {gain.high:+.2f})" if many else " (one scan)")
    return f"**{text}**" if gain.more_than_chance else text


def section(folder: Path) -> str:
    """Return the section of a room."""
    found = json.loads((folder / "results.json").read_text())
    room, rows, settings = found["room"], found["rows"], found["settings"]
    text = LENGTH.format(minutes=budget(found["costs"], settings), selections=settings["selections"])
    kinds = [kind for simulated, kind in KINDS.items() if any(row["simulated"] == simulated for row in rows)]
    only = f", {kinds[0]}" if len(kinds) == 1 else ""  # the other may be in another folder
    edge = settings.get("coarser", 1)
    parts = [f"## {room}: {ROOMS[room].question}{special(room, settings)}{only}", "", text, ""]
    parts += [LARGER.format(edge=edge), ""] if edge > 1 else []
    parts += [f"- {sentence}" for sentence in answers(rows, room)]
    absent = [name for name in REGISTRY if room_of(name) == room and name not in {row["arm"] for row in rows}]
    arms = dict.fromkeys(row["arm"] for row in rows)
    twins = {spec_of(arm).twin for arm in arms if arm in REGISTRY} & set(arms)
    if any(spec_of(arm).draws for arm in twins) and not any("draws" in arm for arm in arms):
        absent.append("means of samples (`--draws`)")
    absent = [f"{name} ({ABSENT[name]})" if name in ABSENT else name for name in absent]
    parts += [f"- Not in this run: {', '.join(absent)}."] if absent else []
    for simulated, kind in KINDS.items():
        if any(row["simulated"] == simulated for row in rows):
            scans = dict.fromkeys(row["scan"] for row in rows if row["simulated"] == simulated)
            parts += ["", f"### {room}, {kind}", "", f"Scans: {', '.join(scans)}.", ""]
            parts += [f"{scan}: {made}\n" for scan, made in MADE.items() if scan in scans]
            parts += [markdown(table(rows, simulated, SHORT))]
    return "\n".join([*parts, "", f"### {room}, cost", "", markdown(costs_table(rows, found["costs"])), ""])


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    rooms = [json.loads((folder / "results.json").read_text())["room"] for folder in args.folders]
    rest = [room for room in ROOMS if room not in rooms]
    tail = [f"Rooms without results yet: {', '.join(rest)}.\n"] if rest else []
    print(
        "\n".join([HEAD, ANSWERS, summary(args.folders), "", *(section(folder) for folder in args.folders), *tail]),
        end="",
    )


if __name__ == "__main__":
    main()
