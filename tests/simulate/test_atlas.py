"""The procedural atlas against anatomy, and its vector algebra against torch.linalg."""

import numpy as np
import pytest
import torch

from bids_dmrigen.simulate.atlas import (
    Atlas,
    dyadic,
    fibre_atlas,
    gaussian_smooth,
    principal_directions,
    procedural_atlas,
)
from bids_dmrigen.spatial.templates import embedded_mni, read_fibre_atlas

X, Y, Z = np.eye(3)


@pytest.fixture(scope="module")
def atlas():
    arrays, affine = embedded_mni(3)
    return procedural_atlas(**arrays, affine=affine)


def dominant_direction(atlas, world_mm):
    voxel = np.round(np.linalg.inv(atlas.affine) @ [*world_mm, 1])[:3].astype(int)
    strongest = int(atlas.weights[:, *voxel].argmax())
    return atlas.directions[strongest, :, *voxel].numpy()


@pytest.mark.parametrize(
    ("world_mm", "axis"),
    [
        ((0, -10, 26), X),  # corpus callosum, body
        ((0, 30, 6), X),  # genu
        ((0, -38, 13), X),  # splenium
        ((0, -22, -33), X),  # middle cerebellar peduncle
        ((24, -18, 9), Z),  # corticospinal tract in the internal capsule, right
        ((-24, -18, 9), Z),  # and left
        ((37, -10, 31), Y),  # superior longitudinal fasciculus
        ((-37, -10, 31), Y),
        ((9, 0, 37), Y),  # cingulum
    ],
)
def test_great_bundles_run_as_in_anatomy(atlas, world_mm, axis):
    assert abs(dominant_direction(atlas, world_mm) @ axis) > 0.8


def test_fibres_cross_in_the_centrum_semiovale(atlas):
    voxel = np.round(np.linalg.inv(atlas.affine) @ [29, -14, 36, 1])[:3].astype(int)
    assert (atlas.weights[:, *voxel] > 0.15).sum() >= 2


def test_hemispheres_are_mirror_images(atlas):
    left = dominant_direction(atlas, (-30, -28, -2))
    right = dominant_direction(atlas, (30, -28, -2))
    assert abs(left @ (right * [-1, 1, 1])) > 0.97
    assert abs(right[0]) > 0.3, "the place must tell a mirrored vector from an unmirrored one"


def test_fractions_and_weights_sum_to_one_at_most_and_directions_have_length_one(atlas):
    total = atlas.fractions.sum(dim=0)
    torch.testing.assert_close(total[atlas.brain], torch.ones(int(atlas.brain.sum())))
    assert total[~atlas.brain].abs().max() == 0
    assert atlas.weights.min() >= 0
    assert atlas.weights.sum(dim=0).max() <= 1
    norms = atlas.directions.norm(dim=1)
    assert torch.all((norms < 1e-6) | ((norms - 1).abs() < 1e-4))
    followed = atlas.weights * (atlas.fractions[0] > 0.5) > 0.05
    assert norms[followed].min() > 0.99


def test_measured_directions_agree_with_the_anatomy_and_with_the_analytic_bundles(real_data):
    arrays, affine = read_fibre_atlas(real_data / "atlas")
    measured = fibre_atlas(**arrays, affine=affine)
    assert abs(dominant_direction(measured, (0, -10, 26)) @ X) > 0.8  # corpus callosum
    assert abs(dominant_direction(measured, (24, -18, 9)) @ Z) > 0.7  # internal capsule
    assert abs(dominant_direction(measured, (9, 0, 37)) @ Y) > 0.8  # cingulum
    torch.testing.assert_close(measured.fractions.sum(dim=0), measured.brain.float())
    assert measured.weights.sum(dim=0).max() < 1
    white = measured.fractions[0] > 0.8
    assert 0.7 < float(measured.weights.sum(dim=0)[white].median()) < 1


def test_principal_directions_agree_with_an_eigendecomposition():
    vectors = torch.randn(1, 3, 500, 3, generator=torch.Generator().manual_seed(0))
    sums = dyadic(vectors)[0].sum(dim=-1)  # (6, V): sums of three dyads each
    xx, yy, zz, xy, xz, yz = sums
    matrices = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).reshape(-1, 3, 3)
    values, eigenvectors = torch.linalg.eigh(matrices)
    clear = values[:, 1] / values[:, 2] < 0.85  # nearly equal eigenvalues have no principal direction
    estimate = principal_directions(sums[None])[0].T
    cosine = (estimate * eigenvectors[:, :, 2]).sum(dim=1).abs()
    assert clear.sum() > 250
    assert cosine[clear].min() > 0.999


def test_principal_direction_of_a_zero_matrix_is_zero():
    assert principal_directions(torch.zeros(1, 6, 4)).abs().max() == 0


def test_gaussian_smooth_spreads_an_impulse_by_its_variance():
    impulse = torch.zeros(1, 31, 31, 31)
    impulse[0, 15, 15, 15] = 1
    smooth = gaussian_smooth(impulse, (1.5, 2.0, 2.5))[0]
    assert float(smooth.sum()) == pytest.approx(1, abs=1e-5)
    offset = torch.arange(31.0) - 15
    for axis, sigma in enumerate((1.5, 2.0, 2.5)):
        profile = smooth.sum(dim=[a for a in range(3) if a != axis])
        assert float((profile * offset**2).sum()) == pytest.approx(sigma**2, rel=0.05)


def test_arrays_of_different_grids_are_refused(atlas):
    with pytest.raises(ValueError, match="weights"):
        Atlas(atlas.fractions, atlas.directions, atlas.weights[:, 1:], atlas.t1w, atlas.brain, atlas.affine)
