from __future__ import annotations

import numpy as np
import pytest

from fewshot_ad.method import evidence as evidence_


@pytest.mark.parametrize(
    ("evidence", "lam", "weights", "parts"),
    [
        ("patch", 0.1, {"patch": 1.0}, {}),
        (["ssd"], 0.1, {"ssd": 1.0}, {}),
        (("ssd", "tsd"), 0.1, {"ssd": 1.0, "tsd": 0.1}, {("ssd", "tsd"): 1.0}),
        (("ssd", "tsd"), np.inf, {"ssd": 0.0, "tsd": 1.0}, {("ssd", "tsd"): 1.0}),
        (("patch", "tsd"), 0.1, {"patch": 1.0, "tsd": 1.0}, {("tsd",): 0.2, ("patch",): 0.8}),
        (("ssd", "tsd", "patch"), 2.0, {"ssd": 1.0, "tsd": 2.0, "patch": 1.0}, {("ssd", "tsd"): 0.2, ("patch",): 0.8}),
        (["embedding", "patch"], 0.1, {"embedding": 1.0, "patch": 1.0}, {("patch",): 2 / 3, ("embedding",): 1 / 3}),
        ({"ssd": 1, "tsd": 0.1}, 5.0, {"ssd": 1.0, "tsd": 0.1}, {}),
    ],
)
def test_parse_evidence(evidence, lam, weights, parts, monkeypatch):
    monkeypatch.setattr(evidence_, "SHARES", {("ssd", "tsd"): 0.5, ("patch",): 2.0, ("embedding",): 1.0})
    assert evidence_.parse_evidence(evidence, lam) == (weights, pytest.approx(parts))


@pytest.mark.parametrize("evidence", ["sdd", (), {}, {"ssd": 0}, {"ssd": -1.0}, {"ssd": np.nan}, ("patch", "x")])
def test_parse_evidence_refuses(evidence):
    with pytest.raises(ValueError, match="evidence="):
        evidence_.parse_evidence(evidence, 0.1)
