"""Which anatomy people are simulated from: the embedded one, a folder of images, or an array file."""

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
    """Return the atlas; an array file needs neither nibabel nor nilearn.

    Parameters
    ----------
    source
        As in `HELP`.
    resolution_mm
        Voxel size of the embedded one.

    Raises
    ------
    AtlasError
        Where there is no such atlas.
    """
    from ..simulate.atlas import fibre_atlas, procedural_atlas
    from ..simulate.atlas_file import AtlasError, read_atlas

    if source.endswith(".safetensors"):
        return read_atlas(Path(source))

    if source == EMBEDDED:
        from ..interfaces.templates import embedded_mni

        arrays, affine = embedded_mni(resolution_mm)
        return procedural_atlas(**arrays, affine=affine)
    from ..dwi.series import ScanError
    from ..interfaces.templates import read_fibre_atlas

    try:
        arrays, affine = read_fibre_atlas(source)
    except ScanError as error:
        raise AtlasError(f"atlas {source}: {error}") from None
    return fibre_atlas(**arrays, affine=affine)
