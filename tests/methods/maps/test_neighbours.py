"""Neighbour attention: the maps of a scan, what its record says, and the training call."""

import numpy as np
import pytest
import torch

from bids_dmrigen.cli.train import main
from bids_dmrigen.diffusion.arrays import write_prepared
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import MAP_NAMES, fit_maps, principal_direction
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request

TENSOR = np.array([[1.4, 0.2, 0.1], [0.2, 0.5, 0.0], [0.1, 0.0, 0.3]]) * 1e-3


def scan_of(n=6, bvals=(1000.0,), noise=0.5, shape=(16, 12, 5), affine=None, n_b0=2, scale=100.0):
    """One tensor everywhere, with varying brightness."""
    affine = np.diag([2.0, 2, 3, 1]) if affine is None else affine
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    world = np.concatenate([np.zeros((n_b0, 3)), *[even_directions(n) @ turn for _ in bvals]])
    gradients = GradientTable.from_world(np.r_[np.zeros(n_b0), np.repeat(bvals, n)], world, affine)
    rng = np.random.default_rng(0)
    brightness = rng.uniform(0.7, 1.5, (*shape, 1))
    data = 100 * brightness * np.exp(-gradients.bvals * np.einsum("ni,ij,nj->n", world, TENSOR, world))
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2] = True
    noisy = (data + rng.normal(0, noise, data.shape)) * scale / 100
    return Scan(noisy.astype(np.float32), affine, gradients, mask)


def maps_of(scan, **more):
    method = load("neighbours")
    return method.generate(method.network("small"), scan, Request(subject="01", run="r", **more))


@pytest.mark.parametrize("n_b0", [1, 2, 20])
def test_untrained_it_gives_the_tensor_of_a_uniform_scan(n_b0):
    scan = scan_of(n_b0=n_b0)
    generated = maps_of(scan)
    maps, inside = generated.named_maps(), scan.mask
    eigenvalues = np.linalg.eigvalsh(TENSOR)
    fa = np.sqrt(1.5) * np.linalg.norm(eigenvalues - eigenvalues.mean()) / np.linalg.norm(eigenvalues)
    assert np.abs(maps["fa"][inside] - fa).mean() < 0.02
    np.testing.assert_allclose(maps["md"][inside], eigenvalues.mean(), rtol=0.03)
    np.testing.assert_allclose(np.linalg.norm(maps["dec"][inside], axis=1), maps["fa"][inside], atol=1e-5)
    expected = fit_maps(scan, "ols", names=("dec",))["dec"]
    assert np.abs(maps["dec"][inside] - expected[inside]).mean() < 0.03
    least, middle, largest = eigenvalues
    np.testing.assert_allclose(maps["ad"][inside].mean(), largest, rtol=0.03)
    np.testing.assert_allclose(maps["rd"][inside].mean(), (least + middle) / 2, rtol=0.06)
    lower = TENSOR[[0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]]
    np.testing.assert_allclose(maps["tensor"][inside].mean(axis=0), lower, atol=3e-5)
    assert not generated.mean[~inside].any()
    assert generated.samples is None
    unknown = generated.extra["unknown"]
    assert unknown[inside].min() > 0
    assert not unknown[~inside].any()
    # Untrained, the power of the unknown part is the variance of a diffusivity's noise: sigma / (S b).
    sigma = 0.5 / (100 * np.exp(-1000 * np.trace(TENSOR) / 3)) / 1000
    if n_b0 > 1:  # with one b0 the noise level of this scan, whose brightness varies, is only roughly known
        assert np.median(unknown[inside]) == pytest.approx(sigma, rel=0.5)


def test_its_maps_are_those_of_its_tensor():
    """In an oblique frame, where the tensor could be in the axes of the grid instead of those of the world."""
    affine = np.diag([-2.0, 2, 3, 1])
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0] @ affine[:3, :3]
    scan = scan_of(affine=affine)
    maps = maps_of(scan).named_maps()
    assert tuple(maps) == MAP_NAMES
    matrices = maps["tensor"][scan.mask][:, [0, 1, 3, 1, 2, 4, 3, 4, 5]].reshape(-1, 3, 3)
    values, vectors = np.linalg.eigh(matrices)
    np.testing.assert_allclose(maps["ad"][scan.mask], values[:, 2], rtol=1e-3)
    np.testing.assert_allclose(maps["rd"][scan.mask], values[:, :2].mean(axis=1), rtol=1e-3)
    colour = np.abs(vectors[:, :, 2]) * maps["fa"][scan.mask][:, None]
    np.testing.assert_allclose(maps["dec"][scan.mask], colour, atol=2e-3)
    direction = principal_direction(maps["tensor"])[scan.mask]
    np.testing.assert_allclose(np.abs((direction * vectors[:, :, 2]).sum(axis=1)), 1, atol=1e-4)
    fitted = fit_maps(scan, "ols", names=("tensor",))["tensor"][scan.mask]
    assert np.abs(maps["tensor"][scan.mask] - fitted).mean() < 3e-5


def test_the_scale_of_the_scan_does_not_matter():
    first, second = maps_of(scan_of()), maps_of(scan_of(scale=7e-4))
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-3)  # rounding may move a patch across a threshold


def test_the_record_names_the_volumes_of_the_shell_that_is_used():
    generated = maps_of(scan_of(8, (1000.0, 2500.0)))
    volumes = generated.record["Volumes"]
    assert volumes["b0"] == [0, 1]
    assert len(volumes["b=1000"]) == 6
    assert max(volumes["b=1000"]) < 10
    assert generated.record["Sampler"]["NetworkEvaluations"] == 1
    assert any("6 of 8 directions" in warning for warning in generated.warnings)


def test_it_learns_from_scans_and_from_simulated_subjects_and_its_card_says_so(tmp_path, capsys):
    from bids_dmrigen.simulate.atlas_file import save_atlas

    from ...simulate.conftest import make_ball

    atlas = save_atlas(tmp_path / "ball.safetensors", make_ball())
    scans = [(f"run{k}", f"0{k}", scan_of(14, shape=(30, 28, 9)), 0.5) for k in range(2)]
    write_prepared(tmp_path / "scans.safetensors", scans)
    call = ["neighbours", "--out", str(tmp_path / "out"), "--data", str(tmp_path / "scans.safetensors"), "--steps", "2"]
    call += ["--atlas", str(atlas), "--subjects", "1", "--batch", "1", "--device", "cpu", "--precision", "fp32"]
    assert main(call) == 0, capsys.readouterr().err
    net = load("neighbours").network("small")
    from bids_dmrigen.diffusion.weights import load_weights

    _, card = load_weights(net, str(tmp_path / "out/neighbours-small.safetensors"), "neighbours", "small")
    assert card.trained_on["examples"] == "prepared scans and simulated subjects"
    assert card.trained_on["train"] == ["run1"]
    assert card.trained_on["held out"] == ["run0"]
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert isinstance(net, torch.nn.Module)
