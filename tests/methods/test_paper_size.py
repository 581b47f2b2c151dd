"""Networks of size `paper`: their dimensions, what they are trained on, and what that may cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.cli.tools import main
from bids_dmrigen.diffusion.weights import Card, WeightsError, save_weights
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.methods import check_weights, load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.directions.qid2_model import QID2
from bids_dmrigen.methods.enhance.rishldm import GUIDANCE, NOISE, SPEC
from bids_dmrigen.methods.enhance.stages import STAGES, levels_of
from bids_dmrigen.methods.maps import task as maps_task
from bids_dmrigen.methods.maps.task import SCHEMES, nearest_to_scheme
from bids_dmrigen.methods.spec import OptionError
from bids_dmrigen.nets.unet import Stage
from bids_dmrigen.simulate.examples import SimulatedSubjects
from tests.methods.test_evaluations import AFFINE, narrow, request_for, scan_of
from tests.simulate.conftest import make_ball


def million(net):
    return sum(p.numel() for p in net.parameters()) / 1e6


def test_di_fusion_has_the_parameters_that_the_paper_states():
    assert million(load("difusion").network("paper", "published")) == pytest.approx(24.5, abs=0.05)


def test_song_s_and_monai_s_networks_have_blocks_at_the_bottom_and_attention_where_they_have_it():
    for name in ("qid2", "diffdti"):
        net = load(name).network("paper")
        assert len(net.bottom) == 2
        assert isinstance(net.bottom[0].attention, torch.nn.Module)
    net = load("qid2").network("paper")
    with_tokens = [layer for layer in (*net.down, *net.bottom, *net.up) if isinstance(layer, Stage) and layer.cross]
    assert [layer.feed.up.out_channels // layer.feed.up.in_channels for layer in with_tokens] == [8] * len(with_tokens)
    assert {layer.attention.heads for layer in with_tokens} == {1, 2}  # of 128 each


@pytest.mark.parametrize(("name", "batch"), [("qid2", 4), ("diffdti", 8), ("phydiff", 32), ("rishldm", 1)])
def test_steps_take_as_many_examples_as_the_papers(name, batch):
    assert (load(name).batch("paper"), load(name).batch("small")) == (batch, 32)


def subjects():
    return SimulatedSubjects([make_ball()])


def test_examples_have_the_papers_sizes():
    assert QID2().examples(subjects(), "paper", 1, 0)(0).x0.shape == (1, 1, 145, 174)
    batch = load("diffdti").examples(subjects(), "paper", 1, 0)(0)
    assert batch.x0.shape == (1, 5, 192, 192)
    assert not batch.weight[..., :23, :].any()  # zeros around 145 rows
    assert batch.condition.images.shape == (1, 7, 192, 192)


def test_whole_slices_of_the_template_are_padded_with_zeros(monkeypatch):
    method = load("phydiff")
    cohort = method.subjects(make_ball(), 1)
    batch = method.examples(cohort, "paper", 4, 0)(0)
    assert batch.x0.shape == (4, 1, 256, 256)
    assert (batch.condition.images[:, 0, :70] == -1).all()  # no signal
    places = batch.condition.places[0]
    step = places[:, 1:, 1:] - places[:, :-1, :-1]
    torch.testing.assert_close(step, torch.tensor([2.0, 2, 0]).reshape(3, 1, 1).expand_as(step))


def test_the_budget_is_split_as_the_papers_epochs():
    net = load("rishldm").network("small")
    shares = [stage(net, "paper").share("paper") for stage in STAGES]
    assert sum(shares) == pytest.approx(1)
    assert shares[2] > shares[0] > shares[1]  # 1000 epochs of 308 scans, 200 of 958, 200 of 154
    assert STAGES[2](net, "paper").training_plan("paper").steps == 308_000


def test_diff_dti_takes_the_directions_of_its_scheme_in_their_order():
    turn = np.random.default_rng(0).permutation(6)
    world = np.concatenate([even_directions(20), -SCHEMES[6][turn]])
    chosen, apart = nearest_to_scheme(world)
    assert apart == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(np.abs((world[chosen] * SCHEMES[6]).sum(axis=1)), 1)
    assert nearest_to_scheme(np.eye(3)[[2, 0, 1]])[0].tolist() == [1, 2, 0]
    np.testing.assert_allclose(np.linalg.norm(SCHEMES[6], axis=1), 1)
    angles = np.abs(SCHEMES[6] @ SCHEMES[6].T)[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(angles, 5**-0.5)


@pytest.mark.parametrize(("stray", "warned"), [(0.0, False), (30.0, True)])
def test_diff_dti_warns_where_a_scan_has_other_directions(stray, warned):
    angle = np.deg2rad(stray)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    world = np.concatenate([np.zeros((1, 3)), SCHEMES[6] @ turn.T])
    scan = scan_of(6)
    scan = replace(scan, gradients=GradientTable.from_world(np.r_[0.0, np.full(6, 1000.0)], world, AFFINE))
    generated = load("diffdti").generate(narrow("diffdti", "paper"), scan, request_for("diffdti", "paper", "paper", 2))
    assert any("scheme" in warning for warning in generated.warnings) == warned
    assert (generated.record["DegreesFromScheme"] > maps_task.SCHEME_DEGREES) == warned


def test_the_training_examples_of_diff_dti_have_one_scheme():
    for index in range(3):
        bvecs = load("diffdti").examples(subjects(), "paper", 2, 0)(index).condition.bvecs
        scheme = torch.tensor(SCHEMES[bvecs.shape[1]], dtype=torch.float32)
        assert ((bvecs * scheme).sum(dim=2) > np.cos(np.deg2rad(20))).all()


def test_weights_for_three_references_are_refused_for_six_and_the_error_names_both(tmp_path):
    card = Card("qid2", "small", QID2(3).configuration("small"), {}, 1, 0.0, 0, "a computer", {}, "CC0-1.0")
    save_weights(tmp_path, "three", QID2(3).network("small"), card)
    with pytest.raises(WeightsError, match="trained for references = 3, asked for is references = 6"):
        check_weights("qid2", "small", "three", tmp_path, {})
    check_weights("qid2", "small", "three", tmp_path, {"references": 3})
    assert main(["weights", "verify", str(tmp_path / "three.safetensors")]) == 0
    request = Request(weights="three", weights_dir=tmp_path, options={"references": 3, "directions": 14}, steps=1)
    generated = QID2().generate(None, scan_of(12), replace(request, precision="fp32"))
    assert generated.record["References"] == 3


def test_three_references_can_be_trained(tmp_path, capsys):
    atlas = tmp_path / "ball.safetensors"
    from bids_dmrigen.simulate.atlas_file import save_atlas

    save_atlas(atlas, make_ball())
    command = ["train", "qid2", "--out", str(tmp_path), "--atlas", str(atlas), "--subjects", "1", "--steps", "1",
               "--batch", "4", "--device", "cpu", "--qid2-references", "3"]  # fmt: skip
    monkey = pytest.MonkeyPatch()
    monkey.setattr(QID2, "scored_on", lambda self, size: (1, 4))
    with monkey.context():
        assert main(command) == 0
    monkey.undo()
    check_weights("qid2", "small", None, tmp_path, {"references": 3})
    assert main(["train", "diffdti", "--out", str(tmp_path), "--qid2-references", "3"]) == 1
    assert "diffdti has no such option" in capsys.readouterr().err


def test_interpolation_uses_as_many_references():
    acquired, wanted = torch.from_numpy(even_directions(12)), torch.from_numpy(even_directions(7))
    weights = load("interp").weights(acquired, wanted, {"references": 3}, acquired)
    assert ((weights != 0).sum(dim=1) <= 3).all()


def test_levels_of_rish_latent_diffusion_are_one_for_each_degree():
    values = SPEC.defaults()
    SPEC.check_options(values, 50)
    assert [tuple(level) for level in levels_of({"noise": [50, 100, 200], "guidance": [0, 1, 2]})] == [
        (50, 0.0), (100, 1.0), (200, 2.0),
    ]  # fmt: skip
    for option, wrong in ((GUIDANCE, (1.0,)), (NOISE, (100, 100, 2000))):
        with pytest.raises(OptionError, match=option.flag):
            SPEC.check_options(values | {option.name: wrong}, 50)
