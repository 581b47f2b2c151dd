"""The anatomy of simulated subjects: the embedded one, a folder of images, or an array file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..simulate.atlas import Atlas

EMBEDDED = "embedded"
HELP = (
    "anatomy: a folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (.nii.gz, one grid), an "
    f"array file that `dmrigen prepare --atlas` wrote, or {EMBEDDED}: MNI with analytic bundles (default: {EMBEDDED})"
)


def load_atlas(source: str = EMBEDDED, resolution_mm: int = 2) -> Atlas:
    """Return an atlas. To read an array file, neither nibabel nor nilearn is needed.

    Parameters
    ----------
    source
        Embedded anatomy, folder or file, as described in `HELP`.
    resolution_mm
        Voxel size of the embedded anatomy.

    Raises
    ------
    AtlasError
        Where there is no such atlas.
    """
    from ..simulate.atlas_file import AtlasError, read_atlas

    if source.endswith(".safetensors"):
        return read_atlas(Path(source))
    from ..dwi.series import ScanError
    from ..spatial.templates import read_anatomy

    try:
        return read_anatomy(None if source == EMBEDDED else source, resolution_mm)
    except ScanError as error:
        raise AtlasError(f"atlas {source}: {error}") from None
