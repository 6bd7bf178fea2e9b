from __future__ import annotations

import numpy as np
import pytest

from fewshot_ad.method.calibration import OTHER_THAN_VIEWS, offset


@pytest.mark.parametrize("k", [2, 4, 8, 100])
@pytest.mark.parametrize("sd", [0.1, 0.2, 0.3])
def test_auto_keeps_about_95_percent_of_fresh_normal_images(k, sd):
    rng = np.random.default_rng(0)
    passed = []
    for _ in range(400):
        scores = -np.exp(rng.normal(1.0, sd, k))
        passed.append(np.mean(-np.exp(rng.normal(1.0, sd, 200)) >= offset(scores, "auto")))
    # If images differ less than the prior, more are normal.
    assert np.mean(passed) >= 0.85
    if sd == 0.2:
        assert 0.93 <= np.mean(passed) <= (0.995 if k == 2 else 0.97)


def test_float_is_the_quantile():
    scores = -np.arange(1.0, 101.0)
    assert (scores < offset(scores, 0.1)).sum() == 10


@pytest.mark.parametrize("scores", [[-0.0], [-1.0], [-2.0, -2.0]])
def test_few_or_equal_scores_give_a_finite_threshold(scores):
    threshold = offset(np.array(scores), "auto")
    assert np.isfinite(threshold)
    assert (np.array(scores) >= threshold).all()


def test_threshold_scales_with_the_scores():
    scores = -np.array([1.0, 1.2, 0.9, 1.1])
    assert offset(7 * scores, "auto") == pytest.approx(7 * offset(scores, "auto"))


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_scores_of_views_are_extrapolated(share):
    rng = np.random.default_rng(0)
    views = -np.exp(rng.normal(0.0, 0.2, 8))
    mean, sd = OTHER_THAN_VIEWS
    others = -np.exp(np.log(-views).mean() + rng.normal(mean, sd, 20_000))
    threshold = offset(views, "auto" if share == 0.05 else share, of_views=True)
    assert np.mean(others < threshold) == pytest.approx(share, abs=0.01)


def test_zero_score_does_not_inflate_the_spread():
    readings = np.array([0.0, 1.0, 1.1, 1.2])
    threshold = -offset(-readings, "auto")
    assert 1.2 < threshold < 100
    assert -offset(-np.zeros(4), "auto") < 1e-300
