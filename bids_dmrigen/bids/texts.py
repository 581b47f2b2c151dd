"""Text files of a BIDS dataset: which of them apply to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..diffusion.storage import read_object


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
