"""Addressed noise: random numbers that depend on what they are for, not on when they were drawn."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def generator(
    seed: int,
    subject: str = "",
    run: str = "",
    method: str = "",
    volume: int = 0,
    slice: int = 0,
    sample: int = 0,
) -> np.random.Generator:
    """Return a random generator that belongs to this address.

    The address is hashed to the key of a counter-based generator (Philox): equal addresses give equal numbers
    whatever was drawn before, on any device, in any process; different ones give independent numbers.
    Everything is drawn on the CPU.
    """
    address = json.dumps([seed, subject, run, method, volume, slice, sample]).encode()
    key = np.frombuffer(hashlib.blake2b(address, digest_size=16).digest(), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


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
