"""Tensors on disk: safetensors files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, replacing an older one only when the new one is complete."""
    part = _part(path)
    part.touch()
    mode = part.stat().st_mode  # what the user's umask allows; safetensors makes files that others cannot read
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    save_file(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
        part,
        metadata,
    )
    os.chmod(part, mode)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing an older one only when the new one is complete."""
    part = _part(path)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _part(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")
