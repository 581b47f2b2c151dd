"""The batched scanner: noise against closed forms, truncation against the Fourier series of an edge."""

import math

import pytest
import torch

from bids_dmrigen.dwi.noise import rician_mean
from bids_dmrigen.simulate.examples import numbers_of_step
from bids_dmrigen.simulate.imaging import Imaging, measure

EVEN = {"uneven": 0.0, "displaced": 0.0}
PLAIN = Imaging(snr=(20.0, 20.0), bias=0.0, coils=(1,), truncated=0.0, filtered=0.0, **EVEN)


def test_without_truncation_and_bias_magnitudes_are_rician():
    for level in (0.0, 0.1, 1.0):
        clean = torch.full((4, 8, 64, 64), level)
        result = measure(clean, torch.ones(4), numbers_of_step(0, 0), PLAIN)
        torch.testing.assert_close(result.sigma, torch.full((4,), 0.05))
        expected = rician_mean(torch.tensor(level), 0.05)
        assert float(result.signal.mean()) == pytest.approx(float(expected), rel=5e-3)
        assert float(result.signal.square().mean()) == pytest.approx(level**2 + 2 * 0.05**2, rel=0.01)


def test_more_coils_raise_the_floor_as_a_chi_distribution_does():
    coils = Imaging(snr=(20.0, 20.0), bias=0.0, coils=(4,), truncated=0.0, filtered=0.0, **EVEN)
    result = measure(torch.zeros(2, 8, 64, 64), torch.ones(2), numbers_of_step(0, 0), coils)
    expected = 0.05 * math.sqrt(2) * math.gamma(4.5) / math.gamma(4)  # of 8 degrees of freedom
    assert float(result.signal.mean()) == pytest.approx(expected, rel=5e-3)


def test_sigma_is_that_of_the_images_after_truncation_and_their_noise_is_correlated():
    cut = Imaging(
        snr=(20.0, 80.0),
        bias=0.0,
        coils=(1,),
        truncated=1.0,
        acquired=(0.6, 0.8),
        partial_fourier=0.0,
        filtered=0.0,
        **EVEN,
    )
    result = measure(torch.ones(4, 30, 48, 48), torch.ones(4), numbers_of_step(0, 0), cut)
    noise = result.signal - 1
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), result.sigma, rtol=0.02, atol=0)
    assert len(result.sigma.unique()) == 4
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean(dim=(1, 2, 3)) / result.sigma**2
    assert ((neighbours > 0.1) & (neighbours < 0.6)).all()


def test_a_filter_correlates_the_noise_of_neighbours_by_its_width():
    soft = Imaging(
        snr=(20.0, 20.0), bias=0.0, coils=(1,), truncated=0.0, filtered=1.0, roll_off=(0.2, 0.2), across=0.0, **EVEN
    )
    result = measure(torch.ones(2, 30, 64, 64, 3), torch.ones(2), numbers_of_step(0, 0), soft)
    noise = result.signal - result.signal.mean()
    torch.testing.assert_close(noise.std(dim=(1, 2, 3, 4)), result.sigma, rtol=0.02, atol=0)
    for axis in (2, 3):
        first, second = noise.narrow(axis, 0, 63), noise.narrow(axis, 1, 63)
        correlation = float((first * second).mean() / noise.square().mean())
        assert correlation == pytest.approx(math.exp(-((math.pi * 0.2) ** 2)), abs=0.02)


def test_noise_of_neighbouring_slices_is_correlated_up_to_the_requested_value():
    blocks = Imaging(snr=(20.0, 20.0), bias=0.0, coils=(1,), truncated=0.0, filtered=0.0, **EVEN, across=0.9)
    result = measure(torch.ones(6, 20, 32, 32, 3), torch.ones(6), numbers_of_step(0, 0), blocks)
    noise = result.signal - result.signal.mean()
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), result.sigma[:, None].expand(-1, 3), rtol=0.03, atol=0)
    near = (noise[..., 1:] * noise[..., :-1]).mean(dim=(1, 2, 3, 4)) / result.sigma.square()
    far = (noise[..., 2] * noise[..., 0]).mean(dim=(1, 2, 3)) / result.sigma.square()
    assert (near < 0.9).all()
    assert near.max() > 0.4
    torch.testing.assert_close(far, near.square(), atol=0.03, rtol=0)


def test_truncation_keeps_the_low_terms_of_the_fourier_series():
    edge = torch.zeros(1, 1, 64, 64)
    edge[..., 16:48] = 1
    ringing = Imaging(
        snr=(1e6, 1e6),
        bias=0.0,
        truncated=1.0,
        acquired=(0.6, 0.6),
        partial_fourier=0.0,
        coils=(1,),
        filtered=0.0,
        **EVEN,
    )
    signal = measure(edge, torch.ones(1), numbers_of_step(0, 0), ringing).signal[0, 0, 32]
    position = torch.arange(64)
    terms = 2 * math.pi * torch.arange(1, 20)[:, None, None] * (position[:, None] - position) / 64  # 19 / 64 < 0.3
    series = (1 + 2 * torch.cos(terms).sum(dim=0)) / 64 @ edge[0, 0, 32]
    torch.testing.assert_close(signal, series.abs(), atol=1e-4, rtol=0)
    assert series.max() > 1.08, "it should ring"


def test_bias_is_smooth_and_returned():
    clean = torch.rand(3, 2, 48, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    imaging = Imaging(snr=(1e6, 1e6), bias=0.4, coils=(1,), truncated=0.0, filtered=0.0, **EVEN)
    result = measure(clean, torch.ones(3), numbers_of_step(0, 0), imaging)
    torch.testing.assert_close(result.signal, clean * result.bias, atol=1e-4, rtol=1e-4)
    assert result.bias.log().diff(dim=-1).abs().max() < 0.1
    assert result.bias.std() > 0.02


def test_blocks_are_truncated_slice_by_slice():
    block = torch.rand(2, 3, 24, 24, 4, generator=torch.Generator().manual_seed(0))
    imaging = Imaging(snr=(1e6, 1e6), bias=0.0, coils=(1,), truncated=1.0, partial_fourier=0.0, filtered=0.0, **EVEN)
    whole = measure(block, torch.ones(2), numbers_of_step(0, 0), imaging)
    part = measure(block[..., 1], torch.ones(2), numbers_of_step(0, 0), imaging)
    torch.testing.assert_close(whole.signal[..., 1], part.signal, atol=1e-4, rtol=0)


def test_every_volume_has_another_gain_and_the_expected_signal_has_none():
    imaging = Imaging(snr=(1e6, 1e6), bias=0.0, coils=(1,), truncated=0.0, filtered=0.0, uneven=0.2, displaced=0.0)
    flat = torch.ones(6, 200, 32, 32)
    result = measure(flat, torch.ones(6), numbers_of_step(0, 0), imaging, noiseless=flat[:, :2])
    logs = result.signal[..., ::31, ::31].log()  # corners are nodes
    spread = logs.std(dim=1)
    torch.testing.assert_close(spread, spread.mean(dim=(1, 2), keepdim=True).expand_as(spread), rtol=0.25, atol=0)
    assert (spread.mean(dim=(1, 2)) < 0.2).all()
    assert spread.mean(dim=(1, 2)).max() > 0.1
    assert (result.signal.diff(dim=-1).abs() < 0.2).all(), "gains are smooth"
    torch.testing.assert_close(result.expected, flat[:, :2], atol=1e-4, rtol=0)


def test_volumes_are_displaced_within_the_slice_and_the_expected_signal_is_not():
    imaging = Imaging(snr=(1e6, 1e6), bias=0.0, coils=(1,), truncated=0.0, filtered=0.0, uneven=0.0, displaced=0.5)
    row = torch.arange(48) - 23.5
    blob = torch.exp(-(row[:, None] ** 2 + row**2) / 18).expand(4, 300, -1, -1)
    result = measure(blob, torch.ones(4), numbers_of_step(0, 0), imaging, noiseless=blob[:, :1])
    mass = result.signal.sum(dim=(2, 3))
    places = torch.stack([(result.signal.sum(dim=d) @ row) / mass for d in (3, 2)])  # (2, B, N)
    spread = places.std(dim=2)
    torch.testing.assert_close(spread[0], spread[1], rtol=0.2, atol=0)
    assert (places.mean(dim=2).abs() < 4 * spread / 300**0.5).all()
    assert spread.max() < 0.55
    assert spread.max() > 0.2
    torch.testing.assert_close(mass, blob.sum(dim=(2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(result.expected, blob[:, :1], atol=1e-4, rtol=0)


def test_the_noise_can_be_rolled_off_without_the_signal():
    clean = torch.rand(3, 2, 24, 20, generator=torch.Generator().manual_seed(0)) + 1
    rolled = {"truncated": 0.0, "filtered": 1.0, "roll_off": (0.2, 0.2), "bias": 0.0, "uneven": 0.0, "displaced": 0.0}
    for alone in (False, True):
        imaging = Imaging(snr=(1e6, 1e6), noise_alone=alone, **rolled)
        measured = measure(clean, torch.ones(3), torch.Generator().manual_seed(1), imaging, clean[:, :1])
        same = (measured.signal - clean).abs().max() < 1e-3
        assert bool(same) == alone
        torch.testing.assert_close(measured.expected[:, 0], measured.signal[:, 0], atol=1e-4, rtol=0)
    # The noise has the requested strength, and the correlation of neighbours is exp(-pi² s²).
    imaging = Imaging(snr=(10.0, 10.0), coils=(1,), noise_alone=True, **rolled)
    flat = torch.full((4, 8, 48, 48), 20.0)
    noise = measure(flat, torch.full((4,), 20.0), torch.Generator().manual_seed(2), imaging).signal - 20
    assert float(noise.std()) == pytest.approx(2.0, rel=0.05)
    correlation = (noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()
    assert float(correlation) == pytest.approx(float(torch.exp(torch.tensor(-(torch.pi**2) * 0.04))), abs=0.03)
