"""Tensor fit and maps: time of DIPY and of bids_dmrigen on the same voxels, side by side in one run."""

from __future__ import annotations

import argparse
import os
import time

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel

from bids_dmrigen.dwi.gradients import even_directions
from bids_dmrigen.dwi.tensor import fit_tensor, tensor_maps


def simulate(n_voxels: int, n_b0: int, n_directions: int, snr: float, rng: np.random.Generator):
    """Return (V, N) float32 Rician signals of random tensors, with b-values and directions."""
    bvals = np.r_[np.zeros(n_b0), np.full(n_directions, 1000.0)]
    directions = np.r_[np.zeros((n_b0, 3)), even_directions(n_directions)]
    eigenvalues = rng.uniform(0.1e-3, 2.5e-3, (n_voxels, 3))
    frames, _ = np.linalg.qr(rng.standard_normal((n_voxels, 3, 3)))
    projections = np.einsum("nj,vjk->vnk", directions, frames) ** 2
    clean = 1000 * np.exp(-bvals * np.einsum("vnk,vk->vn", projections, eigenvalues))
    noise = rng.standard_normal((2, *clean.shape)) * 1000 / snr
    return np.hypot(clean + noise[0], noise[1]).astype(np.float32), bvals, directions


def with_dipy(signal, bvals, directions, method):
    """Return DIPY's maps."""
    fit = TensorModel(gradient_table(bvals, bvecs=directions), fit_method=method.upper()).fit(signal)
    return {name: getattr(fit, name) for name in ("fa", "md", "ad", "rd", "evals", "evecs", "color_fa")}


def with_ours(signal, bvals, directions, method):
    """Return the same maps from bids_dmrigen."""
    return tensor_maps(fit_tensor(torch.from_numpy(signal), bvals, directions, method))


def main() -> None:
    """Print, for both fits, the best time of each side, their ratio and the largest difference in FA."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=200_000)
    parser.add_argument("--directions", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    data = simulate(args.voxels, 3, args.directions, 25, np.random.default_rng(0))
    print(f"{args.voxels} voxels x {data[0].shape[1]} volumes, torch threads: {torch.get_num_threads()}")
    for method in ("ols", "wls"):
        seconds, results = {}, {}
        for name, run in (("dipy", with_dipy), ("ours", with_ours)):
            times = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                results[name] = run(*data, method)
                times.append(time.perf_counter() - start)
            seconds[name] = min(times)
        gap = np.abs(results["ours"]["fa"].numpy() - results["dipy"]["fa"]).max()
        print(
            f"{method}: DIPY {seconds['dipy']:.2f} s, ours {seconds['ours']:.3f} s, "
            f"ratio {seconds['dipy'] / seconds['ours']:.1f}, largest FA difference {gap:.1e}"
        )


if __name__ == "__main__":
    main()
