"""The bias field on a phantom whose coil gain is known."""

import numpy as np

from bids_dmrigen.spatial.bias import bias_field

from .test_brain_mask import AFFINE, brain_phantom


def test_bias_field_is_found():
    b0, _, brain, gain = brain_phantom()
    flat = b0.copy()
    flat[b0 > 1.5 * np.median(b0[brain])] = np.median(b0[brain])
    field = bias_field(flat, AFFINE, brain)
    assert np.isclose(np.log(field[brain]).mean(), 0, atol=1e-5)
    expected = np.log(gain[brain])
    assert np.corrcoef(np.log(field[brain]), expected)[0, 1] > 0.9
