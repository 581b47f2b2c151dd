"""The group level: every finished run of a derivative dataset in one table and one page."""

from __future__ import annotations

from pathlib import Path

from ..bids.query import DatasetError
from .settings import Settings


def run_group(settings: Settings) -> list[Path]:
    """Write the group table and page; return their paths.

    Raises
    ------
    DatasetError
        Where the output folder holds no finished run.
    """
    from ..bids.names import DWI
    from ..qc.group import group_report

    if not any(settings.out_dir.rglob(f"*_{DWI['metrics']}")):
        raise DatasetError(f"{settings.out_dir}: no finished run; run the participant level first")
    return list(group_report(settings.out_dir))
