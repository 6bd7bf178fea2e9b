from __future__ import annotations

import numpy as np
import pytest

from fewshot_ad.method import evidence as evidence_

STUDENT = ("ssd", "tsd")
ALL = (*STUDENT, "patch", "embedding")


@pytest.mark.parametrize(
    ("evidence", "lam", "weights", "parts"),
    [
        ("patch", 0.1, {"patch": 1.0}, {}),
        (["ssd"], 0.1, {"ssd": 1.0}, {}),
        (("ssd", "tsd"), 0.1, {"ssd": 1.0, "tsd": 0.1}, {STUDENT: 1.0}),
        (("ssd", "tsd"), np.inf, {"ssd": 0.0, "tsd": 1.0}, {STUDENT: 1.0}),
        (("patch", "tsd"), 0.1, {"patch": 1.0, "tsd": 1.0}, {("tsd",): 1 / 3, ("patch",): 2 / 3}),
        (("ssd", "tsd", "patch"), 2.0, {"ssd": 1.0, "tsd": 2.0, "patch": 1.0}, {STUDENT: 1 / 3, ("patch",): 2 / 3}),
        (["embedding", "patch"], 0.1, {"embedding": 1.0, "patch": 1.0}, {("patch",): 0.8, ("embedding",): 0.2}),
        ({"ssd": 1, "tsd": 0.1}, 5.0, {"ssd": 1.0, "tsd": 0.1}, {}),
    ],
)
def test_parse_evidence(evidence, lam, weights, parts):
    found, of_parts = evidence_.parse_evidence(evidence, lam)
    assert found == weights
    assert evidence_.component_weights(of_parts, 0.5, 0.25) == pytest.approx(parts)


@pytest.mark.parametrize(
    ("evidence", "student", "embedding", "left"),
    [
        (ALL, 0, 0.2, ("patch", "embedding")),
        (ALL, 0.1, 0, ("ssd", "tsd", "patch")),
        (ALL, 0, 0, ("patch",)),
        (("embedding", "ssd"), 0, 0.5, ("embedding",)),
        (STUDENT, 0, 0, STUDENT),  # the only part
        ("embedding", 0, 0, "embedding"),
        ({"patch": 1, "ssd": 1}, 0, 0, {"patch": 1, "ssd": 1}),
    ],
)
def test_zero_weights_are_left_out(evidence, student, embedding, left):
    assert evidence_.without_zero_weights(evidence, student, embedding) == left


def test_no_weight_is_an_error():
    with pytest.raises(ValueError, match="Give one of them a weight above 0"):
        evidence_.without_zero_weights(("ssd", "embedding"), 0, 0)
    assert evidence_.without_zero_weights(("ssd", "embedding"), 0, 0.1) == ("embedding",)


@pytest.mark.parametrize("evidence", ["sdd", (), {}, {"ssd": 0}, {"ssd": -1.0}, {"ssd": np.nan}, ("patch", "x")])
def test_parse_evidence_refuses(evidence):
    with pytest.raises(ValueError, match="evidence="):
        evidence_.parse_evidence(evidence, 0.1)
