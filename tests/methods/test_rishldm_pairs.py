"""Measured pairs: the good scan's features are found where the poor scan's blocks are, and faults are told."""

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods.rishldm import RishLatentDiffusion
from bids_dmrigen.methods.rishldm_examples import SIDE
from bids_dmrigen.methods.rishldm_inputs import UNITS
from bids_dmrigen.methods.rishldm_pairs import MeasuredPairs
from bids_dmrigen.simulate.examples import numbers_of_step

SPAN_MM = 60.0


def scan_of(voxel_mm, n, bval=1000.0, moved=0.0):
    """Isotropic diffusion that is faster the further to the right; a ball of brain."""
    side = round(SPAN_MM / voxel_mm)
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -SPAN_MM / 2 + voxel_mm / 2 + moved
    world = np.concatenate([np.zeros((1, 3)), even_directions(n)])
    table = GradientTable.from_world(np.r_[0.0, np.full(n, bval)], world, affine)
    places = np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1) * voxel_mm + affine[:3, 3]
    mask = np.linalg.norm(places - moved, axis=-1) < SPAN_MM / 2
    attenuation = 0.5 + 0.3 * (places[..., 0] - moved) / SPAN_MM
    data = np.concatenate([np.ones((*mask.shape, 1)), np.repeat(attenuation[..., None], n, axis=3)], axis=3)
    return Scan((100 * data).astype(np.float32), affine, table, mask)


def prepared(path, *scans):
    write_prepared(path, [(f"{subject}-run", subject, scan, 1.0) for subject, scan in scans])
    return Prepared(path)


def test_both_scans_of_a_pair_show_the_same_place(tmp_path):
    poor = prepared(tmp_path / "poor.safetensors", ("a", scan_of(3.0, 12)), ("c", scan_of(3.0, 12)))
    good = prepared(tmp_path / "good.safetensors", ("b", scan_of(2.0, 20, moved=500.0)), ("a", scan_of(1.5, 20)))
    pairs = MeasuredPairs(poor, good)
    assert pairs.partner == {0: 1}
    sizes = set()
    for step in range(8):
        pair = pairs.pair(2, numbers_of_step(0, step))
        low = pair.low.features
        assert low.shape == (2, 3, *SIDE)
        # The brain's rim is half air in the one and not in the other.
        inner = 1 - torch.nn.functional.max_pool3d(1 - pair.low.mask.float(), 5, stride=1, padding=2) > 0
        assert inner.sum() > 500
        torch.testing.assert_close(pair.coarse[:, 0][inner], low[:, 0][inner], atol=0.04, rtol=0)
        assert pair.coarse[:, 1:].max() * UNITS[1] < 0.01
        sizes.add(tuple(pair.fine.shape[2:]))
        again = pairs.pair(2, numbers_of_step(0, step))
        assert torch.equal(pair.fine, again.fine)
    assert len(sizes) > 1


def test_each_stage_takes_them(tmp_path):
    poor = prepared(tmp_path / "poor.safetensors", ("a", scan_of(3.0, 12)))
    good = prepared(tmp_path / "good.safetensors", ("a", scan_of(2.0, 20)))
    pairs, net = MeasuredPairs(poor, good), RishLatentDiffusion().network("small")
    for stage in RishLatentDiffusion().stages(net):
        stage.begin(pairs, 1, 0)
        assert stage.loss(net, stage.examples(pairs, "small", 1, 0)(0)).isfinite()


def test_faults_are_told(tmp_path):
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
