"""Systems that the papers compare with: each learns something, and is what its description says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.numerics import policy
from bids_dmrigen.diffusion.training import train
from bids_dmrigen.dwi.gradients import even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods import REGISTRY, load, spec_of
from bids_dmrigen.methods.adversarial import Adversaries, verdicts
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.denoise.ddm2_model import PROCESS, ThreeStages
from bids_dmrigen.methods.directions.direct import adversaries as of_directions
from bids_dmrigen.methods.enhance import stages
from bids_dmrigen.methods.maps import bm4d
from bids_dmrigen.methods.maps.cyclegan_model import Cycle
from bids_dmrigen.methods.maps.direct import SixImages
from bids_dmrigen.methods.maps.inputs import Condition, numbers_of, tensor_of
from bids_dmrigen.nets.compared import ImageAutoencoder, NestedUNet, PatchDiscriminator, PlainCNN, PlainUNet
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects
from bids_dmrigen.spatial.templates import embedded_mni

from ..conftest import tiny_gradients, tiny_series

DIRECT = [n for n in REGISTRY if spec_of(n).needs_weights and not spec_of(n).draws and "paper" not in spec_of(n).sizes]
LEARNT = [*DIRECT, "ddpmhdit", "latentdiffusion"]
ON_RUN = ["noisier2noise", "dip", "ddm2"]
# Share of the error at the start that may be left, for the arms that take more and smaller steps: CycleGAN learns
# without pairs, and with large steps the others depend on the order in which a machine adds numbers.
MOST = {"cyclegan": 1.0, "unet2dwi": 0.9995, "unetpp": 0.9995, "smri2dwi": 0.9995}
MOST |= {"superdti": 0.998, "phydiffdirect": 0.998}


@pytest.fixture(scope="module")
def anatomy():
    arrays, affine = embedded_mni(4)
    return procedural_atlas(**arrays, affine=affine)


@pytest.fixture(scope="module")
def subjects(anatomy):
    return SimulatedSubjects([deform(anatomy, 0)])


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setitem(stages.CONSTANT_BATCHES, "small", 1)
    monkeypatch.setitem(stages.SIDE, "small", (16, 16, 8))


@pytest.mark.parametrize("name", [n for n in LEARNT if n != "neighbours"])
@pytest.mark.usefixtures("_small_blocks")
def test_every_learnt_arm_beats_its_own_start_on_examples_that_it_does_not_see(name, subjects, anatomy, monkeypatch):
    method = load(name)
    source = method.subjects(anatomy, 1) if method.spec.in_template else subjects
    net = method.network("small")
    with policy(deterministic=True):
        for training in method.trainings(net):
            monkeypatch.setattr(type(training), "scored_on", lambda *_: (2, 4))
            if training.name:
                training.begin(source, 4, 0)
            plan = replace(
                training.training_plan("small"),
                steps=60 if name in MOST else 25,
                evaluate_every=5,
                warmup=3,
                ema=0.8,
                learning_rate=1e-3 if name in MOST else 3e-3,
            )
            result = train(net, training.examples(source, "small", 4, 0), training.loss,
                           training.held_out(source, "small", 5), plan)  # fmt: skip
            assert result.held_out_loss < MOST.get(name, 0.998) * result.start_loss


def test_all_that_the_papers_name_is_there():
    named = {
        "maps": ["lls", "wlls", "bm4d", "mlp", "superdti", "deepdti", "cyclegan", "diffdtidirect"],
        "directions": ["interp", "sh", "gp", "cgan", "qgan", "qid2direct"],
        "synthesis": ["atlas", "qdl", "qdl2d", "unet2dwi", "unetpp", "smri2dwi", "latentdiffusion", "ddpmhdit",
                      "phydiffdirect"],
        "enhance": ["bspline", "rish", "cnn7t", "gan7t", "refinement"],
        "denoise": ["mppca", "patch2self", "ascm", "nlm", "noisier2noise", "dip", "ddm2"],
    }  # fmt: skip
    for room, names in named.items():
        assert all(REGISTRY[name].startswith(f".{room}.") for name in names)


# -- adversaries


def gradients(net, loss):
    """Return the names of the parameters that a loss has a gradient for."""
    net.zero_grad()
    loss.backward(retain_graph=True)
    return {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}


def awake(net):
    """Return a network without parameters that are all zero, behind which nothing would have a gradient."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=random)
    return net


def test_generators_and_discriminators_share_no_gradient():
    net = awake(Adversaries(PlainUNet(3, 1, (4, 8)), PatchDiscriminator(4, 4)))
    images, real = torch.randn(2, 3, 32, 32), torch.randn(2, 1, 32, 32)
    contest = net(images, images, real, torch.ones_like(real))
    assert gradients(net, contest.generator) == {"generator"}
    assert gradients(net, contest.discriminator) == {"discriminator"}

    net = awake(Cycle())
    rounds = net(torch.randn(2, 6, 32, 32), torch.randn(2, 6, 32, 32), torch.ones(2, 1, 32, 32))
    assert gradients(net, rounds.generators) == gradients(net, rounds.cycle) == {"generator", "back"}
    assert gradients(net, rounds.discriminators) == {"of_good", "of_noisy"}
    net = awake(load("gan7t").network("small"))
    seen, real = torch.randn(1, net.refiner.first.in_channels, 8, 8, 8), torch.randn(1, 3, 8, 8, 8)
    contest = net("contest", seen, real, torch.ones_like(real))
    assert gradients(net, contest.generator) == {"refiner"}
    assert gradients(net, contest.discriminator) == {"discriminator"}


def test_verdicts_are_squared_distances_from_what_is_wanted():
    judge = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(judge.weight)
    made, real = torch.full((1, 1, 4, 4), 0.25), torch.full((1, 1, 4, 4), 0.75)
    generator, discriminator = verdicts(judge, made, made, real)
    assert float(generator) == pytest.approx(0.75**2)
    assert float(discriminator.detach()) == pytest.approx((0.25**2 + 0.25**2) / 2)


def test_a_discriminator_sees_the_images_and_what_is_judged():
    net = of_directions(torch.nn.Identity(), 6)
    assert net.discriminator.body[0].in_channels == 6 + 5 + 1


# -- networks


def test_a_network_of_single_voxels_sees_no_neighbour():
    net, x = awake(PlainCNN(2, 1, 8, 4, kernel=1)), torch.randn(1, 2, 6, 6)
    moved = x.clone()
    moved[..., 3, 3] += 1
    changed = (net(moved) != net(x))[0, 0]
    assert changed.sum() == 1
    assert changed[3, 3]
    deep = awake(PlainCNN(2, 1, 8, 4))
    x = torch.randn(1, 2, 21, 21)
    moved = x.clone()
    moved[..., 10, 10] += 1
    reached = (deep(moved) != deep(x))[0, 0].nonzero()
    assert (reached - 10).abs().max() <= deep.reach == 4


@pytest.mark.parametrize("shape", [(16, 16), (17, 13)])
def test_unets_take_any_size_and_begin_with_nothing(shape):
    for net in (PlainUNet(3, 2, (4, 6, 8)), NestedUNet(3, 2, (4, 6, 8))):
        out = net(torch.randn(2, 3, *shape))
        assert out.shape == (2, 2, *shape)
        assert not out.any()
        assert awake(net)(torch.randn(2, 3, *shape)).any()


def test_a_nested_unet_has_the_blocks_of_the_paper():
    """Five levels have 5 + 4 + 3 + 2 + 1 blocks; block k of a level sees k blocks of its level, and one below."""
    net = NestedUNet(1, 1, (4, 8, 16, 32, 64))
    assert len(net.down) + len(net.across) == 15
    assert net.across["0 4"].first.in_channels == 4 * 4 + 8
    assert net.across["2 2"].first.in_channels == 2 * 16 + 32


def test_what_is_told_changes_what_is_said():
    net = awake(PlainUNet(1, 1, (4, 8), told=2))
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(net(x, torch.zeros(1, 2)), net(x, torch.ones(1, 2)))


def test_latents_are_four_times_coarser():
    net = ImageAutoencoder(1, 4)
    assert net.encoder(torch.zeros(1, 1, 16, 24)).shape == (1, 4, 4, 6)
    assert net(torch.zeros(1, 1, 16, 24)).shape == (1, 1, 16, 24)


# -- maps


def condition_of_tensors(tensor, scale=0.1):
    """Return a condition of slices whose fit is known, (S, 6, H, W)."""
    centre = numbers_of(tensor)
    n, (height, width) = len(tensor), tensor.shape[2:]
    one = torch.ones(n, 7, height, width)
    bvecs = torch.as_tensor(even_directions(6), dtype=torch.float32).expand(n, -1, -1)
    return Condition(torch.zeros(n, 2, height, width), one, bvecs, torch.full((n, 6), 1000.0), torch.zeros(n, 3),
                     centre, scale * torch.ones_like(centre), one[:, 0])  # fmt: skip


def test_six_images_that_nothing_is_added_to_are_those_of_the_fit():
    tensor = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    net = SixImages(PlainCNN(7 + 2 + 3, 7, 8, 2))
    said = net(condition_of_tensors(tensor))
    torch.testing.assert_close(said, torch.zeros_like(said), atol=2e-4, rtol=0)


def test_what_is_added_to_six_images_changes_the_tensor_that_is_fitted_to_them():
    """All six images e times darker, b = 1000: every diffusivity is larger by 1e-3 mm²/s."""
    tensor = torch.tensor([0.7, 0.5, 0.4, 0.1, 0, 0])[None, :, None, None].expand(1, -1, 3, 3).contiguous()
    condition = condition_of_tensors(tensor)

    class Darker(torch.nn.Module):
        def forward(self, x):
            return torch.cat([0 * x[:, :1], x[:, 1:7] * (np.exp(-1) - 1)], dim=1)

    result = condition.centre + condition.scale * SixImages(Darker())(condition)
    torch.testing.assert_close(tensor_of(result)[:, :3], tensor[:, :3] + 1, atol=1e-4, rtol=0)
    torch.testing.assert_close(tensor_of(result)[:, 3:], tensor[:, 3:], atol=1e-4, rtol=0)


def tiny(n_directions=12):
    gradients, shape = tiny_gradients(n_directions), (16, 18, 6)
    mask = np.zeros(shape, bool)
    mask[3:13, 3:15, 1:5] = True
    return Scan(tiny_series(gradients, shape), np.diag([-3.0, 3, 3, 1]), gradients, mask)


@pytest.mark.parametrize("name", [n for n in DIRECT if REGISTRY[n].split(".")[1] in ("maps", "directions", "enhance")])
def test_a_network_without_time_is_asked_once_whatever_is_requested(name):
    if name == "neighbours":
        pytest.skip("an estimator of another kind")
    scan, method = tiny(20), load(name)
    net = method.network("small")
    one = method.generate(net, scan, Request(precision="fp32", options={"directions": 22}))
    more = method.generate(
        net, scan, Request(precision="fp32", options={"directions": 22}, n_samples=3, steps=5, sampler="paper")
    )
    np.testing.assert_array_equal(one.mean, more.mean)
    assert more.samples is None
    assert more.record["Sampler"]["Steps"] == more.record["Sampler"]["NetworkEvaluations"] == 1
    assert more.record["Samples"] == 1


@pytest.mark.parametrize("name", ["cgan", "qgan", "qid2direct", "qid2"])
def test_the_number_of_references_is_that_of_the_options(name, tmp_path):
    """The method in the registry has the default number; weights and request have another one."""
    from bids_dmrigen.diffusion.weights import Card, save_weights

    method = load(name).configured({"references": 3})
    card = Card(name, "small", method.configuration("small"), {}, 1, 0.1, 0, "test", {}, "Apache-2.0")
    path = save_weights(tmp_path, f"{name}-small", method.network("small"), card)
    asked = Request(precision="fp32", weights=str(path), options={"directions": 22, "references": 3})
    assert load(name).generate(None, tiny(20), asked).mean.shape[3] == 2 + 22


def test_untrained_maps_are_those_of_the_fit_and_cyclegan_keeps_it():
    scan = tiny(6)
    found = [
        load(name).generate(load(name).network("small"), scan, Request(precision="fp32")).mean
        for name in ("mlp", "superdti", "cyclegan", "diffdtidirect")
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_bm4d_is_refused_where_it_is_not_installed_and_denoises_what_is_used_where_it_is(monkeypatch):
    scan = tiny(12)
    record = load("bm4d").generate(None, scan, Request()).record
    assert record["Volumes"] == load("lls").generate(None, scan, Request()).record["Volumes"]
    used = np.r_[0, 1, record["Volumes"]["b=1000"]]
    hole = np.array(scan.data)
    hole[8, 8, 3, used] = 0
    found, acquired = bm4d.denoised(replace(scan, data=hole)).data, hole.astype(np.float64)
    wanted = (acquired + sum(np.roll(acquired, step, axis) for axis in range(3) for step in (-1, 1))) / 7
    inside = scan.mask & (hole[..., 0] > 0)
    np.testing.assert_allclose(found[inside][:, used], wanted[inside][:, used], rtol=1e-5)
    rest = np.delete(np.arange(14), used)
    np.testing.assert_array_equal(found[..., rest], hole[..., rest])
    np.testing.assert_array_equal(found[~inside], hole[~inside])
    monkeypatch.setattr("bids_dmrigen.methods.maps.bm4d.find_spec", lambda name: None)
    with pytest.raises(ScanError, match=r"not installed; its licence allows non-commercial.*pip install bm4d"):
        load("bm4d").generate(None, scan, Request())


def test_six_images_determine_a_tensor_well():
    """Six even axes have the condition number (5 / 2)^1/2; the fit undoes the products."""
    net = SixImages(torch.nn.Identity())
    assert float(torch.linalg.cond(net.products)) == pytest.approx(2.5**0.5, rel=1e-4)
    torch.testing.assert_close(net.fit @ net.products, torch.eye(6), atol=1e-5, rtol=0)


# -- denoising


@pytest.fixture(scope="module")
def noisy_and_clean():
    gradients, rng = tiny_gradients(12), np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 24, 6)), indexing="ij")
    attenuation = np.exp(-gradients.bvals * 1e-3 * (0.5 + gradients.bvecs[:, 0] ** 2))
    clean = (500 * (1.5 + 0.5 * np.sin(3 * x + 2 * y) * np.cos(2 * z))[..., None] * attenuation).astype(np.float32)
    noisy = np.hypot(clean + rng.normal(0, 40, clean.shape), rng.normal(0, 40, clean.shape)).astype(np.float32)
    mask = x**2 + y**2 < 1
    return [Scan(data, np.diag([-2.0, 2, 2, 1]), gradients, mask) for data in (noisy, clean)]


@pytest.mark.parametrize(("name", "steps"), [("noisier2noise", 150), ("dip", 150), ("ddm2", 120)])
def test_denoisers_trained_on_the_run_bring_it_nearer_to_the_truth(noisy_and_clean, name, steps):
    noisy, clean = noisy_and_clean
    request = Request(options={"training_steps": steps}, precision="fp32")
    generated = load(name).generate(None, noisy, request)
    changed = ~generated.acquired
    before, after = (
        np.square((data - clean.data)[noisy.mask][:, changed]).mean() for data in (noisy.data, generated.mean)
    )
    assert after < 0.8 * before
    np.testing.assert_array_equal(generated.mean[~noisy.mask], noisy.data[~noisy.mask])
    assert generated.record["Training"]["Steps"] == steps
    assert generated.record["Training"]["HeldOutLoss"] < generated.record["Training"]["HeldOutLossAtStart"]


def test_ddm2_begins_where_the_noise_of_its_process_is_that_of_the_run():
    work = object.__new__(ThreeStages)
    residual = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    for time in (50, 400, 900):
        alpha, sigma = PROCESS.marginal(time)
        work.said = torch.zeros_like(residual)
        work.targets = np.arange(3)
        work.stack = type(
            "S", (), {"data": residual * (sigma / alpha), "mask": torch.ones(2, 40, 40, dtype=torch.bool)}
        )
        assert abs(work._matching_time() - time) <= 0.03 * time + 2


def test_a_single_b0_is_not_denoised_by_what_needs_another():
    gradients = tiny_gradients(12, n_b0=1)
    scan = Scan(tiny_series(gradients, (16, 16, 4)), np.diag([-2.0, 2, 2, 1]), gradients, np.ones((16, 16, 4), bool))
    generated = load("ddm2").generate(None, scan, Request(options={"training_steps": 1}))
    np.testing.assert_array_equal(generated.mean[..., 0], scan.data[..., 0])
    assert generated.acquired.tolist() == [True] + 12 * [False]


def test_tables_of_directions_are_used(subjects):
    """cGAN and qGAN are told the direction: another one gives another image."""
    for name in ("cgan", "qgan"):
        method = load(name)
        condition = method.examples(subjects, "small", 4, 0)(0).condition
        net = awake(method.network("small"))
        turned = replace(condition, bvecs=torch.cat([condition.bvecs[:, :-1], condition.bvecs[:, -1:].roll(1, 2)], 1))
        said, other = (net.generator(c).detach() for c in (condition, turned))
        assert not torch.allclose(said, other)
