"""Figures: orientation checked on marked volumes, scales on pixels, files on size and well-formedness."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.qc import comparison, figures, slices

RAS = np.diag([2.0, 2, 2, 1])
ORIENTATIONS = [("R", "A", "S"), ("L", "A", "S"), ("P", "S", "L"), ("P", "S", "R"), ("I", "R", "A")]


def _table(n_directions=12, n_b0=1):
    bvals = np.r_[np.zeros(n_b0), np.full(n_directions, 1000.0)]
    return GradientTable(bvals, np.r_[np.zeros((n_b0, 3)), even_directions(n_directions)])


def _reoriented(volume, codes):
    """Return a volume stored in another voxel order, and its affine: the same thing in the world."""
    image = nib.Nifti1Image(volume, RAS)
    to = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(RAS), to))
    return np.asarray(turned.dataobj), turned.affine


@pytest.fixture
def marked():
    """A head with a bright right, a brighter front and the brightest top, and its mask (RAS)."""
    volume = np.ones((24, 30, 20), np.float32)
    volume[18:, :, :] += 1
    volume[:, 24:, :] += 2
    volume[:, :, 16:] += 4
    return volume, np.ones(volume.shape, bool)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_slices_are_upright_whatever_the_voxel_order(marked, codes):
    volume, affine = _reoriented(marked[0], codes)
    mask = np.ones(volume.shape, bool)
    geometry = slices.Geometry.of(affine, mask)
    np.testing.assert_array_equal(geometry.turn(volume), marked[0])
    figure = slices.mosaic([slices.Row("axial", volume, 0, 8)], affine, mask, "t", n_slices=3)
    picture = np.asarray(figure.axes[1].images[0].get_array())  # (rows upwards, columns)
    assert figure.axes[1].images[0].origin == "lower"
    assert picture[:, -1].mean() > picture[:, 0].mean()  # right of the subject on the right
    assert picture[-1].mean() > picture[0].mean()  # front at the top
    assert [text.get_text() for text in figure.axes[0].texts][1:] == ["L", "R"]


def test_slices_of_the_other_planes(marked):
    volume, mask = marked
    for plane, sides in ((slices.CORONAL, ["L", "R"]), (slices.SAGITTAL, ["P", "A"])):
        figure = slices.mosaic([slices.Row("x", volume, 0, 8, plane=plane)], RAS, mask, "t", n_slices=3)
        picture = np.asarray(figure.axes[0].images[0].get_array())
        assert picture[-1].mean() > picture[0].mean()  # top of the head at the top
        assert picture[:, -1].mean() > picture[:, 0].mean()  # right, or front, on the right
        assert [text.get_text() for text in figure.axes[0].texts][1:] == sides


def test_slice_positions_are_world_coordinates():
    mask = np.zeros((40, 40, 40), bool)
    mask[15:25, 15:25, 18:25] = True
    affine = RAS.copy()
    affine[:3, 3] = [-20, -30, 7]
    geometry = slices.Geometry.of(affine, mask)
    index = int(geometry.positions(slices.AXIAL, 1)[0])
    assert geometry.box[2].start == 13  # cropped to the mask and 10 mm around it
    whole = index + geometry.box[2].start
    assert geometry.position_mm(slices.AXIAL, index) == pytest.approx(7 + 2 * whole)


def test_voxels_that_are_not_cubes_keep_their_shape():
    mask = np.ones((20, 20, 10), bool)
    geometry = slices.Geometry.of(np.diag([2.0, 2, 5, 1]), mask)
    assert geometry.panel_ratio(slices.CORONAL) == pytest.approx(50 / 40)


def test_compared_rows_share_their_scale(tmp_path):
    table, generated = _table(), np.r_[False, np.ones(12, bool)]
    rng = np.random.default_rng(0)
    data = rng.uniform(50, 100, (16, 16, 12, 13)).astype(np.float32)
    mask = np.ones(data.shape[:3], bool)
    shown = {}

    def catch(rows, *args, **kwargs):
        shown["rows"] = rows
        return slices.mosaic(rows, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "mosaic", catch)
        comparison.input_output(data, table, 3 * data, table, generated, RAS, mask, "m", tmp_path / "a.svg")
    first, second, third, fourth = shown["rows"]
    assert (first.vmin, first.vmax) == (second.vmin, second.vmax)
    assert (third.vmin, third.vmax) == (fourth.vmin, fourth.vmax)
    assert [row.provenance for row in shown["rows"]] == ["acquired", "generated"] * 2


def test_nearest_pair_is_antipodal_and_skips_acquired_volumes():
    acquired = _table(6)
    turned = GradientTable(acquired.bvals, -acquired.bvecs)
    generated = np.zeros(7, bool)
    generated[4] = True
    assert comparison.nearest_pair(acquired, turned, generated)[:2] == (4, 4)
    assert comparison.nearest_pair(acquired, turned, generated)[2] == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="no diffusion-weighted pair"):
        comparison.nearest_pair(acquired, turned, np.zeros(7, bool))


def test_difference_maps_are_centred_on_zero(tmp_path):
    shown = {}

    def catch(rows, *args, **kwargs):
        shown["rows"] = rows
        return slices.mosaic(rows, *args, **kwargs)

    rng = np.random.default_rng(0)
    fa = {"preproc": rng.uniform(0, 1, (14, 14, 10)), "qid2": rng.uniform(0, 1, (14, 14, 10))}
    dec = {source: np.repeat(volume[..., None], 3, axis=3) for source, volume in fa.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "mosaic", catch)
        comparison.fractional_anisotropy(
            fa, dec, RAS, np.ones((14, 14, 10), bool), tmp_path / "fa.svg", frozenset({"qid2"})
        )
    difference = shown["rows"][-1]
    assert difference.vmin == -difference.vmax
    np.testing.assert_allclose(difference.volume, fa["qid2"] - fa["preproc"])
    assert [row.provenance for row in shown["rows"][:4]] == ["acquired"] * 2 + ["generated"] * 2


def test_every_figure_is_well_formed_small_and_free_of_links(tmp_path):
    table, rng = _table(20, 2), np.random.default_rng(0)
    data = rng.uniform(1, 100, (40, 44, 24, 22)).astype(np.float32)
    mask = np.zeros(data.shape[:3], bool)
    mask[6:34, 6:38, 3:21] = True
    b0, fa = data[..., 0], data[..., 1] / 100
    motion = rng.normal(0, 0.3, (22, 3))
    scores = rng.normal(size=(24, 22))
    scores[:3] = np.nan
    figures.acquisition(table, RAS, tmp_path / "acquisition.svg")
    figures.mask_contours(b0, mask, RAS, tmp_path / "mask.svg")
    figures.motion(motion, motion, np.r_[np.nan, np.abs(motion[1:, 0])], tmp_path / "motion.svg")
    figures.carpet(data, table, mask, tmp_path / "carpet.svg")
    figures.slice_outliers(scores, scores < -2, table, tmp_path / "outliers.svg", 2.0)
    figures.flicker(b0, data[..., 1], RAS, mask, ("before", "after"), "t", tmp_path / "flicker.svg")
    comparison.residual(data - data[::-1], 5.0, RAS, mask, "m", tmp_path / "residual.svg")
    comparison.residual_histogram(data - data[::-1], 5.0, mask, "m", tmp_path / "histogram.svg")
    comparison.uncertainty({"FA": (b0, fa, "FA")}, RAS, mask, "m", tmp_path / "uncertainty.svg")
    comparison.fa_histogram({"preproc": fa, "m": fa**2}, mask, tmp_path / "fahistogram.svg")
    files = sorted(tmp_path.glob("*.svg"))
    assert len(files) == 10
    for path in files:
        text = path.read_text(encoding="utf-8")
        ET.fromstring(text)
        assert path.stat().st_size < 600_000, path.name
        targets = re.findall(r'(?:href|src|url)="(?!#|data:image/png;base64,)([^"]*)"', text)
        assert not targets, f"{path.name} refers to {targets}"


def test_figures_are_the_same_every_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        figures.acquisition(_table(), RAS, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_flicker_contains_both_frames_at_one_size(tmp_path):
    first = np.random.default_rng(0).uniform(size=(20, 20, 14))
    mask = np.ones(first.shape, bool)
    path = figures.flicker(first, 1 - first, RAS, mask, ("b0", "T1w"), "t", tmp_path / "f.svg")
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    frames = [child for child in root if child.tag.endswith("svg")]
    assert [frame.get("class") for frame in frames] == ["frame-0", "frame-1"]
    for frame in frames:
        assert frame.get("width") is None
        assert frame.get("viewBox") == root.get("viewBox")


def test_small_palette_keeps_grey_values():
    import base64
    import io

    from PIL import Image

    grey = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (20, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], axis=-1)).save(buffer, "PNG")
    text = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    smaller = re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", slices._smaller_png, text)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(smaller.split(",")[1]))).convert("L"), int)
    assert np.abs(shown - grey).max() <= 3


@pytest.mark.real
def test_two_real_runs_stored_in_opposite_orders_look_the_same(real_data):
    """One subject, sagittal slices stored right to left in one run and left to right in the other."""
    shown = []
    for run in (1, 2):
        image = nib.load(real_data / "bids/sub-sagittal/dwi" / f"sub-sagittal_dir-AP_run-{run}_dwi.nii.gz")
        b0 = np.asarray(image.dataobj[..., 0], np.float32)
        turned = slices.Geometry.of(image.affine, np.ones(b0.shape, bool)).turn(b0)
        shown.append((turned - turned.mean()) / turned.std())

    def best_shift(one, other):  # the table moved between the runs
        spectrum = np.fft.rfftn(one) * np.conj(np.fft.rfftn(other))
        return np.fft.irfftn(spectrum, one.shape).max() / one.size

    one, other = shown
    assert best_shift(one, other) > 0.9
    for axis in range(3):
        assert best_shift(one, np.flip(other, axis)) < 0.8
