"""Head motion and eddy currents of each volume, estimated by registration within shells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dwi.gradients import GradientTable
from ..dwi.series import Scan
from .ants_tools import Stage, register_linear, to_ants
from .brain_mask import brain_mask, dilate, erode
from .resample import sample_volume
from .rigid import field_of_view_center, index_frame, motion_parameters, rigid_part

COARSE_MM, FINE_MM = 8.0, 5.0  # voxels of the grids that are registered
RIM_MM = 6.0
INNER_MM = 4.0  # deeper than most of the fluid around the brain
EDDY_ROUNDS, PREDICTED_ROUNDS, TIE_ROUNDS = 2, 2, 3
ENOUGH = 8  # from this many volumes on, a fit to the others predicts a volume better than their mean
RIDGE = 0.3  # regularisation of the five parameters of the contrast between directions
SAMPLES = 40_000  # grid points that the metric takes, about a third of them in the brain
CONFOUNDS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement")
HEAD_RADIUS_MM = 50.0


def head_motion(
    scan: Scan, mask: np.ndarray | None = None, *, axis: int | None = None, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the transforms of `estimate_motion` and the head motion in them as a table of confounds.

    Parameters
    ----------
    scan
        The series.
    mask
        (X, Y, Z) bool, brain of the first b0; None: it is estimated.
    axis, seed
        As in `estimate_motion`.

    Returns
    -------
    transforms : (N, 4, 4)
        As from `estimate_motion`.
    confounds : (N, 7)
        `CONFOUNDS`: translations (mm) and rotations (rad) about the middle of the field of view, framewise
        displacement (mm; NaN for the first volume).

    Raises
    ------
    ScanError
        Where no mask is given and no brain is found.
    """
    if mask is None:
        mask = brain_mask(scan.mean_b0(), scan.zooms_mm)
    transforms = estimate_motion(scan.data, scan.affine, scan.gradients, mask, axis=axis, seed=seed)
    center = field_of_view_center(scan.affine, mask.shape)
    parameters = motion_parameters(rigid_part(transforms, scan.affine, axis, center), center)
    table = np.column_stack([parameters, framewise_displacement(parameters[:, :3], parameters[:, 3:])])
    return transforms, table


def estimate_motion(
    data: np.ndarray,
    affine: np.ndarray,
    gradients: GradientTable,
    mask: np.ndarray | None = None,
    *,
    axis: int | None = None,
    seed: int = 1,
) -> np.ndarray:
    """Estimate the transform from the reference space to each volume.

    Volumes are only compared with volumes of the same contrast: b0s with b0s, and volumes of one shell with each
    other. They are registered coarsely to the first one, then to their mean, then each to the image that the others
    predict for its direction. The mean of each shell is registered rigidly to the mean b0.
    Eddy currents displace a diffusion-weighted volume along the phase axis, linearly in space. Of the estimated
    shears and scale, only the part that the gradient table predicts is kept.

    Parameters
    ----------
    data
        (X, Y, Z, N) signal.
    affine
        (4, 4) voxel indices to world RAS+, mm.
    gradients
        N entries.
    mask
        (X, Y, Z) bool, brain of the first b0; None uses all voxels.
    axis
        Phase-encoding voxel axis 0, 1 or 2; None estimates head motion alone.
    seed
        Random seed of the metric's sampling.

    Returns
    -------
    transforms : (N, 4, 4)
        World RAS+ mm: each maps a point of the reference space, which is that of the first b0, to the point of the
        volume with the same anatomy. The matrix of the first b0 is the identity.
    """
    frame, grid = index_frame(affine)
    directions = gradients.world_directions(affine) @ frame[:3, :3]
    aligner = _Aligner(data, grid, mask, seed)
    transforms = np.tile(np.eye(4), (data.shape[3], 1, 1))
    done, reference_b0 = np.zeros(data.shape[3], bool), None
    for volumes in gradients.groups():
        matrices, mean = aligner.group(volumes, gradients[volumes], directions[volumes], axis)
        if reference_b0 is None:  # the b0s come first and define the reference space
            matrices = matrices @ np.linalg.inv(matrices[0])
            reference_b0 = aligner.mean(volumes, matrices)
        else:
            aligned = np.flatnonzero(done)
            nearest = aligned[np.abs(aligned - volumes[0]).argmin()]
            # Without the shells' eddy currents: the registration between shells is rigid only if its start is.
            first, before = rigid_part(np.stack([matrices[0], transforms[nearest]]), np.eye(4), axis, aligner.center)
            start = np.linalg.inv(first) @ before
            matrices = matrices @ aligner.tie(reference_b0, mean, start)
        transforms[volumes], done[volumes] = matrices, True
    return frame @ transforms @ np.linalg.inv(frame)


def framewise_displacement(translations_mm: np.ndarray, rotations_rad: np.ndarray) -> np.ndarray:
    """Return (N,) framewise displacement in mm (Power et al. 2012), NaN for the first volume.

    Rotations (N, 3) count as arcs on a sphere of 50 mm.
    """
    steps = np.abs(np.diff(translations_mm, axis=0)).sum(axis=1)
    turns = HEAD_RADIUS_MM * np.abs(np.diff(rotations_rad, axis=0)).sum(axis=1)
    return np.r_[np.nan, steps + turns]


def confounds_tsv(table: np.ndarray) -> str:
    """Return (N, 7) confounds as the text that BIDS asks for, with n/a where there is no value."""
    rows = [("n/a" if np.isnan(value) else f"{value:.6f}" for value in row) for row in table]
    return "\n".join("\t".join(row) for row in [CONFOUNDS, *rows]) + "\n"


class _Aligner:
    """Registration of the volumes of one series; all matrices map reference points to volume points, in index mm."""

    def __init__(self, data: np.ndarray, grid: np.ndarray, mask: np.ndarray | None, seed: int):
        self.data, self.grid, self.seed = data, grid, seed
        self.zooms, self.center = np.diag(grid)[:3], field_of_view_center(grid, data.shape)
        self.inner = self.rim = None
        if mask is not None:
            inner = erode(mask, INNER_MM, self.zooms)
            self.inner = to_ants(inner if inner.sum() > mask.sum() / 3 else mask, grid)
            # The rim shows the edge of the brain; and the mask may not fit a volume that moved.
            self.rim = to_ants(dilate(mask, RIM_MM, self.zooms), grid)

    def group(self, volumes: np.ndarray, gradients: GradientTable, directions: np.ndarray, axis: int | None):
        """Return the matrices (n, 4, 4) from the group's mean to its volumes, and that mean (X, Y, Z).

        `gradients` and `directions` (n, 3), in index mm, are those of the volumes.
        """
        chain = [np.eye(4)]
        reference = self.data[..., volumes[0]]
        for volume in volumes[1:]:
            # Heads move little between volumes: each registration starts from the result of the one before.
            chain.append(self._to_reference(reference, volume, chain[-1], self._rigid(False)))
        matrices = np.stack(chain)
        if len(volumes) > 1:
            matrices = self._to_mean(volumes, matrices, self._rigid(True))
        if len(volumes) > 1 and not gradients.is_b0[0]:
            # Eddy currents are estimated against the mean: a prediction from neighbouring directions is distorted
            # as they are.
            for _ in range(EDDY_ROUNDS):
                if axis is None:
                    break
                matrices = self._to_mean(volumes, matrices, self._eddy(axis))
                matrices = _keep_predicted(matrices, gradients, axis, self.center)
            for _ in range(PREDICTED_ROUNDS if len(volumes) >= ENOUGH else 0):
                matrices = self._to_predicted(volumes, matrices, directions, axis)
        return matrices, self.mean(volumes, matrices)

    def _to_mean(self, volumes: np.ndarray, matrices: np.ndarray, stages: Sequence[Stage]) -> np.ndarray:
        mean = self.mean(volumes, matrices)
        return np.stack([self._to_reference(mean, *each, stages) for each in zip(volumes, matrices, strict=True)])

    def _to_predicted(
        self, volumes: np.ndarray, matrices: np.ndarray, directions: np.ndarray, axis: int | None
    ) -> np.ndarray:
        """Register each volume, without its eddy currents, rigidly to the prediction from the others."""
        rigid = rigid_part(matrices, np.eye(4), axis, self.center)
        eddy = matrices @ np.linalg.inv(rigid)
        turned = np.einsum("nji,nj->ni", rigid[:, :3, :3], directions)
        aligned = np.stack([self._moved(*each) for each in zip(volumes, matrices, strict=True)])
        registered = []
        for weights, volume, start, shear in zip(_predictors(turned), volumes, rigid, eddy, strict=True):
            straight = self.data[..., volume] if axis is None else self._moved(volume, shear)
            predicted = np.tensordot(weights, aligned, 1)
            registered.append(shear @ self._register(straight, predicted, start, self._rigid(True), self.rim))
        return np.stack(registered)

    def mean(self, volumes: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        """Return the mean (X, Y, Z) of the volumes, resampled to the reference by their matrices."""
        total = np.zeros(self.data.shape[:3], np.float32)
        for volume, matrix in zip(volumes, matrices, strict=True):
            total += self._moved(volume, matrix)
        return total / len(volumes)

    def _moved(self, volume: int, matrix: np.ndarray) -> np.ndarray:
        return sample_volume(self.data[..., volume], np.linalg.inv(self.grid) @ matrix @ self.grid)

    def tie(self, reference_b0: np.ndarray, mean: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return the rigid matrix from the space of the b0 to that of a shell's mean."""
        # Fluid is bright in one contrast and dark in the other: after smoothing, the edges of the brain differ by
        # up to a millimetre. So the last steps are at full resolution, inside the brain.
        start = self._register(mean, reference_b0, start, self._rigid(False), self.rim)
        fine = Stage("Rigid[0.1]", (50,), (1,), (0,), sampling=1.0)
        for _ in range(TIE_ROUNDS):  # between contrasts the metric is flat, and the optimiser stops short
            start = self._register(mean, reference_b0, start, [fine], self.inner)
        return start

    def _to_reference(self, reference: np.ndarray, volume: int, start: np.ndarray, stages) -> np.ndarray:
        return self._register(self.data[..., volume], reference, start, stages, self.rim)

    def _register(self, image: np.ndarray, reference: np.ndarray, start: np.ndarray, stages, mask) -> np.ndarray:
        """Return the matrix from the reference's points to the image's.

        The image is the fixed one for ANTs. Then its eddy-current map acts first, in its phase-encoding frame, and
        the reference is interpolated: it is a mean and less noisy.
        """
        matrix = register_linear(
            to_ants(image, self.grid),
            to_ants(reference, self.grid),
            stages,
            start=np.linalg.inv(start),
            moving_mask=mask,
            seed=self.seed,
        )
        return np.linalg.inv(matrix)

    def _rigid(self, fine: bool) -> list:
        return [self._stage("Rigid[0.1]", FINE_MM if fine else COARSE_MM, 50)]

    def _eddy(self, axis: int | None) -> list:
        if axis is None:
            return []
        weights = [0.0] * 12  # matrix row by row, then translation; only the row of the phase axis is free
        for parameter in (3 * axis, 3 * axis + 1, 3 * axis + 2, 9 + axis):
            weights[parameter] = 1.0
        eddy = self._stage("Affine[0.1]", FINE_MM, 20, weights)
        # A shear is half a rotation, so the rotation estimated before has to be estimated again.
        return [eddy, self._stage("Rigid[0.1]", FINE_MM, 20), eddy]

    def _stage(self, transform: str, size_mm: float, iterations: int, weights=()):
        shrink = max(1, round(size_mm / self.zooms.max()))
        points = np.prod(self.data.shape[:3]) / shrink**3
        return Stage(
            transform,
            (iterations,),
            (shrink,),
            (size_mm / 2,),
            sampling=min(1.0, SAMPLES / points),
            weights=weights,
        )


def _predictors(directions: np.ndarray) -> np.ndarray:
    """Return the weights (n, n) that predict each volume of a shell from the others.

    The signal of a voxel is taken as S(g) = c + g^T A g with A traceless: six unknowns. A is shrunk, so that few
    or noisy volumes predict little more than their mean.
    """
    x, y, z = directions.T
    design = np.stack([np.ones_like(x), x * x - 1 / 3, y * y - 1 / 3, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    weights = np.zeros((len(design), len(design)), np.float32)
    for volume, row in enumerate(design):
        others = np.delete(np.arange(len(design)), volume)
        rows = design[others]
        weights[volume, others] = row @ np.linalg.solve(rows.T @ rows + np.diag([0] + [RIDGE] * 5), rows.T)
    return weights


def _keep_predicted(matrices: np.ndarray, gradients: GradientTable, axis: int, center: np.ndarray) -> np.ndarray:
    """Return the matrices with eddy shears and scale replaced by what the gradient table predicts.

    Eddy currents are linear in the gradient: p_n = W g_n + c, g_n = sqrt(b_n) times direction. The estimates are
    relative to the mean of all volumes, whose distortion is -c, so only W g_n is kept. Each of the three
    parameters is shrunk by how well the other volumes predict it (leave-one-out). Noise predicts nothing: then the
    transform becomes rigid. The image of the center (3,), index mm, does not change.
    """
    rigid = rigid_part(matrices, np.eye(4), axis, center)
    eddy = matrices @ np.linalg.inv(rigid)
    shears = eddy[:, axis, :3] - np.eye(3)[axis]
    strength = gradients.bvecs * np.sqrt(gradients.bvals / gradients.bvals.max())[:, None]
    design = np.column_stack([strength, np.ones(len(strength))])
    kept = np.zeros_like(shears)
    if len(design) > design.shape[1] + 1:
        inverse = np.linalg.pinv(design)
        fit, leverage = inverse @ shears, np.einsum("np,pn->n", design, inverse)
        left_out = (shears - design @ fit) / np.maximum(1 - leverage, 1e-3)[:, None]
        spread = ((shears - shears.mean(axis=0)) ** 2).sum(axis=0)
        explained = 1 - (left_out**2).sum(axis=0) / np.maximum(spread, 1e-12)
        kept = strength @ fit[:3] * np.clip(explained, 0, 1)
    moved = (rigid @ [*center, 1.0])[:, :3]  # image of the center under the head motion; the shear is zero there
    eddy = np.tile(np.eye(4), (len(matrices), 1, 1))
    eddy[:, axis, :3] += kept
    eddy[:, axis, 3] = -(kept * moved).sum(axis=1)
    return eddy @ rigid
