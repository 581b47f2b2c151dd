"""The question of this room: what would a run look like without its noise?

In: the series as acquired, before any interpolation makes the noise of neighbouring voxels alike. Out: the same
volumes, denoised. Scored on simulated runs of known truth, and on real ones by tensor maps of the denoised series
against those of many more directions: the papers' tables are PSNR and SSIM of the volumes and of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import MethodSpec


@dataclass(frozen=True)
class DenoiseSpec(MethodSpec):
    """Of a method that denoises the series as acquired; it can do so for the other methods, too."""

    on_acquired: bool = True
    denoises: bool = True
