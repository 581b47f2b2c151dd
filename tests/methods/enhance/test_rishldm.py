"""RISH latent diffusion: features against closed forms, what stays as it was acquired, four trainings apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import bids_dmrigen.methods.enhance.rishldm_model as rishldm
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.harmonics import harmonics, order_for
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.spline import even_points
from bids_dmrigen.dwi.tensor import fit_tensor, tensor_maps
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.enhance.examples import SIDE, simulated
from bids_dmrigen.methods.enhance.inputs import ORDER, UNITS, condition_of, features, fitted, on_grid, scales, signals
from bids_dmrigen.methods.enhance.rishldm_model import NETWORK, RishLatentDiffusion, shares_of
from bids_dmrigen.methods.enhance.stages import LEVELS, STAGES, times_of
from bids_dmrigen.methods.starts import mean_start
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_of_step
from bids_dmrigen.spatial.templates import embedded_mni

AFFINE = np.diag([-2.0, 2, 2.5, 1])
TENSOR = np.array([[1.4, 0.2, 0.1], [0.2, 0.5, 0.0], [0.1, 0.0, 0.3]]) * 1e-3


SHARES = rishldm._Maker._shares


@pytest.fixture(autouse=True)
def network_alone(monkeypatch):
    """No scan shows that untrained networks are right: here what they say is taken all the same."""
    monkeypatch.setattr(rishldm._Maker, "_shares", lambda *_: NETWORK.clone())


def table(n, b=1000.0, n_b0=2):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    world = np.concatenate([np.zeros((n_b0, 3)), even_directions(n) @ turn])
    return GradientTable.from_world(np.r_[np.zeros(n_b0), np.full(n, b)], world, AFFINE)


def scan_of(gradients, noise=0.5, shape=(12, 14, 10)):
    """One tensor everywhere, with varying brightness."""
    world, rng = gradients.world_directions(AFFINE), np.random.default_rng(0)
    scale = 100 * rng.uniform(0.7, 1.5, (*shape, 1))
    data = scale * np.exp(-gradients.bvals * np.einsum("ni,ij,nj->n", world, TENSOR, world))
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2, 1:-1] = True
    return Scan((data + rng.normal(0, noise, data.shape)).astype(np.float32), AFFINE, gradients, mask)


def request_(**more):
    return Request(**{"precision": "fp32", "subject": "01", "run": "r", **more})


def perturbed():
    """Networks whose codes differ and whose super-resolution adds something."""
    net, generator = RishLatentDiffusion().network("small"), torch.Generator().manual_seed(1)
    torch.nn.init.normal_(net.refiner.last.weight, std=0.02, generator=generator)
    for autoencoder in (net.autoencoder_3t, net.autoencoder_7t):
        autoencoder.codebook.codes.normal_(generator=generator)
    return net


def shell(dwis, n, sigma=0.0, b0=1.0):
    """A block of signals (B, n, H, W, D) along n directions."""
    batch, volume = len(dwis), dwis.shape[2:]
    one = torch.ones(batch)
    bvecs = torch.as_tensor(even_directions(n), dtype=torch.float32).expand(batch, -1, -1)
    b0 = torch.full((batch, *volume), b0)
    mask, size = torch.ones(batch, *volume, dtype=torch.bool), 2 * torch.ones(batch, 3)
    return fitted(b0, dwis, bvecs, 1000 * one, sigma * one, one, mask, size, order_for(n, ORDER))


@pytest.fixture(scope="module")
def subjects():
    arrays, affine = embedded_mni(4)
    return SimulatedSubjects([deform(procedural_atlas(**arrays, affine=affine), 0)])


def test_the_paper_size_has_what_the_paper_states():
    spec = rishldm.SIZES["paper"]
    assert (spec.autoencoder.code_width, spec.autoencoder.codes) == (32, 256)
    assert spec.unet.attention == (2, 3)
    assert spec.told == 0
    plan = STAGES[0](RishLatentDiffusion().network("small"), "paper").training_plan("paper")
    assert plan.learning_rate == 1e-4


def test_a_constant_signal_has_its_value_as_the_first_feature_and_no_others():
    found = shell(torch.full((1, 20, 2, 2, 2), 30.0), 20, b0=50.0)
    expected = torch.tensor([0.6 / UNITS[0], 0, 0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2)
    torch.testing.assert_close(features(found.coefficients), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("n", [12, 30])
def test_the_contribution_of_noise_to_the_features_is_estimated(n):
    """The mean of their squares over many voxels is the true square and what is taken off for noise."""
    generator, sigma = torch.Generator().manual_seed(0), 0.05
    clean = 0.5 + 0.2 * harmonics(torch.as_tensor(even_directions(n), dtype=torch.float32), 2)[:, 4]
    noisy = clean.reshape(1, n, 1, 1, 1) + sigma * torch.randn((1, n, 30, 30, 30), generator=generator)
    true, found = shell(clean.reshape(1, n, 1, 1, 1), n), shell(noisy, n, sigma)
    added = found.variance[0] * sigma**2
    expected = features(true.coefficients)[0, :, 0, 0, 0].square() + added
    torch.testing.assert_close(
        features(found.coefficients).square().mean(dim=(0, 2, 3, 4)), expected, rtol=0.02, atol=1e-5
    )
    assert (added > 0).tolist() == [True, True, n == 30]
    assert found.determined.tolist() == [[1.0, 1.0, float(n == 30)]]
    condition = condition_of(found)
    assert condition.images.shape[1] == rishldm.SIZES["small"].told
    assert (condition.centre <= features(found.coefficients) + 1e-6).all()


def test_features_on_a_finer_grid_have_its_voxel_size_and_the_acquired_one():
    found = on_grid(shell(torch.rand(1, 12, 4, 4, 6), 12), [even_points(4, 8), np.arange(4.0), even_points(6, 9)])
    assert found.coefficients.shape == (1, 15, 8, 4, 9)
    torch.testing.assert_close(found.voxel_mm, torch.tensor([[1, 2, 4 / 3]]))
    torch.testing.assert_close(found.acquired_mm, torch.full((1, 3), 2.0))


def test_features_at_the_edge_of_the_brain_are_right_on_a_finer_grid():
    """S and S0 both fall to nothing at the edge of the brain; their ratio does not."""
    b0 = torch.zeros(1, 12, 4, 4)
    b0[:, :7] = 100.0
    one, mask = torch.ones(1), b0 > 0
    bvecs = torch.as_tensor(even_directions(12), dtype=torch.float32)[None]
    found = fitted(b0, 0.4 * b0[:, None].expand(-1, 12, -1, -1, -1), bvecs, one, one, one, mask, torch.ones(1, 3), 2)
    fine = on_grid(found, [even_points(12, 24), np.arange(4.0), np.arange(4.0)])
    assert fine.mask[0, :, 0, 0].sum() == 14
    torch.testing.assert_close(fine.features[:, 0][fine.mask], torch.full((14 * 4 * 4,), 0.8), atol=0.02, rtol=0)


def test_scales_lead_from_one_shell_to_another_and_stay_in_bounds():
    torch.manual_seed(0)
    one, other = (shell(0.3 + 0.1 * torch.rand(1, 20, 3, 3, 3), 20) for _ in range(2))
    scale = scales(features(other.coefficients), one.coefficients, one.determined)
    found = features(one.coefficients * scale.repeat_interleave(torch.tensor([1, 5, 9]), 1))
    close = scale < 3
    assert close.float().mean() > 0.9
    torch.testing.assert_close(found[close], features(other.coefficients)[close], rtol=0.05, atol=1e-3)
    assert scales(1e6 * features(one.coefficients), one.coefficients, one.determined).max() == 3
    few = torch.tensor([[1.0, 1.0, 0.0]])
    assert (scales(features(other.coefficients), one.coefficients, few)[:, 2] == 1).all()


def test_unscaled_harmonics_give_the_fitted_signal_along_any_direction():
    wanted = torch.as_tensor(even_directions(7), dtype=torch.float32)
    acquired = torch.as_tensor(even_directions(30), dtype=torch.float32)
    coefficients = torch.randn(15, generator=torch.Generator().manual_seed(0)) * 0.05
    coefficients[0] = 2.0
    found = shell((harmonics(acquired, 4) @ coefficients).reshape(1, 30, 1, 1, 1), 30)
    generated = signals(found.coefficients, torch.ones(1, 3, 1, 1, 1), harmonics(wanted, 4))
    torch.testing.assert_close(generated.flatten(), harmonics(wanted, 4) @ coefficients, atol=0.01, rtol=0)


def test_what_was_acquired_stays_where_nothing_is_made():
    scan = scan_of(table(20))
    generated = RishLatentDiffusion().generate(perturbed(), scan, request_())
    assert generated.mean.shape == scan.data.shape
    assert generated.gradients is scan.gradients
    b0 = scan.gradients.is_b0
    np.testing.assert_array_equal(generated.acquired, b0)
    np.testing.assert_array_equal(generated.mean[..., b0], scan.data[..., b0])
    np.testing.assert_array_equal(generated.mean[~scan.mask], scan.data[~scan.mask])
    changed = generated.mean[scan.mask][:, ~b0] != scan.data[scan.mask][:, ~b0]
    assert changed.mean() > 0.9  # the lowest of a place may stay
    assert (generated.grid, generated.samples) == (None, None)
    assert set(generated.record["Scales"]) == {"b=1000"}
    assert generated.record["Sampler"]["NetworkEvaluations"] == 2 * rishldm.FAST_STEPS


def test_each_degree_has_the_strength_that_the_shares_say(monkeypatch):
    """Networks that would double every strength: |C|² = (a + 4 b) e."""
    monkeypatch.setattr(rishldm, "scales", lambda wanted, *_: torch.full_like(wanted, 2.0))
    monkeypatch.setattr(rishldm._Maker, "_shares", lambda *_: torch.tensor([[1.0, 0.0], [0.25, 0.5], [0.0, 1.0]]))
    generated = RishLatentDiffusion().generate(perturbed(), scan_of(table(20)), request_())
    assert generated.record["Scales"]["b=1000"] == pytest.approx([1, 1.5, 2], abs=1e-3)
    assert generated.record["SharesOfStartAndNetwork"]["b=1000"] == [[1, 0], [0.25, 0.5], [0, 1]]


def test_shares_are_found_in_what_two_noisy_halves_have_in_common():
    rng, inside = np.random.default_rng(0), torch.ones(40, 40, 40)
    truth = torch.tensor([[1.0, 0.0], [0.3, 0.6], [0.0, 0.5]])
    power = torch.as_tensor(rng.exponential(size=(3, 40, 40, 40)))
    scale = torch.as_tensor(rng.uniform(0.3, 2, size=power.shape))
    clean = (truth[:, 0].reshape(3, 1, 1, 1) + truth[:, 1].reshape(3, 1, 1, 1) * scale**2) * power
    noise = torch.as_tensor(rng.normal(size=power.shape))
    inside[:20] = 0
    noise[:, :20] = 100  # outside the brain
    torch.testing.assert_close(shares_of(power, scale, clean + noise, inside), truth, atol=0.03, rtol=0)


@pytest.mark.parametrize(("factor", "noise"), [(3.0, 0.0), (0.5, 0.0), (1.2, 20.0)])
def test_the_anisotropy_is_that_of_both_halves_whatever_the_network_says(monkeypatch, factor, noise):
    """A start with half of the anisotropy, and a network that knows nothing of places: strengths are to be doubled."""
    scan, clean = scan_of(table(60), noise=noise), scan_of(table(60), noise=0)

    def half_as_anisotropic(_):
        mean = clean.data.copy()
        for _, volumes in clean.gradients.shells():
            shell = clean.data[..., volumes]
            mean[..., volumes] = (shell + shell.mean(axis=3, keepdims=True)) / 2
        return mean

    monkeypatch.setattr(rishldm._Maker, "_shares", SHARES)
    monkeypatch.setattr(rishldm, "mean_start", half_as_anisotropic)
    monkeypatch.setattr(rishldm, "scales", lambda wanted, *_: torch.full_like(wanted, factor))
    found = RishLatentDiffusion().generate(perturbed(), scan, request_()).record["Scales"]["b=1000"]
    assert found[:2] == pytest.approx([1, 2], abs=0.1)


def on_a_cone(n):
    """Directions that determine no tensor, however many they are."""
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    bvecs = np.stack([np.cos(turn), np.sin(turn), np.full(n, np.sqrt(0.5))], axis=1) / np.sqrt(1.5)
    return GradientTable(np.r_[0, 0, np.full(n, 1000)], np.r_[np.zeros((2, 3)), bvecs])


@pytest.mark.parametrize("gradients", [table(10), on_a_cone(16)], ids=["few", "cone"])
def test_where_half_of_the_directions_shows_nothing_the_result_is_the_denoised_series(monkeypatch, gradients):
    monkeypatch.setattr(rishldm._Maker, "_shares", SHARES)
    scan = scan_of(gradients)
    generated = RishLatentDiffusion().generate(perturbed(), scan, request_())
    expected = mean_start(scan)[scan.mask][:, 2:]
    np.testing.assert_allclose(generated.mean[scan.mask][:, 2:], expected, rtol=1e-5, atol=1e-4)
    assert any("denoised series" in w for w in generated.warnings)
    assert generated.record["Scales"]["b=1000"] == [1.0, 1.0, 1.0]


def test_fibres_keep_their_directions():
    scan = scan_of(table(30), noise=0.2)
    generated = RishLatentDiffusion().generate(perturbed(), scan, request_())
    directions = []
    for data in (scan.data, generated.mean):
        signal = torch.from_numpy(np.ascontiguousarray(data[scan.mask]))
        maps = tensor_maps(fit_tensor(signal, scan.gradients.bvals, scan.gradients.world_directions(AFFINE), "ols"))
        directions.append(maps["eigenvectors"][:, :, 0])
    angle = torch.rad2deg(torch.arccos((directions[0] * directions[1]).sum(dim=1).abs().clamp(0, 1)))
    assert angle.median() < 1


def test_no_generated_value_is_below_the_lowest_measured_one_of_its_voxel():
    scan = scan_of(table(8, 3000.0), noise=2)
    generated, lowest = RishLatentDiffusion().generate(perturbed(), scan, request_()), scan.data[..., 2:].min(axis=3)
    assert (generated.mean[scan.mask][:, 2:] >= lowest[scan.mask][:, None] - 1e-3).all()


def test_slabs_do_not_show(monkeypatch):
    scan, method = scan_of(table(12)), RishLatentDiffusion()
    whole = method.generate(perturbed(), scan, request_()).mean
    monkeypatch.setattr(rishldm, "SLAB_VOXELS", 12 * 14 * 3)
    np.testing.assert_allclose(method.generate(perturbed(), scan, request_()).mean, whole, rtol=1e-4, atol=1e-3)


def test_a_finer_grid_has_its_voxels_its_place_and_the_same_brain():
    scan, net = scan_of(table(12), noise=0), RishLatentDiffusion().network("small")
    generated = RishLatentDiffusion().generate(net, scan, request_(options={"voxel_mm": 1.25}))
    assert generated.mean.shape == (20, 23, 20, 14)
    np.testing.assert_allclose(np.linalg.norm(generated.grid.affine[:3, :3], axis=0), 1.25)
    centre = [
        (affine @ [*(np.array(shape) - 1) / 2, 1])[:3]
        for affine, shape in ((AFFINE, scan.mask.shape), (generated.grid.affine, generated.grid.mask.shape))
    ]
    np.testing.assert_allclose(*centre, atol=1e-9)
    volumes_mm3 = scan.mask.sum() * 10, generated.grid.mask.sum() * 1.25**3
    assert volumes_mm3[1] == pytest.approx(volumes_mm3[0], rel=0.25)
    assert not generated.acquired.any()
    for wanted in (2.3, 0.0):
        with pytest.raises(ScanError, match="voxel-size"):
            RishLatentDiffusion().generate(net, scan, request_(options={"voxel_mm": wanted}))


def test_the_scans_own_voxel_size_is_its_own_grid():
    scan = replace(scan_of(table(12)), affine=np.diag([2.0, 2, 2, 1]))
    generated = RishLatentDiffusion().generate(perturbed(), scan, request_(options={"voxel_mm": 2.0}))
    assert generated.grid is None


def test_nothing_is_random_and_no_spread_is_promised():
    scan, method, net = scan_of(table(12)), RishLatentDiffusion(), perturbed()
    first, again = (method.generate(net, scan, request_(n_samples=n, seed=n)) for n in (1, 3))
    np.testing.assert_array_equal(first.mean, again.mean)
    assert again.samples is None
    assert again.record["Samples"] == 1
    assert not method.spec.draws


def test_places_without_a_b0_keep_what_was_acquired():
    scan = scan_of(table(12))
    dark = (slice(5, 7), 6, 4)
    scan.data[(*dark, slice(0, 2))] = 0
    generated = RishLatentDiffusion().generate(perturbed(), scan, request_()).mean
    np.testing.assert_array_equal(generated[dark], scan.data[dark])
    assert np.isfinite(generated).all()
    with pytest.raises(ScanError, match="signal at b = 0"):
        RishLatentDiffusion().generate(perturbed(), replace(scan, mask=np.zeros_like(scan.mask)), request_())


def test_voxel_sizes_outside_the_training_range_are_reported():
    said = [
        RishLatentDiffusion().generate(perturbed(), scan_of(table(12)), request_(options={"voxel_mm": edge})).warnings
        for edge in (1.25, 1.0)
    ]
    assert ["times smaller" in " ".join(warnings) for warnings in said] == [False, True]


def test_shells_with_few_directions_are_not_changed_and_reported():
    few, more = table(4, 500.0, 1), table(12, 1500.0, 0)
    both = GradientTable(np.r_[few.bvals, more.bvals], np.concatenate([few.bvecs, more.bvecs]))
    scan = scan_of(both)
    generated = RishLatentDiffusion().generate(perturbed(), scan, request_())
    np.testing.assert_array_equal(generated.mean[..., :5], scan.data[..., :5])
    assert generated.acquired.tolist() == [True] * 5 + [False] * 12
    assert any("b = 500" in w and "the shell was not changed" in w for w in generated.warnings)
    assert any("degree 4" in w for w in generated.warnings)
    with pytest.raises(ScanError, match="different directions"):
        RishLatentDiffusion().spec.check(scan_of(GradientTable(few.bvals, few.bvecs)[np.r_[0, 1, 1, 2, 2, 3, 4]]))


def test_directions_measured_again_determine_no_more():
    twice = table(10, n_b0=1)[np.r_[0:11, 1:11]]
    generated = RishLatentDiffusion().generate(perturbed(), scan_of(twice), request_())
    assert generated.record["Scales"]["b=1000"][2] == 1
    assert any("10 directions do not determine" in w for w in generated.warnings)


def test_pairs_are_of_the_same_brains_and_repeat(subjects):
    pair = simulated(subjects, 2, numbers_of_step(0, 3))
    again = simulated(subjects, 2, numbers_of_step(0, 3))
    torch.testing.assert_close(pair.fine, again.fine, rtol=0, atol=0)
    assert pair.coarse.shape == (2, 3, *SIDE["small"])
    low = pair.low.features[:, 0][pair.low.mask]
    true = pair.coarse[:, 0][pair.low.mask]
    assert torch.corrcoef(torch.stack([low, true]))[0, 1] > 0.9


def test_each_training_changes_its_own_part_alone(subjects):
    net = perturbed()
    for stage in RishLatentDiffusion().trainings(net):
        stage.begin(subjects, 1, 0)
        before = {name: value.clone() for name, value in net.named_parameters()}
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        batch = stage.examples(subjects, "small", 1, 0)(0)
        loss = stage.loss(net.train(), batch)
        loss.backward()
        optimiser.step()
        changed = {name.split(".")[0] for name, value in net.named_parameters() if (value != before[name]).any()}
        assert changed == {stage.name}
        assert loss.isfinite()
        optimiser.zero_grad()
    for size in ("small", "paper"):
        assert sum(stage(net, size).share(size) for stage in STAGES) == pytest.approx(1)
    assert 0.5 < net.ratios[0] < 1.1  # noise adds little to the mean, and more the weaker a degree is
    assert net.ratios[0] > net.ratios[1] > net.ratios[2] > 0


def test_a_network_as_deep_as_the_papers_trains_and_runs(subjects, monkeypatch):
    """A narrow network with the block size and the levels of the paper, and a super-resolution without a condition."""
    paper = rishldm.SIZES["paper"]
    autoencoder = replace(paper.autoencoder, widths=(4, 4), blocks=1, codes=8, code_width=4)
    unet = replace(paper.unet, in_channels=4, out_channels=4, base=4, groups=2, heads=2, context=4, blocks=1)
    narrow = replace(paper, autoencoder=autoencoder, unet=unet, width=4, blocks=1)
    monkeypatch.setitem(rishldm.SIZES, "narrow", narrow)
    monkeypatch.setitem(SIDE, "paper", (32, 32, 32))
    net = RishLatentDiffusion().network("narrow")
    for stage in RishLatentDiffusion().trainings(net):
        stage.begin(subjects, 1, 0)
        assert stage.loss(net.train(), stage.examples(subjects, "narrow", 1, 0)(0)).isfinite()
    scan = scan_of(table(12))
    generated = RishLatentDiffusion().generate(net, scan, request_(steps=2))
    assert np.isfinite(generated.mean).all()
    assert generated.mean.shape == scan.data.shape


def test_every_tensor_belongs_to_one_training():
    net = RishLatentDiffusion().network("small")
    parts = [part for stage in STAGES for part in (stage.name, *stage.constants)]
    assert sorted(parts) == sorted({name.split(".")[0] for name in net.state_dict()})


def test_the_second_autoencoder_starts_as_the_first(subjects):
    net = RishLatentDiffusion().network("small")
    stages = RishLatentDiffusion().trainings(net)
    torch.nn.init.normal_(net.autoencoder_3t.codebook.codes)
    stages[1].begin(subjects, 1, 0)
    for one, other in zip(
        net.autoencoder_3t.state_dict().values(), net.autoencoder_7t.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_the_loss_of_a_perfect_answer_is_zero(subjects):
    net = RishLatentDiffusion().network("small")
    stage = RishLatentDiffusion().trainings(net)[3]
    batch = stage.examples(subjects, "small", 1, 0)(0)
    answer = (batch.truth - batch.condition.centre) / batch.condition.scale
    assert stage.loss(lambda part, images: answer, batch) < 1e-10
    assert stage.loss(lambda part, images: 0 * answer, batch) > 0.01


def test_inversion_rises_to_the_level_of_each_degree():
    for times, level in zip(times_of(8, LEVELS), LEVELS, strict=True):
        assert times[-1] == level.time
        assert len(times) == 4
    for times, level in zip(times_of(300, LEVELS), LEVELS, strict=True):  # more than there are
        assert times == list(range(1, level.time + 1))
