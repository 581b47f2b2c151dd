"""The task: what are FA, MD and colour FA, from a b0 and three to six directions?

Input: a b0 and few directions of one shell. Output: the maps, one after another. Scored against the tensor maps of many
directions (`qc.evaluation`): the papers' tables are PSNR, SSIM and NMSE of FA, MD and colour FA.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dwi.gradients import GradientTable, distinct, even_subset
from ...dwi.series import Scan, ScanError
from ..spec import DIRECT, Definition, MethodSpec

LEAST, MOST = 3, 6  # directions
MAPS = ("fa", "md", "dec")
TENSOR_MAPS = ("fa", "md", "ad", "rd", "dec", "tensor")  # of a method that makes the tensor, from which all follow
CHANNELS = 5  # FA, MD, and colour FA's red, green and blue
TENSOR = 6  # numbers of a tensor
SAID = TENSOR + 1  # what a network of size `small` says: a tensor, and the expected length of its anisotropic part
BVALS = (600.0, 3200.0)  # s/mm², of training examples
BEST_B = 1000.0  # s/mm²: the shell nearest to it is used
GOLDEN = (1 + 5**0.5) / 2
# Directions of the images of networks of size `paper`, in world RAS+: the three axes, or the six through the corners of
# an icosahedron, which are as even as six directions can be.
SCHEMES = {
    3: np.eye(3),
    6: np.array([[0, 1, GOLDEN], [0, -1, GOLDEN], [1, GOLDEN, 0], [-1, GOLDEN, 0], [GOLDEN, 0, 1], [GOLDEN, 0, -1]])
    / np.hypot(1, GOLDEN),
}
# Of the specification of networks that say the tensor at once, on the examples of Diff-DTI.
LEARNT: dict[str, Any] = DIRECT | {"maps_of_size": {}, "definitions": {}}
SCHEME_DEGREES = 10.0  # largest difference from the scheme at which the maps are trusted

TOO_FEW = "{title} needs at least {least} different directions on a shell, found {found}"
UNTRAINED_B = "b = {bval:.0f} s/mm² lies outside what the weights were trained on, {low:.0f} to {high:.0f}"
NOT_ALL = "{used} of {found} directions at b = {bval:.0f} s/mm² were used; see Volumes in the sidecar"

OTHER_SCHEME = (
    "the directions differ by up to {apart:.0f} degrees from the scheme that networks of size paper are trained for: "
    "they do not know the directions, so do not trust colour FA, and trust FA less than that of size small"
)

MISMATCH = Definition(
    "Colour mismatch", "1", "lower",
    "mean over the mask and the samples of | |colour FA| - FA |, the length of the colour against FA, before the "
    "colour was made as long as FA; 0 where the two agree",
)  # fmt: skip


class MapsSpec(MethodSpec):
    """The specification of a method that generates maps from few directions."""

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where no shell has enough different directions."""
        warnings = super().check(scan)
        # Three volumes may have the same direction, or belong to three shells.
        bval, volumes, n_directions = choose_volumes(scan.gradients, self.title)
        if len(volumes) < n_directions:
            warnings.append(NOT_ALL.format(used=len(volumes), found=n_directions, bval=bval))
        if not BVALS[0] <= bval <= BVALS[1]:
            warnings.append(UNTRAINED_B.format(bval=bval, low=BVALS[0], high=BVALS[1]))
        return warnings


def choose_volumes(gradients: GradientTable, title: str = "the method") -> tuple[float, np.ndarray, int]:
    """Return the b-value of the shell that is used, its volumes, and how many different directions it has.

    It is the shell nearest to b = 1000 s/mm² with at least three different directions. Of more than six directions the
    six are used that determine a tensor best, by condition number.

    Raises
    ------
    ScanError
        Where no shell has three different directions; `title` is the method's name in the message.
    """
    shells = [(bval, volumes[distinct(gradients.bvecs[volumes])]) for bval, volumes in gradients.shells()]
    enough = [(abs(bval - BEST_B), bval, volumes) for bval, volumes in shells if len(volumes) >= LEAST]
    if not enough:
        n_directions = max((len(v) for _, v in shells), default=0)
        raise ScanError(TOO_FEW.format(title=title, least=LEAST, found=n_directions))
    _, bval, volumes = min(enough, key=lambda shell: shell[0])
    n_directions = len(volumes)
    if n_directions > MOST:
        volumes = np.sort(volumes[best_conditioned(gradients.bvecs[volumes], MOST)])
    return float(bval), volumes, n_directions


def nearest_to_scheme(world: np.ndarray, n: int | None = None) -> tuple[np.ndarray, float]:
    """Return the directions nearest to a scheme's, as indices in its order, and the largest difference, degrees.

    Parameters
    ----------
    world
        (N, 3) unit vectors in world RAS+.
    n
        Number of directions in the scheme; None for six where there are at least six, else three.
    """
    scheme = SCHEMES[n or (MOST if len(world) >= MOST else LEAST)]
    cosine = np.abs(scheme @ np.asarray(world, dtype=np.float64).T)
    chosen, least, left = np.zeros(len(scheme), int), 1.0, cosine.copy()
    for _ in scheme:  # the nearest pair first, each direction once
        wanted, acquired = np.unravel_index(left.argmax(), left.shape)
        chosen[wanted], least = acquired, min(least, cosine[wanted, acquired])
        left[wanted], left[:, acquired] = -1, -1
    return chosen, float(np.rad2deg(np.arccos(least)))


def best_conditioned(bvecs: np.ndarray, n: int) -> np.ndarray:
    """Return indices of n of the (N, 3) directions whose tensor design has a small condition number.

    Starts from an even subset, and exchanges single directions until no exchange helps.
    """
    x, y, z = np.asarray(bvecs, dtype=np.float64).T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    chosen = list(even_subset(bvecs, n))
    best = np.linalg.cond(design[chosen])
    while True:
        rest = np.setdiff1d(np.arange(len(design)), chosen)
        tried = [[*chosen[:k], int(other), *chosen[k + 1 :]] for k in range(n) for other in rest]
        if not tried:
            return np.array(chosen)
        conditions = np.linalg.cond(design[np.array(tried)])
        if conditions.min() >= best * (1 - 1e-9):
            return np.array(chosen)
        best, chosen = conditions.min(), tried[int(conditions.argmin())]
