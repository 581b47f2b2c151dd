"""The check of generated tensor maps against the data: closed forms."""

import numpy as np
import pytest
import torch

from bids_dmrigen.dwi.gradients import GradientError, GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import TensorFit, fit_maps, tensor_maps
from bids_dmrigen.qc.tensor_check import check_maps, tensor_of_maps

AFFINE = np.diag([-2.0, 2, 2, 1])  # the world's axes are not the voxels'


def tensors(n=300, seed=0):
    """Random tensors with positive eigenvalues, lower triangles."""
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    values = rng.uniform(0.2e-3, 2.5e-3, (n, 3))
    full = np.einsum("vij,vj,vkj->vik", frame, values, frame)
    rows, columns = np.tril_indices(3)
    return TensorFit(torch.from_numpy(full[:, rows, columns]), torch.ones(n).double(), 1e-6)


def scan_of(directions=12, noise=0.0, shape=(12, 10, 5)):
    rng = np.random.default_rng(1)
    world = np.concatenate([np.zeros((1, 3)), even_directions(directions)])
    gradients = GradientTable.from_world(np.r_[0.0, np.full(directions, 1000.0)], world, AFFINE)
    rows, columns = np.tril_indices(3)
    full = np.zeros((int(np.prod(shape)), 3, 3))
    full[:, rows, columns] = full[:, columns, rows] = tensors(len(full), 2).tensor.numpy()
    data = 100 * np.exp(-gradients.bvals * np.einsum("ni,vij,nj->vn", world, full, world))
    mask = np.ones(shape, bool)
    mask[0] = False
    data = data.reshape(*shape, -1) + noise * rng.normal(size=(*shape, 1 + directions))
    return Scan(data.astype(np.float32), AFFINE, gradients, mask)


def test_the_maps_of_a_tensor_give_the_same_tensor():
    fit = tensors()
    maps = tensor_maps(fit)
    found = tensor_of_maps(fit, maps["fa"], maps["md"], maps["dec"])
    torch.testing.assert_close(found, fit.tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("anisotropy", [0.3, 0.9, 0.99])
def test_a_tensor_built_from_other_maps_has_these_maps(anisotropy):
    """With another tensor's axis; flat fits too, whose shape cannot be kept where anisotropy is high."""
    fit, other = tensors(), tensor_maps(tensors(seed=5))
    fa, md = anisotropy * torch.ones(300).double(), 0.8e-3 * torch.ones(300).double()
    dec = fa[:, None] * other["dec"] / other["dec"].norm(dim=1, keepdim=True)
    maps = tensor_maps(TensorFit(tensor_of_maps(fit, fa, md, dec), fit.s0, 1e-9))
    for name, wanted in (("fa", fa), ("md", md), ("dec", dec)):
        torch.testing.assert_close(maps[name], wanted, rtol=1e-5, atol=1e-8)


def test_without_noise_the_residual_of_the_true_maps_is_zero_and_that_of_others_is_not():
    scan = scan_of()
    maps = fit_maps(scan, names=("fa", "md", "dec"))
    check = check_maps(scan, 1000.0, **maps)
    assert check.volumes.tolist() == list(range(1, 13))
    assert np.abs(check.generated).max() < 0.01
    assert np.abs(check.fitted).max() < 0.01
    wrong = check_maps(scan, 1000.0, maps["fa"], 1.2 * maps["md"], maps["dec"])
    assert np.abs(wrong.generated[scan.mask]).mean() > 1
    assert not wrong.generated[~scan.mask].any()


def test_true_maps_leave_noise_and_six_directions_fit_it():
    truth = fit_maps(scan_of(6), names=("fa", "md", "dec"))
    scan = scan_of(6, noise=1.0)
    check = check_maps(scan, 1000.0, **truth)
    rms = np.sqrt((check.generated[scan.mask] ** 2).mean())
    assert 1.0 < rms < 1.8, "noise of the volume and, attenuated, of the b0; what maps leave open has the fit's noise"
    assert np.sqrt((check.fitted[scan.mask] ** 2).mean()) < 0.8


def test_five_directions_are_refused():
    scan = scan_of(5)
    nothing = np.zeros(scan.mask.shape)
    with pytest.raises(GradientError, match="fewer than six"):
        check_maps(scan, 1000.0, nothing, nothing, np.zeros((*scan.mask.shape, 3)))
