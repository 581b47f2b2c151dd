"""Least squares on the six directions that learnt methods see."""

import numpy as np
import pytest

from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.tensor import fit_maps
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Request
from bids_dmrigen.methods.maps.task import choose_volumes
from tests.conftest import tiny_gradients, tiny_series

AFFINE = np.array([[-1.9, 0.3, 0.4, 90], [0.3, 2.0, -0.4, -100], [0.5, 0.4, 2.4, -60], [0, 0, 0, 1.0]])


def scan_of(n):
    gradients = tiny_gradients(n)
    data = tiny_series(gradients, noise=5.0)
    return Scan(data, AFFINE, gradients, data[..., 0] > 20)


@pytest.mark.parametrize(("name", "fit"), [("lls", "ols"), ("wlls", "wls")])
def test_maps_are_those_of_the_fit_to_the_b0s_and_six_directions(name, fit):
    scan = scan_of(15)
    generated = load(name).generate(None, scan, Request())
    _, six, _ = choose_volumes(scan.gradients)
    used = np.sort(np.r_[np.flatnonzero(scan.gradients.is_b0), six])
    few = Scan(scan.data[..., used], AFFINE, scan.gradients[used], scan.mask)
    expected = fit_maps(few, fit, names=("fa", "md", "ad", "rd", "dec", "tensor"))
    for key, values in generated.named_maps().items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-6, err_msg=key)
    b0s = np.flatnonzero(scan.gradients.is_b0).tolist()
    assert generated.record["Volumes"] == {"b0": b0s, "b=1000": six.tolist()}  # as Diff-DTI's, for the report
    assert any("6 of 15 directions" in warning for warning in generated.warnings)


def test_five_directions_are_too_few():
    with pytest.raises(ScanError, match=r"at least 6 d.*found 5"):
        load("lls").generate(None, scan_of(5), Request())
