"""Store complete and finite results with their sidecars in the derivative dataset, and check that they remain."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np

from ..diffusion.storage import write_atomically, write_text
from .names import figure_path, sidecar_path

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

WRITTEN = "written.json"  # in the sink's working folder: path -> state
LARGE = (".nii.gz", ".nii", ".h5")  # files whose content is not compared
PARTS, PART = 64, 2**16  # of a large file: number, bytes of each
GZIP_END = 8  # bytes: CRC-32 and size of what is inside
NO_SPACE = "{path}: no space left in the output folder; free some space and run again, finished steps are kept"


def store(source: Path, target: Path, sidecar: Mapping[str, Any] | None) -> list[Path]:
    """Copy a result to its path, atomically; images must be finite. Return the paths that were written.

    Raises
    ------
    ValueError
        Where an image has a value that is not finite; it is not stored.
    OSError
        Where the folder is full or not writable.
    """
    try:
        if source.name.endswith((".nii", ".nii.gz")):
            image = cast("SpatialImage", nib.load(source))
            data = np.asanyarray(image.dataobj)
            if not np.isfinite(data).all():
                raise ValueError(f"{source.name} for {target.name} holds values that are not finite; not stored")
            write_atomically(target, lambda part: nib.save(image, part))
        else:
            write_atomically(target, lambda part: shutil.copyfile(source, part))
        if sidecar is not None:
            text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
            return [target, write_text(sidecar_path(target), text)]
        return [target]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, NO_SPACE.format(path=target)) from error
        raise


def remember(folder: Path, written: list[Path]) -> list[str]:
    """Record in a sink's working folder which files it wrote, for `intact`; return the paths."""
    text = json.dumps({str(path): _state(path) for path in written})
    write_text(folder / WRITTEN, text)
    return [str(path) for path in written]


def intact(folder: Path) -> bool:
    """Return whether all files of a sink are unchanged: another call may have replaced them."""
    try:
        return all(_state(path) == state for path, state in json.loads((folder / WRITTEN).read_text()).items())
    except FileNotFoundError:
        return False


def forget_figures(out_dir: Path, entities: Mapping[str, str], kept: Sequence[str] = ()) -> None:
    """Remove a run's figures: those of an earlier call with other settings would be out of date.

    Parameters
    ----------
    out_dir
        Derivative dataset.
    entities
        Of the run.
    kept
        Keys of figures that stay: those of methods that are not part of this call.
    """
    kept_paths = {out_dir / figure_path(entities, key) for key in kept}
    for key, extension in (("*", "svg"), ("skipped", "html")):
        drawn = out_dir / figure_path(entities, key, extension)
        for stale in set(drawn.parent.glob(drawn.name)) - kept_paths:
            stale.unlink(missing_ok=True)


def _state(path: str | Path) -> list[int | str]:
    """Return what tells whether a file has changed: its content, or size and time of last change if it is large."""
    if str(path).endswith(LARGE):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest()]


def fingerprint(path: Path) -> str:
    """Return the size of a file, and a checksum.

    That of a gzip file stands at its end. Of another large file, parts are read that lie evenly in it.
    """
    if not path.exists():
        return "missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix == ".gz" and size >= GZIP_END:
            file.seek(-GZIP_END, os.SEEK_END)
            return f"{size} bytes, checksum {file.read(4)[::-1].hex()}"
        checksum = 0
        for part in range(PARTS):
            file.seek(part * max(size - PART, 0) // (PARTS - 1))
            checksum = zlib.crc32(file.read(PART), checksum)
    return f"{size} bytes, checksum {checksum:08x}"


def digest(path: Path) -> str:
    """Return a short digest of the content of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
