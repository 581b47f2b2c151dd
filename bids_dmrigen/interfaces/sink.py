"""Results to the derivative dataset: copied by name, checked, each with its sidecar."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from ..bids.names import sidecar_path
from .io import write_atomically

NO_SPACE = "{path}: no space left in the output folder; free some and call again, finished steps are kept"


def store(source: Path, target: Path, sidecar: dict | None) -> None:
    """Copy a result to its place, atomically; images are compressed and must be finite.

    Raises
    ------
    ValueError
        Where an image holds a value that is not finite: it is not stored.
    OSError
        Where the folder is full or not writable.
    """
    try:
        if source.name.endswith((".nii", ".nii.gz")):
            image = nib.load(source)
            data = np.asanyarray(image.dataobj)
            if not np.isfinite(data).all():
                raise ValueError(f"{source.name} for {target.name} holds values that are not finite; not stored")
            write_atomically(target, lambda part: nib.save(image, part))
        else:
            write_atomically(target, lambda part: shutil.copyfile(source, part))
        if sidecar is not None:
            text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
            write_atomically(sidecar_path(target), lambda part: Path(part).write_text(text))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, NO_SPACE.format(path=target)) from error
        raise


class _SinkInput(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True, desc="derivative dataset")
    in_files = traits.List(File(exists=True), mandatory=True, desc="results")
    targets = traits.List(traits.Str, mandatory=True, desc="their paths, relative to out_dir")
    sidecars = traits.List(traits.Dict, mandatory=True, desc="their sidecars; an empty one is not written")
    in_record = File(exists=True, desc="JSON that is added to every sidecar")


class _SinkOutput(TraitedSpec):
    out_files = traits.List(traits.Str, desc="what was written")


class Sink(SimpleInterface):
    """Store results under their names."""

    input_spec = _SinkInput
    output_spec = _SinkOutput

    def _run_interface(self, runtime):
        i = self.inputs
        record = json.loads(Path(i.in_record).read_text()) if isdefined(i.in_record) else {}
        out_dir, written = Path(i.out_dir), []
        for source, target, sidecar in zip(i.in_files, i.targets, i.sidecars, strict=True):
            store(Path(source), out_dir / target, {**sidecar, **record} if sidecar else None)
            written.append(str(out_dir / target))
        self._results["out_files"] = written
        return runtime


class _FigureSinkInput(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True, desc="derivative dataset")
    figures = traits.List(traits.Tuple(traits.Str, File(exists=True)), mandatory=True, desc="(key, file)")
    entities = traits.Dict(mandatory=True, desc="the run's entities")


class FigureSink(SimpleInterface):
    """Store a run's report figures under their names."""

    input_spec = _FigureSinkInput
    output_spec = _SinkOutput

    def _run_interface(self, runtime):
        from ..bids.names import figure_path

        i, written = self.inputs, []
        # Figures of an earlier call with other settings would tell of what is no longer so.
        for key, extension in (("*", "svg"), ("skipped", "html")):
            drawn = Path(i.out_dir) / figure_path(i.entities, key, extension)
            for stale in drawn.parent.glob(drawn.name):
                stale.unlink(missing_ok=True)
        for key, source in i.figures:
            extension = Path(source).suffix.lstrip(".")
            target = Path(i.out_dir) / figure_path(i.entities, key, extension)
            store(Path(source), target, None)
            written.append(str(target))
        self._results["out_files"] = written
        return runtime
