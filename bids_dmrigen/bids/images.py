"""Whether an image beside a run can be used: it is there, it is whole, and it holds something."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np
    from nibabel.spatialimages import SpatialImage

VOXEL_MM = (0.02, 25.0)  # smallest and largest edge of a voxel: from microscopes for mice to spectroscopy
OTHER_UNITS = ("meter", "micron")  # of space; what is not said counts as mm
READ_AT_ONCE = 2**20  # bytes
NOT_FETCHED = (
    "{name} is a link to a file that does not exist; not used: fetch it (datalad get {path}) or repair the link"
)
NOT_A_FILE = "{name} is not a file; not used"
UNREADABLE = "{name} cannot be read as an image ({error}); not used: copy it anew"
NO_NUMBERS = "{name} holds {dtype} values, expected real numbers; not used"
NO_PLACE = "{name} has an affine that describes no grid; not used: correct its sform or qform"
ODD_VOXELS = "{name} has voxels of {zooms}, unit {unit}; not used: correct voxel size and unit in its header (mm)"
NO_SCALE = "{name} has a header with an infinite slope of its values; not used: export it again"
SEVERAL_VOLUMES = "{name} has shape {shape}, expected one volume; not used"
EMPTY = "{name} {what}: it holds no image; not used: export it again"
OTHER_GRID = (
    "{name} has shape {shape}, its grid ends up to {away:.3g} mm from that of {image} of shape {wanted}; not used: "
    "resample it onto that grid"
)
NO_BRAIN = "{name} has no voxel above {above:g}, so it marks no brain; not used: make it anew"
IN_MASK = 0.5  # voxels above this are in a mask
GRID_TOLERANCE = 0.1  # of the smallest edge of a voxel, between the same corner of two grids: headers are rounded


def whole_values(image: SpatialImage, path: str | Path) -> np.ndarray:
    """Return all values of an image as float32, with scaling applied; a compressed file is read to its checksum.

    The checksum stands behind the values, where a reader that stops after them never looks.

    Parameters
    ----------
    image
        As `nibabel.load` gives it.
    path
        Its file.

    Raises
    ------
    Exception
        Of many kinds, where the file is truncated or damaged.
    """
    import nibabel as nib
    import numpy as np

    if not str(path).endswith(".gz"):
        return np.asarray(image.dataobj, dtype=np.float32)
    with gzip.open(path) as stream:
        whole = type(image).from_file_map({"image": nib.FileHolder(fileobj=stream)})
        data = np.asarray(whole.dataobj, dtype=np.float32)
        while stream.read(READ_AT_ONCE):
            pass
    return data


def unit_of(header: Any) -> str:
    """Return the unit of space of a header; `unknown` where it has none, or a code that NIfTI does not define."""
    try:
        return str(header.get_xyzt_units()[0])
    except (AttributeError, KeyError):
        return "unknown"


def stored_header(image: SpatialImage) -> Any:
    """Return the header as it is in the file: on reading, nibabel replaces sizes of 0 and infinite slopes.

    A header made in memory, or of another format than NIfTI, is returned as it is.
    """
    import nibabel as nib
    from nibabel.openers import Opener

    holder = image.file_map.get("header", image.file_map["image"])
    if holder.filename is None or not isinstance(image.header, nib.Nifti1Header):
        return image.header
    with Opener(holder.filename) as stream:
        content = stream.read(image.header.sizeof_hdr)
    return type(image.header)(content, endianness=image.header.endianness, check=False)


def voxel_sizes(image: SpatialImage, header: Any) -> np.ndarray:
    """Return the edges of the voxels, mm; 0 where the affine is made from a size that the header gives as 0.

    Parameters
    ----------
    image
        Its affine is used.
    header
        Of the image, from `stored_header`.
    """
    import nibabel as nib
    import numpy as np

    zooms = np.linalg.norm(image.affine[:3, :3], axis=0)
    if isinstance(header, nib.Nifti1Header) and int(header["sform_code"]) <= 0:
        zooms[np.equal(header["pixdim"][1:4], 0)] = 0
    return np.asarray(zooms)


def fault_of(path: Path, volume: int | None = None) -> str | None:
    """Return why an image cannot be used; None if it can.

    Parameters
    ----------
    path
        The image.
    volume
        The only volume that is looked at, of a series; None: the image must be a single volume, and is read whole.
    """
    if not path.exists():
        return NOT_FETCHED.format(name=path.name, path=path)
    if not path.is_file():
        return NOT_A_FILE.format(name=path.name)
    state = path.stat()
    return _fault_of(path, volume, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)  # one T1w image or field map serves several runs
def _fault_of(path: Path, volume: int | None, _mtime_ns: int, _size: int) -> str | None:
    import nibabel as nib
    import numpy as np

    name = path.name
    try:
        image = cast("SpatialImage", nib.load(path))
        if image.get_data_dtype().kind not in "iuf":
            return NO_NUMBERS.format(name=name, dtype=image.get_data_dtype())
        affine = image.affine
        if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            return NO_PLACE.format(name=name)
        stored = stored_header(image)
        if isinstance(stored, nib.Nifti1Header) and np.isinf(stored["scl_slope"]):
            return NO_SCALE.format(name=name)
        zooms, unit = voxel_sizes(image, stored), unit_of(image.header)
        if not VOXEL_MM[0] <= zooms.min() <= zooms.max() <= VOXEL_MM[1] or unit in OTHER_UNITS:
            return ODD_VOXELS.format(name=name, zooms=" x ".join(f"{z:.4g}" for z in zooms), unit=unit)
        single = len(image.shape) >= 3 and set(image.shape[3:]) <= {1}
        if volume is None and not single:
            return SEVERAL_VOLUMES.format(name=name, shape=image.shape)
        if volume is None or single:
            values = whole_values(image, path)
        else:
            index = tuple(volume if n > 1 else 0 for n in image.shape[3:])
            values = np.asarray(image.dataobj[(slice(None),) * 3 + index], np.float32)
    except Exception as error:  # nibabel raises many kinds
        return UNREADABLE.format(name=name, error=error or type(error).__name__)
    values = values[np.isfinite(values)]
    if not values.size:
        return EMPTY.format(name=name, what="has no finite value")
    if values.min() == values.max():
        return EMPTY.format(name=name, what=f"is {values[0]:g} everywhere")
    return None


def fault_of_mask(path: Path, image: Path) -> str | None:
    """Return why a brain mask cannot be used with a series; None if it can, or the series itself cannot be read.

    Parameters
    ----------
    path
        The mask.
    image
        The series.
    """
    import nibabel as nib
    import numpy as np

    if fault := fault_of(path):
        return fault
    mask = cast("SpatialImage", nib.load(path))
    if not (whole_values(mask, path) > IN_MASK).any():
        return NO_BRAIN.format(name=path.name, above=IN_MASK)
    if not image.is_file():
        return None
    try:
        series = cast("SpatialImage", nib.load(image))
    except Exception:  # the checks of the run report it
        return None
    away = grids_apart_mm(mask, series)
    smallest = float(np.linalg.norm(series.affine[:3, :3], axis=0).min())
    if mask.shape[:3] == series.shape[:3] and away <= GRID_TOLERANCE * smallest:
        return None
    return OTHER_GRID.format(name=path.name, shape=mask.shape[:3], away=away, image=image.name, wanted=series.shape[:3])


def grids_apart_mm(one: SpatialImage, other: SpatialImage) -> float:
    """Return the largest distance between the same corner of the grids of two images, mm; only headers are read."""
    import numpy as np

    first, second = (
        np.array(np.meshgrid(*([0, n - 1] for n in image.shape[:3]))).reshape(3, -1).T @ image.affine[:3, :3].T
        + image.affine[:3, 3]
        for image in (one, other)
    )
    return float(np.linalg.norm(first - second, axis=1).max())
