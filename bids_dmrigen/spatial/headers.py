"""What the header of an image must say before anything is read: kind of values, size, geometry."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from ..bids.images import OTHER_UNITS, VOXEL_MM, stored_header, unit_of, voxel_sizes
from ..dwi.series import ScanError

MOST_SHEAR_DEGREES = 10.0  # between voxel axes and right angles; scanners make none, a resampled header a little
GZIP_RATIO = 1032  # deflate cannot compress more
NOT_REAL = "{path}: expected one real number per voxel, found {kind}; store the magnitude"
NOT_FINITE = "{path}: the header's {fields} hold NaN or infinity; repair the header, or convert the scan again"
BAD_VOXELS = (
    "{path}: voxels of {zooms} mm, expected {low:g} to {high:g} mm; correct voxel size and unit in the header "
    "({unit}), or convert the scan again"
)
SHEARED = (
    "{path}: the voxel axes are {degrees:.0f}° from right angles, more than any scanner makes; the affine of the "
    "header is broken: convert the scan again"
)
SINGULAR = "{path}: the affine of the header is singular; convert the scan again"
TOO_LARGE = (
    "{path}: the header claims {shape} values, {claimed:.1f} GB; {holder} {held}: the header is damaged, copy or "
    "convert the scan again"
)
NOT_4D = "{path}: expected a 4-D series (x, y, z, volume), found shape {shape}{hint}"
SINGLE = "; a single volume is no diffusion series"
STACKED = (
    "; its {slices} slices are {n} (entries of the gradient table) times {each}: the volumes may be stacked along z; "
    "split them into a 4-D series"
)
NO_FORM = (
    "{path}: neither sform nor qform says where the image lies (both codes are 0); left and right are taken from the "
    "order of the voxels and may be exchanged"
)


def check_header(image: nib.Nifti1Image, path: str | Path) -> list[str]:
    """Return warnings about an image's header.

    Parameters
    ----------
    image
        Only its header is read.
    path
        Its file, named in messages.

    Raises
    ------
    ScanError
        Where values are not real numbers, the geometry is not that of a scanner, or the size is impossible.
    """
    values = image.get_data_dtype()
    if values.kind not in "iuf":
        kind = {"c": "complex numbers", "V": "colours (RGB)"}.get(values.kind, str(values))
        raise ScanError(NOT_REAL.format(path=path, kind=kind))
    _check_size(image, path)
    _check_geometry(image, path)
    no_form = not int(image.header["sform_code"]) and not int(image.header["qform_code"])
    return [NO_FORM.format(path=path)] if no_form else []


def series_shape(shape: tuple[int, ...], path: str | Path, n_entries: int | None = None) -> tuple[int, int, int, int]:
    """Return the shape (x, y, z, volume) of a series that may be stored with another axis of length 1.

    >>> series_shape((64, 64, 30, 1, 13), "dwi.nii")
    (64, 64, 30, 13)

    Parameters
    ----------
    shape
        Of the stored array.
    path
        Its file, named in messages.
    n_entries
        Number of entries of the gradient table, where it is known: it tells whether volumes are stacked.

    Raises
    ------
    ScanError
        Where the array is no series of volumes.
    """
    longer = [n for n in shape[3:] if n != 1]
    if len(shape) >= 4 and len(longer) <= 1:
        return (*shape[:3], *(longer or [1]))  # type: ignore[return-value] # four of them
    hint = ""
    if len(shape) == 3:
        hint = SINGLE
        if n_entries and n_entries > 1 and shape[2] % n_entries == 0:
            hint = STACKED.format(slices=shape[2], n=n_entries, each=shape[2] // n_entries)
    raise ScanError(NOT_4D.format(path=path, shape=shape, hint=hint))


def _check_size(image: nib.Nifti1Image, path: str | Path) -> None:
    """Refuse a header that claims more than its file or this machine can hold."""
    count = int(np.prod([max(int(n), 0) for n in image.shape], dtype=object))
    size, held = count * image.get_data_dtype().itemsize, Path(path).stat().st_size
    most = held * GZIP_RATIO if str(path).endswith(".gz") else held
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = " x ".join(map(str, image.shape))
    if size > most:
        raise ScanError(
            TOO_LARGE.format(path=path, shape=shape, claimed=size / 1e9, holder="its file has", held=f"{held} bytes")
        )
    if size > memory:
        raise ScanError(
            TOO_LARGE.format(
                path=path, shape=shape, claimed=size / 1e9, holder="this machine has", held=f"{memory / 1e9:.0f} GB"
            )
        )


def _check_geometry(image: nib.Nifti1Image, path: str | Path) -> None:
    header = stored_header(image)
    qform = [*(f"quatern_{k}" for k in "bcd"), *(f"qoffset_{axis}" for axis in "xyz")]
    fields = {
        "sform": [header[f"srow_{axis}"] for axis in "xyz"],
        "qform": [header[name] for name in qform],
        "pixdim": header["pixdim"][: 1 + min(len(image.shape), 4)],
        "scaling": [n for n in (header["scl_slope"], header["scl_inter"]) if not np.isnan(n)],
    }  # fmt: skip
    broken = [name for name, numbers in fields.items() if not np.isfinite(np.asarray(numbers, dtype=float)).all()]
    if broken:
        raise ScanError(NOT_FINITE.format(path=path, fields=" and ".join(broken)))
    linear = image.affine[:3, :3]
    zooms = voxel_sizes(image, header)
    unit = unit_of(header)
    if not (VOXEL_MM[0] <= zooms.min() and zooms.max() <= VOXEL_MM[1]) or unit in OTHER_UNITS:
        raise ScanError(
            BAD_VOXELS.format(path=path, zooms=" x ".join(f"{z:.4g}" for z in zooms), low=VOXEL_MM[0],
                              high=VOXEL_MM[1], unit=f"now in {unit}")
        )  # fmt: skip
    cosines = linear / zooms
    if abs(np.linalg.det(cosines)) < 1e-6:
        raise ScanError(SINGULAR.format(path=path))
    between = np.abs((cosines.T @ cosines)[[0, 0, 1], [1, 2, 2]]).max()
    degrees = float(np.degrees(np.arcsin(min(between, 1.0))))
    if degrees > MOST_SHEAR_DEGREES:
        raise ScanError(SHEARED.format(path=path, degrees=degrees))
