"""Field maps: a known field in Hz is read from phases, and a b0 that it distorted is corrected."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dmrigen.bids.fieldmaps import HZ_PER_T
from bids_dmrigen.bids.run import FieldMap
from bids_dmrigen.dwi.gradients import GradientTable
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.spatial.brain_mask import erode
from bids_dmrigen.spatial.fieldmap import (
    continued,
    correct_with_field,
    displacement_voxels,
    radians,
    read_field,
    smooth_inside,
    unwrapped,
    wrapped,
)
from tests.spatial.test_susceptibility import AFFINE, SHAPE, distorted, head

READOUT_S = 0.05
FIRST_S, SECOND_S = 0.004, 0.014  # 100 Hz are a turn
FLIPPED = AFFINE @ np.diag([-1, -1, 1, 1.0])
FIELD_SHAPE = (42, 42, 46)


def centred(affine, shape):
    """Return the affine with the middle of the grid at the origin of the world."""
    affine = affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


FIELD_AFFINE = centred(
    np.array([[0.2, 3.1, 0.2, 0], [3.0, -0.1, 0, 0], [0, 0.3, -3.1, 0], [0, 0, 0, 1.0]]), FIELD_SHAPE
)


def undistorted(shape):
    return head(np.indices(shape).astype(float), [(n - 1) / 2 for n in shape], shape, np.random.default_rng(0))


def on_field_grid(image, affine, motion=None, grid=FIELD_AFFINE):
    """Return an image of the scan's grid as the field map's grid has it, in a head that moved by `motion`."""
    matrix = np.linalg.inv(affine) @ np.linalg.inv(np.eye(4) if motion is None else motion) @ grid
    return ndimage.affine_transform(image, matrix[:3, :3], matrix[:3, 3], FIELD_SHAPE, order=3, mode="nearest")


def written(folder, grid=FIELD_AFFINE, **images):
    paths = {name: folder / f"{name}.nii" for name in images}
    for name, image in images.items():
        nib.save(nib.Nifti1Image(np.asarray(image, np.float32), grid), paths[name])
    return paths


@pytest.fixture(scope="module")
def truth():
    """A head and its field: 20 to 230 Hz, two turns of phase, more than one off on the whole."""
    magnitude = on_field_grid(undistorted(SHAPE), centred(AFFINE, SHAPE))
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in FIELD_SHAPE), indexing="ij"))
    return magnitude, 125 + 105 * np.sin(2 * at[1]) * np.cos(at[0])


SIEMENS = {
    "0 to 4095": lambda phase: np.clip(np.rint(phase / (2 * np.pi) * 4096 + 2048), 0, 4095),
    "-4096 to 4094": lambda phase: np.clip(2 * np.rint(phase / (2 * np.pi) * 4096), -4096, 4094),
    "radians": lambda phase: phase,
}


@pytest.mark.parametrize("scale", SIEMENS)
def test_a_phase_difference_of_several_turns_gives_the_field(truth, tmp_path, scale):
    magnitude, hz = truth
    noise = np.random.default_rng(0).normal(0, np.where(magnitude < 50, 9, 0.1))  # outside, every phase
    phase = wrapped(2 * np.pi * hz * (SECOND_S - FIRST_S) + noise)
    paths = written(tmp_path, phase=SIEMENS[scale](phase), magnitude=magnitude)
    field = read_field(FieldMap("phasediff", (paths["phase"],), paths["magnitude"], (FIRST_S, SECOND_S)))
    expect_field(field, hz)


def test_two_phases_give_the_field_whatever_phase_they_have_in_common(truth, tmp_path):
    magnitude, hz = truth
    common = np.linspace(-9, 9, FIELD_SHAPE[0])[:, None, None]
    phases = [wrapped(2 * np.pi * hz * echo + common) for echo in (FIRST_S, SECOND_S)]
    paths = written(tmp_path, one=phases[0] * 1000, two=phases[1] * 1000, magnitude=magnitude)  # milliradians
    files = paths["one"], paths["two"]
    expect_field(read_field(FieldMap("phases", files, paths["magnitude"], (FIRST_S, SECOND_S))), hz)


@pytest.mark.parametrize(("units", "factor"), [("Hz", 1), ("rad/s", 2 * np.pi), ("T", 1 / HZ_PER_T)])
def test_a_field_is_read_in_its_units(truth, tmp_path, units, factor):
    magnitude, hz = truth
    paths = written(tmp_path, field=hz * factor, magnitude=magnitude)
    field = read_field(FieldMap("fieldmap", (paths["field"],), paths["magnitude"], units=units))
    expect_field(field, hz, offset_hz=0)


def expect_field(field, hz, offset_hz=100.0):
    """Expect the field up to whole turns (100 Hz) of phase, which put its median nearest to 0."""
    known = field.weight > 0
    assert known.mean() > 0.08
    inside = erode(known, 4, np.linalg.norm(FIELD_AFFINE[:3, :3], axis=0))
    error = field.hz[inside] - hz[inside] + offset_hz * round(np.median(hz[known]) / 100)
    assert np.abs(error).max() < 6
    assert np.sqrt((error**2).mean()) < 1.5


def test_images_on_different_grids_are_refused(truth, tmp_path):
    magnitude, hz = truth
    paths = written(tmp_path, field=hz[..., 1:], magnitude=magnitude)
    with pytest.raises(ScanError, match=r"field\.nii: its grid is not that of magnitude\.nii"):
        read_field(FieldMap("fieldmap", (paths["field"],), paths["magnitude"], units="Hz"))


@pytest.mark.parametrize("values", [[100, 700], [0, 30000], [5, 5]])
def test_values_that_are_no_phase_are_refused(values):
    with pytest.raises(ScanError, match=r"p\.nii: values from"):
        radians(np.array(values), "p.nii")


def test_only_whole_turns_are_taken_off():
    phase = np.full((6, 6, 6), 2.5) + np.linspace(-1, 1, 6)[:, None, None]
    mask = np.ones(phase.shape, bool)
    for turns in (-1, 0, 2):
        back = unwrapped(wrapped(phase + 2 * np.pi * turns), mask)
        np.testing.assert_allclose(back, phase, atol=1e-6)


def test_smoothing_ignores_what_is_outside():
    field, weight = np.full((12, 12, 12), 7.0), np.zeros((12, 12, 12))
    weight[3:9, 3:9, 3:9] = np.random.default_rng(0).uniform(0.1, 1, (6, 6, 6))
    field[weight == 0] = 1e6
    smooth = smooth_inside(field, weight, np.array([2.0, 2, 3]))
    np.testing.assert_allclose(smooth[weight > 0], 7)
    assert not smooth[weight == 0].any()


def test_a_field_goes_on_outside_without_steps():
    weight = np.zeros((20, 20, 20))
    weight[6:14, 6:14, 6:14] = 1
    field = np.broadcast_to(np.linspace(-50, 50, 20)[:, None, None], weight.shape) * weight
    whole = continued(field, weight, np.full(3, 3.0))
    np.testing.assert_array_equal(whole[weight > 0], field[weight > 0])
    step = np.abs(np.diff(whole, axis=0)).max()
    assert step < 2.5 * 100 / 19
    assert whole[0, 10, 10] < -10
    assert whole[-1, 10, 10] > 10
    assert np.abs(whole).max() <= np.abs(field).max()


@pytest.mark.parametrize(("direction", "voxels"), [("i", 5), ("i-", -5), ("j", 5), ("j-", -5), ("k-", -5)])
def test_above_resonance_the_signal_moves_up_and_with_a_minus_down(direction, voxels):
    assert displacement_voxels(np.array(100.0), direction, 0.05) == voxels


def make_field(axis, affine, folder, motion=None, grid=FIELD_AFFINE):
    """Return the field of the head of `distorted`, on a grid of its own, as read from files."""
    shape = distorted_cached(1, axis)[0].shape
    magnitude = on_field_grid(undistorted(shape), affine, motion, grid)
    hz = on_field_grid(distorted_cached(1, axis)[1] / READOUT_S, affine, motion, grid)
    paths = written(folder, grid, field=hz, magnitude=magnitude)
    return read_field(FieldMap("fieldmap", (paths["field"],), paths["magnitude"], units="Hz"))


CACHE = {}


def distorted_cached(sign, axis):
    if (sign, axis) not in CACHE:
        CACHE[sign, axis] = distorted(sign, axis)
    return CACHE[sign, axis]


def corrected(direction, affine, folder, motion=None, grid=FIELD_AFFINE):
    """Return errors of signal, relative, and of displacement, voxels, after and before the correction."""
    axis = "ij".index(direction[0])
    b0, truth = distorted_cached(-1 if direction.endswith("-") else 1, axis)
    true_signal, affine = undistorted(b0.shape), centred(affine, b0.shape)
    table = GradientTable(np.zeros(1), np.zeros((1, 3)))
    scan = Scan(b0[..., None].astype(np.float32), affine, table, np.ones(b0.shape, bool))
    images, report = correct_with_field(scan, make_field(axis, affine, folder, motion, grid), direction, READOUT_S)
    inside = true_signal > 400
    errors = [np.abs(image - true_signal)[inside].mean() / 800 for image in (images["corrected_b0"], b0)]
    zoom, expected = np.linalg.norm(affine[:3, axis]), truth * (-1 if direction.endswith("-") else 1)
    miss = np.abs(images["field"] / zoom - expected)[inside]
    return errors, miss, report


@pytest.mark.parametrize(
    ("direction", "affine"), [("j", AFFINE), ("j-", FLIPPED), ("i", FLIPPED), ("i-", AFFINE)],
    ids=["j", "j- flipped", "i flipped", "i-"],
)  # fmt: skip
def test_a_b0_that_a_known_field_distorted_is_corrected(direction, affine, tmp_path):
    (after, before), miss, report = corrected(direction, affine, tmp_path)
    assert before > 0.04
    assert after < 0.2 * before
    assert miss.mean() < 0.05
    assert report["MagnitudeSimilarityCorrected"] > report["MagnitudeSimilarityRaw"]
    assert report["HeadMotionMm"] < 1


@pytest.mark.parametrize("far", [False, True], ids=["motion", "another session"])
def test_the_field_moves_with_the_head(far, tmp_path):
    motion, grid = np.eye(4), FIELD_AFFINE.copy()
    angle = np.deg2rad(3.0)
    motion[[0, 0, 1, 1], [0, 1, 0, 1]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    motion[:3, 3] = (90.0, 40.0, -70.0) if far else (3.0, -2.0, 2.0)
    grid[:3, 3] += motion[:3, 3] * far
    (after, before), miss, report = corrected("j", AFFINE, tmp_path, motion, grid)
    assert after < 0.2 * before
    assert miss.mean() < 0.05
    assert report["HeadMotionMm"] == pytest.approx(np.linalg.norm(motion[:3, 3]), abs=1)
