"""The question of this room: what are FA, MD and colour FA, from a b0 and three to six directions?

In: a b0 and few directions of one shell. Out: the maps, one after another. Scored against the tensor maps of many
directions (`qc.evaluation`): the papers' tables are PSNR, SSIM and NMSE of FA, MD and colour FA.
"""

from __future__ import annotations

import numpy as np

from ...dwi.gradients import GradientTable, distinct, even_subset
from ...dwi.series import Scan, ScanError
from ..spec import Definition, MethodSpec

LEAST, MOST = 3, 6  # directions
MAPS = ("fa", "md", "dec")
CHANNELS = 5  # FA, MD, and colour FA's red, green and blue
BVALS = (600.0, 3200.0)  # s/mm², of training examples
BEST_B = 1000.0  # s/mm²: of several shells the nearest to it is used
GOLDEN = (1 + 5**0.5) / 2
# Directions in the scanner's frame, world RAS+, that networks of size `paper` are trained for, in the order of their
# images: the axes, and the six through the corners of an icosahedron, as even as six can be.
SCHEMES = {
    3: np.eye(3),
    6: np.array([[0, 1, GOLDEN], [0, -1, GOLDEN], [1, GOLDEN, 0], [-1, GOLDEN, 0], [GOLDEN, 0, 1], [GOLDEN, 0, -1]])
    / np.hypot(1, GOLDEN),
}
SCHEME_DEGREES = 10.0  # by which directions may differ from the scheme before the maps are no longer trusted

TOO_FEW = "{title} needs at least {least} different directions on a shell, found {found}"
UNTRAINED_B = "b = {bval:.0f} s/mm² lies outside what the weights were trained on, {low:.0f} to {high:.0f}"
NOT_ALL = "{used} of {found} directions at b = {bval:.0f} s/mm² were used; see Volumes in the sidecar"

OTHER_SCHEME = (
    "the directions differ by up to {apart:.0f} degrees from the scheme that networks of size paper are trained for: "
    "they are told no directions, so colour FA is not to be trusted, and FA less than that of size small"
)

MISMATCH = Definition(
    "Colour mismatch", "1", "lower",
    "mean over the mask and the samples of | |colour FA| - FA |, the length of the colour against FA, before the "
    "colour was made as long as FA; 0 where the two agree",
)  # fmt: skip


class MapsSpec(MethodSpec):
    """Of a method that makes maps of few directions."""

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where no shell has enough different directions."""
        warnings = super().check(scan)
        # Three volumes may be of one direction, or of three shells.
        bval, volumes, found = choose_volumes(scan.gradients, self.title)
        if len(volumes) < found:
            warnings.append(NOT_ALL.format(used=len(volumes), found=found, bval=bval))
        if not BVALS[0] <= bval <= BVALS[1]:
            warnings.append(UNTRAINED_B.format(bval=bval, low=BVALS[0], high=BVALS[1]))
        return warnings


def choose_volumes(gradients: GradientTable, title: str = "the method") -> tuple[float, np.ndarray, int]:
    """Return the b-value of the shell that is used, its volumes, and how many different directions it has.

    The shell nearest to b = 1000 s/mm² with at least three different directions; of more than six the six whose
    products determine a tensor best, by condition number.

    Raises
    ------
    ScanError
        Where no shell has three; `title` says who needs them.
    """
    shells = [(bval, volumes[distinct(gradients.bvecs[volumes])]) for bval, volumes in gradients.shells()]
    enough = [(abs(bval - BEST_B), bval, volumes) for bval, volumes in shells if len(volumes) >= LEAST]
    if not enough:
        found = max((len(v) for _, v in shells), default=0)
        raise ScanError(TOO_FEW.format(title=title, least=LEAST, found=found))
    _, bval, volumes = min(enough, key=lambda shell: shell[0])
    found = len(volumes)
    if found > MOST:
        volumes = np.sort(volumes[best_conditioned(gradients.bvecs[volumes], MOST)])
    return float(bval), volumes, found


def nearest_to_scheme(world: np.ndarray, n: int | None = None) -> tuple[np.ndarray, float]:
    """Return which of some directions stand for a scheme's, in its order, and by how much they differ at most, degrees.

    Parameters
    ----------
    world
        (N, 3) unit vectors in world RAS+.
    n
        Of the scheme; None: six where there are as many, else three.
    """
    scheme = SCHEMES[n or (MOST if len(world) >= MOST else LEAST)]
    likeness = np.abs(scheme @ np.asarray(world, dtype=np.float64).T)
    chosen, least, left = np.zeros(len(scheme), int), 1.0, likeness.copy()
    for _ in scheme:  # the likest pair first, each direction once
        wanted, own = np.unravel_index(left.argmax(), left.shape)
        chosen[wanted], least = own, min(least, likeness[wanted, own])
        left[wanted], left[:, own] = -1, -1
    return chosen, float(np.rad2deg(np.arccos(least)))


def best_conditioned(bvecs: np.ndarray, n: int) -> np.ndarray:
    """Return indices of n of the (N, 3) directions whose tensor design has a small condition number.

    An even subset, improved by exchanges of one until none helps.
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
