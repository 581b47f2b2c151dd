"""Addressed noise: random numbers depend on their address (subject, volume, slice ...), not on the order of draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def generator(
    seed: int,
    subject: str = "",
    run: str = "",
    method: str = "",
    volume: int = 0,
    slice: int = 0,
    sample: int = 0,
    draw: int = 0,
) -> np.random.Generator:
    """Return a random generator that belongs to this address.

    The address is hashed to the key of a counter-based generator (Philox): equal addresses give equal numbers
    whatever was drawn before, on any device, in any process; different ones give independent numbers.
    Everything is drawn on the CPU. `draw` counts the draws of one address (the steps of a sampler). Each draw starts
    the counter at a distance that earlier draws cannot reach.
    """
    address = json.dumps([seed, subject, run, method, volume, slice, sample]).encode()
    key = np.frombuffer(hashlib.blake2b(address, digest_size=16).digest(), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, draw]))


def noise(
    seed: int,
    subject: str,
    run: str,
    method: str,
    volume: int,
    slice: int,
    sample: int,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return standard normal float32 noise of this shape for this address."""
    return generator(seed, subject, run, method, volume, slice, sample).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class NoiseSource:
    """Noise for a batch of images, each with an address; the `noise` argument of samplers.

    Parameters
    ----------
    seed, subject, run, method
        Shared part of the addresses.
    addresses
        B triples (volume, slice, sample).
    shape
        Shape of one image.
    device
        Device of the result; the numbers are drawn on the CPU and are the same for all devices.
    """

    seed: int
    subject: str
    run: str
    method: str
    addresses: Sequence[tuple[int, int, int]]
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"

    def __call__(self, draw: int) -> Tensor:
        """Return (B, *shape) standard normal float32 noise; each draw is independent of the others."""
        out = np.empty((len(self.addresses), *self.shape), dtype=np.float32)
        for image, (volume, slice, sample) in zip(out, self.addresses, strict=True):
            address = generator(self.seed, self.subject, self.run, self.method, volume, slice, sample, draw)
            address.standard_normal(dtype=np.float32, out=image)
        return torch.from_numpy(out).to(self.device)
