"""The tensor fit against DIPY and closed forms, the eigen-solver against LAPACK."""

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel, from_lower_triangular

from bids_dmrigen.dwi import tensor as module
from bids_dmrigen.dwi.gradients import GradientError, GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import (
    MAP_NAMES,
    anisotropic_part,
    eigen_symmetric,
    fit_maps,
    fit_tensor,
    tensor_maps,
)

RELATIVE = 1e-4
OBLIQUE = np.array([[-1.9, 0.3, 0.4, 90], [0.3, 2.0, -0.4, -100], [0.5, 0.4, 2.4, -60], [0, 0, 0, 1.0]])


def table(n_b0=2, shells=((1000.0, 30),)):
    bvals = np.concatenate([np.zeros(n_b0), *(np.full(n, b) for b, n in shells)])
    return bvals, np.concatenate([np.zeros((n_b0, 3)), *(even_directions(n) for _, n in shells)])


def noisy_signals(n_voxels, bvals, directions, snr=20, seed=0):
    rng = np.random.default_rng(seed)
    eigenvalues = rng.uniform(0.1e-3, 2.8e-3, (n_voxels, 3))
    eigenvalues[: n_voxels // 4] = rng.uniform(0.6e-3, 3e-3, (n_voxels // 4, 1))  # isotropic
    eigenvalues[n_voxels // 4 : n_voxels // 2, 1:] = 0.3e-3  # cylinders
    frames, _ = np.linalg.qr(rng.standard_normal((n_voxels, 3, 3)))
    adc = np.einsum("vnk,vk->vn", np.einsum("nj,vjk->vnk", directions, frames) ** 2, eigenvalues)
    clean = 800 * np.exp(-bvals * adc)
    noise = rng.standard_normal((2, *clean.shape)) * 800 / snr
    return np.hypot(clean + noise[0], noise[1]).astype(np.float32), eigenvalues, frames


def lower_triangle(matrix):
    return matrix[..., [0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]]


@pytest.mark.parametrize("method", ["ols", "wls"])
@pytest.mark.parametrize("shells", [((1000.0, 12),), ((1000.0, 30),), ((700.0, 12), (2500.0, 30))])
def test_fit_equals_dipy(method, shells):
    bvals, directions = table(shells=shells)
    signal, *_ = noisy_signals(3000, bvals, directions)
    reference = TensorModel(gradient_table(bvals, bvecs=directions), fit_method=method.upper(), return_S0_hat=True).fit(
        signal
    )
    fit = fit_tensor(torch.from_numpy(signal), bvals, directions, method)
    maps = tensor_maps(fit)
    for name in ("fa", "md", "ad", "rd"):
        expected = getattr(reference, name)
        np.testing.assert_allclose(maps[name], expected, rtol=RELATIVE, atol=RELATIVE * 1e-3, err_msg=name)
    np.testing.assert_allclose(maps["eigenvalues"], reference.evals, rtol=RELATIVE, atol=1e-8)
    np.testing.assert_allclose(fit.s0, reference.S0_hat, rtol=RELATIVE)
    physical = reference.evals.min(axis=1) > 1e-5  # DIPY keeps the tensor only after clipping
    expected = lower_triangle(reference.quadratic_form)
    size = np.abs(expected).max(axis=1, keepdims=True)
    assert np.abs(fit.tensor.numpy() - expected)[physical].max() < RELATIVE * size.max()
    assert (np.abs(fit.tensor.numpy() - expected) / size)[physical].max() < RELATIVE
    aligned = np.abs(np.einsum("vik,vik->vk", maps["eigenvectors"], reference.evecs))
    distinct = np.diff(reference.evals, axis=1).max(axis=1) < -5e-5
    assert aligned[distinct].min() > 1 - 1e-4
    np.testing.assert_allclose(maps["dec"][distinct], reference.color_fa[distinct], atol=2e-3)


def test_weights_matter_and_agree_without_noise():
    bvals, directions = table(shells=((1000.0, 12), (3000.0, 12)))
    signal, *_ = noisy_signals(500, bvals, directions, snr=8)
    ols, wls = (fit_tensor(torch.from_numpy(signal), bvals, directions, m).tensor for m in ("ols", "wls"))
    assert (ols - wls).abs().median() > 1e-5
    clean, eigenvalues, frames = noisy_signals(500, bvals, directions, snr=1e9)
    expected = lower_triangle(np.einsum("vik,vk,vjk->vij", frames, eigenvalues, frames))
    for method in ("ols", "wls"):
        found = fit_tensor(torch.from_numpy(clean), bvals, directions, method).tensor
        np.testing.assert_allclose(found, expected, atol=3e-8)


def test_chunks_do_not_matter(monkeypatch):
    bvals, directions = table()
    signal = torch.from_numpy(noisy_signals(1000, bvals, directions)[0])
    whole = tensor_maps(fit_tensor(signal, bvals, directions))
    monkeypatch.setitem(module.CHUNK_VOXELS, "cpu", 77)
    parts = tensor_maps(fit_tensor(signal, bvals, directions))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-4 * whole[name].abs().max().item())


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([3.0, 2.0, 1.0], "distinct"),
        ([2.0, 1.0, 0.0], "zero determinant of the deviator"),
        ([3.0, 1.0, 1.0], "prolate"),
        ([2.0, 2.0, 1.0], "oblate"),
        ([1.0, 1.0 - 1e-5, 1.0 - 2e-5], "nearly isotropic"),
        ([1.0, 1.0, 1.0], "isotropic"),
        ([0.0, 0.0, 0.0], "zero"),
        ([1.0, 0.2, -0.4], "indefinite"),
    ],
)
def test_eigen_system_of_special_tensors(values, label):
    rng = np.random.default_rng(1)
    frames, _ = np.linalg.qr(rng.standard_normal((200, 3, 3)))
    frames[0] = np.eye(3)
    matrices = np.einsum("vik,k,vjk->vij", frames, 1e-3 * np.array(values), frames)
    found, vectors = eigen_symmetric(torch.from_numpy(lower_triangle(matrices)).to(torch.float32))
    found, vectors = found.numpy().T.astype(float), vectors.permute(2, 0, 1).numpy().astype(float)
    np.testing.assert_allclose(found, np.broadcast_to(1e-3 * np.array(values), found.shape), atol=2e-9)
    assert (np.diff(found, axis=1) <= 1e-9).all()
    gram = np.einsum("vik,vil->vkl", vectors, vectors)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=2e-6)
    rebuilt = np.einsum("vik,vk,vjk->vij", vectors, found, vectors)
    np.testing.assert_allclose(rebuilt, matrices, atol=3e-9)


def test_eigen_system_equals_lapack():
    triangles = np.random.default_rng(2).normal(0, 1e-3, (5000, 6))
    expected, frames = np.linalg.eigh(from_lower_triangular(triangles))
    values, vectors = eigen_symmetric(torch.from_numpy(triangles))
    np.testing.assert_allclose(values.T, expected[:, ::-1], atol=1e-12)
    aligned = np.abs(np.einsum("vik,vik->vk", vectors.permute(2, 0, 1), frames[:, :, ::-1]))
    assert aligned.min() > 1 - 1e-6


@pytest.mark.parametrize("handedness", [1, -1])
def test_maps_are_in_world_axes(handedness):
    affine = OBLIQUE @ np.diag([handedness, 1, 1, 1.0])
    bvals, world = table()
    axis = np.array([0.6, 0.64, 0.48])
    tensor = 0.3e-3 * np.eye(3) + 1.4e-3 * np.outer(axis, axis)
    shape = (3, 4, 5)
    signal = 500 * np.exp(-bvals * np.einsum("ni,ij,nj->n", world, tensor, world))
    data = np.broadcast_to(signal, (*shape, len(bvals))).astype(np.float32)
    mask = np.zeros(shape, dtype=bool)
    mask[1:] = True
    scan = Scan(data, affine, GradientTable.from_world(bvals, world, affine), mask)
    maps = fit_maps(scan, names=("fa", "md", "dec", "tensor", "s0"))
    np.testing.assert_allclose(maps["tensor"][mask], np.broadcast_to(lower_triangle(tensor), (40, 6)), atol=3e-8)
    np.testing.assert_allclose(maps["dec"][mask] / maps["fa"][mask, None], np.tile(axis, (40, 1)), atol=1e-3)
    np.testing.assert_allclose(maps["md"][mask], np.trace(tensor) / 3, rtol=1e-4)
    np.testing.assert_allclose(maps["s0"][mask], 500, rtol=1e-4)
    assert all(volume.dtype == np.float32 and not volume[~mask].any() for volume in maps.values())


def test_bad_input_is_refused():
    bvals, directions = table(n_b0=1, shells=((1000.0, 5),))
    signal = torch.ones(4, 6)
    message = module.RANK_DEFICIENT.format(rank=6, n_b0=1, n_directions=5)
    with pytest.raises(GradientError) as error:
        fit_tensor(signal, bvals, directions)
    assert str(error.value) == message
    with pytest.raises(ValueError, match="unknown tensor fit 'nlls'"):
        fit_tensor(signal, bvals, directions, method="nlls")
    with pytest.raises(ValueError, match=r"\(voxels, 6\), found \(4, 5\)"):
        fit_tensor(signal[:, :5], bvals, directions)


def test_one_shell_without_b0_is_refused():
    bvals, directions = table(n_b0=0)
    with pytest.raises(GradientError, match="determines 6 of the tensor's 7 unknowns"):
        fit_tensor(torch.ones(4, 30), bvals, directions)


def test_pathological_signals_stay_finite():
    bvals, directions = table(shells=((3000.0, 12),))
    signal = torch.tensor([[0.0], [1e-30], [1e30], [5.0]]).expand(4, len(bvals)).clone()
    signal = torch.cat([signal, torch.where(torch.as_tensor(bvals) > 0, 1e-4, 1e6)[None].float()])
    for method in ("ols", "wls"):
        fit = fit_tensor(signal, bvals, directions, method)
        maps = tensor_maps(fit)
        assert all(torch.isfinite(values).all() for values in [fit.tensor, *maps.values()])


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_missing_samples_are_left_out_of_the_fit(method):
    """A voxel is fitted to its positive samples: the fit of DIPY to these volumes alone."""
    bvals, directions = table()
    signal, *_ = noisy_signals(200, bvals, directions)
    gaps = np.random.default_rng(5).random(signal.shape) < 0.1
    gaps[:20] = False
    gaps[:, 0] = False  # a b0 is left
    with_gaps = np.where(gaps, 0, signal)
    fit = fit_tensor(torch.from_numpy(with_gaps), bvals, directions, method)
    for v in range(len(signal)):
        kept = ~gaps[v]
        alone = fit_tensor(torch.from_numpy(signal[v : v + 1, kept]), bvals[kept], directions[kept], method)
        torch.testing.assert_close(fit.tensor[v], alone.tensor[0], atol=2e-8, rtol=2e-3)
        torch.testing.assert_close(fit.s0[v], alone.s0[0], atol=0, rtol=1e-4)


def test_voxels_that_no_tensor_can_be_fitted_to_are_zero_in_every_map():
    bvals, directions = table()
    signal, *_ = noisy_signals(3, bvals, directions)
    signal[0, 5:] = 0  # five samples are left
    signal[1] = -1
    gradients = GradientTable.from_world(bvals, directions, np.eye(4))
    scan = Scan(signal[:, None, None].astype(np.float32), np.eye(4), gradients, np.ones((3, 1, 1), bool))
    maps = fit_maps(scan, names=(*MAP_NAMES, "s0", "coverage"))
    assert maps["coverage"].ravel().tolist() == [0, 0, 1]
    for name, values in maps.items():
        assert not values[:2].any(), name
        assert np.isfinite(values).all()
        assert values[2].any(), name


@pytest.mark.parametrize("unit", [1e-7, 1e6])
def test_maps_do_not_depend_on_the_unit_of_the_signal(unit):
    bvals, directions = table()
    signal, *_ = noisy_signals(50, bvals, directions)
    one, other = (tensor_maps(fit_tensor(torch.from_numpy(s), bvals, directions)) for s in (signal, signal * unit))
    torch.testing.assert_close(other["fa"], one["fa"], atol=2e-5, rtol=0)
    torch.testing.assert_close(other["md"], one["md"], atol=1e-8, rtol=1e-4)


def test_products_of_anisotropic_parts_are_those_of_matrices():
    rng = np.random.default_rng(0)
    matrices = [m + m.T for m in rng.normal(size=(2, 3, 3))]
    triangles = [m[np.tril_indices(3)] for m in matrices]
    expected = np.sum((matrices[0] - np.trace(matrices[0]) / 3 * np.eye(3)) * matrices[1])
    one, other = anisotropic_part(np.array(triangles))
    assert one @ other == pytest.approx(expected)
