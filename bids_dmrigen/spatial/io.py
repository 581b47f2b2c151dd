"""Image and gradient files to arrays and back, with one clear error per fault."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np

from ..bids.images import GRID_TOLERANCE, IN_MASK, grids_apart_mm, whole_values
from ..bids.tables import read_gradients
from ..diffusion.storage import write_atomically
from ..dwi.gradients import B0_THRESHOLD_S_PER_MM2
from ..dwi.series import NO_B0, Scan, ScanError
from .headers import check_header, series_shape

OTHER_GRID = (
    "{path}: expected a brain mask on the grid of the series, of shape {wanted}, found shape {shape}, its corners up "
    "to {away:.3g} mm away; resample it onto that grid, or give none"
)


def open_image(path: str | Path) -> nib.Nifti1Image:
    """Return an image; only its header is read.

    Raises
    ------
    ScanError
        Where the file is missing, is not an image, or its header is not that of a scan; the message names the file.
    """
    if Path(path).is_symlink() and not Path(path).exists():
        raise ScanError(f"{path} is a link to a file that does not exist; fetch it (datalad get) or repair the link")
    with readable(path):
        image = cast("nib.Nifti1Image", nib.load(path))
    check_header(image, path)
    return image


def read_image(path: str | Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Return the image's values as float32 with scaling applied, and the image for its header and affine.

    Raises
    ------
    ScanError
        As `open_image`, and where the file is truncated or damaged.
    """
    image = open_image(path)
    with readable(path):
        return whole_values(image, path), image


def read_volume(path: str | Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Return a single volume (X, Y, Z), also if stored as (X, Y, Z, 1), and its image; see `read_image`.

    Raises
    ------
    ScanError
        Where it holds several volumes, or cannot be read.
    """
    data, image = read_image(path)
    if data.shape[3:].count(1) != data.ndim - 3:
        raise ScanError(f"{path}: expected a single volume (x, y, z), found shape {data.shape}")
    return data.reshape(data.shape[:3]), image


def write_image(
    path: str | Path, data: np.ndarray, like: nib.Nifti1Image, dtype=np.float32, step: float | None = None
) -> Path:
    """Write an array on the grid of `like`, keeping its sform, qform, their codes and units; atomic.

    With a `step`, values are stored as integers of this `dtype`, in multiples of the step; readers scale them back.
    """
    header = nib.Nifti1Header() if not isinstance(like.header, nib.Nifti1Header) else like.header.copy()
    header.set_data_dtype(dtype)
    header["cal_min"] = header["cal_max"] = 0
    if step:
        data = np.rint(np.asarray(data, dtype=np.float64) / step)
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), like.affine, header)
    image.set_sform(like.affine, code=int(header["sform_code"]) or 1)
    if not header["qform_code"]:  # an existing qform may differ from the sform and is kept
        image.set_qform(like.affine, code=1)
    image.header.set_slope_inter(step or 1, 0)  # making the image has cleared it
    image.header["pixdim"][4:] = 1.0  # the first three belong to the qform
    if data.ndim > 3 and like.ndim > 3:
        image.header["pixdim"][4] = header["pixdim"][4]
    return write_atomically(path, lambda part: nib.save(image, part))


def image_on_grid(shape: Sequence[int], affine: np.ndarray, like: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an empty image on another grid in the same world as `like`, for `write_image`.

    The qform moves with the affine: both are those of `like`, changed in the same way. The rest of the header is kept.
    """
    header = nib.Nifti1Header() if not isinstance(like.header, nib.Nifti1Header) else like.header.copy()
    header.set_data_dtype(np.uint8)
    image = nib.Nifti1Image(np.broadcast_to(np.uint8(0), (*shape, *like.shape[3:])), affine, header)
    image.set_sform(affine, code=int(header["sform_code"]) or 1)
    between = np.linalg.inv(like.affine) @ affine  # voxel indices of the new grid to those of `like`
    qform = like.get_qform() if int(header["qform_code"]) else like.affine
    image.set_qform(qform @ between, code=int(header["qform_code"]) or 1)
    image.header["pixdim"][4:] = header["pixdim"][4:]
    return image


def image_in_template(shape: Sequence[int], affine: np.ndarray) -> nib.Nifti1Image:
    """Return an empty image whose header says that it lies in a template's space, for `write_image`."""
    image = nib.Nifti1Image(np.zeros(tuple(shape), np.uint8), affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm")
    return image


def read_scan(
    dwi: str | Path,
    bval: str | Path,
    bvec: str | Path,
    mask: str | Path | None = None,
    b0_threshold: float = B0_THRESHOLD_S_PER_MM2,
    leave_out_trace: bool = False,
) -> tuple[Scan, nib.Nifti1Image]:
    """Return the scan (whole field of view as mask where none is given) and the image it came from.

    With `leave_out_trace` the volumes at its end that have a b-value but no direction are left out.

    Raises
    ------
    ScanError
        Where the image is not a 4-D series, no volume is a b0, or the mask is on another grid.
    """
    data, image = read_image(dwi)
    data = data.reshape(series_shape(data.shape, dwi))
    gradients = read_gradients(bval, bvec, data.shape[3], b0_threshold, leave_out_trace)
    if not gradients.is_b0.any():
        raise ScanError(f"{bval}: " + NO_B0.format(threshold=b0_threshold, lowest=gradients.bvals.min()))
    inside = np.ones(data.shape[:3], bool) if mask is None else read_mask(mask, image)
    return Scan(data[..., : len(gradients)], image.affine, gradients, inside), image


def read_mask(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """Return a brain mask (X, Y, Z) bool on the grid of an image.

    Raises
    ------
    ScanError
        Where it cannot be read, or is on another grid: it would mark other tissue than the brain.
    """
    values, own = read_volume(path)
    away = grids_apart_mm(own, image)
    smallest = np.linalg.norm(image.affine[:3, :3], axis=0).min()
    if values.shape != image.shape[:3] or away > GRID_TOLERANCE * smallest:
        raise ScanError(OTHER_GRID.format(path=path, shape=values.shape, away=away, wanted=image.shape[:3]))
    return values > IN_MASK


@contextmanager
def readable(path: str | Path):
    """Turn reading errors into a `ScanError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file") from None
    except Exception as error:  # nibabel and the decompressors raise many kinds
        raise ScanError(
            f"{path}: cannot be read as an image, it may be truncated or damaged ({error}); copy it again"
        ) from error
