"""Brain mask and bias field on phantoms whose brain and bias are known."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.interfaces.brain import (
    BiasField,
    BrainMask,
    bias_field,
    brain_mask,
    dilate,
    otsu_threshold,
)
from bids_dmrigen.spatial.io import read_image, write_gradients

ZOOMS = np.array([3.0, 3.0, 4.0])
AFFINE = np.diag([-3.0, 3.0, 4.0, 1.0])
SHAPE = (56, 64, 36)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def phantom():
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


def test_otsu_separates_two_heaps():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 0.1, 3000), rng.normal(5, 0.1, 1000)])
    assert 1.4 < otsu_threshold(values) < 4.6


def test_dilation_is_a_ball_in_mm():
    point = np.zeros((21, 21, 21), bool)
    point[10, 10, 10] = True
    grown = dilate(point, 6.0, ZOOMS)
    assert grown[12, 10, 10]
    assert not grown[13, 10, 10]
    assert grown[10, 10, 11]
    assert not grown[10, 10, 12]


def test_bias_field_is_found(phantom):
    b0, _, brain, gain = phantom
    flat = b0.copy()
    flat[b0 > 1.5 * np.median(b0[brain])] = np.median(b0[brain])
    field = bias_field(flat, AFFINE, brain)
    assert np.isclose(np.log(field[brain]).mean(), 0, atol=1e-5)
    expected = np.log(gain[brain])
    assert np.corrcoef(np.log(field[brain]), expected)[0, 1] > 0.9


def test_interfaces_keep_the_ratio_of_volumes(phantom, tmp_path):
    b0, dwi, _, _ = phantom
    image = nib.Nifti1Image(np.stack([b0, dwi], -1), AFFINE)
    nib.save(image, tmp_path / "dwi.nii")
    table = GradientTable([0, 1000], np.r_[np.zeros((1, 3)), even_directions(1)])
    write_gradients(table, tmp_path / "dwi.bval", tmp_path / "dwi.bvec")
    files = {f"in_{part}": tmp_path / f"dwi.{end}" for part, end in
             (("file", "nii"), ("bval", "bval"), ("bvec", "bvec"))}  # fmt: skip
    mask = BrainMask(**files).run(cwd=tmp_path).outputs.out_mask
    assert nib.load(mask).get_data_dtype() == np.uint8
    outputs = BiasField(**files, in_mask=mask).run(cwd=tmp_path).outputs
    corrected, _ = read_image(outputs.out_file)
    field, _ = read_image(outputs.out_field)
    np.testing.assert_allclose(corrected * field[..., None], image.get_fdata(), rtol=1e-5)


@pytest.mark.real
def test_the_whole_slab_holds_brain(real_data):
    from bids_dmrigen.interfaces.brain import mean_dwi
    from bids_dmrigen.spatial.io import read_scan

    stem = f"{real_data}/bids/sub-slab/dwi/sub-slab_dwi"
    scan, _ = read_scan(f"{stem}.nii.gz", f"{stem}.bval", f"{stem}.bvec")
    mask = brain_mask(scan.mean_b0(), scan.zooms_mm, mean_dwi(scan))
    assert (mask.sum(axis=(0, 1)) * scan.zooms_mm[:2].prod() > 4000).all()  # mm² in every slice
    assert 0.8e6 < mask.sum() * scan.zooms_mm.prod() < 1.3e6
