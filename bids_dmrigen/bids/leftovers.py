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
AN_IMAGE = re.compile(r"\.(nii(\.gz|\.bz2)?|img|mgz|mif(\.gz)?|nrrd)$", re.IGNORECASE)
OF_DIFFUSION = re.compile("dwi|dti|diff", re.IGNORECASE)
OTHER_FORMAT = "{path}: only .nii and .nii.gz files are read; not processed: convert or rename it"
OTHER_NAME = "{path}: the name of a diffusion run ends in _dwi.nii[.gz]; not processed: rename it if it is one"
MISPLACED = "{path}: a diffusion run lies in a folder dwi/ of its subject or session; not processed: move it there"
ODD_FOLDER = "{path}: BIDS has this folder as {right}; nothing in it is read: rename it"
NO_FOLDER = "{path} is no folder, or a link to nothing; not processed: fetch it (datalad get) or remove it"
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
    sentences += [] if participants else _odd_subjects(root)
    for place in _places(root, participants, sessions):
        sentences += _misplaced(place)
    for folder in (place / "dwi" for place in _places(root, participants, sessions) if (place / "dwi").is_dir()):
        sentences += _misnamed(folder)
        images = sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")))
        for image in images:
            stem = image.name.removesuffix(".gz").removesuffix(".nii")
            *pairs, suffix = stem.split("_")
            if suffix.lower() != "dwi" or image.is_dir() or _is_derivative(image):
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


def _odd_subjects(root: Path) -> Iterator[str]:
    """Yield a sentence for what is at the place of a subject folder and is none."""
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.name.lower().startswith("sub-") and not entry.name.startswith("sub-") and _is_folder(entry):
            yield ODD_FOLDER.format(path=shown(entry.path), right=shown(f"sub-{entry.name[4:]}"))
        elif re.fullmatch(rf"sub-{LABEL}", entry.name) and not _is_folder(entry):
            yield NO_FOLDER.format(path=entry.path)


def _misplaced(place: Path) -> Iterator[str]:
    """Yield a sentence for what looks like diffusion runs in the folder of a subject or session itself."""
    for path in sorted(place.iterdir()):
        if path.name.lower() == "dwi" != path.name and path.is_dir():
            yield ODD_FOLDER.format(path=path, right="dwi")
        elif AN_IMAGE.search(path.name) and _is_of_diffusion(path):
            yield MISPLACED.format(path=shown(path))


def _misnamed(folder: Path) -> Iterator[str]:
    """Yield a sentence for images of a folder dwi/ whose name says diffusion, but not as BIDS says it."""
    for path in sorted(folder.iterdir()):
        if not AN_IMAGE.search(path.name) or not _is_of_diffusion(path) or _is_derivative(path):
            continue
        if not path.name.endswith((".nii", ".nii.gz")) or path.is_dir():
            yield OTHER_FORMAT.format(path=shown(path))
        elif path.name.split(".")[0].split("_")[-1].lower() not in ("dwi", "sbref", "dwimap", "dwiref"):
            yield OTHER_NAME.format(path=shown(path))


def _is_of_diffusion(path: Path) -> bool:
    """Return whether a part of a file name that is no pair of entity and label speaks of diffusion."""
    parts = AN_IMAGE.sub("", path.name).split("_")
    return any(OF_DIFFUSION.search(part) for part in parts if "-" not in part)


def _is_derivative(path: Path) -> bool:
    return any(pair.startswith(("desc-", "space-")) for pair in path.name.split("_"))


def _places(root: Path, participants: Sequence[str], sessions: Sequence[str]) -> Iterator[Path]:
    """Yield the folders of the selected subjects and sessions."""
    odd = odd_folders(root)
    for subject in sorted(p for p in root.glob("sub-*") if p.name not in odd and os.path.isdir(p)):
        if participants and subject.name.removeprefix("sub-") not in participants:
            continue
        if not sessions:
            yield subject
        for session in sorted(p for p in subject.glob("ses-*") if p.is_dir()):
            if not sessions or session.name.removeprefix("ses-") in sessions:
                yield session


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
