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
from bids_dmrigen.methods.maps.balance import anisotropy_factor, scaled
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
def test_the_factor_brings_back_the_anisotropy_that_is_missing(noise, too_small):
    """At each noise level, maps of the true tensors need the factor 1."""
    affine = np.diag([-2.0, 2, 2.5, 1])
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0] @ affine[:3, :3]
    scan = scan_of(noise, affine=affine)
    fa, md = np.full(SHAPE, true_fa(), np.float32), np.full(SHAPE, VALUES.mean(), np.float32)
    # FA is not linear in the size of the anisotropic part: p depends on FA² / (3/2 - FA²).
    power = fa**2 / (1.5 - fa**2) * too_small**2
    smaller = np.sqrt(1.5 * power / (1 + power))
    found = anisotropy_factor(scan, 1000.0, np.arange(1, 7), smaller, md)
    assert found == pytest.approx(1 / too_small, rel=0.04)


def test_without_six_directions_or_a_noise_level_nothing_is_changed(monkeypatch):
    fa, md = np.full(SHAPE, 0.3, np.float32), np.full(SHAPE, 8e-4, np.float32)
    assert anisotropy_factor(scan_of(2.0, n=5), 1000.0, np.arange(1, 6), fa, md) == 1

    def unknown(*_):
        raise ScanError("no noise")

    monkeypatch.setattr(balance, "sigma_of_few", unknown)
    assert anisotropy_factor(scan_of(2.0), 1000.0, np.arange(1, 7), fa, md) == 1


def test_scaled_maps_keep_their_colour_and_their_range():
    rng = np.random.default_rng(0)
    colour = rng.uniform(0.1, 0.6, (4, 3, 2, 3)).astype(np.float32)
    fa = np.linalg.norm(colour, axis=3, keepdims=True)
    maps = np.concatenate([fa, np.full_like(fa, 7e-4), colour], axis=3)
    maps[0, 0, 0] = 0
    found, std = scaled(maps, 0.1 * maps, 1.25)
    np.testing.assert_allclose(found[..., :1], np.minimum(1.25 * maps[..., :1], 1), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[..., 2:], axis=3), found[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(found[..., 1], maps[..., 1])
    np.testing.assert_allclose(std, 0.1 * found, rtol=1e-5)
    assert scaled(maps, None, 1.1)[1] is None


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
        monkeypatch.setattr(
            "bids_dmrigen.methods.maps.diffdti_model.starts_of_few", lambda *_: {n: series[n] for n in names}
        )
        return method.generate(net, scan, Request(subject="01", run="r"))

    whole = made(*series)
    assert whole.record["StartsFrom"] == ["acquired", "smooth", "mppca"]
    factor = whole.record["AnisotropyFactor"]
    assert 0.8 <= factor <= 1.25
    monkeypatch.setattr("bids_dmrigen.methods.maps.diffdti_model.anisotropy_factor", lambda *_: 1.0)
    raw = made("acquired").named_maps()
    unscaled = made(*series).named_maps()
    np.testing.assert_allclose(whole.named_maps()["md"], unscaled["md"], rtol=1e-6)
    np.testing.assert_allclose(whole.named_maps()["fa"], np.minimum(factor * unscaled["fa"], 1), rtol=1e-3, atol=1e-5)
    inside = scan.mask
    error = {k: np.abs(m["fa"] - true_fa())[inside].mean() for k, m in (("raw", raw), ("mean", unscaled))}
    assert error["mean"] < 0.9 * error["raw"]
    assert np.abs(whole.named_maps()["fa"][inside].mean() - true_fa()) < 0.03
