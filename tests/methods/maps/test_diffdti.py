"""Diff-DTI: its condition against closed forms, the choice of volumes, and reproducibility."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.tensor import fit_maps
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.denoise.classical import limited_threads
from bids_dmrigen.methods.maps import examples as maps_examples
from bids_dmrigen.methods.maps.balance import with_length
from bids_dmrigen.methods.maps.diffdti_model import DiffDTI
from bids_dmrigen.methods.maps.fields import DIFFUSIVITY, ridge_fit
from bids_dmrigen.methods.maps.inputs import (
    MD_UNIT,
    along,
    condition_of,
    fitted_maps,
    lengthened,
    maps_of,
    noise_levels,
    numbers_of,
    tensor_of,
)
from bids_dmrigen.methods.maps.slices import consistent, maps_in
from bids_dmrigen.methods.maps.task import best_conditioned, choose_volumes
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects
from bids_dmrigen.spatial.templates import embedded_mni

AFFINE = np.diag([2.0, 2, 3, 1])
TENSOR = np.array([[1.4, 0.2, 0.1], [0.2, 0.5, 0.0], [0.1, 0.0, 0.3]]) * 1e-3


def table(n, b=1000.0, n_b0=2, seed=0):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    world = np.concatenate([np.zeros((n_b0, 3)), even_directions(n) @ turn])
    return GradientTable.from_world(np.r_[np.zeros(n_b0), np.full(n, b)], world, AFFINE)


def scan_of(gradients, noise=0.5, shape=(16, 12, 4)):
    """One tensor everywhere, with varying brightness."""
    world = gradients.world_directions(AFFINE)
    rng = np.random.default_rng(0)
    scale = 100 * rng.uniform(0.7, 1.5, (*shape, 1))
    data = scale * np.exp(-gradients.bvals * np.einsum("ni,ij,nj->n", world, TENSOR, world))
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2] = True
    return Scan((data + rng.normal(0, noise, data.shape)).astype(np.float32), AFFINE, gradients, mask)


def request_(**more):
    return Request(**{"precision": "fp32", "subject": "01", "run": "r", **more})


def perturbed(size="small"):
    """A network whose output is not zero."""
    net = DiffDTI().network(size)
    torch.nn.init.normal_(net.head[-1].weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return net


@pytest.fixture(scope="module")
def subjects():
    arrays, affine = embedded_mni(4)
    return SimulatedSubjects([deform(procedural_atlas(**arrays, affine=affine), 0)])


def test_the_paper_size_has_what_the_paper_states():
    net = DiffDTI().network("paper")
    assert net.spec.in_channels == 5 + 7
    assert net.fen.spec.images == 7
    assert not net.fen.spec.directions
    assert net.numbers is None
    assert DiffDTI().network("paper", fefm=False).fen is None
    plan = DiffDTI().training_plan("paper")
    assert (plan.learning_rate, plan.clip, plan.ema) == (2e-4, 1.0, 0.999)


def test_six_good_directions_give_nearly_the_tensor_and_three_what_they_measured():
    d = torch.tensor([TENSOR[0, 0], TENSOR[1, 1], TENSOR[2, 2], *(2**0.5 * TENSOR[np.triu_indices(3, 1)])]).float()
    for n, tolerance in ((6, 0.05), (3, None)):
        g = torch.as_tensor(even_directions(n), dtype=torch.float32)[None]
        gain, kernel = ridge_fit(g)
        adc = torch.einsum("sni,ij,snj->sn", g, torch.as_tensor(TENSOR).float(), g)
        mean = adc.mean(dim=1, keepdim=True)
        sphere = torch.tensor([1.0, 1, 1, 0, 0, 0]) * mean
        found = sphere + torch.einsum("skn,sn->sk", gain, adc - mean)
        torch.testing.assert_close(found, sphere + torch.einsum("skl,sl->sk", kernel, d - sphere), atol=1e-7, rtol=0)
        again = torch.einsum("snk,sk->sn", _products(g), found)
        assert ((again - adc).abs() / 1e-3 < 0.06).all(), "what was measured is what the tensor predicts"
        if tolerance:
            assert (found - d).abs().max() < tolerance * 1e-3


def _products(g):
    x, y, z = g.unbind(-1)
    return torch.stack([x * x, y * y, z * z, 2**0.5 * x * y, 2**0.5 * x * z, 2**0.5 * y * z], dim=-1)


def test_maps_agree_with_the_tensor_fit_of_the_app():
    gradients = table(30, n_b0=1)
    scan = scan_of(gradients, noise=3.0)
    expected = fit_maps(scan, "ols", names=("fa", "md", "dec", "tensor"))
    signal = torch.from_numpy(np.moveaxis(scan.data, (3, 2), (1, 0)).copy() / 100)
    bvecs = torch.as_tensor(gradients.world_directions(AFFINE)[1:], dtype=torch.float32)
    found = fitted_maps(signal, torch.full((4,), 1000.0), bvecs).permute(2, 3, 0, 1).numpy()
    inside = scan.mask
    np.testing.assert_allclose(found[inside][:, 0], expected["fa"][inside], atol=2e-4)
    np.testing.assert_allclose(found[inside][:, 1] * MD_UNIT, expected["md"][inside], rtol=1e-3)
    np.testing.assert_allclose(found[inside][:, 2:], expected["dec"][inside], atol=1e-3)
    lower = expected["tensor"][inside][:, [0, 2, 5, 1, 3, 4]] * [1, 1, 1, *[2**0.5] * 3] / DIFFUSIVITY
    maps = maps_of(torch.from_numpy(lower.T.copy()).float()[None, :, None])[0, :, 0].T.numpy()
    np.testing.assert_allclose(maps[:, 0], expected["fa"][inside], atol=2e-4)
    np.testing.assert_allclose(maps[:, 2:], expected["dec"][inside], atol=1e-3)


def test_untrained_it_gives_the_ridge_fit_and_that_is_least_squares_for_six():
    scan = scan_of(table(6))
    generated = DiffDTI().generate(DiffDTI().network("small"), scan, request_())
    maps, expected = generated.named_maps(), fit_maps(scan, "ols", names=("fa", "md", "dec", "ad", "rd", "tensor"))
    assert set(maps) == set(expected)
    for name in ("ad", "rd", "tensor"):
        np.testing.assert_allclose(maps[name][scan.mask], expected[name][scan.mask], atol=6e-5)
    np.testing.assert_allclose(maps["fa"][scan.mask], expected["fa"][scan.mask], atol=0.03)
    np.testing.assert_allclose(maps["md"][scan.mask], expected["md"][scan.mask], atol=1e-5)
    np.testing.assert_allclose(maps["dec"][scan.mask], expected["dec"][scan.mask], atol=0.04)
    assert (generated.mean[~scan.mask] == 0).all()
    assert generated.record["Sampler"] == {
        "Name": "none: the mean of the distribution, estimated from noise alone",
        "Steps": 1,
        "NetworkEvaluations": 1,
    }


@pytest.mark.parametrize("n", [3, 4, 5])
def test_fewer_directions_give_maps_too(n):
    scan = scan_of(table(n), noise=2.0)
    maps = DiffDTI().generate(perturbed(), scan, request_()).named_maps()
    assert np.isfinite(maps["fa"]).all()
    assert ((maps["fa"] >= 0) & (maps["fa"] <= 1)).all()
    assert np.median(maps["md"][scan.mask]) == pytest.approx(np.trace(TENSOR) / 3, rel=0.3)


def test_colour_is_scaled_to_the_length_of_fa_and_the_mismatch_is_returned():
    maps = torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    consistent_maps, mismatch = consistent(maps)
    torch.testing.assert_close(consistent_maps[:, 2:].norm(dim=1), consistent_maps[:, 0])
    assert ((consistent_maps >= 0) & (consistent_maps[:, :1] <= 1)).all()
    expected = (maps[:, 2:].clamp_min(0).norm(dim=1) - maps[:, 0].clamp(0, 1)).abs()
    torch.testing.assert_close(mismatch, expected)
    torch.testing.assert_close(consistent_maps[:, 1], maps[:, 1].clamp_min(0) * MD_UNIT)
    assert DiffDTI().generate(perturbed(), scan_of(table(6)), request_()).checks == {}, "maps of a tensor agree"


def test_samples_follow_the_seed_alone_and_differ():
    scan, net = scan_of(table(4), noise=2.0), perturbed()
    one = DiffDTI().generate(net, scan, request_(n_samples=2, steps=3))
    same = DiffDTI().generate(net, scan, request_(n_samples=2, steps=3))
    np.testing.assert_array_equal(one.mean, same.mean)
    np.testing.assert_array_equal(one.samples.draw(1), same.samples.draw(1))
    assert one.samples.count == 2
    assert np.abs(one.samples.draw(0) - one.samples.draw(1))[scan.mask].max() > 0
    assert one.samples.draw(0).shape == one.mean.shape
    assert one.samples.factors == {name: [1, 1, 1] for name in ("fa", "md", "ad", "rd")}
    other = DiffDTI().generate(net, scan, request_(n_samples=2, steps=3, seed=1))
    assert not np.array_equal(one.samples.draw(0), other.samples.draw(0))
    assert one.record["Sampler"]["NetworkEvaluations"] == 1
    assert one.record["SampledBy"] == {"Name": "DPM-Solver++(2M)", "Steps": 3}


def test_the_best_estimate_is_the_same_with_samples_and_without():
    scan, net = scan_of(table(6), noise=2.0), perturbed()
    alone = DiffDTI().generate(net, scan, request_())
    assert alone.samples is None
    np.testing.assert_array_equal(DiffDTI().generate(net, scan, request_(n_samples=3)).mean, alone.mean)


def test_directions_that_are_not_used_are_predicted_by_the_tensor():
    scan = scan_of(table(20))  # of one tensor, without noise: the untrained network returns it
    generated = DiffDTI().generate(DiffDTI().network("small"), scan, request_(n_samples=2, left_out=3))
    left = generated.left_out
    used = generated.record["Volumes"]["b=1000"]
    assert not set(left.volumes.tolist()) & set(used)
    assert len(left.volumes) == 12
    inside = ndimage.binary_erosion(scan.mask)
    ratio = left.mean[inside] / scan.data[inside][:, left.volumes]  # the signals themselves differ by a factor of three
    assert np.abs(ratio - 1).mean() < 0.03
    assert np.abs(ratio - 1).max() < 0.15
    assert left.std.shape == left.mean.shape
    for asked, directions in (({"n_samples": 2}, 20), ({"left_out": 3}, 20), ({"n_samples": 2, "left_out": 3}, 7)):
        other = DiffDTI().generate(DiffDTI().network("small"), scan_of(table(directions)), request_(**asked))
        assert other.left_out is None


def test_the_papers_sampler_runs_its_predictor_and_corrector():
    scan = scan_of(table(6), shape=(12, 12, 2))
    generated = DiffDTI().generate(DiffDTI().network("small"), scan, request_(sampler="paper", steps=8))
    assert generated.record["Sampler"] == {"Name": "predictor-corrector", "Steps": 8, "NetworkEvaluations": 8}


def test_of_many_directions_the_best_six_are_used_and_named():
    gradients = table(20)
    bval, volumes, found = choose_volumes(gradients)
    assert (bval, found, len(volumes)) == (1000.0, 20, 6)
    x, y, z = gradients.bvecs[2:].T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    chosen = np.linalg.cond(design[volumes - 2])
    rng = np.random.default_rng(0)
    random = [np.linalg.cond(design[rng.permutation(20)[:6]]) for _ in range(300)]
    assert chosen <= min(random)
    generated = DiffDTI().generate(DiffDTI().network("small"), scan_of(gradients), request_())
    assert generated.record["Volumes"] == {"b0": [0, 1], "b=1000": volumes.tolist()}
    assert any("6 of 20" in w for w in generated.warnings)


def test_the_choice_of_six_is_the_best_one_on_a_small_table():
    from itertools import combinations

    bvecs = table(9, n_b0=1).bvecs[1:]
    x, y, z = bvecs.T
    design = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    best = min(np.linalg.cond(design[list(c)]) for c in combinations(range(9), 6))
    assert np.linalg.cond(design[best_conditioned(bvecs, 6)]) <= best * 1.1


def test_directions_that_repeat_do_not_count_and_fewer_than_three_are_refused():
    g = table(3)
    twice = GradientTable(np.r_[g.bvals, g.bvals[2:]], np.concatenate([g.bvecs, -g.bvecs[2:]]))
    assert len(choose_volumes(twice)[1]) == 3
    two = g[[0, 1, 2, 3]]
    with pytest.raises(ScanError, match="at least 3 different directions on a shell, found 2"):
        choose_volumes(two)
    both = GradientTable(np.r_[g.bvals, np.full(3, 2500.0)], np.concatenate([g.bvecs, g.bvecs[2:]]))
    assert choose_volumes(both)[0] == 1000.0


def test_a_b_value_outside_the_training_range_is_reported():
    generated = DiffDTI().generate(DiffDTI().network("small"), scan_of(table(6, b=5000.0)), request_())
    assert any("5000" in w and "600 to 3200" in w for w in generated.warnings)


def test_examples_have_the_stated_values_and_repeat(subjects):
    method = DiffDTI()
    make = method.examples(subjects, "small", 6, 0)
    with limited_threads(1):  # with several, the load of the machine decides how sums are parted
        batch, same = make(3), make(3)
    torch.testing.assert_close(batch.x0, same.x0, rtol=0, atol=0)
    condition, inside = batch.condition, batch.weight[:, 0] > 0
    truth = condition.centre + condition.scale * batch.x0
    assert truth[:, 0][inside].min() > 0
    assert truth[:, 0][inside].max() < 3.3, "no tissue has more than free water, in 1e-3 mm²/s"
    found, _ = maps_in(truth)
    fa = found[:, 0][inside]
    assert 0.05 < fa.mean() < 0.5
    torch.testing.assert_close(along(truth, batch.hidden_bvecs), batch.hidden, atol=1e-4, rtol=0)
    one = method.examples(subjects, "small", 1, 0)
    assert {one(k).condition.bvecs.shape[1] for k in range(24)} == {3, 4, 5, 6}
    assert not batch.x0.movedim(1, 3)[~inside].any()


def test_the_numbers_of_a_tensor_are_its_mean_and_the_size_of_the_rest():
    tensor = torch.randn((2, 6, 3, 2), generator=torch.Generator().manual_seed(0))
    numbers = numbers_of(tensor)
    torch.testing.assert_close(tensor_of(numbers), tensor)
    torch.testing.assert_close(numbers[:, 6], numbers[:, 1:6].norm(dim=1))
    mean = tensor[:, :3].mean(dim=1)
    torch.testing.assert_close(numbers[:, 0], mean)
    torch.testing.assert_close(numbers[:, 1:6].square().sum(dim=1), tensor.square().sum(dim=1) - 3 * mean.square())
    g = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]])
    xx, yy, zz, _, xz, _ = tensor.unbind(1)
    expected = torch.stack([0.36 * xx + 0.64 * zz + 0.96 / 2**0.5 * xz, yy], dim=1)
    torch.testing.assert_close(along(numbers, g), expected)


def test_anisotropic_parts_are_as_long_as_is_said_and_keep_their_direction():
    numbers = numbers_of(torch.randn((2, 6, 3, 2), generator=torch.Generator().manual_seed(0)))
    longer = lengthened(torch.cat([numbers[:, :6], 2 * numbers[:, 6:]], dim=1))
    torch.testing.assert_close(longer[:, 1:6], 2 * numbers[:, 1:6])
    torch.testing.assert_close(longer[:, 0], numbers[:, 0])
    torch.testing.assert_close(lengthened(torch.cat([numbers[:, :6], 0.5 * numbers[:, 6:]], dim=1)), numbers)
    tensor = tensor_of(numbers).permute(2, 3, 0, 1)
    found = with_length(tensor.numpy(), 2 * numbers[:, 6].permute(1, 2, 0).numpy())
    torch.testing.assert_close(torch.from_numpy(found), tensor_of(longer).permute(2, 3, 0, 1))


def test_the_mean_of_samples_has_the_mean_of_their_lengths(monkeypatch):
    """Two samples along different axes: the mean tensor is between them, and as long as each of them.

    The samples are those of the paper's sampler, whose mean is the best estimate.
    """
    from bids_dmrigen.methods.maps import diffdti_model as diffdti

    scan, drawn = scan_of(table(4)), []

    def pretend(net, condition, *_):
        diagonal = [1.2, 0.4, 0.4] if len(drawn) % 2 else [0.4, 1.2, 0.4]
        drawn.append(1)
        tensor = torch.tensor([*diagonal, 0, 0, 0.0])[:, None, None].expand(len(condition.centre), -1, 16, 12)
        wanted = numbers_of(tensor)[..., : condition.centre.shape[2], : condition.centre.shape[3]]
        return (wanted - condition.centre) / condition.scale

    monkeypatch.setattr(diffdti, "draw", pretend)
    asked = request_(n_samples=2, steps=2, sampler="paper")
    maps = DiffDTI().generate(DiffDTI().network("small"), scan, asked).named_maps()
    one = fit_maps_of(np.diag([1.2, 0.4, 0.4]))
    assert maps["fa"][scan.mask].mean() == pytest.approx(one, abs=0.03), "that of the mean tensor would be 0.43"
    np.testing.assert_allclose(maps["md"][scan.mask], 2e-3 / 3, rtol=1e-3)


def fit_maps_of(tensor):
    values = np.linalg.eigvalsh(tensor)
    return np.sqrt(1.5 * ((values - values.mean()) ** 2).sum() / (values**2).sum())


def test_both_sizes_train(subjects):
    method = DiffDTI()
    for size, net in (("small", perturbed()), ("paper", _tiny_paper())):
        batch = method.examples(subjects, size, 2, 0)(0)
        loss = method.loss(net, batch)
        loss.backward()
        assert loss.isfinite()
        assert net.stem.weight.grad.abs().max() > 0


def _tiny_paper():
    """The paper's network with a tenth of its width."""
    from bids_dmrigen.methods.maps import diffdti_model as diffdti
    from bids_dmrigen.nets.fefm import FusedUNet

    fen = replace(diffdti.FEN["paper"], width=16, layers=1, heads=2)
    return FusedUNet(replace(diffdti.SIZES["paper"], base=32, blocks=1), fen, 0)


def test_the_loss_of_a_perfect_answer_is_zero(subjects):
    """What preconditioning asks of the network is what makes the maps."""
    from bids_dmrigen.methods.maps import diffdti_model as diffdti

    method, variances = DiffDTI(), []
    for index in range(12):
        batch = method.examples(subjects, "small", 2, 0)(index)
        t = batch.t.reshape(-1, 1, 1, 1)
        x_t = diffdti.PROCESS.add_noise(batch.x0, t, batch.noise)
        skip, out = diffdti._preconditioning(batch.t, x_t)
        wanted = (batch.x0 - skip * x_t) / out
        assert float(method.loss(lambda *_, wanted=wanted: wanted, batch)) == pytest.approx(0, abs=1e-6)
        variances.append(float(wanted[batch.weight.expand_as(x_t) > 0].square().mean()))
    assert 0.2 < np.median(variances) < 5, "the network's targets are of order one"


def test_the_condition_does_not_depend_on_the_scale_of_the_scan(subjects):
    gradients = table(5)
    scan = scan_of(gradients, noise=1.0)
    g = torch.as_tensor(gradients.world_directions(AFFINE)[2:], dtype=torch.float32)[None]
    b0 = torch.from_numpy(scan.mean_b0()[None, :, :, :3])
    dwis = torch.from_numpy(np.moveaxis(scan.data[:, :, :3, 2:], 3, 0)[None].copy())
    ones = torch.ones(1)
    condition = condition_of(b0, dwis, g, 1000 * ones, 2 * ones, 100 * ones, "small")
    brighter = condition_of(7 * b0, 7 * dwis, g, 1000 * ones, 14 * ones, 700 * ones, "small")
    torch.testing.assert_close(condition.images, brighter.images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(condition.numbers, brighter.numbers)


def test_the_spread_is_scaled_so_that_nine_of_ten_intervals_contain_the_truth(subjects):
    """The network returns the truth plus a known error, and its samples have a known spread that is too small."""
    from bids_dmrigen.methods.maps import diffdti_model as diffdti

    class Guess(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("spread", torch.ones(4, 3, 13))

    def pretend(net, condition, sampler, times, noise, precision, mean=None):
        error = torch.randn(condition.centre.shape, generator=torch.Generator().manual_seed(len(condition.centre)))
        result = truth[condition] + 0.02 * error + (0.005 * noise(0) if mean is not None else 0)
        halved = 2 if condition.bvecs.shape[1] == 6 else 1  # see `corrected`
        return halved * (result - condition.centre) / condition.scale

    truth, original = {}, diffdti.DiffDTI.examples

    def examples(self, *args):
        def make(index):
            batch = original(self, *args)(index)
            # One tensor, so that eigenvalues are far from zero and from each other.
            numbers = torch.ones_like(batch.x0) * torch.tensor([0.9, 0.5, 0.4, 0.1, 0.2, 0.1, 0.686])[:, None, None]
            truth[batch.condition] = numbers
            return batch._replace(x0=(numbers - batch.condition.centre) / batch.condition.scale)

        return make

    net = Guess()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffdti, "draw", pretend)
        patch.setattr(diffdti.DiffDTI, "examples", examples)
        DiffDTI().calibrate(net, [subjects], "small", 0, batches=1)
    # All voxels have the same error, so that the expected one is nearly free of the noise of eight samples.
    factors = net.spread[:, :, :4]
    assert factors.flatten().tolist() == pytest.approx([0.02 / 0.005] * factors.numel(), rel=0.15)
    assert factors[:, :, 1].mean().item() == pytest.approx(0.02 / 0.005, rel=0.05)
    assert (net.spread[:, :, 4:] == 1).all(), "other maps have none"


def stored(tmp_path, n=14, n_b0=2, noise=0.2):
    """A scan with a tensor in one corner and a turned one elsewhere, as prepared scans."""
    gradients = table(n, n_b0=n_b0)
    scan = scan_of(gradients, noise=noise, shape=(24, 20, 5))
    turned, world = TENSOR[[1, 2, 0]][:, [1, 2, 0]], gradients.world_directions(AFFINE)
    scan.data[:9, :12] *= np.exp(-gradients.bvals * np.einsum("ni,ij,nj->n", world, turned - TENSOR, world))
    write_prepared(tmp_path / "scans.safetensors", [("run", "01", scan, noise)])
    return Prepared(tmp_path / "scans.safetensors")


@pytest.mark.parametrize("n_b0", [1, 4])
def test_what_is_hidden_from_the_network_is_what_the_tensors_of_its_input_predict(tmp_path, monkeypatch, n_b0):
    """Whatever was turned, mirrored or joined: directions and places of both parts belong together."""
    monkeypatch.setattr(maps_examples, "SMOOTHED", 0.0)
    monkeypatch.setattr(maps_examples, "NOISY", 0.0)
    monkeypatch.setattr(maps_examples, "SIX", 1.0)
    make = DiffDTI().examples(stored(tmp_path, n_b0=n_b0), "small", 4, 0)
    for index in range(12):
        batch = make(index)
        condition, inside = batch.condition, batch.weight[:, 0] > 0
        assert (condition.bvecs.shape[1], batch.hidden.shape[1]) == (6, 8)
        error = (along(condition.centre, batch.hidden_bvecs) - batch.hidden).movedim(1, 3)[inside]
        # Voxels that are joined over the edge between the regions have no tensor.
        assert error.abs().quantile(0.9) < 0.15, "wrong ones are off by 0.4"
        mutual = (condition.bvecs[0] @ batch.hidden_bvecs.T).abs()
        assert mutual.max() < 1 - 1e-4, "no hidden volume is one that the network sees"
        assert batch.t.min() >= maps_examples.FIRST_NOISE_ONLY, "the noise of volumes is none of the network's spread"
        torch.testing.assert_close(batch.hidden, make(index).hidden, rtol=0, atol=0)


def test_noise_is_added_to_what_the_network_sees_only(tmp_path, monkeypatch):
    monkeypatch.setattr(maps_examples, "SMOOTHED", 0.0)
    monkeypatch.setattr(maps_examples, "COARSE", 0.0)
    source = stored(tmp_path, noise=2.0)

    def make():
        return DiffDTI().examples(source, "small", 4, 0)

    monkeypatch.setattr(maps_examples, "NOISY", 0.0)
    plain = [make()(k) for k in range(4)]
    monkeypatch.setattr(maps_examples, "NOISY", 1.0)
    noisy = [make()(k) for k in range(4)]
    for first, second in zip(plain, noisy, strict=True):
        torch.testing.assert_close(first.hidden, second.hidden)
        assert not torch.allclose(first.condition.acquired, second.condition.acquired)


def test_the_brain_of_an_example_has_no_missing_samples(tmp_path):
    source = stored(tmp_path)
    scan = source.scan(0)
    scan.data[10, :, :, 7] = 0
    write_prepared(tmp_path / "holes.safetensors", [("run", "01", scan, 0.2)])
    batch = DiffDTI().examples(Prepared(tmp_path / "holes.safetensors"), "small", 8, 0)(0)
    assert batch.hidden.movedim(1, 3)[batch.weight[:, 0] > 0].abs().max() < 2, "an empty voxel has a huge diffusivity"


def test_scans_with_too_few_directions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(maps_examples, "SIX", 1.0)
    with pytest.raises(ValueError, match="no shell has the 10 directions between b = 600 and 3200"):
        DiffDTI().examples(stored(tmp_path, n=9), "small", 2, 0)(0)
    with pytest.raises(ValueError, match="no shell has the 12 directions"):
        DiffDTI().examples(stored(tmp_path, n=9), "paper", 2, 0)(0)


def test_noise_is_read_from_a_shells_few_volumes():
    """Estimates of white noise are equal at both distances; of noise that neighbours share, the near one is lower."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 64, 64, dtype=torch.bool)
    for n in (3, 6):
        white = 2.0 * torch.randn((4, n, 64, 64), generator=generator)
        level = 100 + torch.linspace(0, 50, 64)  # anatomy that varies slowly
        torch.testing.assert_close(noise_levels(level + white, mask), torch.full((4, 2), 2.0), rtol=0.06, atol=0)
        smooth = (white + white.roll(1, 3) + white.roll(1, 2) + white.roll((1, 1), (2, 3))) / 2
        near, far = noise_levels(level + smooth, mask).mean(dim=0)
        assert near == pytest.approx(1.0, rel=0.08), "half of it, in each axis, is shared"
        assert far == pytest.approx(2.0, rel=0.08)
    assert noise_levels(white, torch.zeros_like(mask)).isnan().all()
