"""The weights that ship: on somebody who was not trained on, nearer to the truth than the classical estimate."""

import numpy as np
import pytest

from bids_dmrigen.diffusion.weights import list_weights
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.interfaces.templates import embedded_mni
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.simulate.anatomy import deform
from bids_dmrigen.simulate.atlas import procedural_atlas
from bids_dmrigen.simulate.examples import HELD_OUT
from bids_dmrigen.simulate.scanner import acquire, scan_grid


@pytest.mark.skipif("qid2-small" not in {card.name for card in list_weights()}, reason="no weights for QID² ship")
def test_qid2_is_nearer_to_the_truth_than_spherical_harmonics():
    arrays, affine = embedded_mni(4)
    person = deform(procedural_atlas(**arrays, affine=affine), HELD_OUT + 500)
    wanted, shape = even_directions(20), (46, 54, 4)
    directions = np.concatenate([np.zeros((2, 3)), even_directions(12), wanted])
    gradients = GradientTable(np.r_[0, 0, np.full(32, 1000.0)], directions)
    made = acquire(person, gradients, scan_grid(person, 4.0, shape), shape, snr=15, seed=1)
    few = Scan(made.scan.data[..., :14], made.scan.affine, gradients[np.arange(14)], made.scan.mask)
    request = Request(options={"directions": gradients.bvecs[14:]})
    errors = {}
    for name in ("sh", "qid2"):
        result = load(name).generate(None, few, request)
        error = result.mean[..., ~result.acquired] - made.clean[..., 14:]
        errors[name] = float(np.sqrt((error[few.mask] ** 2).mean()))
    assert errors["qid2"] < 0.9 * errors["sh"]
    assert result.record["TrustInCorrection"]["b=1000"] > 0.3
