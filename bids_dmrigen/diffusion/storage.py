"""Write files so that they are either complete or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with the path of a part file beside `path`, and move that file into place when it is complete.

    No process can see a half-written file, and the part file is deleted where writing fails. A symbolic link at
    `path` is replaced; the file that it points to keeps its content.

    Parameters
    ----------
    path
        The file; missing folders above it are created.
    write
        Function that writes the content to a given path, which has the same suffix as `path`.

    Returns
    -------
    Path
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    part = path.with_name(f".{path.name[:40]}-{uuid.uuid4().hex[:12]}{suffix}")
    part.touch(exist_ok=False)
    mode = part.stat().st_mode  # what the user's umask allows; safetensors makes files that others cannot read
    try:
        write(part)
        os.chmod(part, mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8; parameters as for `write_atomically`."""
    return write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file; path as for `write_atomically`."""
    import torch
    from safetensors.torch import save_file

    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return write_atomically(path, lambda part: save_file(copies, part, metadata))
