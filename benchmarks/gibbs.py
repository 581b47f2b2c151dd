"""Gibbs-ringing removal: time of DIPY and of bids_dmrigen on the same volumes, side by side in one run."""

from __future__ import annotations

import argparse
import os
import time

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from dipy.denoise.gibbs import gibbs_removal

from bids_dmrigen.dwi.gibbs import remove_gibbs


def ringing_volumes(shape: tuple[int, int, int], n_volumes: int, rng: np.random.Generator) -> np.ndarray:
    """Return (X, Y, Z, N) float32 magnitude volumes of blocky objects with truncated k-space and noise."""
    fine = np.zeros((3 * shape[0], 3 * shape[1], shape[2], n_volumes))
    for _ in range(12):
        corner = rng.integers(0, np.array(fine.shape[:2]) * 2 // 3)
        size = rng.integers(10, np.array(fine.shape[:2]) // 3)
        block = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        fine[block] += rng.uniform(100, 500, (shape[2], n_volumes))
    spectrum = np.fft.fftshift(np.fft.fft2(fine, axes=(0, 1)), axes=(0, 1))
    x, y = ((3 * n - n) // 2 for n in shape[:2])
    kept = np.fft.ifftshift(spectrum[x : x + shape[0], y : y + shape[1]], axes=(0, 1)) / 9
    noisy = np.fft.ifft2(kept, axes=(0, 1)) + rng.normal(0, 10, kept.shape)
    return np.abs(noisy).astype(np.float32)


def main() -> None:
    """Print both times, their ratio and the largest difference relative to the image's maximum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 60))
    parser.add_argument("--volumes", type=int, default=3)
    args = parser.parse_args()
    data = ringing_volumes(tuple(args.shape), args.volumes, np.random.default_rng(0))
    remove_gibbs(data[:, :, :2])  # the first call is slower: it sets up plans and threads
    gibbs_removal(data[:, :, :2], inplace=False)
    start = time.perf_counter()
    reference = gibbs_removal(data, inplace=False)
    dipy = time.perf_counter() - start
    start = time.perf_counter()
    result = remove_gibbs(data)
    ours = time.perf_counter() - start
    gap = np.abs(result - reference) / data.max()
    print(f"{data.shape} float32, torch threads: {torch.get_num_threads()}")
    print(f"DIPY {dipy:.1f} s, ours {ours:.2f} s, ratio {dipy / ours:.1f}")
    # In single precision two shifts can tie: DIPY differs as much from itself in double precision.
    print(f"largest difference {gap.max():.1e} of the maximum, over 1e-3 in {(gap > 1e-3).sum()} of {gap.size}")


if __name__ == "__main__":
    main()
