"""The brain mask on phantoms with a known brain."""

import numpy as np
import pytest

from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.spatial.brain_mask import brain_mask, brain_of, dilate
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.spatial.similarity import dice

ZOOMS = np.array([3.0, 3.0, 4.0])
AFFINE = np.diag([-3.0, 3.0, 4.0, 1.0])
SHAPE = (56, 64, 36)


def brain_phantom():
    """An ellipsoid brain with bright ventricles, eyes, dim muscle below, coil gain and a noise floor."""
    rng = np.random.default_rng(0)
    mm = (np.indices(SHAPE) - (np.array(SHAPE) - 1)[:, None, None, None] / 2) * ZOOMS[:, None, None, None]

    def ball(center, radii):
        return sum(((mm[a] - center[a]) / radii[a]) ** 2 for a in range(3)) < 1

    brain = ball((0, -5, 5), (64, 76, 50))
    ventricles = ball((0, 0, 10), (12, 22, 10))
    eyes = ball((32, 84, -35), (11, 11, 11)) | ball((-32, 84, -35), (11, 11, 11))
    muscle = ball((0, 0, -62), (50, 60, 16)) & ~brain
    log_gain = 0.3 * np.sin(mm[0] / 50) + 0.3 * mm[1] / 90
    b0, dwi = np.zeros(SHAPE), np.zeros(SHAPE)
    for part, t2, weighted in ((brain, 500, 250), (muscle, 130, 60), (eyes, 1600, 40), (ventricles, 1500, 60)):
        b0[part], dwi[part] = t2, weighted
    gain = np.exp(log_gain)
    noisy = [np.hypot(i * gain + rng.normal(0, 15, SHAPE), rng.normal(0, 15, SHAPE)) for i in (b0, dwi)]
    return *(image.astype(np.float32) for image in noisy), brain, gain


@pytest.fixture(scope="module")
def phantom():
    return brain_phantom()


def test_brain_is_found(phantom):
    b0, dwi, brain, _ = phantom
    found = brain_mask(b0, ZOOMS, dwi)
    assert found.dtype == bool
    assert dice(found, brain) > 0.95
    assert dice(brain_mask(b0, ZOOMS), brain) > 0.95
    assert found[28, 32, 20]  # the ventricles are part of it


def test_a_slab_is_not_eroded_from_above_and_below(phantom):
    b0, dwi, brain, _ = phantom
    slab = (slice(None), slice(None), slice(14, 26))
    found = brain_mask(b0[slab], ZOOMS, dwi[slab])
    for plane in (0, -1):
        assert dice(found[..., plane], brain[slab][..., plane]) > 0.95


def test_an_empty_image_is_an_error():
    with pytest.raises(ScanError, match="no brain"):
        brain_mask(np.zeros(SHAPE), ZOOMS)


def test_dilation_is_a_ball_in_mm():
    point = np.zeros((21, 21, 21), bool)
    point[10, 10, 10] = True
    grown = dilate(point, 6.0, ZOOMS)
    assert grown[12, 10, 10]
    assert not grown[13, 10, 10]
    assert grown[10, 10, 11]
    assert not grown[10, 10, 12]


@pytest.mark.real
def test_every_slice_of_the_slab_contains_brain(real_data):
    stem = f"{real_data}/bids/sub-slab/dwi/sub-slab_dwi"
    scan, _ = read_scan(f"{stem}.nii.gz", f"{stem}.bval", f"{stem}.bvec")
    mask = brain_of(scan)
    assert (mask.sum(axis=(0, 1)) * scan.zooms_mm[:2].prod() > 4000).all()  # mm² in every slice
    assert 0.8e6 < mask.sum() * scan.zooms_mm.prod() < 1.3e6
