"""Numerics: the one policy of precision, TF32, cuDNN and deterministic algorithms, for app, training and tests.

- float32 means float32: TF32 is off. Who wants speed takes bfloat16, which "auto" does where hardware has it.
- cuDNN chooses its algorithms by shapes, not by a race that another run may decide in another way.
- Training asks for deterministic algorithms, because it promises to go on to the bit, and refuses an operation without
  one: if it were only warned of, torch would leave attention's backward pass as it is, in random order.
- Where networks are used there is no backward pass, and an operation without a deterministic algorithm is only warned
  of: a result is worth more than none.
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
    """Compute what is inside by the policy; what was set before is set again at the end.

    The settings are the whole process's. cuBLAS reads its own before the first work on a GPU, and not again: so it is
    set in any case, for a training that is part of something else.

    Parameters
    ----------
    deterministic
        Take the algorithms that give the same bits every time.
    strict
        With `deterministic`: raise RuntimeError where there is none, not only warn.
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
    """Return "fp32" or "bf16": what was wanted, or for "auto" the faster one this device has in hardware.

    Raises
    ------
    ValueError
        Where another precision is wanted.
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
    """Return the context in which networks compute: in bfloat16 where they may, or ("fp32") in float32 throughout."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def record(device: torch.device, precision: str) -> dict[str, Any]:
    """Return for the sidecar by what arithmetic a result was made: that in force where this is called."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return {
        "Precision": precision,
        "TF32": device.type == "cuda" and tf32,
        "Deterministic": torch.are_deterministic_algorithms_enabled(),
    }
