"""Training slices per second: 96 x 96 voxels, 3 b0 and 30 directions, with and without the scanner's noise.

On a CPU every worker is a process with one thread, as in training. The lower bound is the time of the arithmetic alone:
per point and direction seven multiply-adds for each of three fibres, and two normal numbers per signal.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from bids_dmrigen.dwi.gradients import even_directions
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_of_step
from bids_dmrigen.simulate.imaging import measure
from bids_dmrigen.spatial.templates import embedded_mni

N_B0, N_DIRECTIONS, SIZE = 3, 30, (96, 96)
DIRECTIONS = torch.tensor(np.r_[np.zeros((N_B0, 3)), even_directions(N_DIRECTIONS)], dtype=torch.float32)


def schemes(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return b-values (B, N), with another shell for each example, and directions (B, N, 3)."""
    device = generator.device
    shell = 500 + 2500 * torch.rand(batch, 1, generator=generator, device=device)
    bvals = torch.cat([torch.zeros(batch, N_B0, device=device), shell.expand(-1, N_DIRECTIONS)], dim=1)
    return bvals, DIRECTIONS.to(device).expand(batch, -1, -1)


def work(device: str, batch: int, steps: int, worker: int, start, results) -> None:
    """Generate examples; report wall-clock time, processor time, and the time of each stage."""
    arrays, affine = embedded_mni(2)
    subjects = SimulatedSubjects.from_atlas(
        procedural_atlas(**arrays, affine=affine), 2, device=device, first=2 * worker
    )

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(number: int) -> np.ndarray:
        generator = numbers_of_step(worker, number, device)
        bvals, directions = schemes(batch, generator)
        times = [now()]
        slices = subjects.slices(generator, batch, SIZE)
        times.append(now())
        clean = slices.signal(bvals, directions)
        times.append(now())
        measure(clean, slices.tissue[:, 5], generator)
        return np.diff([*times, now()])

    step(0)
    start.wait()
    begun, spent = time.perf_counter(), time.process_time()
    stages = np.sum([step(1 + number) for number in range(steps)], axis=0)
    results.put((time.perf_counter() - begun, time.process_time() - spent, stages))


def main() -> None:
    """Print slices per second, all workers together, and milliseconds per slice and stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    context = torch.multiprocessing.get_context("spawn")
    start, results = context.Barrier(args.workers), context.Queue()
    options = (args.device, args.batch, args.steps)
    workers = [context.Process(target=work, args=(*options, w, start, results)) for w in range(args.workers)]
    for worker in workers:
        worker.start()
    walls, busy, stages = zip(*(results.get() for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    slices = args.batch * args.steps
    view, signal, noise = 1e3 * np.mean(stages, axis=0) / slices
    print(f"{args.device}, {args.workers} workers, batches of {args.batch} slices, {N_B0 + N_DIRECTIONS} volumes")
    print(f"{args.workers * slices / max(walls):.0f} slices/s, noise included")
    print(f"{sum(slices / b for b in busy):.0f} slices/s if every worker had one core (processor time)")
    print(f"per slice: view {view:.1f} ms, signal {signal:.1f} ms, noise {noise:.1f} ms of wall clock")


if __name__ == "__main__":
    main()
