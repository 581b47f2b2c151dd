"""Numerics: the one policy of precision, TF32, cuDNN and deterministic algorithms, for app, training and tests.

- float32 means float32: TF32 is off. For speed there is bfloat16, which "auto" takes where the hardware has it.
- cuDNN chooses its algorithms by shapes, not by timing them, which may give another choice in another run.
- Training uses deterministic algorithms, so that a resumed training gives the same result to the bit. An operation
  without a deterministic algorithm is an error: with only a warning torch would leave attention's backward pass in
  random order.
- Inference has no backward pass. There an operation without a deterministic algorithm only causes a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = ("auto", "fp32", "bf16")
CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic


@contextmanager
def policy(deterministic: bool, strict: bool = False) -> Iterator[None]:
    """Apply the policy inside the context; restore the earlier settings at the end.

    The settings hold for the whole process. cuBLAS reads its setting only once, before the first work on a GPU. So it
    is always set, also for code that will be followed by a training.

    Parameters
    ----------
    deterministic
        Use algorithms that give the same bits every time.
    strict
        With `deterministic`: raise RuntimeError where an operation has no such algorithm, instead of a warning.
    """
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    asked = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic, warn_only=not strict)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(asked[0], warn_only=asked[1])


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Return "fp32" or "bf16": the one given, or for "auto" the faster one that this device has in hardware.

    Raises
    ------
    ValueError
        Where the precision is none of these.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"unknown precision {wanted!r}; expected auto, fp32 or bf16")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    flags = torch.backends.cpu.get_cpu_capability()
    has_bf16 = device.type == "cpu" and flags.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which networks compute: mixed with bfloat16 ("bf16"), or float32 throughout ("fp32")."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def record(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the current arithmetic settings as fields of a sidecar."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return {
        "Precision": precision,
        "TF32": device.type == "cuda" and tf32,
        "Deterministic": torch.are_deterministic_algorithms_enabled(),
    }
