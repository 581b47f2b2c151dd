"""The task: what would a run look like without its noise?

Input: the series as acquired, before any interpolation correlates the noise of neighbouring voxels. Output: the same
volumes, denoised. Scored on simulated runs with known truth, and on real runs, where tensor maps of the denoised series
are compared with those of many more directions: the papers' tables are PSNR and SSIM of the volumes and of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import MethodSpec


@dataclass(frozen=True)
class DenoiseSpec(MethodSpec):
    """The specification of a method that denoises the series as acquired, also for the other methods."""

    on_acquired: bool = True
    denoises: bool = True
