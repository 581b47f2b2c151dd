"""Write files so that they are either complete or absent; read text files of unknown origin with care."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


LARGEST_TEXT = 16 * 2**20  # bytes; sidecars have a few thousand
NOT_A_FILE = "{path}: expected a text file, found {kind}; replace it by the file or remove it"
TOO_LARGE = "{path}: {size:.0f} MB, expected at most {largest:.0f} MB of text; correct or remove it"
NOT_JSON = "{path}: cannot be read as JSON ({error}); correct or remove it"
NOT_TEXT = "{path}: cannot be read as text in UTF-8 ({error}); correct or remove it"
NO_OBJECT = "{path}: expected a JSON object, found {kind}; correct it"
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
         (stat.S_ISSOCK, "a socket"))  # fmt: skip


class TextError(ValueError):
    """A text file that cannot be read, or is not what it should be."""


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    TextError
        Where the path is no regular file, the file is too large or no JSON, or the JSON is no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise TextError(NO_OBJECT.format(path=path, kind=type(content).__name__))
    return content


def read_json(path: Path) -> Any:
    """Return the JSON value in a file.

    Raises
    ------
    TextError
        Where the path is no regular file, or the file is too large or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise TextError(NOT_JSON.format(path=path, error="brackets inside brackets, thousands deep")) from None
    except ValueError as error:  # also a number of thousands of digits
        raise TextError(NOT_JSON.format(path=path, error=error)) from None


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises
    ------
    TextError
        Where the path is no regular file, or the file cannot be read, is too large or is not in UTF-8.
    """
    try:
        # Opening a pipe would wait for ever, and a device may have no end.
        status = path.stat()
        kind = next((name for test, name in KINDS if test(status.st_mode)), None)
        if kind is not None:
            raise TextError(NOT_A_FILE.format(path=path, kind=kind))
        if status.st_size > LARGEST_TEXT:
            raise TextError(TOO_LARGE.format(path=path, size=status.st_size / 2**20, largest=LARGEST_TEXT / 2**20))
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(NOT_TEXT.format(path=path, error=error)) from None


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
