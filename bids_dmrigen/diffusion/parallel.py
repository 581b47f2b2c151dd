"""Devices: the choice of one, and the processes that torchrun starts on several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import distributed

from .gpus import given_gpu


def choose_device(name: str) -> torch.device:
    """Return the torch device for auto, cpu, cuda or cuda:N.

    Without a number it is the GPU that a scheduler assigned to this step (`gpus.use_gpu`), or else the first visible
    one. No CUDA context is opened.

    Raises
    ------
    ValueError
        Where this GPU does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not name.startswith("cuda"):
        return torch.device(name)
    given, count = given_gpu(), torch.cuda.device_count()
    if name == "cuda" and given is not None:
        name = f"cuda:{given}"
    if int(name.partition(":")[2] or 0) >= count:
        raise ValueError(f"--device {name}: {count} GPUs are visible; use cpu, auto, or start with --gpus all")
    return torch.device(name)


def usable_gpus(name: str) -> tuple[int, ...]:
    """Return the numbers of the GPUs that may be assigned to steps on auto, cpu, cuda or cuda:N.

    They are those in `CUDA_VISIBLE_DEVICES`, counted by the driver's management library. No CUDA context is opened,
    because the calling process assigns GPUs but does not use them.
    """
    if name == "cpu":
        return ()
    if ":" in name:
        return (choose_device(name).index,)
    return tuple(range(torch.cuda.device_count()))


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a GPU the default one, so that no CUDA context is opened on the first; do nothing for a CPU."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started; yield the device of this one.

    Under `torchrun --nproc-per-node N` each process gets one GPU where `device` is a GPU. Without torchrun
    `device` is yielded unchanged.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def of_first(value: float, device: torch.device) -> float:
    """Return the first process's value on all of them."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.broadcast(shared, src=0)
    return shared.item()
