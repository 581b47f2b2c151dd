"""An atlas as one array file, for machines that have torch, numpy and safetensors alone."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..diffusion.storage import write_tensors
from .atlas import Atlas

FORMAT = "bids_dmrigen atlas 1"
NOT_AN_ATLAS = "{path}: not an atlas file ({reason}); make one with `dmrigen prepare --atlas`"


class AtlasError(ValueError):
    """An atlas file that is missing or is not an atlas."""


def save_atlas(path: Path, atlas: Atlas) -> Path:
    """Write an atlas (.safetensors); maps are stored as float16, which is more exact than any of them."""
    maps = {f.name: getattr(atlas, f.name) for f in fields(atlas) if f.name != "affine"}
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in maps.items()}
    return write_tensors(path, tensors | {"affine": torch.as_tensor(atlas.affine)}, {"format": FORMAT})


def read_atlas(path: Path) -> Atlas:
    """Return the atlas in a file that `save_atlas` wrote, on the CPU; `AtlasError` where the file is not an atlas."""
    try:
        with safe_open(str(path), "pt") as stored:
            stored_format = (stored.metadata() or {}).get("format")
            tensors = {f.name: stored.get_tensor(f.name) for f in fields(Atlas)} if stored_format == FORMAT else {}
    except (SafetensorError, OSError) as error:
        raise AtlasError(NOT_AN_ATLAS.format(path=path, reason=error)) from None
    if not tensors:
        raise AtlasError(NOT_AN_ATLAS.format(path=path, reason=f"its format is {stored_format}"))
    affine = tensors.pop("affine").numpy()
    maps = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    fractions = maps["fractions"]  # they sum to one again after rounding
    maps["fractions"] = fractions / fractions.sum(dim=0).clamp(min=1e-6) * maps["brain"]
    return Atlas(**maps, affine=affine)
