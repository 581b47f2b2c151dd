"""The table of output names: the name of every file that the app writes is defined here and nowhere else.

The entities of the run come first, in BIDS order, then the part from the table. Files on the preprocessed run's grid
have no `space-` entity. For files on a finer grid, `res-` is the edge of the voxels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..dwi.uncertainty import SCALARS

# pybids name -> key in the file name, in the order in which BIDS wants them
ENTITIES = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "part": "part",
    "chunk": "chunk",
}

# key -> the rest of the file name; {placeholders} are filled by `output_path`
DWI = {
    "preproc": "desc-preproc_dwi.nii.gz",
    "preproc_bval": "desc-preproc_dwi.bval",
    "preproc_bvec": "desc-preproc_dwi.bvec",
    "dwiref": "dwiref.nii.gz",
    "mask": "desc-brain_mask.nii.gz",
    "coverage": "desc-coverage_mask.nii.gz",
    "confounds": "desc-confounds_timeseries.tsv",
    "to_t1w": "from-dwi_to-T1w_mode-image_xfm.mat",
    "from_t1w": "from-T1w_to-dwi_mode-image_xfm.mat",
    "to_template": "from-dwi_to-{template}_mode-image_xfm.h5",
    "from_template": "from-{template}_to-dwi_mode-image_xfm.h5",
    "generated": "desc-{method}_dwi.nii.gz",
    "generated_bval": "desc-{method}_dwi.bval",
    "generated_bvec": "desc-{method}_dwi.bvec",
    "sample": "desc-{method}sample{number}_dwi.nii.gz",
    "sample_bval": "desc-{method}sample{number}_dwi.bval",
    "sample_bvec": "desc-{method}sample{number}_dwi.bvec",
    "map": "model-tensor_param-{param}_desc-{source}_dwimap.nii.gz",
    "map_std": "model-tensor_param-{param}_desc-{method}std_dwimap.nii.gz",
    "map_low": "model-tensor_param-{param}_desc-{method}q05_dwimap.nii.gz",
    "map_high": "model-tensor_param-{param}_desc-{method}q95_dwimap.nii.gz",
    "map_sample": "model-tensor_param-tensor_desc-{method}sample{number}_dwimap.nii.gz",
    "extra_map": "param-{param}_desc-{method}_dwimap.nii.gz",
    "rish_map": "model-sh_param-{param}_desc-{source}_dwimap.nii.gz",
    "template_mask": "space-{template}_desc-brain_mask.nii.gz",
    "template_map": "space-{template}_model-tensor_param-{param}_desc-{source}_dwimap.nii.gz",
    "template_generated": "space-{template}_desc-{method}_dwi.nii.gz",
    "template_generated_bval": "space-{template}_desc-{method}_dwi.bval",
    "template_generated_bvec": "space-{template}_desc-{method}_dwi.bvec",
    "metrics": "desc-quality_metrics.json",
}
FIGURE = "desc-{figure}_dwi.{extension}"
TENSOR_MAPS = {  # parameter -> its name in reports
    "fa": "FA",
    "md": "MD",
    "ad": "AD",
    "rd": "RD",
    "dec": "colour FA",
    "tensor": "tensor",
}

# Ends of the `desc-` label for files that belong to a method's results and are none of its own.
OF_UNCERTAINTY = re.compile(r"(std|q05|q95|sample\d+)$")
SCALAR_MAPS = SCALARS  # maps whose values may be interpolated

# Files that the BIDS schema does not define yet. No trailing slashes: the validator would ignore the line.
BIDSIGNORE = (
    "*_dwimap.*",
    "*_dwiref.*",
    "*_xfm.*",
    "*_dwi.bval",
    "*_dwi.bvec",
    "*_timeseries.*",
    "*_metrics.*",
    "*.html",
    "*.svg",
    "*.toml",
    "figures",
    "logs",
    "work",
)


def entities_of(entities: Mapping[str, object]) -> dict[str, str]:
    """Return those of pybids' entities that names of outputs hold, as strings.

    >>> entities_of({"subject": "01", "run": 2, "suffix": "dwi"})
    {'subject': '01', 'run': '2'}
    """
    return {name: str(entities[name]) for name in ENTITIES if name in entities}


def stem(entities: Mapping[str, str]) -> str:
    """Return the run's entities as in a file name, e.g. `sub-01_dir-AP_run-1`.

    >>> stem({"run": "1", "subject": "01", "direction": "AP", "suffix": "dwi"})
    'sub-01_dir-AP_run-1'
    """
    return "_".join(f"{key}-{entities[name]}" for name, key in ENTITIES.items() if entities.get(name))


def folder(entities: Mapping[str, str]) -> Path:
    """Return the subject's (and session's) folder relative to the dataset."""
    parts = [f"sub-{entities['subject']}"]
    if entities.get("session"):
        parts.append(f"ses-{entities['session']}")
    return Path(*parts)


def output_path(entities: Mapping[str, str], key: str, **fields: str) -> Path:
    """Return the path, relative to the derivative dataset, of one of the run's outputs.

    For an output on a finer grid than the run's, `fields` includes `voxel_mm`, the edge of its voxels.

    >>> output_path({"subject": "01"}, "map", param="fa", source="preproc").as_posix()
    'sub-01/dwi/sub-01_model-tensor_param-fa_desc-preproc_dwimap.nii.gz'
    >>> output_path({"subject": "01"}, "generated", method="name", voxel_mm="1.25").as_posix()
    'sub-01/dwi/sub-01_res-1p25mm_desc-name_dwi.nii.gz'
    """
    grid = f"res-{resolution(fields['voxel_mm'])}_" if "voxel_mm" in fields else ""
    return folder(entities) / "dwi" / f"{stem(entities)}_{grid}{DWI[key].format(**fields)}"


def resolution(voxel_mm: str) -> str:
    """Return the `res-` label for this voxel edge: letters and digits only.

    >>> resolution("1.25")
    '1p25mm'
    """
    return f"{voxel_mm.replace('.', 'p')}mm"


def voxel_mm(label: str) -> str:
    """Return the edge of the voxels of this `res-` label, mm: the opposite of `resolution`.

    >>> voxel_mm("1p25mm")
    '1.25'
    """
    return label.removesuffix("mm").replace("p", ".")


def sidecar_path(path: Path) -> Path:
    """Return the path of an output's JSON sidecar.

    >>> sidecar_path(Path("sub-01_dwi.nii.gz")).name
    'sub-01_dwi.json'
    """
    return path.with_name(path.name.split(".")[0] + ".json")


def figure_path(entities: Mapping[str, str], figure: str, extension: str = "svg") -> Path:
    """Return the path, relative to the derivative dataset, of a report figure; `figure` is letters and digits.

    >>> figure_path({"subject": "01", "direction": "AP"}, "acquisition").as_posix()
    'sub-01/figures/sub-01_dir-AP_desc-acquisition_dwi.svg'
    """
    name = FIGURE.format(figure=figure, extension=extension)
    return folder(entities) / "figures" / f"{stem(entities)}_{name}"


def report_path(subject: str, session: str | None = None) -> Path:
    """Return the subject's (or session's) report relative to the derivative dataset."""
    return Path(stem({"subject": subject, "session": session or ""}) + ".html")
