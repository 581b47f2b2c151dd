"""Anatomies of real scans: the signals of their tensors, in world axes, and which subjects are held out."""

import numpy as np
import pytest
import torch

from bids_dmrigen.methods.maps.diffdti_model import DiffDTI
from bids_dmrigen.methods.maps.inputs import along
from bids_dmrigen.simulate.examples import numbers_of_step
from bids_dmrigen.simulate.measured import MeasuredAnatomies, write_anatomies
from bids_dmrigen.simulate.medium import tensor_signal

TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
SHAPE = (14, 12, 9)
TENSORS = torch.tensor([[1.4, 0.5, 0.3, 0.2, 0.1, 0.0], [0.4, 0.9, 0.8, 0.0, 0.3, 0.2]])
DIRECTIONS = torch.nn.functional.normalize(torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(1)), dim=2)


def anatomy(subject="01", b0=1.0):
    """Two regions of one tensor each on an oblique, mirrored grid that is not centred."""
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag([-2.0, 2.5, 4.0])
    affine[:3, 3] = [30, -20, 10]
    brain = torch.zeros(SHAPE, dtype=torch.bool)
    brain[1:-1, 1:-1, 1:-1] = True
    region = (torch.arange(SHAPE[0]) >= SHAPE[0] // 2).long()[:, None, None].expand(SHAPE)[brain]
    values = torch.full((int(brain.sum()),), float(b0))
    return f"sub-{subject}", subject, brain, torch.as_tensor(affine), values, TENSORS[region]


@pytest.fixture
def path(tmp_path):
    write_anatomies(tmp_path / "a.safetensors", [anatomy("02", 1.3), anatomy("01", 0.7)])
    return tmp_path / "a.safetensors"


def expected(tensor, s0, b, k):
    matrix = torch.diag(tensor[:3])
    matrix[[0, 0, 1], [1, 2, 2]] = matrix[[1, 2, 2], [0, 0, 1]] = tensor[3:] / 2**0.5
    x = b / 1000 * torch.einsum("ni,ij,nj->n", DIRECTIONS[0], matrix, DIRECTIONS[0])
    return s0 * torch.exp(-x + k * x**2 / 6)


def test_a_view_along_the_scans_own_grid_has_the_signals_of_its_tensors_in_world_axes(path):
    source = MeasuredAnatomies(path, "train")
    assert source.names == ["sub-02"]
    affine = anatomy()[3].float()[None]
    tissue = torch.tensor([[0.8]])
    view = source.view(torch.tensor([0]), affine, SHAPE, tissue, numbers_of_step(0, 0), supersample=(1, 1, 1))
    signal = view.signal(torch.full((1, 7), 1500.0), DIRECTIONS)[0]
    assert torch.equal(view.mask()[0], anatomy()[2])
    for x, tensor in ((3, TENSORS[0]), (10, TENSORS[1])):
        torch.testing.assert_close(signal[:, x, 5, 4], expected(tensor, 1.3, 1500, 0.8), rtol=3e-3, atol=1e-4)
    assert not signal[:, 0].any(), "air has no signal"
    without = view.signal(torch.zeros(1, 2), torch.zeros(1, 2, 3))[0]
    torch.testing.assert_close(without[:, 3, 5, 4], torch.full((2,), 1.3), rtol=1e-3, atol=0)


def test_water_has_no_kurtosis_and_no_signal_rises_with_b():
    water = torch.cat([torch.tensor([1.0, 0, 0, 1.0]), torch.tensor([3.0, 3, 3, 0, 0, 0])])[None, :, None]
    bvals = torch.linspace(0, 6000, 13)[None]
    one = torch.nn.functional.normalize(torch.ones(1, 13, 3), dim=2)
    kurtosis = torch.tensor([[1.0]])
    found = tensor_signal(water, kurtosis, bvals, one)[0, :, 0]
    torch.testing.assert_close(found[:5], torch.exp(-3 * bvals[0, :5] / 1000), rtol=0.02, atol=1e-4)
    tissue = torch.cat([torch.tensor([1.0, 0, 0, 1.0]), TENSORS[0]])[None, :, None]
    assert (tensor_signal(tissue, kurtosis, bvals, one)[0, :, 0].diff() <= 1e-6).all()


def test_examples_of_anatomies_say_their_tensors_and_are_not_finer_than_the_scan(path):
    source = MeasuredAnatomies(path, "train")
    views = source.slices(numbers_of_step(0, 0), 4, (16, 16, 3), (1.0, 1.5), (1.0, 2.0))
    edges = views.affine[:, :3, :3].norm(dim=1)
    assert (edges >= torch.tensor([2.5, 2.5, 4.0]) - 1e-4).all()
    batch = DiffDTI().examples(source, "small", 4, 0)(0)
    inside = batch.weight[:, 0] > 0
    truth = batch.condition.centre + batch.condition.scale * batch.x0
    md = truth[:, 0][inside]
    assert md.median() == pytest.approx(float(TENSORS[:, :3].mean()), rel=0.2), "kurtosis lowers it"
    torch.testing.assert_close(along(truth, batch.hidden_bvecs), batch.hidden, atol=1e-4, rtol=0)


def test_one_subject_in_ten_is_held_out_and_other_files_are_refused(path, tmp_path):
    assert MeasuredAnatomies(path, "held out").names == ["sub-01"]
    assert MeasuredAnatomies(path).names == ["sub-02", "sub-01"]
    assert MeasuredAnatomies(path, "held out", held_out=["02"]).names == ["sub-02"]
    assert MeasuredAnatomies(path, "train", held_out=["02"]).names == ["sub-01"]
    write_anatomies(tmp_path / "one.safetensors", [anatomy()])
    with pytest.raises(ValueError, match="cannot be held out"):
        MeasuredAnatomies(tmp_path / "one.safetensors", "train")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match="not a file of anatomies"):
        MeasuredAnatomies(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="no scan to make an anatomy of"):
        write_anatomies(tmp_path / "none.safetensors", [])
