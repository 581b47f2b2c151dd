"""The gradient table: b-values and directions, shells, frames, neighbours and even subsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

B0_THRESHOLD_S_PER_MM2 = 50.0
SHELL_GAP_S_PER_MM2 = 100.0  # a shell spans less than this, or than 5 % of its lowest b-value
LOOSE_SPAN, LOOSE_SHARE = 60.0, 0.03  # volumes whose b-values span more (s/mm², share of the lowest) are no shell
NORM_TOLERANCE = 0.1  # largest difference of a vector's length from one that counts as a rounding error
SAME_DEGREES = 3.0  # directions at a smaller angle count as one
LEAST_DIRECTIONS = 6  # different directions that determine spherical harmonics of degree 2

LENGTH_MISMATCH = "{n_bvals} b-values but {n_bvecs} directions; both need one entry per volume"
NOT_FINITE = "b-table entries {volumes} are not finite numbers; correct or remove these volumes"
NEGATIVE_BVAL = "b-values of volumes {volumes} are negative; a b-value is in s/mm² and at least 0"
NO_DIRECTION = (
    "volumes {volumes} have b > {threshold:g} s/mm² and the b-vector 0 0 0; {remedy}, or take them out of image and "
    "tables"
)
NOMINAL_B0 = "if they are b0s with a nominal b-value, set their b-values to 0"
TRACE = "if they are means over directions (trace images) at the end of the series, give --leave-out-trace"
NOT_UNIT = (
    "b-vectors of volumes {volumes} have lengths {lengths}, expected 1; a diffusion-weighted volume "
    "(b > {threshold:g} s/mm²) needs a unit direction"
)


class GradientError(ValueError):
    """A gradient table that cannot describe a scan."""


@dataclass(frozen=True, eq=False)
class GradientTable:
    """B-values and directions of a diffusion-weighted series.

    Parameters
    ----------
    bvals
        (N,) b-values in s/mm², finite and not negative.
    bvecs
        (N, 3) directions in the image's own voxel axes, FSL convention: the first component is negated
        where the affine's determinant is positive. Lengths within 10 % of one are normalised; volumes at
        or below `b0_threshold` get zero vectors.
    b0_threshold
        Volumes with a b-value at or below this (s/mm²) count as b0.

    Raises
    ------
    GradientError
        Where the arrays cannot belong to one series, naming the volumes.

    Examples
    --------
    >>> table = GradientTable(np.array([5, 1000, 1010, 2000]), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    >>> table.is_b0.tolist()
    [True, False, False, False]
    >>> [(bval, volumes.tolist()) for bval, volumes in table.shells()]
    [(1005.0, [1, 2]), (2000.0, [3])]
    >>> GradientTable(np.array([0, 1000]), np.array([[0, 0, 0], [0, 0, 0.5]]))
    Traceback (most recent call last):
        ...
    bids_dmrigen.dwi.gradients.GradientError: b-vectors of volumes [1] have lengths [0.5], expected 1; ...
    """

    bvals: np.ndarray
    bvecs: np.ndarray
    b0_threshold: float = B0_THRESHOLD_S_PER_MM2
    is_b0: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bvals = np.array(self.bvals, dtype=np.float64).reshape(-1)
        bvecs = np.array(self.bvecs, dtype=np.float64)
        if bvecs.ndim != 2 or bvecs.shape[1] != 3 or len(bvecs) != len(bvals):
            raise GradientError(LENGTH_MISMATCH.format(n_bvals=len(bvals), n_bvecs=bvecs.shape))
        is_b0 = bvals <= self.b0_threshold
        # Some converters write NaN directions for b0 volumes: those carry no information and are dropped.
        bvecs[is_b0] = 0.0
        bad = ~np.isfinite(bvals) | ~np.isfinite(bvecs).all(axis=1)
        if bad.any():
            raise GradientError(NOT_FINITE.format(volumes=np.flatnonzero(bad).tolist()))
        if (bvals < 0).any():
            raise GradientError(NEGATIVE_BVAL.format(volumes=np.flatnonzero(bvals < 0).tolist()))
        with np.errstate(over="ignore"):  # too long ones are refused below
            norms = np.linalg.norm(bvecs, axis=1)
        zero = np.flatnonzero(~is_b0 & (norms == 0))
        if len(zero):
            remedy = TRACE if is_b0.any() and trailing_trace(bvals, bvecs, self.b0_threshold) else NOMINAL_B0
            raise GradientError(NO_DIRECTION.format(volumes=zero.tolist(), threshold=self.b0_threshold, remedy=remedy))
        bad = ~is_b0 & (np.abs(norms - 1) > NORM_TOLERANCE)
        if bad.any():
            raise GradientError(
                NOT_UNIT.format(
                    volumes=np.flatnonzero(bad).tolist(),
                    lengths=np.round(norms[bad], 3).tolist(),
                    threshold=self.b0_threshold,
                )
            )
        bvecs[~is_b0] /= norms[~is_b0, None]
        for name, value in (("bvals", bvals), ("bvecs", bvecs), ("is_b0", is_b0)):
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.bvals)

    def __getitem__(self, volumes: slice | Sequence[int] | np.ndarray) -> GradientTable:
        """Return the table of a selection of volumes (slice, indices or boolean mask)."""
        return GradientTable(self.bvals[volumes], self.bvecs[volumes], self.b0_threshold)

    def shells(self) -> list[tuple[float, np.ndarray]]:
        """Return (mean b-value in s/mm², volume indices) of each shell, b0s left out, lowest first.

        A shell ends where b is `SHELL_GAP_S_PER_MM2` (or 5 %, where that is more) above its lowest b-value:
        measured from there, evenly spaced b-values (IVIM, DSI) do not chain into one shell.
        """
        order = np.flatnonzero(~self.is_b0)
        groups: list[list[int]] = []
        for volume in order[np.argsort(self.bvals[order], kind="stable")]:
            lowest = self.bvals[groups[-1][0]] if groups else -np.inf
            if self.bvals[volume] - lowest >= max(SHELL_GAP_S_PER_MM2, 0.05 * lowest):
                groups.append([])
            groups[-1].append(volume)
        return [(float(self.bvals[g].mean()), np.sort(g)) for g in groups]

    def is_loose(self, volumes: np.ndarray) -> bool:
        """Return whether the b-values of these volumes are spread too far to be one shell, as in DSI.

        >>> bvals = np.array([0, 375, 470, 1000, 1005])
        >>> table = GradientTable(bvals, np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]))
        >>> [table.is_loose(volumes) for _, volumes in table.shells()]
        [True, False]
        """
        bvals = self.bvals[volumes]
        return bool(np.ptp(bvals) > max(LOOSE_SPAN, LOOSE_SHARE * bvals.min()))

    def groups(self) -> list[np.ndarray]:
        """Return the volume indices of each contrast: the b0s, where there are any, then every shell."""
        b0 = np.flatnonzero(self.is_b0)
        return [b0][: len(b0)] + [volumes for _, volumes in self.shells()]

    def world_directions(self, affine: np.ndarray) -> np.ndarray:
        """Return (N, 3) unit directions in world RAS+ for an image with this (4, 4) affine."""
        rotation, flip = _frame(affine)
        directions: np.ndarray = (self.bvecs * flip) @ rotation.T
        return directions

    @classmethod
    def from_world(
        cls,
        bvals: np.ndarray,
        directions: np.ndarray,
        affine: np.ndarray,
        b0_threshold: float = B0_THRESHOLD_S_PER_MM2,
    ) -> GradientTable:
        """Return the table whose world RAS+ `directions` (N, 3) belong to an image with this affine."""
        rotation, flip = _frame(affine)
        return cls(bvals, (np.asarray(directions) @ rotation) * flip, b0_threshold)

    def followed_by(self, bvals: Sequence[float], bvecs: np.ndarray) -> GradientTable:
        """Return this table followed by all of the (T, 3) b-vectors at each of the b-values, s/mm²."""
        return GradientTable(
            np.concatenate([self.bvals, *(np.full(len(bvecs), b) for b in bvals)]),
            np.concatenate([self.bvecs, *[bvecs] * len(bvals)]),
            self.b0_threshold,
        )

    def turned(self, linears: np.ndarray, affine: np.ndarray) -> GradientTable:
        """Return the table after the image content was moved by world-frame linear maps.

        Parameters
        ----------
        linears
            (3, 3) or (N, 3, 3) maps in world RAS+ that took the *content* of each volume to where it is
            now. Only their rotation is used: the nearest orthogonal matrix (finite strain).
        affine
            (4, 4) affine of the image, the same before and after.
        """
        linears = np.broadcast_to(np.asarray(linears, dtype=np.float64), (len(self), 3, 3))
        world = np.einsum("nij,nj->ni", nearest_rotation(linears), self.world_directions(affine))
        return GradientTable.from_world(self.bvals, world, affine, self.b0_threshold)

    def neighbours(self, k: int) -> np.ndarray:
        """Return (N, k) indices of the nearest other directions on the same shell, nearest first.

        Nearness is |dot|: a direction and its antipode measure the same. Where a shell has fewer than
        k + 1 volumes the list is filled with -1. The neighbours of a b0 are the other b0s, in order.
        """
        nearest = np.full((len(self), k), -1, dtype=np.int64)
        for members in self.groups():
            cosine = np.abs(self.bvecs[members] @ self.bvecs[members].T)
            np.fill_diagonal(cosine, -1.0)
            order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(k, len(members) - 1)]
            nearest[members, : order.shape[1]] = members[order]
        return nearest


def trailing_trace(bvals: np.ndarray, bvecs: np.ndarray, b0_threshold: float = B0_THRESHOLD_S_PER_MM2) -> int:
    """Return how many volumes at the end of a series have a b-value but no direction: trace images.

    >>> trailing_trace(np.array([0, 1000, 1000]), np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]]))
    1

    Parameters
    ----------
    bvals
        (N,) s/mm².
    bvecs
        (N, 3).
    b0_threshold
        Volumes with a b-value at or below this are b0s, s/mm².
    """
    without = (np.asarray(bvals) > b0_threshold) & (np.nan_to_num(bvecs) == 0).all(axis=1)
    return int(np.argmin(without[::-1])) if not without.all() else len(without)


def nearest_rotation(linear: np.ndarray) -> np.ndarray:
    """Return the rotation (..., 3, 3) nearest to a linear map in the Frobenius norm."""
    u, _, vt = np.linalg.svd(np.asarray(linear, dtype=np.float64))
    u = u * np.where(np.arange(3) == 2, np.linalg.det(u @ vt)[..., None, None], 1.0)
    rotation: np.ndarray = u @ vt
    return rotation


def even_subset(directions: np.ndarray, n: int) -> np.ndarray:
    """Return indices of `n` of the (N, 3) directions that cover the half-sphere evenly.

    The greedy start is improved by exchanges that lower the electrostatic energy of the antipodally
    symmetric set (Jones et al. 1999); the result depends on the input alone.

    Raises
    ------
    GradientError
        Where `n` is below 1 or above N.
    """
    directions = np.asarray(directions, dtype=np.float64)
    total = len(directions)
    if not 1 <= n <= total:
        raise GradientError(f"asked for {n} even directions out of {total}")
    energy = pair_energies(directions)
    chosen = [0]
    while len(chosen) < n:
        cost = energy[:, chosen].sum(axis=1)
        cost[chosen] = np.inf
        chosen.append(int(cost.argmin()))
    improved = True
    while improved:
        improved = False
        for slot in range(n):
            rest = chosen[:slot] + chosen[slot + 1 :]
            cost = energy[:, rest].sum(axis=1)
            cost[rest] = np.inf
            best = int(cost.argmin())
            if cost[best] < cost[chosen[slot]] - 1e-9:
                chosen[slot], improved = best, True
    return np.sort(chosen)


def pair_energies(directions: np.ndarray) -> np.ndarray:
    """Return (N, N) electrostatic energies of pairs of directions (N, 3) and antipodes, low for even directions."""
    with np.errstate(divide="ignore"):
        energy: np.ndarray = 1 / np.linalg.norm(directions[:, None] - directions[None], axis=-1)
        energy += 1 / np.linalg.norm(directions[:, None] + directions[None], axis=-1)
    energy = np.minimum(energy, 1e6)
    np.fill_diagonal(energy, 0.0)
    return energy


def distinct(directions: np.ndarray) -> np.ndarray:
    """Return indices of the (N, 3) unit vectors that are not within `SAME_DEGREES` of an earlier one or its antipode.

    >>> distinct(np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]])).tolist()
    [0, 1]
    """
    kept: list[int] = []
    for k, direction in enumerate(directions):
        if not kept or np.abs(directions[kept] @ direction).max() < np.cos(np.deg2rad(SAME_DEGREES)):
            kept.append(k)
    return np.array(kept, dtype=int)


def even_directions(n: int, iterations: int = 500) -> np.ndarray:
    """Return (n, 3) unit vectors spread evenly over the half-sphere: a spiral, improved by electrostatic repulsion."""
    k = np.arange(n) + 0.5
    polar, azimuth = np.arccos(1 - k / n), np.pi * (1 + 5**0.5) * k
    points = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=1)
    for step in np.linspace(0.1, 0.001, iterations) / max(n, 1) ** 0.5:
        both = np.concatenate([points, -points])
        difference = points[:, None] - both[None]  # (n, 2n, 3)
        distance = np.linalg.norm(difference, axis=-1)
        distance[np.arange(n), np.arange(n)] = np.inf
        force = (difference / distance[..., None] ** 3).sum(axis=1)
        force -= (force * points).sum(axis=1, keepdims=True) * points
        points = points + step * force / (np.linalg.norm(force, axis=1).max() + 1e-12)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def _frame(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxel-axes-to-world rotation (3, 3) and the FSL sign flip (3,) of an affine."""
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) < 1e-9:
        raise GradientError(f"the image's affine is singular or not finite: {linear.tolist()}")
    cosines = linear / np.linalg.norm(linear, axis=0)
    # Sheared affines have no exact rotation: take the nearest orthogonal matrix, keeping its handedness.
    u, _, vt = np.linalg.svd(cosines)
    flip = np.array([-1.0 if np.linalg.det(linear) > 0 else 1.0, 1.0, 1.0])
    rotation: np.ndarray = u @ vt
    return rotation, flip
