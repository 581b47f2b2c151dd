"""The classical arms of RISH latent diffusion: SciPy's interpolation, closed forms of harmonisation, whose weights."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods import check_weights, given_weights, load, weights_of
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.enhance.rish import harmonised
from bids_dmrigen.nets.rish_ldm import RishLDM, RishLDMSpec
from bids_dmrigen.nets.unet import UNetSpec
from bids_dmrigen.nets.vqvae import VQVAESpec
from tests.conftest import rishldm_weights, tiny_gradients, tiny_series

ROTATION = nib.eulerangles.euler2mat(z=0.3, x=0.2)
AFFINE = nib.affines.from_matvec(ROTATION @ np.diag([-2.0, 2.0, 3.0]), [10, -20, 5])


@pytest.fixture(scope="module")
def scan():
    gradients = tiny_gradients(16, 2)
    data = tiny_series(gradients, (12, 10, 8))
    mask = np.zeros(data.shape[:3], bool)
    mask[2:10, 2:8, 1:7] = True
    return Scan(data, AFFINE, gradients, mask)


def network(ratios):
    """A network as small as can be, with these ratios."""
    unet = UNetSpec(4, 4, base=8, multipliers=(1,), blocks=1, attention=(), groups=4, context=8, dims=3)
    net = RishLDM(RishLDMSpec(VQVAESpec(widths=(8,), blocks=1, codes=16, code_width=4), unet, width=8, blocks=1))
    net.ratios.copy_(torch.tensor(ratios))
    return net


def finer(scan, edge, name="bspline", net=None):
    return load(name).generate(net, scan, Request(options={"voxel_mm": edge}))


def test_splines_agree_with_scipy_at_the_positions_of_the_affine(scan):
    generated = finer(scan, 1.3)
    assert np.linalg.norm(generated.grid.affine[:3, :3], axis=0) == pytest.approx([1.3] * 3)
    assert generated.mean.shape == (*generated.grid.mask.shape, 18)
    index = np.moveaxis(np.indices(generated.grid.mask.shape), 0, -1)
    positions = nib.affines.apply_affine(np.linalg.inv(AFFINE) @ generated.grid.affine, index)
    expected = ndimage.map_coordinates(scan.data[..., 4], np.moveaxis(positions, -1, 0), order=3, mode="mirror")
    np.testing.assert_allclose(generated.mean[..., 4], expected.clip(0), atol=0.05)
    corners = positions.reshape(-1, 3)
    assert (corners.min(axis=0) - 0.5 * 1.3 / scan.zooms_mm <= -0.5 + 1e-6).all(), "the whole extent is covered"
    assert (corners.max(axis=0) + 0.5 * 1.3 / scan.zooms_mm >= np.array(scan.mask.shape) - 0.5 - 1e-6).all()
    volume = scan.mask.sum() * np.prod(scan.zooms_mm)
    assert generated.grid.mask.sum() * 1.3**3 == pytest.approx(volume, rel=0.1)
    np.testing.assert_allclose(
        generated.gradients.world_directions(generated.grid.affine), scan.gradients.world_directions(AFFINE), atol=1e-12
    )
    assert not generated.acquired.any(), "b0s are interpolated too"


def test_a_grid_is_finer_or_the_scans_own():
    bspline, rish = load("bspline").spec, load("rish").spec
    zooms = np.array([2.0, 2.0004, 2.0])
    assert rish.edge_mm(zooms, None) is None
    assert rish.edge_mm(zooms, 2.0) is None
    assert rish.edge_mm(zooms, 1.5) == bspline.edge_mm(zooms, 1.5) == 1.5
    assert rish.edge_mm([2, 2, 3], 2.0) == 2.0
    for wanted in (None, 2.0):
        with pytest.raises(ScanError, match=r"nothing to do on the scan's own voxels, 2 x 2\.0004 x 2 mm"):
            bspline.edge_mm(zooms, wanted)
    for spec in (rish, bspline, load("rishldm").spec):
        with pytest.raises(ScanError, match=r"--rishldm-voxel-size 2\.5: expected at most the .* 2 x 2 x 3"):
            spec.edge_mm([2, 2, 3], 2.5)


def test_nothing_to_do_is_refused(scan):
    with pytest.raises(ScanError, match="B-spline up-sampling: there is nothing to do"):
        load("bspline").generate(None, scan, Request())


def test_each_degree_is_scaled_by_its_own_ratio():
    v = torch.from_numpy(even_directions(30))
    constant = torch.ones(30, dtype=torch.float64)
    for ratios in ([0.8, 1.5, 2.0], [1.2, 0.0, 0.0]):
        torch.testing.assert_close(harmonised(v, torch.tensor(ratios).double()) @ constant, ratios[0] * constant)
    quadratic = 0.3 + (v @ torch.tensor([0.6, 0.8, 0.0]).double()) ** 2
    torch.testing.assert_close(harmonised(v, torch.ones(3).double()) @ quadratic, quadratic, rtol=0.01, atol=0)
    signal = torch.exp(-3 * v[:, 0] ** 2)
    whole, mean = (harmonised(v, torch.tensor(r).double()) @ signal for r in ([1.0, 1, 1], [1.0, 0, 0]))
    torch.testing.assert_close(mean, mean[:1].expand(30))
    stronger = harmonised(v, torch.tensor([1.0, 2, 2]).double()) @ signal
    torch.testing.assert_close(stronger - mean, 2 * (whole - mean))


def test_directions_that_repeat_determine_no_more():
    v = torch.from_numpy(even_directions(10))
    twice = torch.cat([v, -v])
    weights = [harmonised(twice, torch.tensor([1.0, 1.0, ratio]).double()) for ratio in (1.0, 5.0)]
    torch.testing.assert_close(*weights)
    assert torch.linalg.matrix_rank(weights[0]) == 6


def test_harmonisation_of_a_scan_changes_its_shells_inside_the_mask(scan):
    generated = load("rish").generate(network([0.5, 1.0, 1.0]), scan, Request())
    assert generated.grid is None
    np.testing.assert_array_equal(generated.acquired, scan.gradients.is_b0)
    np.testing.assert_array_equal(generated.mean[..., :2], scan.data[..., :2])
    np.testing.assert_array_equal(generated.mean[~scan.mask], scan.data[~scan.mask])
    mean = generated.mean[scan.mask][:, 2:].mean(axis=1), scan.data[scan.mask][:, 2:].mean(axis=1)
    assert np.median(mean[0] / mean[1]) == pytest.approx(0.5, abs=0.01)
    assert generated.record["Ratios"] == [0.5, 1.0, 1.0]


def test_with_finer_voxels_the_upsampled_series_is_harmonised(scan):
    plain, generated = finer(scan, 1.5), finer(scan, 1.5, "rish", network([0.9, 1.2, 1.3]))
    np.testing.assert_array_equal(generated.grid.affine, plain.grid.affine)
    assert not generated.acquired.any()
    np.testing.assert_array_equal(generated.mean[~generated.grid.mask], plain.mean[~generated.grid.mask])
    weights = harmonised(torch.tensor(scan.gradients.bvecs[2:]), torch.tensor([0.9, 1.2, 1.3]).double())
    expected = plain.mean[generated.grid.mask][:, 2:] @ weights.float().numpy().T
    np.testing.assert_allclose(generated.mean[generated.grid.mask][:, 2:], expected.clip(0), rtol=1e-4, atol=1e-2)


def test_a_shell_of_few_directions_is_not_changed(scan):
    few = GradientTable(
        np.r_[scan.gradients.bvals[:14], [2000.0] * 4], np.r_[scan.gradients.bvecs[:14], even_directions(4)]
    )
    generated = load("rish").generate(network([0.5, 0.5, 0.5]), replace(scan, gradients=few), Request())
    np.testing.assert_array_equal(generated.mean[..., 14:], scan.data[..., 14:])
    assert generated.acquired.tolist() == [True] * 2 + [False] * 12 + [True] * 4
    assert (generated.mean[scan.mask][:, 2:14] != scan.data[scan.mask][:, 2:14]).mean() > 0.9
    assert any("b = 2000 s/mm² has 4 different directions" in warning for warning in generated.warnings)


def test_the_ratios_come_with_the_weights_of_rish_latent_diffusion(scan, tmp_path):
    path = rishldm_weights(tmp_path, (0.9, 1.1, 1.3))
    assert given_weights("rish", {"rishldm": "a"}) == "a"
    assert given_weights("rish", {"rishldm": "a", "rish": "b"}) == "b"
    assert given_weights("bspline", {"rishldm": "a"}) is None
    assert weights_of("bspline", "small") is None
    assert weights_of("rish", "small", weights_dir=tmp_path) == path
    check_weights("rish", "small", str(path))
    generated = load("rish").generate(None, scan, Request(weights=str(path)))
    assert generated.record["Ratios"] == [0.9, 1.1, 1.3]
    assert generated.record["Weights"]["Name"] == "rishldm-small"
