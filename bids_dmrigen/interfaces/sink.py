"""Results to the derivative dataset: copied by name, checked, each with its sidecar."""

from __future__ import annotations

import errno
import json
import os
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
from ..spatial.io import write_atomically

WRITTEN = "written.json"  # in the sink's working folder: path -> size and time of last change
NO_SPACE = "{path}: no space left in the output folder; free some and call again, finished steps are kept"


def store(source: Path, target: Path, sidecar: dict | None) -> list[Path]:
    """Copy a result to its place, atomically; images are compressed and must be finite. Return what was written.

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
            return [target, write_atomically(sidecar_path(target), lambda part: Path(part).write_text(text))]
        return [target]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, NO_SPACE.format(path=target)) from error
        raise


def remember(folder: Path, written: list[Path]) -> list[str]:
    """Note in a sink's working folder what it wrote, for `intact`; return the paths."""
    text = json.dumps({str(path): _state(path) for path in written})
    write_atomically(folder / WRITTEN, lambda part: Path(part).write_text(text))
    return [str(path) for path in written]


def intact(folder: Path) -> bool:
    """Return whether all that a sink wrote is still there as it wrote it: another call may have put its own there."""
    try:
        return all(_state(path) == state for path, state in json.loads((folder / WRITTEN).read_text()).items())
    except FileNotFoundError:
        return False


def _state(path: str | Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


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
            written += store(Path(source), out_dir / target, {**sidecar, **record} if sidecar else None)
        self._results["out_files"] = remember(Path(runtime.cwd), written)
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
            written += store(Path(source), target, None)
        self._results["out_files"] = remember(Path(runtime.cwd), written)
        return runtime
