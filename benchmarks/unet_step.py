"""The small U-Net: a training step and a denoising evaluation in each precision and memory format, side by side.

python benchmarks/unet_step.py [--batch 8] [--side 96] [--rounds 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import time

# Waiting threads must sleep: threads that spin slow each other down as soon as the machine does other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from bids_dmrigen.diffusion.numerics import resolve_precision
from bids_dmrigen.methods.denoise.difusion_model import DiFusion

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def timed(run, device: torch.device) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def prepared(precision: str, layout: str, batch: int, side: int, device: torch.device):
    """Return a training step and an evaluation of a fresh network."""
    net = DiFusion().network("small").to(device, memory_format=FORMATS[layout])
    image = torch.randn(batch, net.spec.in_channels, side, side, device=device)
    image = image.contiguous(memory_format=FORMATS[layout])
    level = torch.full((batch,), 0.995, device=device)
    enabled = precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            loss = (net(image, level).float() - 1).square().mean()
        net.zero_grad(set_to_none=True)
        loss.backward()

    @torch.no_grad()
    def evaluation() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            net(image, level)

    return {"training step": step, "evaluation": evaluation}


def main() -> None:
    """Print the best time of every combination, relative to the fastest, and which one the method chooses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    combinations = [(p, f) for p in ("fp32", "bf16") for f in FORMATS]
    runs = {c: prepared(*c, args.batch, args.side, device) for c in combinations}
    best: dict = {}
    for _ in range(args.rounds + 1):  # interleaved, so that other load on the machine slows all of them equally
        for c in combinations:
            for what, run in runs[c].items():
                best.setdefault((what, c), []).append(timed(run, device))
    chosen = (resolve_precision("auto", device), "channels_last")
    print(f"{args.batch} x {args.side} x {args.side}, {torch.get_num_threads()} threads, chosen: {' '.join(chosen)}")
    for what in ("training step", "evaluation"):
        seconds = {c: min(best[what, c][1:]) for c in combinations}
        fastest = min(seconds.values())
        for c in combinations:
            mark = "  <- chosen" if c == chosen else ""
            print(
                f"{what:14s} {c[0]} {c[1]:14s} {1e3 * seconds[c]:7.1f} ms, "
                f"{seconds[c] / fastest:.2f} of the fastest{mark}"
            )
        if seconds[chosen] > 1.1 * fastest:
            print(f"{what}: the chosen combination is more than 10 % slower than the fastest")


if __name__ == "__main__":
    main()
