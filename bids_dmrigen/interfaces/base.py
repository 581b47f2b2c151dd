"""The input of most interfaces: a series with its gradient table."""

from __future__ import annotations

from nipype.interfaces.base import BaseInterfaceInputSpec, File, traits


class SeriesInputSpec(BaseInterfaceInputSpec):
    """A diffusion series on disk."""

    in_file = File(exists=True, mandatory=True, desc="diffusion series (x, y, z, volume)")
    in_bval = File(exists=True, mandatory=True, desc="b-values, s/mm², FSL text file")
    in_bvec = File(exists=True, mandatory=True, desc="directions, FSL convention, text file")
    b0_threshold = traits.Float(50.0, usedefault=True, desc="volumes at or below this b-value are b0, s/mm²")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="processor threads")
