"""Measured pairs: features of the good scan are taken at the blocks of the poor scan, and faults are reported."""

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods.enhance.examples import SIDE
from bids_dmrigen.methods.enhance.inputs import ORDER, UNITS, fitted
from bids_dmrigen.methods.enhance.pairs import MeasuredPairs
from bids_dmrigen.methods.enhance.rishldm_model import RishLatentDiffusion
from bids_dmrigen.simulate.examples import numbers_of_step

SPAN_MM = 60.0
STRAIGHT = np.eye(3)
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def sloping(places, world):
    """Isotropic diffusion that is faster the further to the right."""
    return np.repeat(0.5 + 0.3 * places[..., :1] / SPAN_MM, len(world), axis=-1)


def scan_of(voxel_mm, n, bval=1000.0, moved=0.0, signal=sloping, turn=STRAIGHT, noise=0.0, up_to_mm=SPAN_MM):
    """A ball of brain as far as its x-coordinate goes; S / S0 is `signal` of places (..., 3) and directions (n, 3)."""
    side, rng = round(SPAN_MM / voxel_mm), np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = voxel_mm * turn
    affine[:3, 3] = moved - affine[:3, :3] @ np.full(3, (side - 1) / 2)
    world = even_directions(n)
    table = GradientTable.from_world(np.r_[0.0, np.full(n, bval)], np.concatenate([np.zeros((1, 3)), world]), affine)
    voxels = np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1)
    places = voxels @ affine[:3, :3].T + affine[:3, 3] - moved
    mask = (np.linalg.norm(places, axis=-1) < SPAN_MM / 2) & (places[..., 0] < up_to_mm)
    data = np.concatenate([np.ones((*mask.shape, 1)), signal(places, world)], axis=3)
    data[..., 1:] += rng.normal(0, noise, data[..., 1:].shape) if noise else 0
    return Scan((100 * data).astype(np.float32), affine, table, mask)


def prepared(path, *scans, sigma=1.0):
    write_prepared(path, [(f"{subject}-run", subject, scan, sigma) for subject, scan in scans])
    return Prepared(path)


def a_pair(folder, poor, good, sigma=1.0):
    return MeasuredPairs(
        prepared(folder / "poor.safetensors", ("a", poor)),
        prepared(folder / "good.safetensors", ("a", good), sigma=sigma),
    )


def true_features(signal):
    """Return the features (3,) of S / S0 as a function of directions (n, 3)."""
    world, one = even_directions(200), torch.ones(1)
    dwis = torch.as_tensor(signal(world), dtype=torch.float32).reshape(1, -1, 1, 1, 1)
    bvecs, mask = torch.as_tensor(world, dtype=torch.float32)[None], torch.ones(1, 1, 1, 1, dtype=torch.bool)
    fit = fitted(mask.float(), dwis, bvecs, 1000 * one, 0 * one, one, mask, torch.ones(1, 3), ORDER)
    return fit.features.flatten()


def test_both_scans_of_a_pair_show_the_same_place(tmp_path):
    poor = prepared(tmp_path / "poor.safetensors", ("a", scan_of(3.0, 12)), ("c", scan_of(3.0, 12)))
    good = prepared(tmp_path / "good.safetensors", ("b", scan_of(2.0, 20, moved=500.0)), ("a", scan_of(1.5, 20)))
    pairs = MeasuredPairs(poor, good)
    assert pairs.partner == {0: 1}
    sizes = set()
    for step in range(8):
        pair = pairs.pair(2, numbers_of_step(0, step))
        low = pair.low.features
        assert low.shape == (2, 3, *SIDE["small"])
        # The brain's rim is half air in the one and not in the other.
        inner = 1 - torch.nn.functional.max_pool3d(1 - pair.low.mask.float(), 5, stride=1, padding=2) > 0
        assert inner.sum() > 500
        torch.testing.assert_close(pair.coarse[:, 0][inner], low[:, 0][inner], atol=0.003, rtol=0)
        assert pair.coarse[:, 1:].max() * UNITS[1] < 0.01
        sizes.add(tuple(pair.fine.shape[2:]))
        again = pairs.pair(2, numbers_of_step(0, step))
        assert torch.equal(pair.fine, again.fine)
    assert len(sizes) > 1


def test_each_stage_takes_them(tmp_path):
    poor = prepared(tmp_path / "poor.safetensors", ("a", scan_of(3.0, 12)))
    good = prepared(tmp_path / "good.safetensors", ("a", scan_of(2.0, 20)))
    pairs, net = MeasuredPairs(poor, good), RishLatentDiffusion().network("small")
    for stage in RishLatentDiffusion().trainings(net):
        stage.begin(pairs, 1, 0)
        assert stage.loss(net, stage.examples(pairs, "small", 1, 0)(0)).isfinite()


def along(*axes):
    """Return S / S0 of a stick-like tensor along one of these world axes after the other, one millimetre each."""

    def signal(places, world):
        turns = np.floor(places[..., 0]).astype(int) % len(axes)
        return np.stack([np.exp(-1.7 * world[:, axis] ** 2 - 0.2) for axis in axes])[turns]

    return signal


@pytest.mark.parametrize(
    ("voxel_mm", "noise", "turn"), [(3.0, 0.05, STRAIGHT), (1.5, 0.12, STRAIGHT), (1.5, 0.12, TURN)]
)
def test_the_good_scans_noise_is_not_trained_to(tmp_path, voxel_mm, noise, turn):
    """One tensor everywhere, in the poor scan's voxels or in smaller ones, of which several are averaged."""

    def signal(places, world):
        return np.tile(np.exp(-1.3 * world[:, 0] ** 2), (*places.shape[:-1], 1))

    good = scan_of(voxel_mm, 20, signal=signal, turn=turn, noise=noise)
    pairs = a_pair(tmp_path, scan_of(3.0, 12, signal=signal), good, 100 * noise)
    true = true_features(lambda world: signal(np.zeros(3), world))
    for step in range(8):
        pair = pairs.pair(1, numbers_of_step(0, step))
        for found, mask in ((pair.coarse, pair.low.mask & pair.coarse_mask), (pair.fine, pair.fine_mask)):
            squares = found.square().movedim(1, -1)[mask].mean(dim=0)
            # With the noise in them those of degree 4 are 18 to 33 % higher.
            torch.testing.assert_close(squares.sqrt(), true, rtol=0.04, atol=0)


def test_targets_show_all_of_a_voxel(tmp_path):
    """Fibres that turn from millimetre to millimetre: in 3 mm their mean signal counts, not that of the middle one."""
    pairs = a_pair(tmp_path, scan_of(3.0, 12), scan_of(1.0, 20, signal=along(0, 1, 1)), 0)
    true = true_features(lambda world: np.mean([along(axis)(np.zeros(3), world) for axis in (0, 1, 1)], axis=0))
    apart = true_features(lambda world: along(0)(np.zeros(3), world))
    assert true[1] < 0.7 * apart[1]
    pair = pairs.pair(2, numbers_of_step(0, 0))
    beyond = torch.nn.functional.pad(1 - pair.coarse_mask.float(), 6 * [1], value=1.0)
    whole = torch.nn.functional.max_pool3d(beyond, 3, stride=1) == 0
    found = pair.coarse.movedim(1, -1)[whole & pair.low.mask]
    torch.testing.assert_close(found, true.expand_as(found), rtol=0.02, atol=0.01)


def test_where_the_good_scan_has_no_brain_nothing_is_trained(tmp_path):
    pairs = a_pair(tmp_path, scan_of(3.0, 12), scan_of(2.0, 20, up_to_mm=10.0))
    net = RishLatentDiffusion().network("small")
    *_, diffusion, refiner = RishLatentDiffusion().trainings(net)
    refiner.begin(pairs, 2, 0)
    assert net.ratios[0] == pytest.approx(1, abs=0.03)
    missing = 0
    for step in range(4):
        pair = pairs.pair(2, numbers_of_step(0, step))
        assert not pair.coarse.movedim(1, -1)[~pair.coarse_mask].any()
        missing += int((pair.low.mask & ~pair.coarse_mask).sum())
        example = refiner.example(pair, numbers_of_step(1, step))
        assert not example.weight.movedim(1, -1)[~pair.fine_mask].any()
        # Constant features keep their full value inside the brain: no air is mixed in.
        assert example.truth[:, 0][pair.fine_mask].min() > 0.3 / UNITS[0]
        elsewhere = example._replace(truth=example.truth + 100.0 * ~pair.fine_mask[:, None])
        assert refiner.loss(net, elsewhere) == refiner.loss(net, example)
        seen = pair.low.features * pair.coarse_mask[:, None]
        torch.testing.assert_close(diffusion._latents(*diffusion._both(pair))[: 3 * 2], net.encode("3t", seen))
    assert missing > 500


def test_pairs_are_parted_by_the_subjects_in_both(tmp_path):
    poor = prepared(tmp_path / "poor.safetensors", *((subject, scan_of(3.0, 12)) for subject in "abc"))
    good = prepared(tmp_path / "good.safetensors", *((subject, scan_of(3.0, 20)) for subject in "bc"))
    parts = [MeasuredPairs(Prepared(poor.path, part=part, subjects={"b", "c"}), good) for part in ("train", "held out")]
    assert [part.partner for part in parts] == [{2: 1}, {1: 0}]


def test_faults_are_reported(tmp_path):
    poor = prepared(tmp_path / "poor.safetensors", ("a", scan_of(3.0, 12)))
    for name, scan, message in (
        ("b", scan_of(2.0, 20), "no subject is in both"),
        ("a", scan_of(2.0, 20, moved=40.0), "register the good one"),
    ):
        with pytest.raises(ValueError, match=message):
            MeasuredPairs(poor, prepared(tmp_path / f"{name}{len(message)}.safetensors", (name, scan)))
    for number, other in enumerate((scan_of(2.0, 20, bval=2000.0), scan_of(2.0, 10))):
        pairs = MeasuredPairs(poor, prepared(tmp_path / f"{number}.safetensors", ("a", other)))
        with pytest.raises(ValueError, match="no shell within a tenth of b = 1000"):
            pairs.pair(1, numbers_of_step(0, 0))
