"""QID²: the untrained result, the unchanged volumes, reproducibility, and examples with the stated values."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.diffusion.weights import Card, WeightsError, save_weights
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.harmonics import harmonics
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.directions import qid2_model as qid2
from bids_dmrigen.methods.directions.examples import _start, simulated
from bids_dmrigen.methods.directions.qid2_model import PROCESS, QID2, SIZES, STEPS
from bids_dmrigen.methods.making import Making
from bids_dmrigen.methods.starts import mean_start
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_from, numbers_of_step
from bids_dmrigen.spatial.templates import embedded_mni

AFFINE = np.diag([2.0, 2, 3, 1])


@pytest.fixture(scope="module")
def scan():
    """Two fibre populations with noise, 12 directions at b = 1000."""
    world = np.concatenate([np.zeros((2, 3)), even_directions(12)])
    b = np.r_[0, 0, np.full(12, 1000.0)]
    rng = np.random.default_rng(0)
    scale = 100 * rng.uniform(0.7, 1.5, (16, 12, 4, 1))
    data = scale * np.exp(-b * (0.4e-3 + 1.2e-3 * (world @ [0.6, 0.8, 0]) ** 2)) + rng.normal(0, 2, (16, 12, 4, 14))
    mask = np.zeros((16, 12, 4), bool)
    mask[2:-2, 2:-2] = True
    return Scan(data.astype(np.float32), AFFINE, GradientTable.from_world(b, world, AFFINE), mask)


@pytest.fixture(scope="module")
def subjects():
    arrays, affine = embedded_mni(4)
    return SimulatedSubjects([deform(procedural_atlas(**arrays, affine=affine), 0)])


def request_(**more):
    options = {"directions": 16}
    return Request(**{"options": options, "precision": "fp32", "steps": 2, **more})


def start(scan, request):
    """What an untrained network gives."""
    return QID2()._fill(Making(QID2(), QID2().network("small"), request, STEPS), scan, request, qid2.NO_TRUST)


def perturbed():
    """A network whose output is not zero; the scan confirms a part of its correction by chance."""
    net = QID2().network("small")
    torch.nn.init.normal_(net.head[-1].weight, std=0.2, generator=torch.Generator().manual_seed(5))
    return net


def test_the_paper_size_has_the_papers_dimensions():
    spec = SIZES["paper"]
    assert [spec.base * m for m in spec.multipliers] == [128, 128, 256]
    assert (spec.blocks, spec.attention, spec.in_channels) == (1, (1, 2), 1 + 6)


def test_an_untrained_network_gives_the_harmonics_of_the_denoised_series_with_all_their_anisotropy(scan):
    generated = QID2().generate(QID2().network("small"), scan, request_())
    np.testing.assert_array_equal(generated.mean[..., :14], scan.data)
    world = generated.gradients.world_directions(AFFINE)
    acquired, wanted = (torch.as_tensor(world[part]) for part in (slice(2, 14), slice(14, None)))
    weights = harmonics(wanted, 2) @ torch.linalg.pinv(harmonics(acquired, 2))  # no penalty
    expected = mean_start(scan)[scan.mask][:, 2:] @ weights.numpy().T
    np.testing.assert_allclose(generated.mean[scan.mask][:, 14:], expected, rtol=0.02)
    assert not generated.mean[~scan.mask][:, 14:].any()
    assert generated.acquired.tolist() == [True] * 14 + [False] * 4


def test_one_seed_one_result_whatever_the_batch(scan, monkeypatch):
    net = perturbed()
    one = QID2().generate(net, scan, request_())
    monkeypatch.setattr(qid2, "IMAGES_AT_ONCE", 3)
    other = QID2().generate(net, scan, request_())
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-3)
    third = QID2().generate(net, scan, request_(seed=1))
    assert np.abs(third.mean - one.mean).max() > 0.02  # not what rounding does


def test_samples_differ_and_their_acquired_volumes_do_not(scan):
    net = perturbed()
    generated = QID2().generate(net, scan, request_(n_samples=3))
    drawn = np.stack(list(generated.samples))
    assert drawn.shape == (3, *generated.mean.shape)
    np.testing.assert_array_equal(drawn[..., :14], np.broadcast_to(scan.data, (3, *scan.data.shape)))
    assert (drawn.std(axis=0)[scan.mask][:, 14:] > 0).all()
    alone = QID2().generate(net, scan, request_(steps=None))
    np.testing.assert_array_equal(generated.mean, alone.mean)
    assert alone.samples is None


def test_one_image_is_the_mean_and_several_are_samples(scan):
    def sampler(**more):
        generated = QID2().generate(perturbed(), scan, request_(**{"steps": None, **more}))
        return generated.record["Sampler"]["Name"].split(":")[0], generated.record["Sampler"]["NetworkEvaluations"]

    assert sampler() == ("none", 1)
    assert sampler(n_samples=2) == ("none", 1)
    assert sampler(n_samples=2, sampler="paper", steps=3) == ("ancestral", 3)
    assert sampler(steps=3) == ("DPM-Solver++(2M)", 3)


@pytest.mark.parametrize(("change", "trust"), [(2.0, 0.5), (1.0, 1.0), (-1.0, 0.0), (0.5, 1.0)])
def test_trust_is_the_share_of_the_correction_that_the_scan_confirms(scan, change, trust):
    """A network that goes `change` times as far as the acquired volumes say."""

    def fill(few, request):
        generated = start(few, request)
        wanted = generated.gradients.bvecs[~generated.acquired]
        volumes = np.abs(scan.gradients.bvecs @ wanted.T).argmax(axis=0)
        mean = generated.mean.copy()
        mean[..., ~generated.acquired] += change * (scan.data[..., volumes] - mean[..., ~generated.acquired])
        return replace(generated, mean=mean)

    found = qid2.trust_in_correction(fill, start, scan, request_())
    assert found == {1000.0: pytest.approx(trust, abs=1e-3)}


def test_corrections_that_the_scan_does_not_confirm_are_reduced(scan):
    net = perturbed().eval()
    net.head[-1].weight.data *= 30  # far too large a correction
    generated = QID2().generate(net, scan, request_())
    harmonic = start(scan, request_())
    trust = generated.record["TrustInCorrection"]["b=1000"]
    assert 0 < trust < 0.5
    whole = QID2()._fill(Making(QID2(), net, request_(), STEPS), scan, request_(), {})
    inside = scan.mask
    correction = whole.mean[inside][:, 14:] - harmonic.mean[inside][:, 14:]
    taken = generated.mean[inside][:, 14:] - harmonic.mean[inside][:, 14:]
    positive = (whole.mean[inside][:, 14:] > 0) & (generated.mean[inside][:, 14:] > 0)
    np.testing.assert_allclose(taken[positive], trust * correction[positive], atol=0.02 * np.abs(taken).max())


def test_missing_weights_and_untrained_b_values_are_reported(scan):
    with pytest.raises(WeightsError, match="no weights 'qid2-paper'"):
        QID2().generate(None, scan, request_(size="paper"))
    high = Scan(scan.data, AFFINE, GradientTable(scan.gradients.bvals * 4.5, scan.gradients.bvecs), scan.mask)
    generated = QID2().generate(QID2().network("small"), high, request_())
    assert any("outside what the weights were trained on" in w for w in generated.warnings)


def test_stored_weights_are_used_and_named_in_the_record(scan, tmp_path):
    net = perturbed()
    trained = {"examples": "simulated subjects"}
    card = Card("qid2", "small", {}, trained, 1, 1.0, 0, "a test", {}, "Apache-2.0")
    save_weights(tmp_path, "qid2-small", net, card)
    generated = QID2().generate(None, scan, request_(weights_dir=tmp_path))
    np.testing.assert_array_equal(generated.mean, QID2().generate(net, scan, request_()).mean)
    weights = generated.record["Weights"]
    assert (weights["Name"], weights["TrainedOn"], weights["License"]) == ("qid2-small", trained, "Apache-2.0")
    assert len(weights["SHA256"]) == 64


def test_examples_are_a_function_of_their_index_and_can_be_learnt_from(subjects):
    make = QID2().examples(subjects, "small", 8, seed=3)
    first, again, other = make(0), make(0), make(1)
    torch.testing.assert_close(first.x0, again.x0, rtol=0, atol=0)
    assert not torch.equal(first.x0, other.x0)
    condition = first.condition
    assert condition.images.shape[1] == SIZES["small"].in_channels - 1
    torch.testing.assert_close(condition.bvecs.norm(dim=2), torch.ones(condition.bvecs.shape[:2]))
    # In units of the noise of the prediction, the residual to generate is of order one.
    inside = first.x0[first.weight == 1]
    assert 0.3 < inside.std() < 5
    net = QID2().network("small")
    loss = QID2().loss(net, first)
    loss.backward()
    assert torch.isfinite(loss)
    assert net.head[-1].weight.grad.abs().max() > 0


def test_the_condition_of_the_paper_variant_is_the_references_only(subjects):
    batch = QID2().examples(subjects, "paper", 4, seed=3)(0)
    assert batch.condition.images.shape[1] == 6
    image = batch.condition.centre + batch.condition.scale * batch.x0
    assert (image >= -1e-4).all()


def test_measured_scans_are_aimed_at_where_their_noise_is_not_learnt(scan, tmp_path):
    write_prepared(tmp_path / "scans.safetensors", [("run", "01", scan, 2.0)])
    make = QID2().examples(Prepared(tmp_path / "scans.safetensors"), "small", 8, seed=3)
    batch, again = make(0), make(0)
    torch.testing.assert_close(batch.x0, again.x0, rtol=0, atol=0)
    kept, _ = PROCESS.marginal(batch.t)
    assert (kept.square() < 0.01).all()
    assert not batch.weight[:, :, :10].any()  # beside the scan
    # The target is an acquired volume, whose direction is not among the references.
    cosine = (batch.condition.bvecs[:, :-1] * batch.condition.bvecs[:, -1:]).sum(dim=2).abs()
    assert (cosine < 0.999).all()
    image = (batch.condition.centre + batch.condition.scale * batch.x0)[batch.weight > 0]
    signal = scan.data[scan.mask][:, 2:] / np.median(scan.mean_b0()[scan.mask])
    assert signal.min() * 0.99 <= image.min()
    assert image.max() <= signal.max() * 1.01
    paper = QID2().examples(Prepared(tmp_path / "scans.safetensors"), "paper", 32, seed=3)(0)
    assert paper.t.min() < 500


def test_scans_with_too_few_directions_are_refused(scan, tmp_path):
    few = Scan(scan.data[..., :11], AFFINE, scan.gradients[np.arange(11)], scan.mask)
    write_prepared(tmp_path / "scans.safetensors", [("run", "01", few, 2.0)])
    with pytest.raises(ValueError, match="no shell has the 10 directions"):
        QID2().examples(Prepared(tmp_path / "scans.safetensors"), "small", 4, 0)(0)


def test_examples_start_from_a_series_with_less_noise_but_all_of_the_contrast(subjects):
    make = numbers_of_step(0, 0, torch.device("cpu"))
    a = simulated(subjects, "small", 32, make)
    uniform, _ = numbers_from(numbers_of_step(1, 0, torch.device("cpu")))
    series = _start(a, uniform)
    brain = a.mask[:, None].expand(-1, a.shell.shape[1], -1, -1) & (a.shell[..., 1] > 0)
    before, after = (x[..., 1].log()[brain] for x in (a.shell, series))
    assert 0.8 < after.std() / before.std() <= 1
    # The noise is in the differences between neighbours.
    pairs = brain[..., 1:] & brain[..., :-1]
    steps = [x[..., 1].log().diff(dim=-1)[pairs].square().mean() for x in (a.shell, series)]
    assert steps[1] < 0.8 * steps[0]
    torch.testing.assert_close(series[~a.mask[:, None, :, :, None].expand_as(series)],
                               a.shell[~a.mask[:, None, :, :, None].expand_as(series)])  # fmt: skip
