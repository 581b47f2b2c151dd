"""Nipype interfaces that store results in the derivative dataset, each with its sidecar."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from ..bids.names import figure_path
from ..bids.store import forget_figures, remember, store


class _SinkInput(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True, desc="derivative dataset")
    in_files = traits.List(File(exists=True), mandatory=True, desc="results")
    targets = traits.List(traits.Str, mandatory=True, desc="their paths, relative to out_dir")
    sidecars = traits.List(traits.Dict, mandatory=True, desc="their sidecars; an empty one is not written")
    in_record = File(exists=True, desc="JSON that is added to every sidecar")


class _SinkOutput(TraitedSpec):
    out_files = traits.List(traits.Str, desc="paths of the written files")


class Sink(SimpleInterface):
    """Store results under their names."""

    input_spec = _SinkInput
    output_spec = _SinkOutput

    def _run_interface(self, runtime):
        i = self.inputs
        record = json.loads(Path(i.in_record).read_text()) if isdefined(i.in_record) else {}
        out_dir, written = Path(i.out_dir), []
        for source, target, sidecar in zip(i.in_files, i.targets, i.sidecars, strict=True):
            written += store(Path(source), out_dir / target, {**sidecar, **record} if sidecar else None)
        self._results["out_files"] = remember(Path(runtime.cwd), written)
        return runtime


class _FigureSinkInput(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True, desc="derivative dataset")
    figures = traits.List(traits.Tuple(traits.Str, File(exists=True)), mandatory=True, desc="(key, file)")
    entities = traits.Dict(mandatory=True, desc="the run's entities")
    kept = traits.List(traits.Str, desc="keys of figures of earlier calls that stay")


class FigureSink(SimpleInterface):
    """Store a run's report figures under their names."""

    input_spec = _FigureSinkInput
    output_spec = _SinkOutput

    def _run_interface(self, runtime):
        out_dir, entities, written = Path(self.inputs.out_dir), self.inputs.entities, []
        forget_figures(out_dir, entities, self.inputs.kept or ())
        for key, source in self.inputs.figures:
            target = out_dir / figure_path(entities, key, Path(source).suffix.lstrip("."))
            written += store(Path(source), target, None)
        self._results["out_files"] = remember(Path(runtime.cwd), written)
        return runtime
