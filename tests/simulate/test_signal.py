"""The signal against closed forms of each compartment and against DIPY's tensor fit."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from scipy.special import erf

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.simulate.anatomy import rigid
from bids_dmrigen.simulate.atlas import Atlas
from bids_dmrigen.simulate.signal import (
    CSF_DIFFUSIVITY,
    Compartments,
    Tissue,
    _dispersed,
    _legendre_response,
    _powers,
    simulate_signal,
)


def fibre_response(b, kind):
    """Return the response of a fibre at one b-value, as the mixture uses it: coefficients of powers of cos²."""
    b, numbers = torch.tensor([[b]], dtype=torch.float32), torch.tensor([astuple(kind)], dtype=torch.float32)
    legendre = _dispersed(_legendre_response(b, numbers), torch.full((1, 1), kind.dispersion))
    return (_powers(b.device) @ legendre)[0, :, 0]


GREY = Compartments(0.2, 1.3e-3, 0.7e-3, 0.25, 0.8e-3, 1.4)


def voxels(directions, weights, fractions=(1.0, 0.0, 0.0)) -> Atlas:
    """Return an atlas of one voxel with these fibres."""
    d, w = torch.zeros(3, 3, 1, 1, 1), torch.zeros(3, 1, 1, 1)
    for k, (direction, weight) in enumerate(zip(directions, weights, strict=True)):
        d[k, :, 0, 0, 0] = torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)
        w[k] = weight
    f = torch.tensor(fractions, dtype=torch.float32)[:, None, None, None]
    return Atlas(f, d, w, torch.ones(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), np.eye(4))


def table(affine, bval=1000.0, n=30):
    directions = np.concatenate([np.zeros((1, 3)), even_directions(n)])
    return GradientTable.from_world(np.r_[0, np.full(n, bval)], directions, affine)


def only(kind: Compartments) -> Tissue:
    return Tissue(white=kind, grey=GREY, csf_b0=3.0)


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_a_lone_zeppelin_is_the_tensor_that_dipy_fits(handedness):
    affine = np.eye(4)
    affine[:3, :3] = rigid([0, 0, 0, 20, 30, 10], np.zeros(3))[:3, :3] @ np.diag([handedness * 2, 2, 3])
    direction = np.array([0.36, 0.48, 0.8])
    gradients = table(affine)
    tissue = only(Compartments(0.0, 1.7e-3, 0.4e-3, 0.0, 0.7e-3, 1.0))
    signal = simulate_signal(voxels([direction], [1.0]), gradients, affine, tissue, s0=1000)
    world = gradients.world_directions(affine)
    fit = TensorModel(gradient_table(gradients.bvals, bvecs=world)).fit(signal.numpy()[0, 0, 0])
    np.testing.assert_allclose(fit.evals, [1.7e-3, 0.4e-3, 0.4e-3], rtol=2e-3)
    assert abs(fit.evecs[:, 0] @ direction) > 0.99999


@pytest.mark.parametrize("b", [700.0, 1000.0, 3000.0])
def test_a_stick_without_dispersion_is_an_exponential_of_the_squared_cosine(b):
    kind = Compartments(1.0, 1.7e-3, 0.0, 0.0, 0.7e-3, 1.0)
    coefficients = fibre_response(b, kind).numpy()
    cosines = np.linspace(0, 1, 50)
    response = sum(c * cosines ** (2 * j) for j, c in enumerate(coefficients))
    np.testing.assert_allclose(response, np.exp(-b * 1.7e-3 * cosines**2), atol=1e-4 if b < 2000 else 6e-3)


def test_a_fully_dispersed_stick_is_the_powder_average():
    kind = Compartments(1.0, 1.7e-3, 0.0, 50.0, 0.7e-3, 1.0)
    coefficients = fibre_response(2000.0, kind).numpy()
    x = 2000 * 1.7e-3
    assert coefficients[0] == pytest.approx(np.sqrt(np.pi / (4 * x)) * erf(np.sqrt(x)), rel=1e-4)
    np.testing.assert_allclose(coefficients[1:], 0, atol=1e-5)


def test_dispersion_spreads_directions_as_brownian_motion_on_the_sphere():
    """E[cos²] = (1 + 2 exp(-3 s)) / 3, which is the slope of the signal at small b."""
    s, b, d = 0.1, 1.0, 1.7e-3
    kind = Compartments(1.0, d, 0.0, s, 0.7e-3, 1.0)
    coefficients = fibre_response(b, kind).double()
    along = float(coefficients.sum())
    assert (1 - along) / (b * d) == pytest.approx((1 + 2 * np.exp(-3 * s)) / 3, rel=2e-3)


def test_signal_is_antipodally_symmetric():
    gradients = table(np.eye(4))
    opposite = GradientTable(gradients.bvals, -gradients.bvecs)
    atlas = voxels([(1, 2, 3), (0, 1, -1)], [0.6, 0.3], (0.7, 0.2, 0.1))
    torch.testing.assert_close(
        simulate_signal(atlas, gradients, np.eye(4)), simulate_signal(atlas, opposite, np.eye(4))
    )


def test_fibres_superpose_by_their_weights():
    gradients = table(np.eye(4))
    one, two = voxels([(1, 0, 0)], [1.0]), voxels([(0, 1, 0)], [1.0])
    both = voxels([(1, 0, 0), (0, 1, 0)], [0.7, 0.3])
    expected = 0.7 * simulate_signal(one, gradients, np.eye(4)) + 0.3 * simulate_signal(two, gradients, np.eye(4))
    torch.testing.assert_close(simulate_signal(both, gradients, np.eye(4)), expected)


def test_csf_is_free_water_and_b0_is_the_tissues_mixture():
    gradients = table(np.eye(4), bval=800)
    tissue = Tissue()
    csf = simulate_signal(voxels([], [], (0, 0, 1)), gradients, np.eye(4), s0=1000)[0, 0, 0]
    torch.testing.assert_close(csf[1:], torch.full((30,), 1000 * tissue.csf_b0 * float(np.exp(-800 * CSF_DIFFUSIVITY))))
    mixed = simulate_signal(voxels([(1, 0, 0)], [0.5], (0.5, 0.3, 0.2)), gradients, np.eye(4), s0=1000)
    expected = 1000 * (0.5 * tissue.white.b0 + 0.3 * tissue.grey.b0 + 0.2 * tissue.csf_b0)
    assert float(mixed[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-3)


def test_turning_the_head_is_turning_its_fibres():
    gradients = table(np.eye(4))
    turn = rigid([0, 0, 0, 30, -20, 50], np.zeros(3))[:3, :3]
    direction = np.array([0.6, 0.0, 0.8])
    turns = np.broadcast_to(turn, (len(gradients), 3, 3))
    torch.testing.assert_close(
        simulate_signal(voxels([direction], [0.9]), gradients, np.eye(4), turns=turns),
        simulate_signal(voxels([turn @ direction], [0.9]), gradients, np.eye(4)),
        atol=1e-5,
        rtol=1e-5,
    )


def test_default_tissue_has_the_diffusivity_and_anisotropy_of_real_brains():
    gradients = table(np.eye(4))
    fits = {}
    for name, share, fractions in (("white", 0.95, (1.0, 0, 0)), ("grey", 0.45, (0, 1.0, 0))):
        signal = simulate_signal(voxels([(1, 1, 0)], [share], fractions), gradients, np.eye(4))
        directions = gradients.world_directions(np.eye(4))
        fits[name] = TensorModel(gradient_table(gradients.bvals, bvecs=directions)).fit(signal.numpy()[0, 0, 0])
    assert 0.55 < fits["white"].fa < 0.8
    assert fits["white"].md == pytest.approx(0.72e-3, rel=0.12)
    assert 0.05 < fits["grey"].fa < 0.2
    assert fits["grey"].md == pytest.approx(0.80e-3, rel=0.12)


def test_random_tissue_depends_on_its_seed_alone():
    assert Tissue.random(3) == Tissue.random(3)
    assert Tissue.random(3) != Tissue.random(4)
