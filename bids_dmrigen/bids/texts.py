"""Text files of a BIDS dataset: JSON that is read with care, and which files apply to an image."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

LARGEST_JSON = 16 * 2**20  # bytes; sidecars have a few thousand
NOT_A_FILE = "{path}: expected a text file, found {kind}; replace it by the file or remove it"
TOO_LARGE = "{path}: {size:.0f} MB, expected at most {largest:.0f} MB of JSON; correct or remove it"
NOT_JSON = "{path}: cannot be read as JSON ({error}); correct or remove it"
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
    """Return the JSON value in a file; see `read_object`.

    Raises
    ------
    TextError
        Where the path is no regular file, or the file is too large or no JSON.
    """
    try:
        # Opening a pipe would wait for ever, and a device may have no end.
        status = path.stat()
        kind = next((name for test, name in KINDS if test(status.st_mode)), None)
        if kind is not None:
            raise TextError(NOT_A_FILE.format(path=path, kind=kind))
        if status.st_size > LARGEST_JSON:
            raise TextError(TOO_LARGE.format(path=path, size=status.st_size / 2**20, largest=LARGEST_JSON / 2**20))
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except TextError:
        raise
    except RecursionError:
        raise TextError(NOT_JSON.format(path=path, error="brackets inside brackets, thousands deep")) from None
    except (OSError, ValueError) as error:
        raise TextError(NOT_JSON.format(path=path, error=error)) from None


class Texts:
    """The text files that apply to the images of a dataset; every folder is listed only once.

    Parameters
    ----------
    root
        Folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[Path, list[Path]] = {}

    def of(self, image: Path, extension: str) -> list[Path]:
        """Return the text files that apply to an image by the inheritance principle, the most specific one last.

        They are in the image's folder or above, and have its suffix. The image has every entity of their names.
        """
        pairs, suffix = name_parts(image)
        matches: list[Path] = []
        for folder in image.parents:
            here = [(name_parts(path), path) for path in self._listed(folder) if path.suffix == extension]
            fitting = [(len(entities), path) for (entities, kind), path in here if kind == suffix and entities <= pairs]
            matches = [path for _, path in sorted(fitting)] + matches
            if folder == self.root:
                break
        return matches

    def table(self, image: Path, extension: str) -> Path | None:
        """Return the `.bval` or `.bvec` of an image: the most specific one, as tables are not merged."""
        return next(reversed(self.of(image, extension)), None)

    def metadata(self, image: Path) -> dict[str, Any]:
        """Return the metadata of an image from all sidecars that apply; deeper files override those above.

        Raises
        ------
        TextError
            Where a sidecar cannot be read.
        """
        metadata: dict[str, Any] = {}
        for path in self.of(image, ".json"):
            metadata |= read_object(path)
        return metadata

    def _listed(self, folder: Path) -> list[Path]:
        if folder not in self.folders:
            self.folders[folder] = [p for p in folder.iterdir() if p.suffix in (".json", ".bval", ".bvec")]
        return self.folders[folder]


def name_parts(path: Path) -> tuple[set[str], str]:
    """Return the `key-value` pairs of a BIDS file name and its suffix.

    >>> pairs, suffix = name_parts(Path("sub-01_dir-AP_dwi.nii.gz"))
    >>> sorted(pairs), suffix
    (['dir-AP', 'sub-01'], 'dwi')
    """
    *pairs, suffix = path.name.split(".")[0].split("_")
    return set(pairs), suffix
