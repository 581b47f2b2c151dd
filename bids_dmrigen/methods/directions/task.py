"""The task: what would a shell look like along directions that were not acquired?

Input: a shell with some directions. Output: the same series, followed by volumes of further directions. Scored on
acquired volumes that were left out (`qc.evaluation`): the papers' tables are DWI PSNR and SSIM, and FA from acquired
and generated volumes together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...dwi.gradients import SAME_DEGREES, GradientTable, distinct, even_directions, even_subset
from ...dwi.series import Scan, ScanError
from ..base import Generated, LeftOut, Request, Samples
from ..spec import Directions, Header, MethodPlan, MethodSpec, Option, vectors_of

CANDIDATES = 8  # per wanted direction
DEFAULT_DIRECTIONS = 60

TOO_FEW = "{title} needs at least {needed} different directions on a shell, found {found} at b = {bval:.0f} s/mm²"
NO_SHELL = "{title} adds directions to shells, and the {n} volumes at b = {low:.0f} to {high:.0f} s/mm² are none"
NOTHING_TO_DO = "{title}: every shell already has the requested directions ({wanted}); request more with {flag}"
LEFT_AS_IT_IS = "{problem}: the shell was not changed"
COINCIDE = "{n} of the requested directions at b = {bval:.0f} s/mm² were acquired, and were not generated"

DIRECTIONS = Option(
    "qid2_directions",
    "directions that each shell is to have in the end, or a file of b-vectors to generate on each (FSL convention, the "
    f"run's voxel axes) (default: {DEFAULT_DIRECTIONS})",
    DEFAULT_DIRECTIONS,
    Directions,
    key="directions",
    metavar="N|FILE",
)
REFERENCES = Option(
    "qid2_references",
    "nearest acquired directions that a new one is made from, 3 or 6 (default: 6); weights of qid2 are trained for one "
    "of the two",
    6,
    int,
    key="references",
    choices=(3, 6),
    of_weights=True,
)


class DirectionsSpec(MethodSpec):
    """The specification of a method that adds directions to shells."""

    def check(self, scan: Scan) -> list[str]:
        """Return warnings about a scan; `ScanError` where the method cannot run on it, or on none of its shells."""
        warnings, table = super().check(scan), scan.gradients
        reasons = [
            unfit_shell(table, bval, volumes, self.title, self.min_directions) for bval, volumes in table.shells()
        ]
        if all(reasons):
            raise ScanError("; ".join(reasons))
        return warnings

    def plan(self, values: Mapping[str, Any], header: Header) -> MethodPlan:
        """Return the plan: the acquired volumes, then the wanted directions of every shell."""
        shells = [bval for bval, _ in header.gradients.shells()]
        table = header.gradients.followed_by(shells, vectors_of(values[DIRECTIONS.name]))
        return MethodPlan(self.options_by_key(values), table)

    def evaluation_options(self, wanted: GradientTable) -> dict[str, Any]:
        """Return options that request the directions of these volumes, on every shell."""
        return {DIRECTIONS.key: wanted.bvecs}


@dataclass(frozen=True, eq=False)
class Shell:
    """One shell and the directions that are wanted on it.

    Parameters
    ----------
    bval
        Mean b-value, s/mm².
    volumes
        (N,) indices of the acquired volumes.
    acquired, wanted
        (N, 3) and (T, 3) unit vectors in world RAS+.
    """

    bval: float
    volumes: np.ndarray
    acquired: np.ndarray
    wanted: np.ndarray


def unfit_shell(table: GradientTable, bval: float, volumes: np.ndarray, title: str, needed: int) -> str:
    """Return why directions cannot be added to these volumes of a table, or "" where they can."""
    if table.is_loose(volumes):
        low, high = table.bvals[volumes].min(), table.bvals[volumes].max()
        return NO_SHELL.format(title=title, n=len(volumes), low=low, high=high)
    found = len(distinct(table.bvecs[volumes]))
    return TOO_FEW.format(title=title, needed=needed, found=found, bval=bval) if found < needed else ""


def shells_to_fill(scan: Scan, title: str, needed: int, directions: int | np.ndarray) -> tuple[list[Shell], list[str]]:
    """Return the directions to generate, shell by shell, and warnings.

    Parameters
    ----------
    scan
        The acquired series.
    title, needed
        Title of the method, and how many different directions a shell must have.
    directions
        Number of directions of each shell in the result, spread evenly around the acquired ones; or (T, 3)
        b-vectors in the image's voxel axes (FSL convention), for every shell.

    Raises
    ------
    ScanError
        Where no shell has enough directions, or nothing is left to generate.
    """
    world = scan.gradients.world_directions(scan.affine)
    shells, warnings, problems = [], [], []
    for bval, volumes in scan.gradients.shells():
        acquired = world[volumes]
        n_acquired = len(distinct(acquired))
        if reason := unfit_shell(scan.gradients, bval, volumes, title, needed):
            problems.append(reason)
            continue
        if not isinstance(directions, np.ndarray):
            wanted = fill_gaps(acquired, directions - n_acquired)
        else:
            table = GradientTable(np.full(len(directions), bval), directions)
            wanted = table.world_directions(scan.affine)
            new = np.abs(wanted @ acquired.T).max(axis=1) < np.cos(np.deg2rad(SAME_DEGREES))
            if not new.all():
                warnings.append(COINCIDE.format(n=int((~new).sum()), bval=bval))
            wanted = wanted[new]
        if len(wanted):
            shells.append(Shell(bval, volumes, acquired, wanted))
    if problems and len(problems) == len(scan.gradients.shells()):
        raise ScanError("; ".join(problems))
    if not shells:
        number = "list" if isinstance(directions, np.ndarray) else directions
        raise ScanError(NOTHING_TO_DO.format(title=title, wanted=number, flag=DIRECTIONS.flag))
    return shells, warnings + [LEFT_AS_IT_IS.format(problem=problem) for problem in problems]


def fill_gaps(acquired: np.ndarray, n: int) -> np.ndarray:
    """Return (n, 3) directions in the gaps between acquired ones (N, 3), each as far from all others as possible."""
    if n <= 0:
        return np.zeros((0, 3))
    candidates = even_directions(CANDIDATES * n)
    nearest = np.abs(candidates @ acquired.T).max(axis=1)
    chosen = []
    for _ in range(n):
        k = int(nearest.argmin())
        chosen.append(candidates[k])
        nearest = np.maximum(nearest, np.abs(candidates @ candidates[k]))
    return np.array(chosen)


def assemble(
    scan: Scan,
    shells: list[Shell],
    generated: np.ndarray,
    samples: Samples | None,
    record: dict[str, Any],
    **more: Any,
) -> Generated:
    """Return the acquired volumes, unchanged, followed by the generated ones (X, Y, Z, T) of all shells."""
    gradients = scan.gradients
    bvals = np.concatenate([gradients.bvals, *(np.full(len(s.wanted), s.bval) for s in shells)])
    world = np.concatenate([gradients.world_directions(scan.affine), *(s.wanted for s in shells)])
    table = GradientTable.from_world(bvals, world, scan.affine, gradients.b0_threshold)

    def after_acquired(made: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(scan.data, np.float32), made], axis=3)

    drawn = None if samples is None else samples.after(after_acquired)
    return Generated(
        after_acquired(generated), drawn, table, (), np.arange(len(table)) < len(gradients), record, **more
    )


def check_left_out(
    generate: Callable[[Scan, Request], Generated], scan: Scan, request: Request, needed: int
) -> LeftOut | None:
    """Hide acquired directions, generate them, and return the result; None where none can be left out.

    Parameters
    ----------
    generate
        (scan, request) -> the method's result.
    scan, request
        `request.left_out` is the largest number of directions to leave out of each shell. They are spread evenly, and
        `needed` different ones are kept.
    needed
        Smallest number of directions that the method works with.
    """
    volumes, generated, spread = [], [], []
    for _, members in scan.gradients.shells():
        world = scan.gradients.world_directions(scan.affine)[members]
        cosine = np.abs(world @ world.T) - 2 * np.eye(len(world))  # without the direction itself
        single = np.flatnonzero(cosine.max(axis=1) < np.cos(np.deg2rad(SAME_DEGREES)))  # acquired only once
        n = min(request.left_out, len(single), len(distinct(world)) - needed)
        if n < 1:
            continue
        hidden = members[single[even_subset(world[single], n)]]
        kept = np.sort(np.r_[np.flatnonzero(scan.gradients.is_b0), np.setdiff1d(members, hidden)])
        few = Scan(scan.data[..., kept], scan.affine, scan.gradients[kept], scan.mask)
        options = {**request.options, DIRECTIONS.key: scan.gradients.bvecs[hidden]}
        result = generate(few, replace(request, left_out=0, options=options))
        volumes.append(hidden)
        generated.append(result.mean[..., ~result.acquired])
        if result.samples is not None:
            spread.append(result.samples.std()[..., ~result.acquired])
    if not volumes:
        return None
    std = np.concatenate(spread, axis=3) if spread else None
    return LeftOut(np.concatenate(volumes), np.concatenate(generated, axis=3), std)


def wanted_directions(request: Request) -> int | np.ndarray:
    """Return the request's directions: a number per shell, or (T, 3) b-vectors."""
    directions = request.options.get(DIRECTIONS.key, DEFAULT_DIRECTIONS)
    return int(directions) if np.ndim(directions) == 0 else np.asarray(directions, dtype=np.float64)
