"""Classical denoising: MP-PCA and Patch2Self of DIPY, and the noise level of a series."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ...dwi.series import Scan, ScanError

METHODS = ("mppca", "patch2self", "none")
MIN_VOLUMES_MPPCA = 5  # fewer volumes are not redundant enough to separate signal from noise
GOOD_VOLUMES_PATCH2SELF = 30
MIN_VOLUMES_PATCH2SELF = 10
UNKNOWN_METHOD = "unknown denoising method {method!r}; choose one of {methods}"
TOO_FEW_VOLUMES = "{method} needs at least {needed} volumes, found {found}; the series was not denoised"
MIXED_UP = "Patch2Self of DIPY exchanges volumes of a series of {found}, so the series was not denoised; use mppca"
TOO_FEW_FOR_PATCH2SELF = (
    "Patch2Self lost direction contrast in series of fewer than {good} volumes, this one has {found}; "
    "compare the directional maps with those of the acquired series, or use mppca"
)


def denoise(scan: Scan, method: str) -> tuple[np.ndarray, str]:
    """Return the denoised (X, Y, Z, N) float32 series and a sentence on what was done.

    Voxels outside the mask, constant voxels, and voxels that the method cannot denoise keep their values.

    Parameters
    ----------
    scan
        The series as acquired, before any interpolation.
    method
        `mppca` (Veraart et al. 2016), `patch2self` (version 3, Fadnavis et al. 2024) or `none`.

    Raises
    ------
    ValueError
        Where the method is unknown.
    """
    acquired = np.nan_to_num(np.asarray(scan.data, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    n_volumes = acquired.shape[3]
    minimum = {"mppca": MIN_VOLUMES_MPPCA, "patch2self": MIN_VOLUMES_PATCH2SELF, "none": 0}
    if method not in minimum:
        raise ValueError(UNKNOWN_METHOD.format(method=method, methods=METHODS))
    if method == "none":
        return acquired, "Not denoised, as requested."
    if n_volumes < minimum[method]:
        text = TOO_FEW_VOLUMES.format(method=method, needed=minimum[method], found=n_volumes)
        return acquired, text[0].upper() + text[1:] + "."
    if method == "patch2self" and mixed_up(n_volumes):
        return acquired, MIXED_UP.format(found=n_volumes) + "."
    measured = scan.mask & (np.ptp(acquired, axis=3) > 0)  # zeroed backgrounds hold nothing to denoise
    if method == "mppca":
        denoised, message = _mppca(acquired, measured)
    else:
        denoised, message = _patch2self(acquired, scan)
    usable = measured[..., None] & np.isfinite(denoised)
    return np.where(usable, np.maximum(denoised, 0), acquired).astype(np.float32), message


def mixed_up(n_volumes: int) -> bool:
    """Return whether version 3 of Patch2Self in DIPY 1.12 fails on so many volumes, or exchanges some: 13, 14 and 19.

    It works through N volumes in parts of N // 5. A rest of N % 5 that is longer than a part is not taken from it.
    """
    return n_volumes % 5 > n_volumes // 5


def noise_level(scan: Scan) -> tuple[float, str]:
    """Return the noise standard deviation in scanner units, NaN where it is unknown, and a sentence on it."""
    from ...dwi.noise import estimate_sigma

    try:
        estimate = estimate_sigma(scan)
    except ScanError as error:
        text = str(error)
        return float("nan"), text[0].upper() + text[1:] + "."
    source = "differences between neighbouring voxels" if estimate.spatial else "the residuals of each shell"
    return estimate.sigma, (
        f"Noise standard deviation {estimate.sigma:.4g} (from {source}), b0 signal-to-noise ratio "
        f"{estimate.b0_snr:.1f}."
    )


def patch_radius(shape: tuple[int, ...]) -> np.ndarray:
    """Return the radii (3,) of the smallest patch that holds more voxels than the series has volumes.

    Where an axis is shorter than the patch, the patch is larger along the other axes.
    """
    radius = np.ones(3, dtype=int)
    limit = (np.array(shape[:3]) - 1) // 2
    while np.prod(2 * np.minimum(radius, limit) + 1) <= shape[3] and (radius < limit).any():
        radius += 1
    return np.minimum(radius, limit)


def _mppca(acquired: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, str]:
    from dipy.denoise.localpca import mppca

    radius = patch_radius(acquired.shape)
    size = " x ".join(str(2 * r + 1) for r in radius)
    with np.errstate(invalid="ignore", divide="ignore"):  # voxels that no patch covers: 0/0
        denoised = mppca(acquired, mask=mask, patch_radius=radius, suppress_warning=True)
    return denoised, f"Denoised by MP-PCA in patches of {size} voxels."


def _patch2self(acquired: np.ndarray, scan: Scan) -> tuple[np.ndarray, str]:
    from dipy.denoise.patch2self import patch2self

    # Version 3 works in memory-mapped files of the whole series: too much for the /tmp of many containers.
    # It sketches the series with numbers of numpy's global generator.
    with tempfile.TemporaryDirectory(dir=os.curdir) as folder, _same_random_numbers():
        denoised = patch2self(
            acquired,
            scan.gradients.bvals,
            b0_threshold=scan.gradients.b0_threshold,
            shift_intensity=False,
            tmp_dir=folder,
            version=3,
        )
    message = "Denoised by Patch2Self (version 3)."
    if acquired.shape[3] < GOOD_VOLUMES_PATCH2SELF:
        warning = TOO_FEW_FOR_PATCH2SELF.format(good=GOOD_VOLUMES_PATCH2SELF, found=acquired.shape[3])
        message += f" {warning}."
    return denoised, message


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Seed numpy's global generator, and leave it as it was."""
    before = np.random.get_state()  # noqa: NPY002 - the library takes no generator
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Limit torch to `count` threads, and BLAS to one: more are slower on the small matrices of patches."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
