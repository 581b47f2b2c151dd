"""What Diff-DTI starts from, and how much anisotropy a scan shows."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.smoothing import smooth_contrast
from bids_dmrigen.methods import load
from bids_dmrigen.methods import starts as all_starts
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.maps import balance
from bids_dmrigen.methods.maps.balance import anisotropy_factor, sized, tensor_in
from bids_dmrigen.methods.maps.starts import starts_of_few
from bids_dmrigen.methods.rivals import RIVALS, wls

VALUES = np.array([1.5, 0.5, 0.4]) * 1e-3
SHAPE = (26, 24, 10)


def scan_of(noise, n=6, affine=None, seed=0, extra_shell=False):
    """Two regions with one tensor each, in a frame that is not that of the grid."""
    affine = np.diag([-2.0, 2, 2.5, 1]) if affine is None else affine
    rng = np.random.default_rng(seed)
    turns = [np.linalg.qr(np.random.default_rng(k).normal(size=(3, 3)))[0] for k in (1, 2)]
    directions = even_directions(n) @ turns[1]
    bvals, world = np.r_[0.0, np.full(n, 1000.0)], np.concatenate([np.zeros((1, 3)), directions])
    if extra_shell:
        bvals, world = np.r_[0.0, np.full(n, 2500.0), bvals[1:]], np.concatenate([world[:1], directions, directions])
    table = GradientTable.from_world(bvals, world, affine)
    adc = np.stack([np.einsum("ni,ij,nj->n", world, t @ np.diag(VALUES) @ t.T, world) for t in turns])
    region = (np.arange(SHAPE[0]) >= SHAPE[0] // 2).astype(int)
    clean = np.broadcast_to((100 * np.exp(-bvals * adc))[region][:, None, None], (*SHAPE, len(bvals)))
    data = np.hypot(clean + rng.normal(0, noise, clean.shape), rng.normal(0, noise, clean.shape))
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2] = True
    return Scan(data.astype(np.float32), affine, table, mask)


def true_fa():
    rest = VALUES - VALUES.mean()
    return np.sqrt(1.5 * (rest**2).sum() / (VALUES**2).sum())


@pytest.mark.parametrize("noise", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("too_small", [1.0, 0.85])
def test_the_factor_brings_back_half_of_the_anisotropy_that_is_missing(noise, too_small):
    """At each noise level, the true tensors need the factor 1."""
    affine = np.diag([-2.0, 2, 2.5, 1])
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0] @ affine[:3, :3]
    scan = scan_of(noise, affine=affine)
    tensor = true_tensors()
    smaller = mean_part(tensor) + too_small * (tensor - mean_part(tensor))
    found = anisotropy_factor(scan, 1000.0, np.arange(1, 7), smaller)
    assert found == pytest.approx(too_small**-0.5, rel=0.02)


def true_tensors():
    """Tensors (X, Y, Z, 6) of `scan_of`, in 1e-3 mm²/s."""
    out = np.zeros((*SHAPE, 6), np.float32)
    for k, part in ((1, slice(None, SHAPE[0] // 2)), (2, slice(SHAPE[0] // 2, None))):
        turn = np.linalg.qr(np.random.default_rng(k).normal(size=(3, 3)))[0]
        full = turn @ np.diag(1e3 * VALUES) @ turn.T
        out[part] = [*np.diag(full), *(2**0.5 * full[np.triu_indices(3, 1)])]
    return out


def mean_part(tensor):
    return tensor[..., :3].mean(axis=3, keepdims=True) * np.array([1, 1, 1, 0, 0, 0], np.float32)


def test_without_six_directions_or_a_noise_level_nothing_is_changed(monkeypatch):
    tensor = 0.7 * true_tensors()
    assert anisotropy_factor(scan_of(2.0, n=5), 1000.0, np.arange(1, 6), tensor) == 1

    def unknown(*_):
        raise ScanError("no noise")

    monkeypatch.setattr(balance, "sigma_of_few", unknown)
    assert anisotropy_factor(scan_of(2.0), 1000.0, np.arange(1, 7), tensor) == 1


def test_sized_tensors_keep_their_mean_and_directions_and_their_maps_agree():
    tensor = true_tensors()
    tensor[:3] = 0  # outside the brain
    found = sized(tensor, 0.8)
    assert not found[:3].any()
    fa, md, ad, rd = np.moveaxis(found[3:, ..., :4], 3, 0)
    rest = 0.8 * (VALUES - VALUES.mean())
    values = VALUES.mean() + rest
    np.testing.assert_allclose(fa, np.sqrt(1.5 * (rest**2).sum() / (values**2).sum()), rtol=1e-4)
    np.testing.assert_allclose(md, VALUES.mean(), rtol=1e-5)
    np.testing.assert_allclose(ad, values[0], rtol=1e-4)
    np.testing.assert_allclose(rd, values[1:].mean(), rtol=1e-4)
    again = tensor_in(found)
    np.testing.assert_allclose(again[3:] - mean_part(again)[3:], 0.8 * (tensor - mean_part(tensor))[3:], atol=1e-5)


def test_the_starts_are_the_simple_estimates_of_the_volumes_that_are_used():
    scan = scan_of(3.0, extra_shell=True)
    chosen = np.array([7, 9, 12, 8, 11, 10])
    found = starts_of_few(scan, chosen)
    assert list(found) == ["acquired", "smooth", "mppca"]
    few = found["acquired"]
    np.testing.assert_array_equal(few.data, scan.data[..., np.r_[0, chosen]])
    np.testing.assert_array_equal(few.gradients.bvals, scan.gradients.bvals[np.r_[0, chosen]])
    np.testing.assert_array_equal(found["smooth"].data, smooth_contrast(few).data)
    np.testing.assert_array_equal(found["mppca"].data, smooth_contrast(RIVALS["mppca"](few).series).data)
    truth = true_fa()
    errors = {name: np.abs(wls(series).maps()["fa"] - truth)[scan.mask].mean() for name, series in found.items()}
    assert errors["mppca"] < errors["smooth"] < errors["acquired"]


def test_where_the_noise_is_unknown_or_directions_are_few_the_acquired_volumes_are_the_only_start(monkeypatch):
    def unknown(*_):
        raise ScanError("no noise")

    assert list(starts_of_few(scan_of(3.0, n=5), np.arange(1, 6))) == ["acquired"]
    monkeypatch.setattr(all_starts, "smooth_contrast", unknown)
    assert list(starts_of_few(scan_of(3.0), np.arange(1, 7))) == ["acquired"]


def test_a_map_is_the_mean_over_the_starts_with_the_anisotropy_of_the_scan(monkeypatch):
    scan, method = scan_of(4.0), load("diffdti")
    net = method.network("small")  # untrained, it keeps the maps of the fit to what it sees
    series = starts_of_few(scan, np.arange(1, 7))

    def made(*names):
        monkeypatch.setattr("bids_dmrigen.methods.maps.slices.starts_of_few", lambda *_: {n: series[n] for n in names})
        return method.generate(net, scan, Request(subject="01", run="r"))

    whole = made(*series)
    assert whole.record["StartsFrom"] == ["acquired", "smooth", "mppca"]
    factor = whole.record["AnisotropyFactor"]
    assert 0.8 <= factor <= 1.25
    monkeypatch.setattr("bids_dmrigen.methods.maps.slices.anisotropy_factor", lambda *_: 1.0)
    raw = made("acquired").named_maps()
    unscaled = made(*series).named_maps()
    inside = scan.mask
    tensors = [tensor_in(m["tensor"])[inside] for m in (whole.named_maps(), unscaled)]
    rest = [t - mean_part(t[None, None])[0, 0] for t in tensors]
    np.testing.assert_allclose(rest[0], factor * rest[1], atol=1e-3)
    np.testing.assert_allclose(whole.named_maps()["md"][inside], unscaled["md"][inside], rtol=0.02)
    error = {k: np.abs(m["fa"] - true_fa())[inside].mean() for k, m in (("raw", raw), ("mean", unscaled))}
    assert error["mean"] < 0.9 * error["raw"]
    assert np.abs(whole.named_maps()["fa"][inside].mean() - true_fa()) < 0.03
