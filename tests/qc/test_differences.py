"""Paired differences against SciPy, and sentences that say which arm is best."""

import numpy as np
import pytest
from scipy import linalg, stats

from bids_dmrigen.dwi.series import Scan, ScanError
from bids_dmrigen.methods.base import Generated
from bids_dmrigen.qc import evaluation
from bids_dmrigen.qc.benchmark_page import answers, best_simple, by_scan, distances, markdown, rows_of, table
from bids_dmrigen.qc.differences import difference, in_words, jackknife
from bids_dmrigen.qc.fid import FEATURES, features, frechet_distance
from bids_dmrigen.qc.rooms import ROOMS
from bids_dmrigen.qc.verdict import over_scans, over_slices, verdict
from tests.conftest import tiny_gradients, tiny_series

AFFINE = np.diag([-3.0, 3, 3, 1])


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 1, 20), rng.normal(0, 1, 20)
    found = difference(first, second)
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(first - second))
    assert found.more_than_chance == (stats.ttest_rel(first, second).pvalue < 0.05)


def test_pairs_without_a_number_are_left_out_and_one_pair_has_no_interval():
    assert difference([1, np.nan, 3], [0, 1, np.inf]).count == 1
    alone = difference([2.0], [1.0])
    assert (alone.mean, alone.more_than_chance) == (1.0, False)
    assert "no interval" in in_words(alone, "dB", "scans")
    assert difference([], []).count == 0
    assert "no more than chance" in in_words(difference([1.0, -1.1], [0, 0]), "dB", "scans")


def test_the_best_of_several_needs_a_larger_gain():
    alone, best = (difference([1.0, 2.0, 1.5, 0.5], [0, 0, 0, 0], among) for among in (1, 8))
    assert best.mean == alone.mean
    assert best.low == pytest.approx(1.25 - stats.t.ppf(1 - 0.025 / 8, 3) * np.std([1, 2, 1.5, 0.5], ddof=1) / 2)
    assert "for the best of 8" in in_words(best, "dB", "scans")


def test_the_jackknife_of_a_mean_is_the_t_interval():
    numbers = np.random.default_rng(0).normal(size=9)
    found, expected = jackknife(lambda used: numbers[used].mean(), 9), difference(numbers, np.zeros(9))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert np.isnan(jackknife(lambda used: 1.0, 1).low)


def test_the_gain_over_slices_is_the_difference_of_the_scores(result):
    """Small slices at the edge may say the opposite of the whole brain: sign and ranking agree."""
    gain = over_slices(result, 8, "own", "wls")
    scores = {arm: result.summary(8, arm)["left_out_fa_psnr"][0] for arm in ("own", "wls")}
    assert gain.mean == pytest.approx(scores["own"] - scores["wls"], abs=1e-4)


def test_the_frechet_distance_is_that_of_the_formula():
    """With the root of a matrix by SciPy, on features of Gaussians; of equal sets it is 0."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(c1 @ c2).real
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert np.isnan(frechet_distance(first[:1], second))


def test_features_are_of_slices_with_brain_and_always_the_same():
    rng = np.random.default_rng(0)
    volume, mask = rng.normal(size=(20, 24, 5)), np.zeros((20, 24, 5), bool)
    mask[4:16, 4:20, 1:4] = True
    found = features(volume, mask)
    assert found.shape == (3, FEATURES)
    np.testing.assert_array_equal(found, features(volume, mask))
    np.testing.assert_array_equal(found, features(np.where(mask, volume, 99), mask))
    assert np.abs(found - features(volume[::-1], mask)).max() > 0


def dense_scan(n=24):
    gradients = tiny_gradients(n)
    data = tiny_series(gradients, noise=12.0)
    return Scan(data, AFFINE, gradients, tiny_series(gradients, noise=0)[..., 0] > 0)


@pytest.fixture(scope="module")
def result():
    scan = dense_scan()
    truth = tiny_series(scan.gradients, noise=0)
    clean = Scan(truth, AFFINE, scan.gradients, scan.mask)
    noisy = Scan(tiny_series(scan.gradients, noise=40.0, seed=3), AFFINE, scan.gradients, scan.mask)
    arms = {"own": clean, "worse": noisy, "ols": evaluation.simple_arm("ols"), "wls": evaluation.simple_arm("wls")}
    return evaluation.evaluate(scan, [8], arms, rotations=2)


def test_a_series_of_ones_own_is_an_arm(result):
    scores = {arm: result.summary(8, arm)["left_out_fa_psnr"][0] for arm in ("own", "worse", "ols")}
    assert scores["own"] > scores["ols"] > scores["worse"]
    scan = dense_scan()
    fewer = Scan(scan.data[..., :9], AFFINE, scan.gradients[np.arange(9)], scan.mask)
    with pytest.raises(ScanError, match="expected those of the scan"):
        evaluation.evaluate(scan, [8], {"own": fewer})


def test_errors_of_slices_add_up_to_the_score(result):
    outcome = next(o for o in result.outcomes if o.arm == "ols")
    counts = result.mask.sum(axis=(0, 1))
    used = counts > 0
    assert np.isnan(outcome.slice_errors[~used]).all()
    mse = (outcome.slice_errors[used] * counts[used]).sum() / counts.sum()
    scan, keep = dense_scan(), evaluation.kept_volumes(dense_scan().gradients, 8, 0, 2)
    reference = evaluation.left_out_maps(scan, keep, "wls")["fa"]
    top = np.percentile(reference[result.mask], 99.9)
    assert 10 * np.log10(top**2 / mse) == pytest.approx(outcome.scores["left_out_fa_psnr"], rel=1e-5)


def test_the_verdict_names_the_best_arm_and_its_gain(result):
    sentence = verdict(result, 8, ["own", "worse", "ols", "wls"])
    assert sentence.startswith("With 8 directions, own is best here by FA PSNR, left out")
    assert "more than chance" in sentence
    assert "best simple estimate" in sentence
    gain = over_slices(result, 8, "own", "wls")
    assert gain.low > 0
    assert over_slices(result, 8, "wls", "own").mean == pytest.approx(-gain.mean)
    assert verdict(result, 8, ["ols"]) == "ols is the only arm that could be scored."


def test_several_scans_give_paired_differences(result):
    sentences = over_scans({"a": result, "b": result}, [8])
    own = next(s for s in sentences if "own against" in s and "left out" in s)
    assert "interval over 2 scans" in own
    assert "own against the best simple estimate of each scan: +" in own


def test_maps_have_axial_and_radial_diffusivity_and_their_scores(result):
    scores = result.outcomes[2].scores
    assert scores["ad_psnr"] < scores["md_psnr"]
    assert np.isfinite(scores["rd_psnr"])


def rows_for_two_scans(result):
    return [row for scan in ("a", "b") for row in rows_of(result, scan, simulated=False)]


def test_tables_of_a_room_have_every_arm_and_the_best_simple_one(result):
    rows = rows_for_two_scans(result)
    header, *body = table(rows, simulated=False)
    assert [row[0] for row in body] == ["own", "worse", "ols", "wls", "best simple"]
    place = header.index(evaluation.SCORES["left_out_fa_psnr"].heading)
    simple = {row[0]: float(row[place].split()[0]) for row in body}
    assert simple["best simple"] == max(simple["ols"], simple["wls"])
    assert simple["own"] > simple["best simple"]
    far = distances(rows, simulated=False)
    assert far["own"] < far["worse"]
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    scores = by_scan(rows, False, "left_out_fa_psnr")
    assert set(scores["own"]) == {"a", "b"}
    assert best_simple(scores, "left_out_fa_psnr")["a"] == max(scores["ols"]["a"], scores["wls"]["a"])


def test_answers_compare_a_method_with_its_own_network_without_diffusion(result):
    rows = rows_for_two_scans(result)
    names = {"own": "diffdti", "worse": "diffdtidirect"}
    renamed = [row | {"arm": names.get(row["arm"], row["arm"])} for row in rows]
    said = answers(renamed, "maps")
    twin = next(s for s in said if "as a regression" in s)
    assert "diffdti, asked once, against its own network as a regression (diffdtidirect): +" in twin
    assert any("the best arm, diffdti, against the best simple estimate" in s for s in said)
    drawn = answers(
        [*renamed, *(row | {"arm": "diffdti, 4 draws"} for row in renamed if row["arm"] == "diffdti")], "maps"
    )
    assert any("diffdti, 4 draws, averaged, against its own network" in s for s in drawn)


def test_an_arm_that_failed_on_a_scan_is_not_called_best(result):
    """Its mean would be that of the easier scans."""
    rows = [row for row in rows_for_two_scans(result) if (row["arm"], row["scan"]) != ("own", "b")]
    assert not any("the best arm, own" in s for s in answers(rows, "maps"))
    nothing = [row | {"scores": dict.fromkeys(row["scores"])} if row["arm"] == "own" else row for row in rows]
    assert any("the best arm, worse" in s for s in answers(nothing, "maps"))


def test_without_simple_estimates_the_best_arm_is_compared_with_what_learns_nothing(result):
    names = {"own": "phydiff", "worse": "atlas"}
    rows = [row | {"arm": names[row["arm"]]} for row in rows_for_two_scans(result) if row["arm"] in names]
    said = answers([*rows, *(row | {"arm": "qdl"} for row in rows if row["arm"] == "phydiff")], "maps")
    assert any("phydiff, against atlas, the best that learns nothing: +" in s for s in said)
    assert any("phydiff, against the second, qdl: +0.00" in s for s in said)


def test_where_no_simple_estimate_works_one_sentence_says_why(result):
    rows = [
        row | {"scores": dict.fromkeys(row["scores"]), "fault": "too few"} if row["arm"] in ("ols", "wls") else row
        for row in rows_for_two_scans(result)
    ]
    assert [row[0] for row in table(rows, simulated=False)] == ["arm", "own", "worse"]
    said = answers(rows, "maps")
    assert any("no simple estimate works on these scans: too few." in s for s in said)
    assert any("the best arm, own, against the second, worse" in s for s in said)


def test_every_room_has_a_question_and_scores_that_exist():
    for room in ROOMS.values():
        assert {room.simulated, room.real} <= set(evaluation.SCORES)
        assert room.question


def test_nothing_but_b0s_is_kept_for_methods_that_need_no_more():
    gradients = tiny_gradients(24)
    kept = evaluation.kept_volumes(gradients, 0)
    np.testing.assert_array_equal(kept, gradients.is_b0)

    def arm(few, wanted):
        assert few.gradients.is_b0.all()
        mean = np.concatenate([few.data, dense_scan().data[..., 2:]], axis=3)
        return Generated(mean, None, gradients, (), gradients.is_b0, {"Size": "small"})

    scan = dense_scan()
    outcome = evaluation.evaluate(scan, [0], {"all": arm}).outcomes[0]
    assert outcome.scores["dwi_psnr"] == np.inf
