"""The diffusion tensor: batched least-squares fit, 3x3 eigen-decomposition and the scalar maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from .gradients import GradientError, GradientTable
from .series import Scan

MIN_DIFFUSIVITY_TOLERANCE = 1e-6  # eigenvalues are raised to this over the largest b-matrix entry, as in DIPY
TINY = torch.finfo(torch.float32).tiny
TENSOR_BMAX = 1550.0  # s/mm²; some scanners store more than the nominal 1500
DIAGONAL, OFF_DIAGONAL = [0, 2, 5], [1, 3, 4]  # of lower triangles
WELL_CONDITIONED = 15.0  # of a selection of directions and of left-out volumes; good ones have 6 to 10
LEAST_CONDITION = 1e-8  # of the normal equations: below, the samples of a voxel do not determine a tensor
CHUNK_VOXELS = {"cpu": 2**14, "cuda": 2**18}  # CPU: fits into the cache; GPU: needs less than 500 MB
SMALL_VOXELS = 2**12  # fewer voxels are computed before a second thread has started

METHODS = ("ols", "wls")
MAP_NAMES = ("fa", "md", "ad", "rd", "dec", "tensor")

UNKNOWN_METHOD = "unknown tensor fit {method!r}; choose one of {methods}"
RANK_DEFICIENT = (
    "the gradient table determines {rank} of the tensor's 7 unknowns (6 + the b0 signal): "
    "{n_b0} b0 and {n_directions} diffusion-weighted volumes; at least one b0 (or a second shell) and six "
    "directions that do not lie on one cone are needed"
)
SIGNAL_SHAPE = "expected signals of shape (voxels, {n_gradients}), found {shape}"


@dataclass(frozen=True)
class TensorFit:
    """A tensor per voxel.

    Parameters
    ----------
    tensor
        (V, 6) lower triangle Dxx, Dxy, Dyy, Dxz, Dyz, Dzz in mm²/s, in the frame of the directions given.
    s0
        (V,) signal without diffusion weighting, in scanner units; 0 where the samples do not determine a tensor.
    min_diffusivity
        Eigenvalues below this (mm²/s) are noise; `tensor_maps` raises them to it.
    """

    tensor: torch.Tensor
    s0: torch.Tensor
    min_diffusivity: float


def design_matrix(bvals: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the (N, 7) matrix X of ln S = X (Dxx, Dxy, Dyy, Dxz, Dyz, Dzz, ln S0) (Basser et al. 1994).

    Parameters
    ----------
    bvals
        (N,) s/mm².
    directions
        (N, 3) unit vectors; their frame is the tensor's.
    """
    x, y, z = np.asarray(directions, dtype=np.float64).T
    b_matrix = np.stack([x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z], axis=1)
    return np.concatenate([-np.asarray(bvals)[:, None] * b_matrix, np.ones((len(b_matrix), 1))], axis=1)


def check_table(bvals: np.ndarray, directions: np.ndarray) -> None:
    """Raise `GradientError` where (N,) b-values in s/mm² and (N, 3) directions cannot determine a tensor."""
    design = design_matrix(bvals, directions)
    rank = int(np.linalg.matrix_rank(design / _column_scale(design), tol=1e-4))
    if rank < 7:
        n_b0 = int((~np.any(directions, axis=1)).sum())
        raise GradientError(RANK_DEFICIENT.format(rank=rank, n_b0=n_b0, n_directions=len(bvals) - n_b0))


def tensor_volumes(gradients: GradientTable) -> np.ndarray:
    """Return (N,) bool: b0s and the shells up to b = 1500 s/mm², or the lowest shell where all lie above.

    A tensor does not describe the signal at higher b-values: the fit would depend on how many volumes each shell has,
    and selections of directions change that.
    """
    used = gradients.is_b0.copy()
    for k, (bval, volumes) in enumerate(gradients.shells()):
        used[volumes] = k == 0 or bval <= TENSOR_BMAX
    return used


def condition(bvecs: np.ndarray) -> float:
    """Return the condition number of a tensor fit to (N, 3) directions of one shell and N / 6 b0s; infinity below six.

    Even directions have 6 to 10; directions on one cone, however many, do not determine a tensor.
    """
    if len(bvecs) < 6:
        return math.inf
    design = design_matrix(np.r_[np.ones(len(bvecs)), 0.0], np.r_[bvecs, np.zeros((1, 3))])
    design[-1] *= (len(bvecs) / 6) ** 0.5
    return float(np.linalg.cond(design))


def noise_power(signal: torch.Tensor, bvals: np.ndarray, directions: np.ndarray, sigma: float) -> torch.Tensor:
    """Return what noise adds on average to the squared size of the anisotropic part of a least-squares tensor.

    The logarithm of a signal S has the variance (sigma / S)². With P the rows of the solution that give the tensor less
    its mean diffusivity, the result is sum_j w_j sum_i P_ji² (sigma / S_i)², where w counts off-diagonal entries twice.

    Parameters
    ----------
    signal
        (V, N) scanner units; samples below sigma count as sigma.
    bvals, directions
        (N,) s/mm² and (N, 3) unit vectors, zero for b0.
    sigma
        Noise level, in the units of the signal.

    Returns
    -------
    torch.Tensor
        (V,) (mm²/s)².

    Raises
    ------
    GradientError
        Where the table cannot determine a tensor.
    """
    check_table(bvals, directions)
    design = design_matrix(bvals, directions)
    scale = _column_scale(design)
    solver = (np.linalg.pinv(design / scale) / scale[:, None])[:6]
    solver[[0, 2, 5]] -= solver[[0, 2, 5]].mean(axis=0)
    share = torch.as_tensor(np.array([1, 2, 1, 2, 2, 1]) @ solver**2, dtype=torch.float32)
    return (sigma / signal.clamp_min(sigma)).square() @ share


def _column_scale(design: np.ndarray) -> np.ndarray:
    """Return (7,) factors: columns of comparable size keep the normal equations well conditioned."""
    return np.asarray(np.maximum(np.abs(design).max(axis=0), 1e-12))


def fit_tensor(
    signal: torch.Tensor,
    bvals: np.ndarray,
    directions: np.ndarray,
    method: str = "wls",
) -> TensorFit:
    """Fit a tensor to every voxel at once, by linear least squares on the logarithm of the signal.

    Samples that are not positive are missing, not signal: a voxel is fitted to the others. Where these do not determine
    a tensor, tensor and S0 are 0.

    `ols` minimises sum_i (y_i - X_i beta)² with y = ln S. `wls` minimises sum_i w_i (y_i - X_i beta)² with
    w_i = exp(2 X_i beta_ols), the squared signal that ordinary least squares predicts: the logarithm of a
    signal S has variance sigma²/S² (Chung et al. 2006).

    Parameters
    ----------
    signal
        (V, N) scanner units, on any device; the fit runs there.
    bvals
        (N,) s/mm².
    directions
        (N, 3) unit vectors in the frame wanted for the tensor, zero vectors for b0:
        `GradientTable.world_directions(affine)` gives world RAS+.
    method
        `ols` or `wls`.
    Raises
    ------
    GradientError
        Where the table cannot determine a tensor.
    ValueError
        Where the method is another, or signals and table do not belong together.
    """
    if method not in METHODS:
        raise ValueError(UNKNOWN_METHOD.format(method=method, methods=METHODS))
    if signal.ndim != 2 or signal.shape[1] != len(bvals):
        raise ValueError(SIGNAL_SHAPE.format(n_gradients=len(bvals), shape=tuple(signal.shape)))
    check_table(bvals, directions)
    design = design_matrix(bvals, directions)
    scale = _column_scale(design)
    unit_design = torch.as_tensor(design / scale, device=signal.device)
    solver = torch.linalg.pinv(unit_design).to(torch.float32)  # (7, N)
    beta = torch.empty(7, len(signal), dtype=torch.float32, device=signal.device)

    def fit(chunk: slice) -> None:
        values = signal[chunk].to(torch.float32).T  # (N, v)
        log_signal = values.clamp(min=TINY).log_()
        coefficients = solver @ log_signal
        if method == "wls":
            coefficients = _reweighted(coefficients, log_signal, unit_design)
        incomplete = (values.amin(dim=0) <= 0).nonzero()[:, 0]
        if len(incomplete):
            present = values[:, incomplete] > 0
            coefficients[:, incomplete] = _with_gaps(log_signal[:, incomplete], present, unit_design, method)
        beta[:, chunk] = coefficients

    _each_chunk(fit, signal)
    beta[:6] /= torch.as_tensor(scale[:6, None], dtype=torch.float32, device=signal.device)
    smallest = MIN_DIFFUSIVITY_TOLERANCE / max(1.0, float(-design.min()))
    return TensorFit(beta[:6].T, beta[6].exp(), smallest)


def tensor_maps(fit: TensorFit) -> dict[str, torch.Tensor]:
    """Return the scalar maps and the eigen-system of fitted tensors.

    Returns
    -------
    dict
        `fa` (V,) in [0, 1]; `md`, `ad`, `rd` (V,) mm²/s; `dec` (V, 3) direction-encoded colour FA |v1| in the
        tensor's frame; `eigenvalues` (V, 3) mm²/s, largest first, raised to `fit.min_diffusivity`;
        `eigenvectors` (V, 3, 3), `[:, :, k]` belonging to eigenvalue k.
    """
    count = len(fit.tensor)
    scalars = fit.tensor.new_empty(4, count)
    colour, values, vectors = (fit.tensor.new_empty(*n, count) for n in ((3,), (3,), (3, 3)))

    def decompose(chunk: slice) -> None:
        value, vector = eigen_symmetric(fit.tensor[chunk])
        value = value.clamp_(min=fit.min_diffusivity)  # (3, v)
        ad, rd = value[0], (value[1] + value[2]).div_(2)
        md = (ad + 2 * rd).div_(3)
        # FA² = 3/2 sum (lambda - MD)² / sum lambda²
        spread = value - md
        fa = (_dot(spread, spread) / _dot(value, value)).mul_(1.5).sqrt_().clamp_(max=1)
        for row, scalar in zip(scalars, (fa, md, ad, rd), strict=True):
            row[chunk] = scalar
        torch.mul(vector[:, 0].abs(), fa, out=colour[:, chunk])
        values[:, chunk], vectors[:, :, chunk] = value, vector

    _each_chunk(decompose, fit.tensor, 4)
    maps = dict(zip(("fa", "md", "ad", "rd"), scalars, strict=True))
    return maps | {"dec": colour.T, "eigenvalues": values.T, "eigenvectors": vectors.permute(2, 0, 1)}


def eigen_symmetric(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigen-system of symmetric 3x3 matrices in closed form, safe for repeated eigenvalues.

    The eigenvalue farthest from the others comes from the trigonometric solution of the characteristic
    polynomial, its eigenvector from the adjugate of D - lambda I. What remains is a 2x2 problem in the plane
    orthogonal to it, whose rotation angle is exact even where both its eigenvalues agree (after D. Eberly,
    A Robust Eigensolver for 3x3 Symmetric Matrices). No branches: on a CPU, selecting by a 0/1 weight is
    several times faster than `torch.where`.

    Parameters
    ----------
    tensor
        (V, 6) lower triangles Dxx, Dxy, Dyy, Dxz, Dyz, Dzz.

    Returns
    -------
    eigenvalues
        (3, V), largest first.
    eigenvectors
        (3, 3, V): `[:, k]` is the unit vector of eigenvalue k. Isotropic tensors get the axes.
    """
    deviator = tensor.T.clone(memory_format=torch.contiguous_format)  # (6, V)
    mean = (deviator[0] + deviator[2] + deviator[5]).div_(3)
    for diagonal in (0, 2, 5):
        deviator[diagonal] -= mean
    xx, xy, yy, xz, yz, zz = deviator.square()
    # In units of its own size the deviator has the eigenvalues 2 cos(phi + 2 pi k / 3).
    size = (xx + yy).add_(zz).add_(xy + xz + yz, alpha=2).div_(6).sqrt_()
    deviator *= size.clamp(min=1e-30).reciprocal_()
    # Where the smallest eigenvalue is the far one (det < 0) the negated matrix is solved: far is the largest.
    half_det = _determinant(deviator).div_(2)
    is_top = torch.ge(half_det, 0, out=torch.empty_like(half_det))  # 1.0 or 0.0
    deviator *= is_top.mul(2).sub_(1)
    far = half_det.abs_().clamp_(max=1).acos_().div_(3).cos_().mul_(2)
    axis = _null_vector(deviator, far)
    u, w = _plane(axis)
    along_u, along_w = _product(deviator, u), _product(deviator, w)
    uu, uw, ww = _dot(u, along_u), _dot(u, along_w), _dot(w, along_w)
    middle, half_gap = (uu + ww).div_(2), (uu - ww).div_(2)
    radius = half_gap.square().addcmul_(uw, uw).sqrt_()
    angle = torch.atan2(uw, half_gap).div_(2)
    cosine, sine = angle.cos(), angle.sin()
    values, vectors = tensor.new_empty(3, len(tensor)), tensor.new_empty(3, 3, len(tensor))
    torch.mul(u, cosine, out=vectors[:, 1]).addcmul_(w, sine)
    minor = (w * cosine).addcmul_(u, sine, value=-1)
    torch.lerp(minor, axis, is_top, out=vectors[:, 0])
    torch.lerp(axis, minor, is_top, out=vectors[:, 2])
    low, high = middle - radius, middle.add_(radius)
    torch.lerp(-low, far, is_top, out=values[0])
    torch.lerp(-high, high, is_top, out=values[1])
    torch.lerp(-far, low, is_top, out=values[2])
    return values.mul_(size).add_(mean), vectors


def principal_direction(tensor: np.ndarray) -> np.ndarray:
    """Return the unit vectors (X, Y, Z, 3) of the largest eigenvalues of tensors (X, Y, Z, 6), lower triangles."""
    rows = torch.as_tensor(np.asarray(tensor, np.float32).reshape(-1, 6))
    vectors = rows.new_empty(3, len(rows))

    def decompose(chunk: slice) -> None:
        vectors[:, chunk] = eigen_symmetric(rows[chunk])[1][:, 0]

    _each_chunk(decompose, rows, 4)
    return vectors.T.reshape(*tensor.shape[:3], 3).numpy()


def anisotropic_part(tensor: np.ndarray) -> np.ndarray:
    """Return what tensors (..., 6), lower triangles, differ from spheres of the same mean diffusivity.

    The result (..., 6) has the off-diagonal entries times the root of 2: the sum of its products with that of another
    tensor is the product of both matrices, sum_ij A_ij B_ij.
    """
    part = np.array(tensor, np.float64)
    part[..., DIAGONAL] -= part[..., DIAGONAL].mean(axis=-1, keepdims=True)
    part[..., OFF_DIAGONAL] *= 2**0.5
    return part


def fit_maps(
    scan: Scan, method: str = "wls", device: str | torch.device = "cpu", names: tuple[str, ...] = MAP_NAMES
) -> dict[str, np.ndarray]:
    """Return tensor maps of a scan, in world RAS+ axes whatever the orientation of its voxel grid.

    Parameters
    ----------
    scan
        The series; voxels outside its mask are zero in every map.
    method
        `ols` or `wls`.
    device
        Where the fit runs.
    names
        Which of `fa`, `md`, `ad`, `rd`, `dec`, `tensor`, `s0`, `coverage`.

    Returns
    -------
    dict
        float32: `fa` (X, Y, Z); `md`, `ad`, `rd` (X, Y, Z) mm²/s; `dec` (X, Y, Z, 3) colour FA,
        red = left-right, green = anterior-posterior, blue = inferior-superior; `tensor` (X, Y, Z, 6) mm²/s,
        lower triangle Dxx, Dxy, Dyy, Dxz, Dyz, Dzz in world RAS+; `s0` (X, Y, Z) scanner units; `coverage`
        (X, Y, Z) 1 where the samples of a voxel determine a tensor. All others are 0 where they do not.
    """
    signal = torch.as_tensor(np.asarray(scan.data[scan.mask], dtype=np.float32), device=device)
    directions = scan.gradients.world_directions(scan.affine)
    fit = fit_tensor(signal, scan.gradients.bvals, directions, method)
    determined = fit.s0 > 0
    maps = {"tensor": fit.tensor, "s0": fit.s0} | tensor_maps(fit)
    maps = {name: values * determined.reshape(-1, *[1] * (values.ndim - 1)) for name, values in maps.items()}
    maps["coverage"] = determined
    volumes = {}
    for name in names:
        values = maps[name].cpu().numpy()
        volumes[name] = np.zeros(scan.mask.shape + values.shape[1:], dtype=np.float32)
        volumes[name][scan.mask] = values
    return volumes


def _each_chunk(work: Callable[[slice], None], voxels: torch.Tensor, larger: int = 1) -> None:
    """Call work on slices of `CHUNK_VOXELS`, or `larger` times as many where a voxel needs less memory.

    On a CPU every thread takes chunks of its own: operations on one are so short that waking the other threads
    for each costs more than they save.
    """
    largest = larger * CHUNK_VOXELS.get(voxels.device.type, CHUNK_VOXELS["cuda"])
    threads = torch.get_num_threads() if voxels.device.type == "cpu" else 1
    count = math.ceil(len(voxels) / (largest * threads)) * threads
    step = math.ceil(len(voxels) / max(count, 1))
    chunks = [slice(start, start + step) for start in range(0, len(voxels), max(step, 1))]
    if threads == 1 or len(voxels) < SMALL_VOXELS:
        for chunk in chunks:
            work(chunk)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, chunks))
    finally:  # the setting also holds for threads that start later
        torch.set_num_threads(before)


def _with_gaps(log_signal: torch.Tensor, present: torch.Tensor, design: torch.Tensor, method: str) -> torch.Tensor:
    """Return the (7, v) solution from the samples that are present (N, v); tensor 0 and S0 0 where they are too few."""
    solution, determined = _weighted(present.to(torch.float64), log_signal, design)
    if method == "wls":
        exponent = 2 * (design @ solution)
        weights = (exponent - exponent.masked_fill(~present, -torch.inf).amax(dim=0)).exp() * present
        again, sound = _weighted(torch.nan_to_num(weights), log_signal, design)
        solution = torch.where(sound, again, solution)
    nothing = design.new_zeros(7)
    nothing[6] = -torch.inf
    return torch.where(determined, solution, nothing[:, None]).to(torch.float32)


def _weighted(
    weights: torch.Tensor, log_signal: torch.Tensor, design: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (7, v) solution of X^T W X beta = X^T W y, and (v,) where the weights determine it."""
    system = torch.einsum("np,nv,nq->vpq", design, weights, design)
    values = torch.linalg.eigvalsh(system)
    determined = values[:, 0] > LEAST_CONDITION * values[:, -1]
    system[~determined] = torch.eye(7, dtype=system.dtype, device=system.device)
    target = torch.einsum("np,nv->vp", design, weights * log_signal)
    return torch.linalg.solve(system, target[..., None])[..., 0].T, determined


def _reweighted(ols: torch.Tensor, log_signal: torch.Tensor, design: torch.Tensor) -> torch.Tensor:
    """Return the (7, v) weighted solution of X^T W X beta = X^T W y, W from the (7, v) ordinary one."""
    n, p = design.shape
    # Strong attenuation spreads the weights over many orders of magnitude: solve in double precision. Their
    # common factor cancels, so the largest is set to one.
    exponent = 2 * (design.to(torch.float32) @ ols)  # (N, v)
    weights = (exponent - exponent.amax(dim=0)).exp_().to(torch.float64)
    products = (design[:, :, None] * design[:, None, :]).reshape(n, p * p)
    system = torch.empty(p, p + 1, ols.shape[1], dtype=torch.float64, device=ols.device)
    system[:, :p] = (products.T @ weights).view(p, p, -1)
    system[:, p] = design.T @ (weights * log_signal)
    for k in range(p):  # elimination needs no pivoting: the matrix is positive definite
        system[k, k + 1 :] /= system[k, k].clone()
        column = system[k + 1 :, k, None].clone()
        system[k + 1 :, k + 1 :].addcmul_(column, system[k, None, k + 1 :], value=-1)
    for k in range(p - 1, 0, -1):
        system[:k, p].addcmul_(system[:k, k], system[k, p], value=-1)
    solution = system[:, p].to(torch.float32)
    # Where all weight lies on too few volumes to determine seven unknowns, the ordinary solution stands.
    return torch.where(solution.isfinite().all(dim=0), solution, ols)


def _determinant(matrix: torch.Tensor) -> torch.Tensor:
    """Return (V,) determinants of symmetric matrices (6, V)."""
    xx, xy, yy, xz, yz, zz = matrix
    first: torch.Tensor = (yy * zz).addcmul_(yz, yz, value=-1).mul_(xx)
    second = (xz * yz).addcmul_(xy, zz, value=-1).mul_(xy)
    third = (xy * yz).addcmul_(yy, xz, value=-1).mul_(xz)
    return first.add_(second).add_(third)


def _null_vector(matrix: torch.Tensor, eigenvalue: torch.Tensor) -> torch.Tensor:
    """Return (3, V) unit eigenvectors of symmetric matrices (6, V) for a simple, largest eigenvalue (V,).

    The adjugate of the singular M - lambda I is a positive multiple of v v^T: its column with the largest
    diagonal entry, normalised, is v.
    """
    xx, xy, yy, xz, yz, zz = matrix
    xx, yy, zz = xx - eigenvalue, yy - eigenvalue, zz - eigenvalue
    adjugate = matrix.new_empty(3, 3, matrix.shape[1])
    torch.mul(yy, zz, out=adjugate[0, 0]).addcmul_(yz, yz, value=-1)
    torch.mul(xx, zz, out=adjugate[1, 1]).addcmul_(xz, xz, value=-1)
    torch.mul(xx, yy, out=adjugate[2, 2]).addcmul_(xy, xy, value=-1)
    adjugate[0, 1] = adjugate[1, 0] = (xz * yz).addcmul_(xy, zz, value=-1)
    adjugate[0, 2] = adjugate[2, 0] = (xy * yz).addcmul_(yy, xz, value=-1)
    adjugate[1, 2] = adjugate[2, 1] = (xy * xz).addcmul_(xx, yz, value=-1)
    x, y, z = adjugate[0, 0], adjugate[1, 1], adjugate[2, 2]
    larger = torch.ge(x, y, out=torch.empty_like(x))
    vector = torch.lerp(adjugate[1], adjugate[0], larger)
    larger = torch.ge(torch.maximum(x, y), z, out=larger)
    vector = torch.lerp(adjugate[2], vector, larger)
    return vector.mul_(_dot(vector, vector).rsqrt_())


def _plane(axis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (3, V) unit vectors u, w with u x w = axis (Duff et al. 2017)."""
    x, y, z = axis
    sign = torch.ge(z, 0, out=torch.empty_like(z)).mul_(2).sub_(1)
    a = (sign + z).reciprocal_().neg_()
    xa, ya = x * a, y * a
    u = torch.stack([(xa * x).mul_(sign).add_(1), (xa * y).mul_(sign), -sign * x])
    w = torch.stack([xa * y, (ya * y).add_(sign), -y])
    return u, w


def _product(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return symmetric matrices (6, V) times vectors (3, V)."""
    x, y, z = vector
    xx, xy, yy, xz, yz, zz = matrix
    result = torch.empty_like(vector)
    for row, (a, b, c) in zip(result, ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz)), strict=True):
        torch.mul(a, x, out=row).addcmul_(b, y).addcmul_(c, z)
    return result


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return (V,) products of vectors (3, V)."""
    return (a[0] * b[0]).addcmul_(a[1], b[1]).addcmul_(a[2], b[2])
