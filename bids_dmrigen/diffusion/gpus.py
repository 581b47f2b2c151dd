"""GPUs that a scheduler gives out: how a step is told which one is its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Not CUDA_VISIBLE_DEVICES: a worker takes several steps, and CUDA reads that one only before its first.
VARIABLE = "BIDS_DMRIGEN_GPU"


@contextmanager
def use_gpu(number: int | None) -> Iterator[None]:
    """Tell `choose_device` inside which GPU is its own; None where none was given out."""
    if number is None:
        yield
        return
    os.environ[VARIABLE] = str(number)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # the worker lives on, and the next step on this GPU may be another worker's


def given_gpu() -> int | None:
    """Return the number of the GPU that a scheduler gave this step; None where there was no scheduler."""
    number = os.environ.get(VARIABLE)
    return None if number is None else int(number)
