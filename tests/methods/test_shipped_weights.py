"""The shipped weights: on a held-out simulated subject they are nearer to the truth than the classical estimate."""

from dataclasses import replace

import numpy as np
import pytest

from bids_dmrigen.diffusion.weights import list_weights
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.dwi.tensor import fit_maps
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.rivals import RIVALS
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import HELD_OUT
from bids_dmrigen.simulate.individual import ALIGNED
from bids_dmrigen.simulate.scanner import acquire, scan_grid
from bids_dmrigen.spatial.population import PACKAGED_ADC_ATLAS, population_on
from bids_dmrigen.spatial.templates import embedded_mni


def needs(name: str):
    """Skip where weights are not in the package: a checkout may come without them."""
    return pytest.mark.skipif(name not in {card.name for card in list_weights()}, reason=f"no weights {name} ship")


def held_out_scan(directions: np.ndarray, n_b0: int, snr: float):
    """Return a scan at b = 1000 of a held-out simulated subject, and its noise-free signals."""
    arrays, affine = embedded_mni(4)
    subject = deform(procedural_atlas(**arrays, affine=affine), HELD_OUT + 500)
    shape = (46, 54, 4)
    b = np.r_[np.zeros(n_b0), np.full(len(directions), 1000.0)]
    gradients = GradientTable(b, np.concatenate([np.zeros((n_b0, 3)), directions]))
    simulation = acquire(subject, gradients, scan_grid(subject, 4.0, shape), shape, snr=snr, seed=1)
    return simulation.scan, simulation.clean


@needs("qid2-small")
def test_qid2_is_nearer_to_the_truth_than_spherical_harmonics():
    scan, clean = held_out_scan(np.concatenate([even_directions(12), even_directions(20)]), 2, 15)
    few = Scan(scan.data[..., :14], scan.affine, scan.gradients[np.arange(14)], scan.mask)
    request = Request(options={"directions": scan.gradients.bvecs[14:]})
    errors = {}
    for name in ("sh", "qid2"):
        result = load(name).generate(None, few, request)
        error = result.mean[..., ~result.acquired] - clean[..., 14:]
        errors[name] = float(np.sqrt((error[few.mask] ** 2).mean()))
    assert errors["qid2"] < 0.9 * errors["sh"]
    assert result.record["TrustInCorrection"]["b=1000"] > 0.3


@needs("diffdti-small")
@pytest.mark.parametrize("n", [6, 3])
def test_diffdti_is_nearer_to_the_truth_than_least_squares_on_six(n):
    dense, clean = held_out_scan(even_directions(30), 1, 20)
    truth = fit_maps(replace(dense, data=clean), "ols", names=("fa",))["fa"]
    few, _ = held_out_scan(even_directions(n), 1, 20)
    six, _ = held_out_scan(even_directions(6), 1, 20)
    errors = [
        float(np.sqrt(((fa - truth)[dense.mask] ** 2).mean()))
        for fa in (load("diffdti").generate(None, few, Request()).named_maps()["fa"], fit_maps(six, "ols")["fa"])
    ]
    assert errors[0] < 0.85 * errors[1]


@needs("neighbours-small")
def test_neighbours_are_nearer_to_the_truth_than_smoothing():
    dense, clean = held_out_scan(even_directions(30), 1, 20)
    truth = fit_maps(replace(dense, data=clean), "ols", names=("fa", "dec"))
    six, _ = held_out_scan(even_directions(6), 1, 20)
    found, smooth = load("neighbours").generate(None, six, Request()).named_maps(), RIVALS["smooth"](six).maps()
    for name in ("fa", "dec"):
        error, rival = (np.sqrt(((maps[name] - truth[name])[dense.mask] ** 2).mean()) for maps in (found, smooth))
        assert error < 0.95 * rival


@needs("phydiff-small")
def test_phydiff_is_nearer_to_the_truth_than_isotropic_diffusion():
    """On the embedded anatomy, whose bundles it has not seen: brightness and shells are right, directions by chance."""
    arrays, affine = embedded_mni(4)
    subject = deform(procedural_atlas(**arrays, affine=affine), HELD_OUT + 500, ALIGNED)
    grid, shape = np.diag([2.0, 2, 2, 1]), (80, 96, 3)
    grid[:3, 3] = [-80, -112, 6]
    bvals = np.repeat([1000.0, 2000], 6)
    world = np.tile(even_directions(6), (2, 1))
    table = GradientTable.from_world(bvals, world, grid)
    whole = GradientTable.from_world(np.r_[0.0, bvals], np.concatenate([np.zeros((1, 3)), world]), grid)
    simulation = acquire(subject, whole, grid, shape, snr=25, seed=1)
    b0 = Scan(simulation.scan.data[..., :1], grid, simulation.scan.gradients[:1], simulation.scan.mask)
    request = Request(population=population_on(shape, grid, PACKAGED_ADC_ATLAS), options={"table": table})
    method, errors = load("phydiff"), {}
    for name, net in (("trained", None), ("isotropic", method.network("small"))):
        error = (method.generate(net, b0, request).mean - simulation.clean[..., 1:])[b0.mask]
        errors[name] = np.sqrt((error**2).mean(axis=0)).reshape(2, 6).mean(axis=1)
    assert (errors["trained"] < 0.9 * errors["isotropic"]).all(), errors


@needs("rishldm-small")
def test_rishldm_is_nearer_to_the_truth_than_the_scan_itself():
    scan, clean = held_out_scan(even_directions(12), 1, 20)
    truth = fit_maps(replace(scan, data=clean), "ols", names=("fa",))["fa"]
    generated = load("rishldm").generate(None, scan, Request()).mean
    errors = [
        float(np.sqrt(((fit_maps(replace(scan, data=data), "ols")["fa"] - truth)[scan.mask] ** 2).mean()))
        for data in (generated, scan.data)
    ]
    assert errors[0] < 0.9 * errors[1]
