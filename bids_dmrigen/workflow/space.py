"""Disk space: how much there is, how it is written, and what to say where it ran out."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

from .settings import Settings

FULL_BYTES = 20e6  # a file system with less free space than this is called full
SIGNS = ("No space left on device", "Disk quota exceeded", "no space left")
RAN_OUT = "{what}; {folders}; free some space or give another folder, and call again: finished steps are kept"


def size_text(n_bytes: float) -> str:
    """Return a size with a unit in which it is not 0.

    >>> size_text(3.2e9), size_text(4.6e6), size_text(12)
    ('3.2 GB', '4.6 MB', '0.1 MB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{max(n_bytes / 1e6, 0.1):.1f} MB"


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk is full or a quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def explained(message: str, settings: Settings) -> str:
    """Return a message about a failure; where a disk is full, with the folders that are and what to do.

    Parameters
    ----------
    message
        What the step or the call said.
    settings
        Of the call: its folders are looked at.
    """
    if not any(sign in message for sign in SIGNS):
        return message
    folders = {
        "work folder (-w/--work-dir)": settings.work,
        "output folder": settings.out_dir,
        "folder of temporary files (TMPDIR)": Path(tempfile.gettempdir()),
    }
    free = {f"the {what} {path} has {size_text(n)} free": n for what, path in folders.items() for n in _free(path)}
    full = [text for text, n in free.items() if n < FULL_BYTES] or list(free)
    return RAN_OUT.format(what=message.rstrip("."), folders=", ".join(full))


def _free(path: Path) -> list[int]:
    """Return the free bytes of the file system of a folder; none where it is not there."""
    try:
        return [shutil.disk_usage(path).free]
    except OSError:
        return []
