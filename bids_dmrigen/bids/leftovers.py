"""Images in dwi/ folders that look like diffusion runs and are none for this app: each is said, with the remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .texts import name_parts

LABEL = r"[A-Za-z0-9+]+"  # as BIDS and pybids have it
PAIR = re.compile(rf"[a-z]+-{LABEL}")
NOT_MAGNITUDE = ("phase", "real", "imag")  # values of `part` of images that are not magnitudes
ODD_NAME = "{path}: {part!r} is no BIDS label (letters and digits); not processed: rename it"
FOREIGN = "{path}: {pair} of the name is not that of its folder; not processed: rename it, or move it where it belongs"
ODD_SUFFIX = "{path}: the suffix {suffix} is not written as BIDS has it; not processed: rename it to {right}"
NO_MAGNITUDE = "{path}: the run has no magnitude, only {parts}; not processed: store the magnitude beside it (part-mag)"


def odd_folders(root: Path) -> list[str]:
    """Return the names of subject folders at the root of a dataset whose label BIDS does not allow."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.name.startswith("sub-") and _is_folder(entry))
    return [name for name in names if not re.fullmatch(rf"sub-{LABEL}", name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def is_well_named(path: Path) -> bool:
    """Return whether every pair of a file name, and of the folders that belong to it, has a BIDS label, and fits."""
    return _odd_part(path) is None and _foreign_pair(path) is None


def leftovers(root: Path, participants: Sequence[str] = (), sessions: Sequence[str] = ()) -> list[str]:
    """Return a sentence for every image that looks like a diffusion run but can never be selected.

    Parameters
    ----------
    root
        Folder of a raw dataset.
    participants, sessions
        Labels without their prefix that were asked for; empty means all.
    """
    odd = [] if participants else odd_folders(root)
    sentences = [ODD_NAME.format(path=shown(root / name), part=shown(name)) for name in odd]
    for folder in _dwi_folders(root, participants, sessions):
        images = sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")))
        for image in images:
            stem = image.name.removesuffix(".gz").removesuffix(".nii")
            *pairs, suffix = stem.split("_")
            if suffix.lower() != "dwi" or any(pair.startswith(("desc-", "space-")) for pair in pairs):
                continue
            part = next((pair[5:] for pair in pairs if pair.startswith("part-")), "")
            label = _odd_part(image)
            if label is not None:
                sentences.append(ODD_NAME.format(path=shown(image), part=shown(label)))
            elif (foreign := _foreign_pair(image)) is not None:
                sentences.append(FOREIGN.format(path=image, pair=foreign))
            elif suffix != "dwi":
                right = image.name.replace(f"_{suffix}.", "_dwi.")
                sentences.append(ODD_SUFFIX.format(path=image, suffix=suffix, right=right))
            elif part in NOT_MAGNITUDE:
                siblings = [q for q in images if _without_part(q) == _without_part(image)]
                others = [_part(q) for q in siblings]
                if all(other in NOT_MAGNITUDE for other in others) and image == siblings[0]:
                    sentences.append(NO_MAGNITUDE.format(path=image, parts=" and ".join(others)))
    return sentences


def shown(path: str | Path) -> str:
    """Return a name as it can be printed, whatever bytes it has."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _dwi_folders(root: Path, participants: Sequence[str], sessions: Sequence[str]) -> Iterator[Path]:
    odd = odd_folders(root)
    for subject in sorted(p for p in root.glob("sub-*") if p.is_dir() and p.name not in odd):
        if participants and subject.name.removeprefix("sub-") not in participants:
            continue
        if not sessions and (subject / "dwi").is_dir():
            yield subject / "dwi"
        for session in sorted(p for p in subject.glob("ses-*") if (p / "dwi").is_dir()):
            if not sessions or session.name.removeprefix("ses-") in sessions:
                yield session / "dwi"


def _odd_part(path: Path) -> str | None:
    """Return the first pair of a name, or folder of subject or session, whose label BIDS does not allow."""
    pairs = path.name.removesuffix(".gz").removesuffix(".nii").split("_")[:-1]
    return next((part for part in (*_folders(path).values(), *pairs) if not PAIR.fullmatch(part)), None)


def _folders(path: Path) -> dict[str, str]:
    """Return the folders of subject and session that an image is in, by `sub-` and `ses-`; not those above."""
    found: dict[str, str] = {}
    for part in reversed(path.parts[:-1]):
        if part.startswith(("sub-", "ses-")):
            found.setdefault(part[:4], part)
        if part.startswith("sub-"):
            break
    return found


def _foreign_pair(path: Path) -> str | None:
    """Return the subject or session of a file name that is not the one of its folder; None where they agree."""
    folders = _folders(path)
    pairs = name_parts(path)[0]
    return next((pair for pair in pairs if folders.get(pair[:4], pair) != pair), None)


def _part(path: Path) -> str:
    return next((pair[5:] for pair in name_parts(path)[0] if pair.startswith("part-")), "")


def _without_part(path: Path) -> frozenset[str]:
    return frozenset(pair for pair in name_parts(path)[0] if not pair.startswith("part-"))
