"""Phy-Diff: its condition against closed forms, the untrained result, and reproducibility."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.diffusion.processes import PhysicsGuided, VariancePreserving
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods.base import Population, Request
from bids_dmrigen.methods.making import Making
from bids_dmrigen.methods.synthesis import phydiff_model as phydiff
from bids_dmrigen.methods.synthesis.examples import TARGETS, Cohort, measured, rim_gain
from bids_dmrigen.methods.synthesis.inputs import FREE_WATER, PopulationMaps, adc_for, condition_of, read_at
from bids_dmrigen.methods.synthesis.phydiff_model import PhyDiff
from bids_dmrigen.methods.synthesis.task import wanted_table
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import SimulatedSubjects, numbers_of_step
from bids_dmrigen.spatial.templates import embedded_mni

AFFINE = np.diag([2.0, 2, 2, 1])
AFFINE[:3, 3] = [-20, -30, 10]
SHAPE = (20, 16, 4)


def scan_of(data=100.0):
    b0 = GradientTable(np.zeros(1), np.zeros((1, 3)))
    mask = np.zeros(SHAPE, bool)
    mask[3:-3, 3:-3] = True
    image = data * np.random.default_rng(0).uniform(0.8, 1.2, (*SHAPE, 1))
    return Scan((image * mask[..., None]).astype(np.float32), AFFINE, b0, mask)


def population(tracts=False):
    adc = np.random.default_rng(1).uniform(0.5e-3, 1.5e-3, (*SHAPE, 2)).astype(np.float32)
    maps = np.random.default_rng(2).uniform(0, 1, (*SHAPE, 42)).astype(np.float32) if tracts else None
    return Population(adc, np.array([1000.0, 2000.0]), maps)


def request_(**more):
    return Request(**{"precision": "fp32", "subject": "01", "run": "r", "population": population(), **more})


def tiny():
    """A small network whose output is not zero."""
    from dataclasses import replace

    spec = replace(phydiff.SIZES["small"], widths=(32, 32), depths=(1, 1), mapping_width=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = phydiff.TractHDiT(spec, with_atlas=True)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.fixture(scope="module")
def cohort():
    arrays, affine = embedded_mni(4)
    atlas = procedural_atlas(**arrays, affine=affine)
    adc = torch.where(atlas.brain, 0.8e-3, 0.0).float()
    return Cohort(SimulatedSubjects([deform(atlas, 0)]), PopulationMaps(adc[None], torch.tensor([1000.0]), affine))


def test_the_adc_of_other_b_values_is_interpolated_between_those_of_the_atlas():
    maps = torch.tensor([1e-3, 0.8e-3, 0.5e-3])[None, :, None, None].expand(4, -1, 2, 2)
    found = adc_for(maps, torch.tensor([1000.0, 2000, 3000]), torch.tensor([500.0, 1500, 3000, 4000]))
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([1e-3, 0.9e-3, 0.5e-3, 0.5e-3]))
    alone = adc_for(maps[:, :1], torch.tensor([1000.0]), torch.tensor([500.0, 1500, 3000, 4000]))
    torch.testing.assert_close(alone, maps[:, :1])


def test_maps_are_read_at_places_in_the_world():
    x, y, z = (torch.arange(n, dtype=torch.float32) for n in (6, 5, 4))
    maps = torch.stack([x[:, None, None] + 0 * y[:, None] + 0 * z, x[:, None, None] + 10 * y[:, None] + 100 * z])
    places = torch.tensor([[-18.0, -29, 12], [-15, -24, 13], [40, 0, 0]]).T[None, :, :, None]  # (1, 3, 3, 1)
    found = read_at(maps, AFFINE, places)[0, :, :, 0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.5, 0], [1 + 5.0 + 100, 2.5 + 30 + 150, 0]]))


def test_the_small_network_gets_the_isotropic_prediction_and_corrects_it():
    b0 = torch.rand(2, 8, 8, 3) + 0.5
    adc = torch.full((2, 1, 8, 8), 0.9e-3)
    adc[:, :, 0] = 0
    bvals = torch.tensor([1000.0, 2000.0])
    places = torch.zeros(2, 3, 8, 8)
    places[:, 2] = 10.0
    condition = condition_of(b0, adc, torch.eye(3)[:2], bvals, places, "small")
    expected = b0[..., 1] * torch.tensor([math.exp(-0.9), math.exp(-1.8)])[:, None, None]
    torch.testing.assert_close(condition.centre[:, 0, 1:], expected[:, 1:])
    water = torch.exp(-bvals * FREE_WATER)[:, None] * b0[:, 0, :, 1]
    torch.testing.assert_close(condition.centre[:, 0, 0], water)
    torch.testing.assert_close(condition.position, torch.full((2,), 0.5))
    assert isinstance(condition.process(), PhysicsGuided)
    assert isinstance(condition.process(physics=False), VariancePreserving)
    paper = condition_of(b0, adc, torch.eye(3)[:2], bvals, places, "paper")
    assert paper.images.shape[1] == 1
    assert condition.part(slice(1, 2)).bvals.tolist() == [2000.0]


def test_the_untrained_network_gives_the_prediction_of_isotropic_diffusion():
    scan = scan_of()
    table = wanted_table(scan, (1000.0, 1500.0), 3)
    generated = PhyDiff().generate(PhyDiff().network("small"), scan, request_(options={"table": table}))
    adc = population().adc
    for k in (0, 4):
        d = adc[..., 0] if k == 0 else adc.mean(axis=3)
        expected = scan.data[..., 0] * np.exp(-table.bvals[k] * d)
        np.testing.assert_allclose(generated.mean[..., k][scan.mask], expected[scan.mask], rtol=1e-4)
    assert generated.gradients is table
    assert not generated.acquired.any()
    assert generated.record["Sampler"]["NetworkEvaluations"] == 1
    assert generated.record["Tracts"] is False


def test_tracts_that_change_nothing_are_recorded_as_unused():
    scan, table = scan_of(), wanted_table(scan_of(), (1000.0,), 1)
    given = request_(population=population(tracts=True), options={"table": table})
    untrained = PhyDiff().generate(PhyDiff().network("small"), scan, given)
    assert untrained.record["Tracts"] is False
    assert any("change nothing" in w for w in untrained.warnings)
    trained = PhyDiff().generate(tiny(), scan, given)
    assert trained.record["Tracts"] is True
    assert not any("tracts" in w for w in trained.warnings)


def test_direction_and_its_antipode_give_one_image_and_tracts_change_it():
    scan, net = scan_of(), tiny()
    bvecs = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]])
    table = GradientTable(np.full(3, 1000.0), bvecs)
    # The mean is estimated from noise, which differs from image to image: take it away.
    one = _without_noise(net, scan, table, population())
    np.testing.assert_allclose(one[..., 0], one[..., 1], atol=1e-3)
    assert np.abs(one[..., 0] - one[..., 2])[scan.mask].max() > 1e-2
    other = _without_noise(net, scan, table, population(tracts=True))
    assert np.abs(one - other)[scan.mask].max() > 1e-2


def making(net, **request):
    """Return a call of the method with this network."""
    return Making(PhyDiff(), net, request_(precision="fp32", **request), phydiff.STEPS)


def _without_noise(net, scan, table, maps):
    maker = phydiff._Maker(PhyDiff(), making(net, population=maps), scan, table)
    condition = maker._condition(1, torch.arange(len(table)))
    with torch.no_grad():
        found = phydiff.draw(net, condition, "fast", [1000], lambda draw: torch.zeros_like(condition.centre), "fp32")
    found = condition.centre + condition.scale * found
    out = np.zeros((*SHAPE, len(table)), np.float32)
    out[(*maker.box, 1)] = 100 * found[:, 0].permute(1, 2, 0).numpy()
    return out


def test_samples_follow_the_seed_alone_and_differ():
    scan, net = scan_of(), tiny()
    table = GradientTable(np.full(2, 1000.0), even_directions(2))
    settings = {"n_samples": 2, "steps": 3, "options": {"table": table}}
    one = PhyDiff().generate(net, scan, request_(**settings))
    same = PhyDiff().generate(net, scan, request_(**settings))
    np.testing.assert_array_equal(one.mean, same.mean)
    np.testing.assert_array_equal(one.samples.draw(1), same.samples.draw(1))
    assert np.abs(one.samples.draw(0) - one.samples.draw(1))[scan.mask].max() > 0
    other = PhyDiff().generate(net, scan, request_(**settings, seed=1))
    assert not np.array_equal(one.samples.draw(0), other.samples.draw(0))


def test_the_papers_sampler_starts_from_the_noised_b0():
    scan = scan_of()
    table = GradientTable(np.full(1, 1000.0), np.array([[0.0, 0, 1]]))
    settings = {"size": "paper", "sampler": "paper", "steps": 4, "options": {"table": table}}
    generated = PhyDiff().generate(_tiny_paper(), scan, request_(**settings))
    assert generated.record["Sampler"] == {"Name": "ancestral, from the noised b0", "Steps": 4, "NetworkEvaluations": 4}
    assert np.isfinite(generated.mean).all()
    assert making(tiny(), sampler="paper").steps == 800


def _tiny_paper():
    from dataclasses import replace

    return phydiff.TractHDiT(replace(phydiff.SIZES["paper"], widths=(64, 64), depths=(1, 1), mapping_width=32))


def test_the_paper_size_has_what_the_paper_states():
    net = PhyDiff().network("paper")
    assert net.backbone.spec.widths == (128, 256, 512)
    assert net.backbone.spec.patch == 4
    plan = PhyDiff().training_plan("paper")
    assert (plan.learning_rate, plan.betas, plan.weight_decay, plan.clip) == (5e-4, (0.9, 0.95), 1e-4, 1.0)
    assert not PhyDiff().network("small", query_mapping=False).backbone.conditions.numbers


def test_without_an_atlas_on_the_scans_grid_it_is_refused():
    scan = scan_of()
    with pytest.raises(ScanError, match="needs the ADC atlas"):
        PhyDiff().generate(tiny(), scan, request_(population=None))
    wrong = Population(population().adc[1:], np.array([1000.0, 2000.0]))
    with pytest.raises(ScanError, match="one grid"):
        PhyDiff().generate(tiny(), scan, request_(population=wrong))


def test_a_b_value_outside_the_training_range_is_reported():
    scan = scan_of()
    table = wanted_table(scan, (5000.0,), 2)
    generated = PhyDiff().generate(tiny(), scan, request_(options={"table": table}))
    assert any("5000" in w and "500 to 3200" in w for w in generated.warnings)


def test_wanted_directions_are_the_same_at_every_b_value():
    scan = scan_of()
    table = wanted_table(scan, (1000.0, 3000.0), 5)
    assert table.bvals.tolist() == [1000.0] * 5 + [3000.0] * 5
    np.testing.assert_allclose(table.bvecs[:5], table.bvecs[5:])
    given = wanted_table(scan, (1000.0,), np.array([[0.0, 1, 0]]))
    np.testing.assert_allclose(given.bvecs, [[0, 1, 0]], atol=1e-12)


def test_examples_have_the_stated_values_and_repeat(cohort):
    make = PhyDiff().examples(cohort, "small", 8, 0)
    batch, same = make(3), make(3)
    torch.testing.assert_close(batch.x0, same.x0, rtol=0, atol=0)
    condition = batch.condition
    assert len(batch.x0) == 8
    assert (condition.bvals[:TARGETS] == condition.bvals[0]).all()
    image = condition.centre + condition.scale * batch.x0
    inside = batch.weight > 0.02
    assert image[inside].min() > -0.05
    assert ((condition.attenuation >= 0) & (condition.attenuation <= 1)).all()
    between = (condition.bvecs[0] * condition.bvecs[1]).sum().abs()
    assert between < 0.999


def test_examples_of_scans_are_mirrored_together_with_their_places_and_directions(tmp_path, cohort, monkeypatch):
    """Signals that are a function of place and direction, the same on both sides: it must hold in every example."""
    monkeypatch.setattr("bids_dmrigen.methods.synthesis.examples.RIM_GAIN", 0.0)
    affine, shape = np.diag([2.0, 2, 2, 1]), (40, 44, 8)
    affine[:3, 3] = [-30, -50, 4]
    x, y, z = np.moveaxis(np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    bvecs = np.concatenate([np.zeros((1, 3)), even_directions(8)])

    def signal(x, y, z, direction):  # x and the direction's x change their sign together
        return 1 + 0.004 * y + 0.01 * z + 0.01 * x * direction[0] + 0.2 * direction[1] ** 2

    data = np.stack([signal(x, y, z, bvec) for bvec in bvecs], axis=-1)
    data[10:14, 20, :, 3] = 0  # samples that are missing
    table = GradientTable.from_world(np.r_[0.0, np.full(8, 1200.0)], bvecs, affine)
    scan = Scan(data.astype(np.float32), affine, table, np.ones(shape, bool))
    file = tmp_path / "placed.safetensors"
    write_prepared(file, [("sub-a", "a", scan, 0.01)], "a template")
    scale = np.median(data[..., 0])
    sides = set()
    for index in range(6):
        views = measured(Prepared(file), "small", 4, numbers_of_step(0, index, "cpu"))
        for k in range(4):
            x, y, z = views.places[k].numpy()
            sides.add(bool(x[1, 0] < x[0, 0]))
            b0 = signal(x, y, z, np.zeros(3)) / scale
            np.testing.assert_allclose(views.b0[k, ..., 1][views.mask[k]], b0[views.mask[k].numpy()], rtol=2e-3)
            for image, known, bvec, bval in zip(
                views.images[k], views.known[k], views.bvecs[k].numpy(), views.bvals[k], strict=True
            ):
                assert bval == 1200
                expected = signal(x, y, z, bvec) / scale
                np.testing.assert_allclose(image[known], expected[known.numpy()], rtol=2e-3)
                assert not image[~known].any()
    assert sides == {False}, "the axes of a mirrored image still lead to the right"
    make, n_missing = PhyDiff().examples(replace(cohort, subjects=Prepared(file)), "small", 8, 0), 0
    for batch in map(make, range(4)):
        middle = batch.condition.images[:, 1:2]  # of the b0: above 0 in the brain
        image = batch.condition.centre + batch.condition.scale * batch.x0
        missing = (middle > 0.1) & (image.abs() < 1e-4)
        n_missing += int(missing.sum())
        assert (batch.weight[missing] <= 0.021).all()
        assert (batch.weight[(middle > 0.1) & ~missing] > 0.021).all()
    assert n_missing > 0


def test_training_moves_the_backbone_alone_without_tracts_and_the_adapter_alone_with_them(monkeypatch):
    monkeypatch.setattr(phydiff, "ADC_SUBJECTS", 1)
    arrays, affine = embedded_mni(4)
    atlas = procedural_atlas(**arrays, affine=affine)
    method = PhyDiff()
    cohort = method.subjects(atlas, 1)
    assert 0.5e-3 < cohort.maps.adc[0][atlas.brain].median() < 1.2e-3
    assert cohort.maps.adc[2][atlas.brain].mean() < cohort.maps.adc[0][atlas.brain].mean(), "kurtosis"
    tracts = np.random.default_rng(0).random((*atlas.shape, 42), dtype=np.float32)
    population_maps = Population(np.full((*atlas.shape, 1), 1e-3, np.float32), np.array([1000.0]), tracts)
    for source in (cohort, method.subjects(atlas, 1, population=population_maps)):
        net = tiny()
        method.freeze(net, source)
        before = {name: p.clone() for name, p in net.named_parameters()}
        batch = method.examples(source, "small", 4, 0)(0)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        method.loss(net, batch).backward()
        optimiser.step()
        moved = {name.split(".")[0] for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        assert moved == ({"backbone", "atlas"} if source.maps.tracts is None else {"adapter"})


@pytest.mark.parametrize("size", ["small", "paper"])
def test_both_sizes_train_and_a_perfect_prediction_has_loss_zero(cohort, size):
    batch = PhyDiff().examples(cohort, size, 4, 0)(0)
    net = tiny() if size == "small" else _tiny_paper()
    loss = PhyDiff().loss(net, batch)
    loss.backward()
    assert loss.isfinite()

    class Perfect(torch.nn.Module):
        def forward(self, x, t, condition):
            return batch.x0 if size == "small" else batch.noise

    assert PhyDiff().loss(Perfect(), batch) == 0


def test_coils_are_nearest_to_the_rim():
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[:, 8:56, 8:56] = True
    gain = rim_gain(mask, torch.tensor([0.0, 0.5]), torch.Generator().manual_seed(0))
    assert (gain[0] == 1).all()
    middle, rim = gain[1, 0, 28:36, 28:36], torch.cat([gain[1, 0, 9, 9:55], gain[1, 0, 54, 9:55]])
    torch.testing.assert_close(middle, torch.ones_like(middle), atol=0.02, rtol=0)
    assert rim.min() >= 1
    assert rim.mean() > 1.1
    assert rim.max() < np.exp(0.75)
