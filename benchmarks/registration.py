"""Registration to the template: Dice of the brain masks of scan and template, on every real scan.

Usage: python benchmarks/registration.py [DATA_BIDS_DIRECTORY [SUBJECT ...]]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # before ants is imported

import numpy as np

from bids_dmrigen.interfaces.normalize import Normalize
from bids_dmrigen.spatial.brain_mask import brain_of
from bids_dmrigen.spatial.io import read_scan, write_image


def register(stem: Path, t1w: Path | None) -> None:
    """Print Dice, mutual information and CPU time of one scan's registration, with its T1w if it has one."""
    scan, image = read_scan(*(f"{stem}.{end}" for end in ("nii.gz", "bval", "bvec")))
    mask = brain_of(scan)
    for in_t1w in (None, t1w) if t1w else (None,):
        with tempfile.TemporaryDirectory() as folder:
            node = Normalize(
                in_reference=write_image(Path(folder) / "b0.nii", scan.mean_b0(), image),
                in_mask=write_image(Path(folder) / "mask.nii", mask, image, np.uint8),
            )
            if in_t1w:
                node.inputs.in_t1w = in_t1w
            started = time.process_time()
            outputs = node.run(cwd=folder).outputs
            spent = time.process_time() - started
            report = json.loads(Path(outputs.out_report).read_text())
        print(
            f"{stem.name} ({'through T1w' if in_t1w else 'b0 alone'}): Dice {report['Dice']:.3f}, "
            f"mutual information {report['MutualInformation']:.3f}, {spent:.0f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/bids")
    subjects = sys.argv[2:] or sorted(path.name[4:] for path in folder.glob("sub-*"))
    for subject in subjects:
        first = sorted((folder / f"sub-{subject}" / "dwi").glob("*_dwi.nii.gz"))[-1]
        t1w = next((folder / f"sub-{subject}").glob("anat/*_T1w.nii.gz"), None)
        register(first.with_name(first.name.removesuffix(".nii.gz")), t1w)
