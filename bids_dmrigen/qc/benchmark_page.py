"""The output of `dmrigen benchmark`: results.json, tables.md, and a page with tables, pictures and answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
MOST_PICTURED = 16
FIDS = {"features": "Fréchet distance of FA (1e-4) ↓", "image_features": "Fréchet distance of images (1e-4) ↓"}
FID_UNIT = 1e-4
DRAWN = "{arm}, {count} draws"  # name of the arm that is the mean of several samples
COMPARED = {
    "once": "{first}, asked once, against its own network as a regression ({second})",
    "drawn": "{first}, averaged, against its own network as a regression ({second})",
    "simple": "the best arm, {first}, against the best simple estimate of each scan",
    "unlearnt": "the best arm, {first}, against {second}, the best that learns nothing",
    "second": "the best arm, {first}, against the second, {second}",
}
MD_TOP = 3e-3  # mm²/s, full scale of pictures of MD
DETAIL_SLICES = 5
PICTURES = {  # what is drawn: title, and full scale of it and of its differences
    "fa": ("FA", (1.0, 0.3, "FA")),
    "md": ("MD / 3e-3 mm²/s", (1.0, 0.15, "MD")),
    "dec": ("Colour FA", (1.0, 0.3, "FA")),
    "image": ("A left-out image", (1.0, 0.3, "signal")),
}
# Those of them that a narrow page has room for.
SHORT = ("left_out_fa_psnr", "fa_psnr", "fa_ssim", "fa_error", "md_psnr", "dec_psnr", "direction_angle", "tensor_snr",
         "dwi_psnr")  # fmt: skip


def rows_of(result: Evaluation, scan: str, simulated: bool) -> list[Row]:
    """Return a row for each outcome of a scan, JSON-serialisable.

    `features` are those of FA slices (`fid`), for the first selection, `image_features` those of generated images; the
    row "reference" has those of the reference.
    """
    top = float(np.percentile(result.images[result.mask], 99.9)) if result.images.size else 1.0

    rows: list[Row] = []
    for outcome in result.outcomes:
        scores = {key: float(value) if np.isfinite(value) else None for key, value in outcome.scores.items()}
        row = {"scan": scan, "simulated": simulated, "arm": outcome.arm, "keep": outcome.keep,
               "selection": outcome.rotation, "scores": scores, "seconds": round(outcome.seconds, 2),
               "fault": outcome.fault,
               "evaluations": outcome.record.get("Sampler", {}).get("NetworkEvaluations", 0)}  # fmt: skip
        if not outcome.fault and outcome.rotation == 0:
            row["features"] = features(outcome.maps["fa"], result.mask).round(5).tolist()
            if outcome.images.size:
                row["image_features"] = _image_features(outcome.images / top, result.mask)
        rows.append(row)
    known = features(result.reference["fa"], result.mask).round(5).tolist()
    rows.append({"scan": scan, "simulated": simulated, "arm": "reference", "features": known,
                 "image_features": _image_features(result.images / top, result.mask)})  # fmt: skip
    return rows


def _image_features(images: np.ndarray, mask: np.ndarray) -> list[list[float]]:
    return [row for k in range(images.shape[3]) for row in features(images[..., k], mask).round(5).tolist()]


def picture_maps(result: Evaluation, arm: str) -> dict[str, np.ndarray]:
    """Return what `pictures` shows of an arm (or "reference"), half precision; nothing where it failed."""
    if arm == "reference":
        maps, images = result.reference, result.images
    else:
        shown = [o for o in result.outcomes if (o.arm, o.rotation) == (arm, 0) and not o.fault]
        if not shown:
            return {}
        maps, images = shown[0].maps, shown[0].images
    found = {"fa": maps["fa"], "md": maps["md"] / MD_TOP, "dec": maps["dec"]}
    found |= {"image": images[..., 0]} if images.size else {}
    return {name: np.nan_to_num(image).astype(np.float16) for name, image in found.items()}


def pictures(
    maps: Mapping[str, Mapping[str, np.ndarray]], generated: frozenset[str], scan: Scan, folder: Path, name: str
) -> None:
    """Draw FA, a detail of it, MD, colour FA and one image of every arm, below the reference, with differences.

    Parameters
    ----------
    maps
        Arm -> what `picture_maps` returned, and "reference".
    generated
        Arms whose results are generated.
    scan, folder, name
        The scan, the benchmark's folder, the scan's name.
    """
    arms = [arm for arm in maps if arm not in SIMPLE and arm != "reference"] + [arm for arm in maps if arm in SIMPLE]
    path = folder / "pictures" / name.replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind, (title, full) in PICTURES.items():
        known = {arm: maps[arm][kind].astype(np.float32) for arm in arms if kind in maps[arm]}
        if not known or kind not in maps["reference"]:
            continue
        reference = maps["reference"][kind].astype(np.float32)
        if kind == "image":  # in units of the brightest tissue
            top = max(float(np.percentile(reference[scan.mask], 99.5)), 1e-6)
            reference, known = reference / top, {arm: image / top for arm, image in known.items()}
        known = dict(list(known.items())[:MOST_PICTURED])
        own = generated & set(known)
        against_reference(reference, known, scan.affine, scan.mask, f"{title}, {name}",
                          path.with_name(f"{path.name}_{kind}.svg"), own, full)  # fmt: skip
        if kind == "fa":
            part = _detail(scan.mask)
            affine = scan.affine.copy()
            affine[:3, 3] = (scan.affine @ [*(p.start for p in part), 1])[:3]
            against_reference(reference[part], {arm: image[part] for arm, image in known.items()}, affine,
                              np.ones_like(scan.mask[part]), f"{title}, a detail, {name}",
                              path.with_name(f"{path.name}_fa_detail.svg"), own, full)  # fmt: skip


def _detail(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the middle of the brain, half as wide as the brain, and a few slices."""
    bounds = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    inside = [(b[0], b[-1] + 1) for b in bounds]
    x, y = (slice(a + (b - a) // 4, b - (b - a) // 4) for a, b in inside[:2])
    a, b = inside[2]
    middle, half = (a + b) // 2, min(DETAIL_SLICES, b - a) // 2
    return x, y, slice(max(a, middle - half), max(a, middle - half) + max(1, min(DETAIL_SLICES, b - a)))


def by_selection(rows: Sequence[Row], simulated: bool, key: str) -> dict[str, dict[tuple[str, int], float]]:
    """Return arm -> (scan, selection) -> score, without what has none."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        if row["simulated"] == simulated and row["arm"] != "reference" and not row["fault"]:
            value = row["scores"].get(key)
            if value is not None and np.isfinite(value):
                found.setdefault(row["arm"], {})[row["scan"], row["selection"]] = value
    return found


def by_scan(rows: Sequence[Row], simulated: bool, key: str) -> dict[str, dict[str, float]]:
    """Return arm -> scan -> mean score over the selections that have one."""
    return {arm: _scans(scores, scores) for arm, scores in by_selection(rows, simulated, key).items()}


def _scans(scores: Mapping[tuple[str, int], float], used: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Return scan -> mean score over the selections that are used."""
    found: dict[str, list[float]] = {}
    for scan, selection in used:
        found.setdefault(scan, []).append(scores[scan, selection])
    return {scan: float(np.mean(values)) for scan, values in found.items()}


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


def distances(rows: Sequence[Row], simulated: bool, kind: str = "features") -> dict[str, float]:
    """Return arm -> Fréchet distance of its slices from those of the references, over its scans.

    `kind` is "features", for FA, or "image_features", for generated images.
    """
    chosen = [row for row in rows if row["simulated"] == simulated and row.get(kind)]
    reference = {row["scan"]: row[kind] for row in chosen if row["arm"] == "reference"}
    found: dict[str, float] = {}
    for arm in dict.fromkeys(row["arm"] for row in chosen if row["arm"] != "reference"):
        own = {row["scan"]: row[kind] for row in chosen if row["arm"] == arm}
        both = [scan for scan in own if scan in reference]
        if both:
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
    if not any(arm in scores[key] for key in keys for arm in SIMPLE):
        arms = [arm for arm in arms if arm not in SIMPLE]  # `answers` says why
    far = {title: distances(rows, simulated, kind) for kind, title in FIDS.items()}
    far = {title: values for title, values in far.items() if values}
    out = [["arm", "scans", *(SCORES[key].heading for key in keys), *far]]
    for arm in arms:
        if not any(arm in scores[key] for key in keys):
            faults = [row["fault"] for row in rows if row["arm"] == arm and row.get("fault")]
            cells = ["-"] * (len(keys) + len(far))
            out.append([arm, "0", *cells[:-1], faults[0] if faults else "-"])
            continue
        count = max(len(scores[key].get(arm, {})) for key in keys)
        cells = [_cell(list(scores[key].get(arm, {}).values()), key) for key in keys]
        cells += [_number(values.get(arm, float("nan")) / FID_UNIT, 2) for values in far.values()]
        out.append([arm, str(count), *cells])
    simple = {key: best_simple(scores[key], key) for key in keys}
    if any(simple.values()):
        cells = [_cell(list(simple[key].values()), key) for key in keys]
        out.append([BEST_SIMPLE, str(max(map(len, simple.values()))), *cells, *["-"] * len(far)])
    return out


@dataclass(frozen=True)
class Comparison:
    """Two arms of a room, on simulated subjects or on real scans.

    Parameters
    ----------
    simulated
        Whether on simulated subjects.
    kind
        A key of `COMPARED`.
    first, second
        Names of the arms; "" for the best simple estimate of each scan.
    gain
        What the first has over the second, in the score that decides.
    """

    simulated: bool
    kind: str
    first: str
    second: str
    gain: Difference


def comparisons(rows: Sequence[Row], room: str) -> list[Comparison]:
    """Return what diffusion adds to each network, and what the best arm adds to the best simple estimate.

    Arms are compared where both have a score. The best arm is one that was scored wherever any arm was.
    """
    found = []
    for simulated in KINDS:
        scores = by_selection(rows, simulated, ROOMS[room].simulated if simulated else ROOMS[room].real)
        for arm in scores:
            twin = spec_of(arm).twin if arm in REGISTRY else ""
            for other in [name for name in scores if twin and name.partition(",")[0] == twin]:
                kind = "once" if other == twin else "drawn"
                found.append(Comparison(simulated, kind, other, arm, _paired(scores[other], scores[arm])))
        everywhere = set().union(*scores.values()) if scores else set()
        ranked = {arm: _mean(values.values()) for arm, values in scores.items()
                  if arm not in SIMPLE and set(values) == everywhere}  # fmt: skip
        ranking = sorted(ranked, key=lambda arm: -ranked[arm])
        simple = _best_simple_each({arm: values for arm, values in scores.items() if arm in SIMPLE})
        if ranking and simple:
            gain = _paired(scores[ranking[0]], simple, len(ranking))
            found.append(Comparison(simulated, "simple", ranking[0], "", gain))
            continue
        unlearnt = [name for name in ranking[1:] if _learns_nothing(name)]
        others = {
            "unlearnt": unlearnt[:1] if ranking and not _learns_nothing(ranking[0]) else [],
            "second": ranking[1:2],
        }
        for kind, (other,) in ((kind, names) for kind, names in others.items() if names):
            gain = _paired(scores[ranking[0]], scores[other], len(ranking) - 1)
            found.append(Comparison(simulated, kind, ranking[0], other, gain))
    return found


def answers(rows: Sequence[Row], room: str) -> list[str]:
    """Return a sentence for each of `comparisons`, and why there is no simple estimate, where there is none."""
    found = []
    for simulated, kind in KINDS.items():
        label = f"{SCORES[ROOMS[room].simulated if simulated else ROOMS[room].real].label}, {kind}"
        faults = [row["fault"] for row in rows if row["simulated"] == simulated and row["arm"] in SIMPLE]
        if faults and all(faults):
            found.append(f"{label}: no simple estimate works on these scans: {faults[0]}.")
        for one in comparisons(rows, room):
            if one.simulated == simulated:
                text = COMPARED[one.kind].format(first=one.first, second=one.second)
                found.append(f"{label}: {text}: {in_words(one.gain, 'dB', 'scans')}.")
    return found


def _learns_nothing(arm: str) -> bool:
    return arm in REGISTRY and not (spec_of(arm).needs_weights or spec_of(arm).trains_on_run)


def _best_simple_each(scores: Mapping[str, Mapping[tuple[str, int], float]]) -> dict[tuple[str, int], float]:
    """Return (scan, selection) -> score of the simple estimate that is best for the scan (`best_simple`)."""
    best: dict[tuple[str, int], float] = {}
    for scan in dict.fromkeys(place[0] for values in scores.values() for place in values):
        own = {arm: {p: v for p, v in values.items() if p[0] == scan} for arm, values in scores.items()}
        arm = max(own, key=lambda name: _mean(own[name].values()) if own[name] else -np.inf)
        best |= own[arm]
    return best


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


def _paired(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float], among: int = 1
) -> Difference:
    """Return the difference over scans, of the selections that both have."""
    shared = [place for place in first if place in second]
    one, other = _scans(first, shared), _scans(second, shared)
    return difference(list(one.values()), list(other.values()), among)


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
