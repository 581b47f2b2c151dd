"""What Diff-DTI learns from acquired volumes: fields, the network's symmetries, hidden volumes, the expected length."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.noise import sigma_of_few
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.smoothing import width_of
from bids_dmrigen.methods.maps import estimator, fields, hidden
from bids_dmrigen.methods.maps.fields import Block, fields_of, neighbours_of
from bids_dmrigen.methods.maps.neighbours_model import Neighbours
from bids_dmrigen.nets.attention_fit import AttentionFit
from bids_dmrigen.nets.direction_unet import dyadic_features
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_of_step
from bids_dmrigen.spatial.templates import embedded_mni

BVAL = 1000.0


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_of(n=6, shape=(9, 8, 6), noise=0.02, seed=0, turn=None, edges=(2.0, 2.0, 3.0)):
    """Two blocks in which the tensor varies slowly; `turn` turns tensors and directions."""
    frames = torch.linalg.qr(random(3, 3, seed=seed)).Q
    eigenvalues = torch.tensor([1.5, 0.5, 0.3], dtype=torch.float64)
    grid = torch.linspace(0, 1.5, shape[0], dtype=torch.float64)[:, None, None].expand(shape)
    cosine, sine = grid.cos(), grid.sin()
    zero, one = torch.zeros_like(grid), torch.ones_like(grid)
    rows = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=-1).reshape(*shape, 3, 3)
    tensor = (frames @ rows) @ torch.diag(eigenvalues) @ (frames @ rows).mT
    bvecs = torch.as_tensor(np.asarray(even_directions(n)))
    if turn is not None:
        tensor, bvecs = turn @ tensor @ turn.T, bvecs @ turn.T
    adc = torch.einsum("ni,xyzij,nj->nxyz", bvecs, tensor, bvecs)
    dwis = torch.exp(-adc)[None] * (1 + noise * random(2, n, *shape, seed=seed + 1))
    b0s = 1 + noise * random(2, 1, *shape, seed=seed + 2)
    mask = torch.ones((2, *shape), dtype=torch.bool)
    mask[0, 0] = mask[1, :, 0] = False
    edges, sigma = (
        torch.tensor([edges] * 2, dtype=torch.float64),
        torch.full((2,), max(noise, 0.01), dtype=torch.float64),
    )
    return Block(b0s, dwis, bvecs, BVAL, mask, edges, sigma), tensor


def six(tensor):
    """Return symmetric matrices (..., 3, 3) as the six numbers of `fields`."""
    xx, yy, zz = (tensor[..., k, k] for k in range(3))
    root = 2**0.5
    return torch.stack([xx, yy, zz, *(root * tensor[..., i, j] for i, j in ((0, 1), (0, 2), (1, 2)))], dim=-1)


def matrices(numbers):
    """Return six numbers (..., 6) as symmetric matrices (..., 3, 3)."""
    xx, yy, zz, xy, xz, yz = numbers.unbind(-1)
    xy, xz, yz = (value / 2**0.5 for value in (xy, xz, yz))
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).reshape(*numbers.shape[:-1], 3, 3)


def network(seed=0):
    """Return a network with weights that are not zero anywhere."""
    net = AttentionFit().double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def test_fields_hold_the_tensor_without_its_mean_and_the_mean():
    block, tensor = block_of(noise=0.0)
    known = fields_of(block)
    expected = six(tensor).expand(2, *tensor.shape[:3], 6)[block.mask]
    mean = expected[:, :3].mean(dim=1)
    torch.testing.assert_close(known.md_raw, mean, atol=0.01, rtol=0)
    expected = expected - torch.cat([mean[:, None].expand(-1, 3), torch.zeros(len(mean), 3)], dim=1)
    torch.testing.assert_close(known.raw, expected, atol=0.06, rtol=0)
    torch.testing.assert_close(
        known.raw[:, :3].sum(dim=1), torch.zeros(len(mean), dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_the_noise_of_a_tensor_follows_from_that_of_the_samples(monkeypatch):
    block, _ = block_of(noise=0.03)
    found = fields.mppca
    # MP-PCA finds four times the variance: the two levels are 0.03 and 0.06.
    monkeypatch.setattr(fields, "mppca", lambda *a: (found(*a)[0], torch.full(block.mask.shape, 0.06**2).double()))
    known = fields_of(block)
    diffusivity = 0.03 * 2**0.5 / block.dwis.mean(dim=1)[block.mask]
    torch.testing.assert_close(known.noise, diffusivity * fields.amplification(block.bvecs))
    assert known.width == pytest.approx(width_of(float(diffusivity.median()) / 6**0.5))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_noise_of_tensors_is_amplified_as_in_a_simulation(seed):
    """Even directions, and six that determine a tensor badly."""
    bvecs = torch.as_tensor(np.asarray(even_directions(6)))
    if seed:
        bvecs = torch.nn.functional.normalize(bvecs + 0.25 * random(6, 3, seed=seed), dim=1)
    noise = random(60_000, 6, seed=5)
    _, anisotropic = fields.tensors(torch.ones(60_000).double(), torch.exp(-1 + 0.001 * noise), bvecs, 1000.0)
    found = (anisotropic - anisotropic.mean(dim=0)).square().sum(dim=1).mean() / 5
    assert fields.amplification(bvecs) == pytest.approx(float(found.sqrt()) / 0.001, rel=0.02)


def test_the_noise_level_lies_between_two_that_are_wrong_in_opposite_ways():
    """Smoothed noise looks too low between neighbours, and b0s that differ in brightness look too noisy."""
    rng = np.random.default_rng(0)
    world = np.concatenate([np.zeros((3, 3)), even_directions(6)])
    table = GradientTable.from_world(np.r_[np.zeros(3), np.full(6, 1000.0)], world, np.eye(4))
    signal = np.where(table.is_b0, 100.0, 40.0) + rng.normal(0, 2, (20, 20, 8, 9))
    clean = Scan(signal.astype(np.float32), np.eye(4), table, np.ones((20, 20, 8), bool))
    assert sigma_of_few(clean, np.arange(3, 9)) == pytest.approx(2, rel=0.1)
    pulsating = replace(clean, data=clean.data * np.r_[1, 1.08, 0.92, np.ones(6)].astype(np.float32))
    alone = Scan(clean.data[..., 2:], np.eye(4), table[2:], clean.mask)
    assert 3 < sigma_of_few(pulsating, np.arange(3, 9)) < 5.5
    assert sigma_of_few(alone, np.arange(1, 7)) == pytest.approx(2, rel=0.1)


def test_neighbours_are_those_of_a_search():
    mask = torch.rand((2, 4, 5, 3), generator=torch.Generator().manual_seed(0)) < 0.6
    edges = torch.tensor([[2.0, 2.5, 5.0], [1.0, 1.0, 1.0]])
    places, distances = neighbours_of(mask, edges)
    voxels = mask.nonzero()
    for v, here in enumerate(voxels.tolist()):
        near = {
            k for k, there in enumerate(voxels.tolist())
            if there[0] == here[0] and max(abs(a - b) for a, b in zip(there[1:], here[1:], strict=True)) <= 1
        }  # fmt: skip
        assert {k for k in places[v].tolist() if k < len(voxels)} == near
        for k, distance in zip(places[v].tolist(), distances[v].tolist(), strict=True):
            if k < len(voxels):
                apart = (voxels[k, 1:] - voxels[v, 1:]) * edges[here[0]] / edges[here[0]].min()
                assert distance == pytest.approx(float(apart.norm()))


@pytest.mark.parametrize("n", [3, 6])
def test_the_estimate_turns_with_the_directions(n):
    turn = torch.linalg.qr(random(3, 3, seed=9)).Q
    net = network()
    first, second = (estimator.estimate(net, fields_of(block_of(n, turn=t)[0])) for t in (None, turn))
    torch.testing.assert_close(matrices(second.mean), turn @ matrices(first.mean) @ turn.T)
    torch.testing.assert_close(second.power, first.power)


def test_the_estimate_does_not_depend_on_the_order_of_the_axes():
    block, _ = block_of()
    other = replace(
        block, b0s=block.b0s.permute(0, 1, 4, 2, 3).flip(3), dwis=block.dwis.permute(0, 1, 4, 2, 3).flip(3),
        mask=block.mask.permute(0, 3, 1, 2).flip(2), edges=block.edges[:, [2, 0, 1]],
    )  # fmt: skip
    net = network()
    first, second = (estimator.estimate(net, fields_of(b)) for b in (block, other))
    volume = second.fields.volume(second.mean).flip(3).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(volume, first.fields.volume(first.mean))


def test_voxels_outside_the_mask_have_no_effect():
    block, _ = block_of()
    outside = ~block.mask[:, None]
    other = replace(block, b0s=torch.where(outside, 7.0, block.b0s), dwis=torch.where(outside, 3.0, block.dwis))
    net = network()
    first, second = (estimator.estimate(net, fields_of(b)) for b in (block, other))
    torch.testing.assert_close(first.mean, second.mean)


def test_untrained_it_is_the_mean_of_both_fits_smoothed_by_a_gaussian():
    block, _ = block_of()
    known = fields_of(block)
    net = AttentionFit().double()
    mean, power = net(known)
    weights = torch.exp(-0.5 * (known.distances / (known.width / 2**0.5)).square())
    weights = torch.where(known.neighbours < len(mean), weights, 0)
    weights = weights / weights.sum(dim=1, keepdim=True)

    def smoothed(values):
        return torch.einsum("vj,vjc->vc", weights, torch.cat([values, values[:1] * 0])[known.neighbours])

    once = smoothed((known.raw + known.clean) / 2)
    torch.testing.assert_close(mean, smoothed((known.raw + known.clean + once) / 3))
    torch.testing.assert_close(power, known.noise.square())


def test_slab_by_slab_is_the_same_as_at_once(monkeypatch):
    # Except for the width of the Gaussian, which is one for all voxels.
    monkeypatch.setattr(fields, "width_of", lambda noise: 0.5)
    block, _ = block_of(shape=(8, 8, 22))
    one = replace(
        block, b0s=block.b0s[:1], dwis=block.dwis[:1], mask=block.mask[:1], edges=block.edges[:1], sigma=block.sigma[:1]
    )
    net = network()
    whole = estimator.estimate_scan(net, one)
    monkeypatch.setattr(estimator, "SLAB_VOXELS", 8 * 8 * 3)
    for found, expected in zip(estimator.estimate_scan(net, one), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_lengthened_tensors_are_as_long_as_on_average():
    frame = torch.linalg.qr(torch.cat([torch.ones(3), torch.zeros(3)])[:, None].double(), mode="complete").Q[:, 1:]
    drawn = random(40_000, 5) @ frame.T  # anisotropic parts: no trace
    for size in (0.5, 1.0, 2.0):
        mean = size * frame[:, 0][None]
        expected = (mean + 0.3 * drawn).norm(dim=1).mean()
        power = torch.tensor([5 * 0.3**2], dtype=torch.float64)
        known = fields_of(block_of()[0])
        one = torch.ones(1, dtype=torch.float64)
        said = estimator.Estimate(replace(known, md=one, md_raw=one), mean, power)
        found = said.lengthened() - torch.tensor([1.0, 1, 1, 0, 0, 0])
        assert float(found.norm()) == pytest.approx(float(expected), rel=0.03)
        torch.testing.assert_close(found / found.norm(), mean / mean.norm())


def example_of(power=0.3, noise=0.1, offset=0.0, count=6000):
    """Return an example whose hidden volumes come from tensors around a fixed one, and that one."""
    block, _ = block_of(shape=(count // 100, 10, 10))
    known = fields_of(replace(block, mask=torch.ones_like(block.mask)))
    count = len(known.raw)
    frame = torch.linalg.qr(torch.cat([torch.ones(3), torch.zeros(3)])[:, None].double(), mode="complete").Q[:, 1:]
    mean = (frame[:, 0] + 0.4 * frame[:, 3]).expand(count, -1)
    true = mean + (power / 5) ** 0.5 * random(count, 5, seed=3) @ frame.T
    bvecs = torch.linalg.qr(random(3, 3, seed=8)).Q
    bvecs = torch.as_tensor(np.asarray(even_directions(9))) @ bvecs
    wanted = true @ dyadic_features(bvecs).T + noise * random(count, 9, seed=4) + offset * random(count, 1, seed=6)
    known = replace(known, noise=torch.full_like(known.noise, noise))
    return hidden.Example(known, wanted, bvecs), mean


@pytest.mark.parametrize(("noise", "offset"), [(0.1, 0.0), (0.4, 0.0), (0.1, 0.5)])
def test_the_power_that_fits_best_is_that_of_what_is_unknown_whatever_the_noise(noise, offset):
    example, mean = example_of(0.3, noise, offset)
    powers = torch.linspace(0, 0.6, 61, dtype=torch.float64)
    losses = [float(hidden.loss(example, mean, torch.full((len(mean),), float(p)))) for p in powers]
    assert float(powers[int(np.argmin(losses))]) == pytest.approx(0.3, abs=0.03)


def test_the_true_mean_predicts_hidden_volumes_best():
    example, mean = example_of(0.1, 0.1)
    nothing = torch.zeros(len(mean), dtype=torch.float64)
    losses = {scale: float(hidden.loss(example, scale * mean, nothing)) for scale in (0.9, 1.0, 1.1)}
    assert min(losses, key=losses.get) == 1.0
    turned = mean[:, [1, 2, 0, 5, 3, 4]]
    assert float(hidden.loss(example, turned, nothing)) > losses[0.9]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Return prepared scans: one of fourteen directions whose volumes all differ, on an oblique grid."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * [2.0, 2.0, 4.0]
    world = np.concatenate([np.zeros((2, 3)), even_directions(14)])
    gradients = GradientTable.from_world(np.r_[0, 0, np.full(14, BVAL)], world, affine)
    mask = np.zeros((30, 28, 9), bool)
    mask[2:-2, 2:-2, 1:-1] = True
    rng = np.random.default_rng(1)
    data = np.where(gradients.is_b0, 100.0, 30.0 + np.arange(16)) * np.ones((*mask.shape, 1))
    data = (data + rng.normal(0, 0.05, data.shape)).astype(np.float32)
    data[5, 5, 3, 4] = 0  # a sample that is missing
    path = tmp_path_factory.mktemp("scans") / "scans.safetensors"
    write_prepared(path, [("run", "01", Scan(data, affine, gradients, mask), 0.1)])
    return Prepared(path), data, world[2:]


def test_hidden_volumes_are_none_that_the_network_sees(scans, monkeypatch):
    source, _, world = scans
    monkeypatch.setattr(hidden, "COARSE", 0.0)
    numbers = set()
    for index in range(12):
        block, others, bvecs = hidden._measured(source, 3 + index % 4, 2, numbers_of_step(0, index))
        numbers.add(len(block.bvecs))
        assert len(block.bvecs) + len(bvecs) == 14
        between = (block.bvecs.double() @ bvecs.double().T).abs()
        assert between.max() < 1 - 1e-4
        torch.testing.assert_close(block.edges, torch.tensor([[2.0, 2.0, 4.0]] * 2), rtol=1e-3, atol=0)
        for volumes, directions in ((others, bvecs),):
            which = (directions.double() @ torch.as_tensor(world).T).abs().argmax(dim=1)
            for k, volume in enumerate(which.tolist()):
                values = volumes[:, k][block.mask] * 100
                assert float(values.mean()) == pytest.approx(32.0 + volume, abs=0.2)
        assert not (block.mask & (others == 0).any(dim=1)).any()
    assert numbers == {3, 4, 5, 6}


def test_noise_is_added_to_what_is_seen_alone(scans, monkeypatch):
    source, *_ = scans
    monkeypatch.setattr(hidden, "COARSE", 0.0)
    monkeypatch.setattr(hidden, "MOST_NOISE", 100.0)
    for share, smallest, largest in ((0.0, 0, 1), (1.1, 1, 1e9)):
        monkeypatch.setattr(hidden, "NOISY", share)
        block, others, _ = hidden._measured(source, 6, 2, numbers_of_step(1, 0))
        spread = (block.dwis.movedim(1, 4)[block.mask].std(dim=0) * 100).mean()
        assert smallest <= spread < largest
        assert (others.movedim(1, 4)[block.mask].std(dim=0) * 100).mean() < 1


def test_examples_repeat_and_some_are_thin_or_coarse(scans):
    source, *_ = scans
    depths, edges = set(), set()
    for index in range(30):
        example = hidden.examples(source, 2, numbers_of_step(2, index))
        depths.add(example.fields.mask.shape[3])
        edges.add(round(float(example.fields.distances.max()), 2))
    assert {1, 2, hidden.SIDES[2]} <= depths
    assert len(edges) > 1
    torch.testing.assert_close(
        hidden.examples(source, 2, numbers_of_step(2, 29)).hidden, example.hidden, rtol=0, atol=0
    )


def test_simulated_examples_hide_volumes_of_the_same_tensor():
    arrays, affine = embedded_mni(4)
    subjects = SimulatedSubjects([deform(procedural_atlas(**arrays, affine=affine), 0)])
    example = hidden.examples(subjects, 2, numbers_of_step(0, 1))
    features = dyadic_features(example.bvecs)
    seen = example.fields.md[:, None] + example.fields.clean @ features.T
    assert np.corrcoef(seen.flatten(), example.hidden.flatten())[0, 1] > 0.8


def test_the_unknown_power_has_no_say_in_the_mean():
    net = network()
    _, power = net(fields_of(block_of()[0]))
    power.sum().backward()
    moved = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"unknown"}


def test_it_learns_to_predict_hidden_volumes(scans):
    source, *_ = scans
    training = Neighbours()
    example = training.examples(source, "small", 2, 0)(0)
    torch.manual_seed(0)
    net = AttentionFit()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = training.loss(net, example)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
