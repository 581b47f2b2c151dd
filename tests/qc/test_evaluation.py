"""Directions left out of a dense scan: what is kept, and that the scores are what they say."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bids_dmrigen.dwi.blocks import in_blocks, whole_blocks
from bids_dmrigen.dwi.gradients import GradientTable, even_directions, pair_energies
from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.dwi.tensor import anisotropic_part, condition, tensor_volumes
from bids_dmrigen.methods.base import Generated
from bids_dmrigen.qc import evaluation
from bids_dmrigen.qc.distributions import noise_of_fa
from bids_dmrigen.qc.evaluation_page import write_results
from bids_dmrigen.spatial.io import read_scan
from tests.conftest import tiny_gradients, tiny_series

AFFINE = np.diag([-3.0, 3, 3, 1])


def dense_scan(noise=8.0, n=20):
    gradients = tiny_gradients(n)
    data = tiny_series(gradients, noise=noise)
    mask = tiny_series(gradients, noise=0)[..., 0] > 0
    return Scan(data, AFFINE, gradients, mask)


def oracle(scan, error=0.0, extra=0):
    """Return an arm that has the whole scan: it returns left-out volumes plus an error, and volumes not requested."""

    def arm(kept, wanted):
        volumes = [int(np.abs(scan.gradients.bvecs @ v).argmax()) for v in wanted.bvecs]
        more = [volumes[0]] * extra
        mean = np.concatenate([kept.data, scan.data[..., volumes] + error, 9 + scan.data[..., more]], axis=3)
        bvecs = np.concatenate([kept.gradients.bvecs, -wanted.bvecs, np.roll(wanted.bvecs[: len(more)], 1, axis=1)])
        table = GradientTable(np.r_[kept.gradients.bvals, wanted.bvals, wanted.bvals[: len(more)]], bvecs)
        return Generated(mean, None, table, (), np.arange(len(table)) < len(kept.gradients), {"Size": "small"})

    return arm


def test_kept_volumes_are_b0s_and_even_directions_of_every_shell():
    bvals = np.r_[0, np.full(20, 1000), 0, np.full(30, 2000)]
    bvecs = np.r_[np.zeros((1, 3)), even_directions(20), np.zeros((1, 3)), even_directions(30)]
    gradients = GradientTable(bvals, bvecs)
    kept = evaluation.kept_volumes(gradients, 12)
    assert [int(kept[bvals == b].sum()) for b in (0, 1000, 2000)] == [2, 12, 12]
    others = [evaluation.kept_volumes(gradients, 12, k, 4) for k in range(1, 4)]
    assert all(int(o.sum()) == 26 for o in others)
    assert any((o != kept).any() for o in others)
    assert int(evaluation.kept_volumes(gradients, 25).sum()) == 2 + 20 + 25  # a short shell is kept whole
    with pytest.raises(ScanError, match="20 at b=1000, 30 at b=2000"):
        evaluation.kept_volumes(gradients, 30)


def test_tensors_are_fitted_to_low_shells():
    bvecs = np.r_[np.zeros((1, 3)), even_directions(9)]
    for bvals, used in (((700, 1500, 3000), (700, 1500)), ((2000, 3000), (2000,)), ((1000,), (1000,))):
        table = GradientTable(np.r_[0, np.resize(bvals, 9)], bvecs)
        np.testing.assert_array_equal(tensor_volumes(table), np.isin(table.bvals, (0, *used)))


def test_a_perfect_method_scores_perfectly_and_what_it_adds_is_left_out():
    scan = dense_scan()
    arms = {"perfect": oracle(scan), "more": oracle(scan, extra=3), "ols": evaluation.simple_arm("ols")}
    result = evaluation.evaluate(scan, [8], arms)
    perfect, more, ols = result.outcomes
    assert perfect.scores["dwi_psnr"] == np.inf
    assert perfect.scores["dwi_ssim"] == pytest.approx(1)
    assert perfect.scores["fa_psnr"] > 80  # the order of volumes differs, hence the last bits
    assert perfect.scores["direction_angle"] < 0.1
    assert more.scores["fa_psnr"] > 80
    assert ols.scores["dwi_psnr"] < 50
    assert ols.scores["fa_psnr"] < 50
    assert 0 < ols.scores["fa_error"] < 0.2


def test_scores_are_those_of_scikit_image_and_of_the_definitions():
    scan = dense_scan()
    result = evaluation.evaluate(scan, [8], {"off": oracle(scan, error=5.0)})
    scores, mask = result.outcomes[0].scores, result.mask
    np.testing.assert_array_equal(mask, ndimage.binary_erosion(ndimage.binary_erosion(scan.mask)))
    wanted = evaluation.wanted_volumes(scan.gradients, evaluation.kept_volumes(scan.gradients, 8))
    psnr, ssim, nmse = [], [], []
    for v in wanted:
        acquired = scan.data[..., v].astype(float)
        top = np.percentile(acquired[mask], 99.9)
        psnr.append(peak_signal_noise_ratio(acquired[mask], acquired[mask] + 5, data_range=top))
        nmse.append(25 * mask.sum() / (acquired[mask] ** 2).sum())
        _, local = structural_similarity(
            acquired * mask, (acquired + 5) * mask, data_range=top, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        ssim.append(local[mask].mean())
    assert scores["dwi_psnr"] == pytest.approx(np.mean(psnr), rel=1e-5)
    assert scores["dwi_nmse"] == pytest.approx(np.mean(nmse), rel=1e-5)
    assert scores["dwi_ssim"] == pytest.approx(np.mean(ssim), rel=1e-4)


def test_map_scores_of_a_hand_computed_case():
    mask = np.ones((2, 2, 2), bool)
    fa = np.full((2, 2, 2), 0.5)
    x, y = np.eye(3)[:2]
    reference = {"fa": fa, "md": fa * 2e-3, "dec": fa[..., None] * x, "direction": np.broadcast_to(x, (2, 2, 2, 3))}
    estimate = {
        "fa": fa + 0.1,
        "md": fa * 2.2e-3,
        "dec": fa[..., None] * y,
        "direction": np.broadcast_to((x + y) / 2**0.5, (2, 2, 2, 3)),
    }
    scores = evaluation.map_scores(estimate, reference, mask)
    assert scores["fa_error"] == pytest.approx(0.1)
    assert scores["fa_nmse"] == pytest.approx(0.04)
    assert scores["fa_psnr"] == pytest.approx(20 * np.log10(5))  # range 0.5, error 0.1
    assert scores["md_psnr"] == pytest.approx(20)  # a tenth of the range
    assert scores["dec_psnr"] == pytest.approx(10 * np.log10(0.25 / (2 * 0.25 / 3)))
    assert scores["direction_angle"] == pytest.approx(45)
    faint = reference | {"fa": np.full((2, 2, 2), 0.29)}
    assert np.isnan(evaluation.map_scores(estimate, faint, mask)["direction_angle"])


def test_held_out_directions_beside_kept_ones_are_not_requested():
    directions = even_directions(10)
    beside = directions[:1] + np.array([0, 0, 0.02])  # about one degree
    gradients = GradientTable(
        np.r_[0, np.full(11, 1000)], np.r_[np.zeros((1, 3)), directions, beside / np.linalg.norm(beside)]
    )
    kept = np.r_[True, np.full(6, True), np.full(5, False)]
    np.testing.assert_array_equal(evaluation.wanted_volumes(gradients, kept), [7, 8, 9, 10])


def test_volumes_are_paired_within_their_shell():
    """Two shells of the same directions: those of one are no neighbours of the other's."""
    v = even_directions(8)
    gradients = GradientTable(np.r_[0, np.full(8, 1000), np.full(8, 2000)], np.r_[np.zeros((1, 3)), v, v])
    kept = np.r_[True, np.full(8, True), np.full(4, True), np.full(4, False)]
    np.testing.assert_array_equal(evaluation.wanted_volumes(gradients, kept), [13, 14, 15, 16])
    order = [3, 11, 2, 10, 1, 9, 0, 8]  # both shells, mixed
    table = GradientTable(np.r_[0, gradients.bvals[1:][order]], np.r_[np.zeros((1, 3)), gradients.bvecs[1:][order]])
    generated = Generated(None, None, table, (), np.arange(9) < 1, {})
    places = evaluation.generated_places(generated, gradients[np.array([1, 2, 9, 12])])
    assert places.tolist() == [7, 5, 8, 2]
    only_high = Generated(None, None, gradients[np.r_[0, 9:17]], (), np.arange(9) < 1, {})
    assert evaluation.generated_places(only_high, gradients[np.array([1, 2])]) is None


def test_an_arm_that_cannot_work_is_named_with_its_reason_and_the_others_go_on(tmp_path):
    def refuses(kept, wanted):
        raise ScanError("needs a second shell")

    scan = dense_scan()
    arms = {"refuses": refuses, "perfect": oracle(scan), "ols": evaluation.simple_arm("ols")}
    result = evaluation.evaluate(scan, [5, 8], arms, rotations=2)
    header, *rows = evaluation.table(result, 8, list(arms))
    assert rows[0] == ["refuses", "needs a second shell"]
    assert len(rows[2]) == len(header) == 1 + len(evaluation.SCORES) - len(evaluation.ALONE)
    assert "(" in rows[2][header.index("FA SSIM ↑")]  # two selections: standard deviation
    assert "unknowns" in evaluation.table(result, 5, list(arms))[3][1]  # five directions make no tensor
    page = write_results(tmp_path, result, scan, {"image": "x.nii", "rotations": 2, "reference_method": "ols"})
    text = page.read_text()
    assert "needs a second shell" in text
    assert (tmp_path / "keep-8_dec.svg").read_text().count("<image") == 5 * 7
    document = json.loads((tmp_path / "results.json").read_text())
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(document["results"]) == 12
    assert set(document["definitions"]) == set(evaluation.SCORES)
    assert float(table[-1]["fa_error"]) == document["results"][-1]["fa_error"] > 0


def test_voxels_without_signal_in_some_volume_are_left_out_of_scores_and_said():
    scan = dense_scan()
    whole, note = evaluation.scored_voxels(scan)
    assert note == ""
    data = scan.data.copy()
    data[*np.argwhere(whole)[:2].T, 5] = 0
    lit, note = evaluation.scored_voxels(Scan(data, AFFINE, scan.gradients, scan.mask))
    assert note.startswith(f"2 of the {whole.sum()} voxels of the mask")
    np.testing.assert_array_equal(np.argwhere(whole & ~lit), np.argwhere(whole)[:2])
    nothing = Scan(np.zeros_like(data), AFFINE, scan.gradients, scan.mask)
    with pytest.raises(ScanError, match="the mask is empty"):
        evaluation.scored_voxels(nothing)


def test_the_best_simple_estimate_is_chosen_score_by_score():
    scan = dense_scan()
    arms = {"sharp": oracle(scan)} | {name: evaluation.simple_arm(name) for name in ("ols", "wls", "smooth")}
    result = evaluation.evaluate(scan, [8], arms, rotations=2)
    best = result.best_simple(8)
    assert "fa_coverage" not in best, "neither more nor less is better"
    for key, definition in evaluation.SCORES.items():
        if definition.better is None:
            continue
        means = {name: result.summary(8, name)[key][0] for name in ("ols", "wls", "smooth")}
        wanted = max(means.values()) if definition.better == "higher" else min(means.values())
        assert best[key][1] == wanted == means[best[key][0]]
    rows = evaluation.table(result, 8, list(arms))
    assert [row[0] for row in rows[1:]] == [*arms, evaluation.BEST_SIMPLE]
    assert rows[-1][rows[0].index("FA error ↓")].split()[0] == f"{best['fa_error'][1]:.4f}"
    alone = evaluation.evaluate(scan, [8], {"sharp": oracle(scan)})
    assert alone.best_simple(8) == {}
    assert len(evaluation.table(alone, 8, ["sharp"])) == 2


def test_a_series_left_as_it_is_scores_like_weighted_least_squares():
    def unchanged(kept, wanted):
        return Generated(kept.data, None, kept.gradients, (), np.ones(len(kept.gradients), bool), {"Size": "small"})

    arms = {"unchanged": unchanged} | {name: evaluation.simple_arm(name) for name in ("wls", "ols")}
    same, wls, ols = (o.scores["fa_psnr"] for o in evaluation.evaluate(dense_scan(), [8], arms).outcomes)
    assert same == pytest.approx(wls, rel=1e-5)
    assert same != pytest.approx(ols, rel=1e-3)


def test_left_out_scores_compare_with_the_maps_of_left_out_volumes_and_b0s():
    scan = dense_scan()
    result = evaluation.evaluate(scan, [8], {"ols": evaluation.simple_arm("ols")}, fit="ols")
    kept = evaluation.kept_volumes(scan.gradients, 8)
    used = ~kept | scan.gradients.is_b0
    others = Scan(scan.data[..., used], AFFINE, scan.gradients[used], scan.mask)
    few = Scan(scan.data[..., kept], AFFINE, scan.gradients[kept], scan.mask)
    scores = evaluation.map_scores(evaluation.summary_maps(few), evaluation.summary_maps(others), result.mask)
    for key in ("fa_psnr", "dec_psnr", "md_psnr", "direction_angle"):
        assert result.outcomes[0].scores[f"left_out_{key}"] == pytest.approx(scores[key], rel=1e-5)
    # Whoever keeps the input's noise is rewarded by the reference that holds it, not by the other one.
    assert result.outcomes[0].scores["fa_psnr"] > scores["fa_psnr"]
    too_few = evaluation.evaluate(scan, [17], {"ols": evaluation.simple_arm("ols")})
    assert np.isnan(too_few.outcomes[0].scores["left_out_fa_psnr"])


def test_the_tensors_snr_is_that_of_the_truth_whatever_noise_the_references_have():
    noisy, clean = dense_scan(noise=8.0, n=40), dense_scan(noise=0, n=40)
    true = anisotropic_part(evaluation.summary_maps(clean)["tensor"])
    result = evaluation.evaluate(noisy, [12], {"wls": evaluation.simple_arm("wls")}, rotations=8)
    expected = []
    for k in range(8):
        kept = evaluation.kept_volumes(noisy.gradients, 12, k, 8)
        few = Scan(noisy.data[..., kept], AFFINE, noisy.gradients[kept], noisy.mask)
        error = (anisotropic_part(evaluation.summary_maps(few, "wls")["tensor"]) - true)[result.mask]
        expected.append(10 * np.log10((true[result.mask] ** 2).sum() / (error**2).sum()))
    found = [outcome.scores["tensor_snr"] for outcome in result.outcomes]
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.3)
    one, other = (evaluation.left_out_maps(noisy, kept, "wls")[name] for name in ("first", "second"))
    assert not np.allclose(one, other)


def test_contrast_error_of_a_hand_computed_case():
    mask = np.ones((1, 1, 1), bool)
    gradients = GradientTable(np.r_[1000.0, 1000, 2000], even_directions(3))
    reference = np.array([110.0, 90, 50]).reshape(1, 1, 1, 3)
    assert evaluation.contrast_error(reference * 7, reference, gradients, mask) == 0
    flat = np.full((1, 1, 1, 3), 5.0)
    assert evaluation.contrast_error(flat, reference, gradients, mask) == pytest.approx(1)
    wrong = np.array([120.0, 80, 1]).reshape(1, 1, 1, 3)  # contrast 0.2 for 0.1; a single volume has no contrast
    assert evaluation.contrast_error(wrong, reference, gradients, mask) == pytest.approx(1)
    assert np.isnan(evaluation.contrast_error(flat[..., :1], reference[..., :1], gradients[:1], mask))


def test_a_single_slice_can_be_scored():
    scan = dense_scan()
    middle = scan.data.shape[2] // 2
    for axis in range(3):
        part = np.take(scan.data, [middle], axis=axis), np.take(scan.mask, [middle], axis=axis)
        lit, _ = evaluation.scored_voxels(Scan(part[0], AFFINE, scan.gradients, part[1]))
        flat = ndimage.binary_erosion(part[1].squeeze(axis), iterations=2) & (part[0].squeeze(axis) > 0).all(-1)
        np.testing.assert_array_equal(lit.squeeze(axis), flat)


def test_six_even_directions_on_a_cone_are_not_kept(monkeypatch):
    """The search finds a cone and two other selections that are less even: the more even of the others is kept."""
    angle = np.arange(6) * np.pi / 3
    cone = np.stack([np.cos(angle), np.sin(angle), np.full(6, 2**-0.5)], axis=1) / 1.5**0.5
    bent = cone + np.array([0, 0, 0.9]) * (np.arange(6) == 0)[:, None]
    worse = bent + np.array([0, 0.6, 0]) * (np.arange(6) == 3)[:, None]
    selections = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (worse, cone, bent)]
    energies = [pair_energies(v).sum() for v in selections]
    assert energies[1] < energies[2] < energies[0]
    assert [condition(v) < evaluation.WELL_CONDITIONED for v in selections] == [True, False, True]
    gradients = GradientTable(np.r_[0, np.full(18, 1000)], np.concatenate([np.zeros((1, 3)), *selections]))
    found = iter(np.arange(1, 19).reshape(3, 6))
    monkeypatch.setattr(evaluation, "_even_volumes", lambda *_: next(found))
    np.testing.assert_array_equal(np.flatnonzero(evaluation.kept_volumes(gradients, 6)), np.r_[0, 13:19])


@pytest.mark.real
def test_least_squares_on_the_merged_real_scan(real_data):
    """The data's own table has 21.2 and 25.4 dB with the 2 % of voxels where some volume is 0; without them more."""
    stem = str(real_data / "reference" / "sub-canon_desc-merged_")
    scan, _ = read_scan(stem + "dwi.nii.gz", stem + "dwi.bval", stem + "dwi.bvec", stem + "mask.nii.gz")
    result = evaluation.evaluate(scan, [12, 30], {"ols": evaluation.simple_arm("ols")})
    twelve, thirty = result.outcomes
    assert twelve.scores["fa_psnr"] == pytest.approx(22.9, abs=0.3)
    assert thirty.scores["fa_psnr"] > 27
    assert (twelve.scores["fa_ssim"], thirty.scores["fa_ssim"]) == pytest.approx((0.92, 0.975), abs=0.01)
    assert "are 0 in some volume" in result.note


def test_arms_that_see_larger_voxels_are_scored_on_those_of_the_scan():
    scan = whole_blocks(dense_scan(noise=2.0), 2)
    seen = in_blocks(scan, 2)
    shapes = []

    def careless(kept, wanted):
        shapes.append(kept.data.shape)
        return Generated(kept.data, None, kept.gradients, (), np.ones(len(kept.gradients), bool), {})

    arms = {"wls": evaluation.simple_arm("wls"), "careless": careless, "series": scan}
    simple, failed, series = evaluation.evaluate(scan, [8], arms, given=seen).outcomes
    assert shapes == [(*seen.mask.shape, 8 + int(scan.gradients.is_b0.sum()))]
    assert "a result of (10, 11, 8) voxels, expected (20, 22, 16)" in failed.fault
    assert simple.maps["fa"].shape == scan.mask.shape
    assert simple.scores["fa_psnr"] > 15
    assert series.scores["fa_psnr"] > simple.scores["fa_psnr"]
    turned = replace(seen, data=seen.data[::-1], mask=seen.mask[::-1])
    (wrong,) = evaluation.evaluate(scan, [8], {"wls": evaluation.simple_arm("wls")}, given=turned).outcomes
    assert wrong.scores["dwi_psnr"] < simple.scores["dwi_psnr"]


def test_what_noise_does_to_the_fa_of_a_reference(monkeypatch):
    """Two scans of one truth: their FA differ by the root of two times the error that noise gives each of them."""
    # The edges of so small a scan pass for noise.
    monkeypatch.setattr("bids_dmrigen.methods.uncertainty.estimate_sigma", lambda scan: SimpleNamespace(sigma=8.0))
    clean, rng = dense_scan(noise=0), np.random.default_rng(4)
    noise = (8 * rng.standard_normal(clean.data.shape).astype(np.float32) for _ in range(2))
    first, second = (replace(clean, data=clean.data + one) for one in noise)
    mask, _ = evaluation.scored_voxels(first)
    fa = [evaluation.summary_maps(scan)["fa"][mask] for scan in (first, second)]
    found = np.sqrt((noise_of_fa(first)[mask] ** 2).mean())
    assert found == pytest.approx(np.std(fa[0] - fa[1]) / np.sqrt(2), rel=0.35)
