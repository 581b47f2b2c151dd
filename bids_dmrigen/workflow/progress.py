"""Progress lines: the running step, its run, the share done, and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping

# Node name -> (text for the user, seconds per 10 million values of the series on one core). The seconds were measured
# once and are the weights for the time left: only their ratios matter.
STEPS = {
    "conform": ("reading and checking", 1),
    "noise": ("noise level and denoising", 8),
    "gibbs": ("Gibbs ringing", 12),
    "susceptibility": ("susceptibility distortion", 10),
    "motion": ("head motion and eddy currents", 35),
    "resample": ("applying all transforms at once", 8),
    "mask": ("brain mask", 6),
    "bias": ("bias field", 6),
    "normalize": ("registration to the template", 25),
    "maps_preproc": ("tensor maps", 3),
    "figures": ("figures", 15),
    "metrics": ("quality metrics", 5),
}
GENERATE = ("generating with {}", 70)
DENOISE = ("denoising with {}", 60)  # by a method


class Progress:
    """Print one line as each step starts, with the share done and an estimate of the time left.

    Parameters
    ----------
    weights
        Node name in the graph to (run, step, weight).
    """

    def __init__(self, weights: Mapping[str, tuple[str, str, float]]):
        self.weights = weights
        self.total = sum(w for _, _, w in weights.values()) or 1.0
        self.done = self.worked = 0.0
        self.started: dict[str, float] = {}
        self.begin = time.monotonic()

    def __call__(self, node, status: str) -> None:
        """Take a status from Nipype: start, end or exception."""
        run, step, weight = self.weights.get(node.fullname, ("", "", 0.0))
        if not step:
            return
        now = time.monotonic()
        if status == "start":
            self.started[node.fullname] = now
            print(f"[{self.done / self.total:4.0%}{self._left(now)}] {run}: {step}", flush=True)
            return
        self.done += weight
        if node.fullname in self.started:  # a step from the work folder took no time
            self.worked += weight
        if status == "exception":
            print(f"[{self.done / self.total:4.0%}] {run}: {step} FAILED", flush=True)

    def _left(self, now: float) -> str:
        elapsed = now - self.begin
        if not self.worked or elapsed < 5:
            return ""
        seconds = elapsed / self.worked * (self.total - self.done)
        return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"
