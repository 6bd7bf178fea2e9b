"""Metrics, compared with values counted by hand and with scikit-learn."""

import numpy as np
import pytest
from scipy.integrate import trapezoid  # numpy has it since 2.0
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from fewshot_ad.metrics import aupro, average_precision, f1_max, per_region_overlap, recall_at


def test_one_region_is_roc():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 8, 8), dtype=bool)
    masks[1, 2:5, 3:6] = True
    maps = rng.normal(size=masks.shape).round(1) + masks  # with ties
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))


def test_small_regions_count_as_much_as_large_ones():
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, 0, 0] = masks[0, 4:8, 4:8] = True
    maps = np.zeros(masks.shape)
    maps[0, 4:8, 4:8] = 1
    # The large region is detected without false positives, the small one only with all normal pixels.
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx((0.5 + 1.0) / 2)
    assert aupro(masks, maps) == pytest.approx((0.5 + 0.65) / 2)


def test_regions_touch_at_corners_but_not_across_images():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True  # one region, by its corner
    masks[1, 0, 0] = True  # another, in the next image
    maps = np.zeros(masks.shape)
    maps[0, :2, :2] = 1
    # At two false positives of 29 the first region is detected; the curve is linear up to there, and on to (1, 1).
    x = 2 / 29
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx(x * 0.25 + (1 - x) * 0.75)


def test_curve_is_interpolated_at_the_limit():
    masks = np.array([[[True, False, False, False, False]]])
    maps = np.array([[[0.5, 0.9, 0.1, 0.1, 0.1]]])
    # (0, 0), (0.25, 0), (0.25, 1), (1, 1)
    assert aupro(masks, maps, max_fpr=0.3) == pytest.approx(0.05 / 0.3)
    assert aupro(masks, maps, max_fpr=0.2) == 0


@pytest.mark.parametrize(
    ("masks", "maps", "options", "message"),
    [
        (np.ones((1, 2, 2)), np.ones((1, 2, 3)), {}, r"\(1, 2, 2\), maps \(1, 2, 3\)"),
        (np.ones((2, 2)), np.ones((2, 2)), {}, r"\(N, H, W\)"),
        (np.eye(2)[None], np.full((1, 2, 2), np.nan), {}, r"Maps \[0\] are not finite"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), {}, "normal and anomalous pixels"),
        (np.ones((1, 2, 2)), np.ones((1, 2, 2)), {}, "normal and anomalous pixels"),
        (np.eye(2)[None], np.ones((1, 2, 2)), {"max_fpr": 0}, "max_fpr=0"),
        (np.eye(2)[None], np.ones((1, 2, 2)), {"max_fpr": 1.5}, "max_fpr=1.5"),
    ],
)
def test_errors(masks, maps, options, message):
    with pytest.raises(ValueError, match=message):
        aupro(masks, maps, **options)


def labelled(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(40) < 0.3, -1, 1)
    y[:2] = 1, -1
    scores = rng.normal(size=40) + (y < 0)
    return y, scores.round(0) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_image_metrics_equal_scikit_learn(seed, ties):
    y, scores = labelled(seed, ties=ties)
    assert average_precision(y, scores) == pytest.approx(average_precision_score(y == -1, scores))
    best = f1_max(y, scores)
    each = [f1_score(y == -1, scores >= at) for at in scores]
    assert best.value == pytest.approx(max(each))
    assert f1_score(y == -1, scores > best.threshold) == pytest.approx(best.value)
    # As `predict` does after `det.offset_ = -threshold`.
    assert f1_score(y == -1, -scores < -best.threshold) == pytest.approx(best.value)
    false_alarms, recall, _ = roc_curve(y == -1, scores, drop_intermediate=False)
    for rate in (0, 0.05, 0.1, 0.5, 1):
        assert recall_at(y, scores, false_alarm_rate=rate) == pytest.approx(recall[false_alarms <= rate + 1e-12].max())


def test_tied_scores_share_a_threshold():
    y = [1, 1, -1, -1]
    assert average_precision(y, [0, 0, 0, 0]) == 0.5
    assert f1_max(y, [3, 3, 3, 3])[0] == pytest.approx(2 / 3)
    assert f1_max(y, [3, 3, 3, 3]).threshold < 3
    assert recall_at(y, [0, 5, 5, 9], false_alarm_rate=0.4) == 0.5
    assert recall_at(y, [0, 5, 5, 9], false_alarm_rate=0.5) == 1
    assert recall_at(y, [9, 9, 1, 1], false_alarm_rate=0.9) == 0


def test_rate_limit_is_inclusive():
    y = np.repeat([1, -1], [100, 1])
    scores = np.r_[np.arange(100.0), 70.5]
    assert recall_at(y, scores, false_alarm_rate=0.29) == 1  # 0.29 * 100 is below 29 in floating point
    assert recall_at(y, scores, false_alarm_rate=0.28) == 0


def test_threshold_between_adjacent_floats():
    low = 1.0
    found = f1_max([1, -1], [low, np.nextafter(low, 2)])
    assert found.value == 1
    assert low <= found.threshold < np.nextafter(low, 2)
    assert f1_max([-1, -1], [1.0, 2.0]).threshold < 1


def test_overlap_of_regions_is_the_mean_over_these():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True  # one region, by its corner
    masks[0, 4:, :4] = masks[1, 2, 2] = True
    maps = np.zeros(masks.shape)
    maps[0, 0, 0], maps[0, 4:, :3], maps[1, 2, 2] = 1, 1, 0.5
    assert per_region_overlap(masks, maps, 0.4) == pytest.approx((0.5 + 0.75 + 1) / 3)
    assert per_region_overlap(masks, maps, 0.5) == pytest.approx((0.5 + 0.75 + 0) / 3)  # above, not at


def test_aupro_integrates_the_overlap():
    rng = np.random.default_rng(1)
    masks = rng.random((2, 12, 12)) < 0.1
    maps = (rng.random(masks.shape) + 0.5 * masks).round(2)
    levels = [np.inf, *np.unique(maps)[::-1], -np.inf]
    rate = [(maps[~masks] > at).mean() for at in levels]
    assert aupro(masks, maps, max_fpr=1.0) == pytest.approx(
        trapezoid([per_region_overlap(masks, maps, at) for at in levels], rate)
    )


@pytest.mark.parametrize("metric", [average_precision, f1_max, recall_at])
@pytest.mark.parametrize(
    ("y", "scores", "message"),
    [
        ([0, 1], [0.1, 0.2], "y has the labels 0, 1; accepted are \\+1, normal, and -1, anomalous"),
        (["good", "bad"], [0.1, 0.2], "labels bad, good"), ([True, False], [0.1, 0.2], "labels False, True"),
        ([1, -1, 1], [0.1, 0.2], r"shape \(3,\), scores \(2,\)"), ([[1, -1]], [[0.1, 0.2]], r"shape \(1, 2\)"),
        ([1, -1], [0.1, np.nan], r"Scores \[1\] are not finite"), ([1, -1], [np.inf, 0], r"Scores \[0\] are not"),
        ([1, 1], [0.1, 0.2], "needs anomalous images, labelled -1"), ([], [], "needs anomalous images"),
    ],
)  # fmt: skip
def test_invalid_image_metrics(metric, y, scores, message):
    with pytest.raises(ValueError, match=message):
        metric(y, scores)


@pytest.mark.parametrize("rate", [-0.1, 1.1, np.nan, "0.05", True, None])
def test_invalid_rates(rate):
    with pytest.raises(ValueError, match=f"false_alarm_rate={rate!r} was given".replace("(", "[(]")):
        recall_at([1, -1], [0, 1], false_alarm_rate=rate)


def test_recall_at_a_rate_needs_normal_images():
    with pytest.raises(ValueError, match="needs normal images"):
        recall_at([-1, -1], [0, 1])


@pytest.mark.parametrize(
    ("masks", "maps", "threshold", "message"),
    [
        (np.ones((1, 2, 2)), np.ones((1, 2, 3)), 0.5, r"\(1, 2, 2\), maps \(1, 2, 3\)"),
        (np.eye(2)[None], np.full((1, 2, 2), np.nan), 0.5, r"Maps \[0\] are not finite"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), 0.5, "needs an anomalous pixel"),
        (np.eye(2)[None], np.ones((1, 2, 2)), np.nan, "threshold=nan"),
        (np.eye(2)[None], np.ones((1, 2, 2)), None, "threshold=None"),
    ],
)
def test_invalid_overlaps(masks, maps, threshold, message):
    with pytest.raises(ValueError, match=message):
        per_region_overlap(masks, maps, threshold)
