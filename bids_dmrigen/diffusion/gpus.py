"""The GPU that a scheduler assigns to a step, passed on in an environment variable."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Not CUDA_VISIBLE_DEVICES: a worker runs several steps, and CUDA reads that variable only before the first.
VARIABLE = "BIDS_DMRIGEN_GPU"


@contextmanager
def use_gpu(number: int | None) -> Iterator[None]:
    """Let `choose_device` return this GPU inside the context; None where no GPU was assigned."""
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
    """Return the number of the GPU that a scheduler assigned to this step; None without a scheduler."""
    number = os.environ.get(VARIABLE)
    return None if number is None else int(number)
