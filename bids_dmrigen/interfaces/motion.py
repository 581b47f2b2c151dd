"""Nipype interface of head motion and eddy currents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from .base import SeriesInputSpec


class _HeadMotionInputSpec(SeriesInputSpec):
    in_mask = File(exists=True, desc="brain mask of the first b0 (default: computed from the series)")
    phase_encoding_direction = traits.Enum(
        "i", "i-", "j", "j-", "k", "k-", desc="BIDS; not given: eddy currents are left as they are"
    )
    random_seed = traits.Int(1, usedefault=True, desc="seed of the metric's sampling")


class _HeadMotionOutputSpec(TraitedSpec):
    out_transforms = File(exists=True, desc="(N, 4, 4) .npy: reference points to each volume's points, world RAS+ mm")
    out_confounds = File(exists=True, desc=".tsv: translations (mm), rotations (rad), framewise displacement (mm)")


class HeadMotion(SimpleInterface):
    """Estimate head motion and eddy currents."""

    input_spec = _HeadMotionInputSpec
    output_spec = _HeadMotionOutputSpec

    def _run_interface(self, runtime):
        from ..diffusion.storage import write_text
        from ..spatial.ants_tools import set_threads
        from ..spatial.io import read_scan
        from ..spatial.motion import confounds_tsv, head_motion

        inputs = self.inputs
        set_threads(inputs.num_threads)
        mask = inputs.in_mask if isdefined(inputs.in_mask) else None
        scan, _ = read_scan(inputs.in_file, inputs.in_bval, inputs.in_bvec, mask, inputs.b0_threshold)
        direction = inputs.phase_encoding_direction
        axis = "ijk".index(direction[0]) if isdefined(direction) else None
        transforms, confounds = head_motion(scan, scan.mask if mask else None, axis=axis, seed=inputs.random_seed)
        folder = Path(runtime.cwd)
        np.save(folder / "motion.npy", transforms)
        self._results["out_transforms"] = str(folder / "motion.npy")
        self._results["out_confounds"] = str(write_text(folder / "confounds.tsv", confounds_tsv(confounds)))
        return runtime
