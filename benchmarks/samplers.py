"""Error of each sampler against its number of network evaluations, on data with an exact solution.

The data are 8 independent Gaussian variables whose variances fall from 1 to 0.01, as those of an image do from coarse
to fine detail. The network is the exact E[x0 | x_t], so the whole error is that of the sampler. The error is the
Wasserstein-2 distance between samples and data, in units of each variable's standard deviation, root mean square over
the variables. For samplers that draw noise, it is estimated from 32 768 samples, which alone gives about 0.007.

python benchmarks/samplers.py [--out docs/figures/samplers.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from bids_dmrigen.diffusion.processes import VarianceExploding, linear
from bids_dmrigen.diffusion.samplers import (
    ancestral,
    ddim,
    dpm_solver_pp_2m,
    heun,
    karras_times,
    predictor_corrector,
)

SAMPLERS = {
    "ancestral (DDPM)": (ancestral, "#0072B2", "-"),
    "predictor-corrector": (predictor_corrector, "#CC79A7", "-"),
    "DDIM": (ddim, "#E69F00", "--"),
    "Heun": (heun, "#009E73", "--"),
    "DPM-Solver++(2M)": (dpm_solver_pp_2m, "#D55E00", "--"),
}
PROCESSES = {"variance preserving, linear": linear(), "variance exploding, 0.01-348": VarianceExploding()}
N_TIMES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
VARIANCES = torch.logspace(0, -2, 8, dtype=torch.float64)
N_SAMPLES = 32_768
FLOOR = 0.007


def draws(draw: int) -> torch.Tensor:
    """Return (1, N_SAMPLES, 8) noise whose mean and variance are 0 and 1 exactly."""
    z = torch.randn(1, N_SAMPLES, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))
    return (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, correction=0)


def error(sampler, process, n_times: int) -> tuple[int, float]:
    """Return the evaluations and the error of a sampler with this many times."""

    def denoise(x, t):
        alpha, sigma = process.marginal(t)
        return alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * x

    alpha, sigma = process.marginal(1000)
    start = draws(0) * (alpha**2 * VARIANCES + sigma**2).sqrt()
    sampled = sampler(denoise, process, start, karras_times(process, 1000, n_times), draws)
    samples, true_std = sampled.x0[0], VARIANCES.sqrt()
    distance2 = samples.mean(0) ** 2 + (samples.std(0, correction=0) - true_std) ** 2
    return int(sampled.evaluations[0]), float((distance2 / VARIANCES).mean().sqrt())


def main() -> None:
    """Print the errors and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "figures" / "samplers.png")
    args = parser.parse_args()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, (title, process) in zip(panels, PROCESSES.items(), strict=True):
        print(title)
        for name, (sampler, colour, line) in SAMPLERS.items():
            points = dict(error(sampler, process, n) for n in N_TIMES)
            print(f"  {name:20s}", ", ".join(f"{n}: {e:.4f}" for n, e in points.items()))
            panel.loglog(points.keys(), points.values(), line, color=colour, marker="o", markersize=3, label=name)
        panel.axhline(FLOOR, color="0.7", linewidth=0.8)
        panel.set(title=title, xlabel="network evaluations", xticks=[5, 10, 20, 50, 100, 200, 400])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error / standard deviation")
    panels[0].legend(fontsize=8)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
