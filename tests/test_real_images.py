"""Real images and real weights, if they are available."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector, Student

pytestmark = pytest.mark.shared
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("task", "at_least"), [("magnetic_tile", 0.70), ("his_colon_lc25000", 0.70)])
def test_patch_evidence_detects_anomalies(real_data, real_weights, task, at_least):
    good = sorted((real_data / task / "good").iterdir())
    order = np.random.default_rng(0).permutation(len(good))
    queries = [good[i] for i in order[4:44]] + sorted((real_data / task / "bad").iterdir())[:40]
    det = DualDistillationDetector("mobilenetv2_100", weights=real_weights, evidence="patch").fit(
        [good[i] for i in order[:4]]
    )
    assert roc_auc_score(np.repeat([1, -1], 40), det.decision_function(queries)) > at_least


@pytest.mark.parametrize(
    ("precision", "n", "evidence"),
    # Emulated bfloat16 is very slow: few images, and no student.
    [("float32", 11, ("ssd", "tsd", "patch", "embedding")), ("bfloat16", 3, "patch")],
)
def test_scores_do_not_depend_on_the_batch(real_data, real_weights, two_threads, precision, n, evidence):
    good = sorted((real_data / "busi" / "good").iterdir())
    det = DualDistillationDetector(
        "mobilenetv2_100",
        weights=real_weights,
        student=Student(n_steps=1, decoder_blocks=(1, 1, 1)),
        precision=precision,
        evidence=evidence,
        augment=False,
        random_state=0,
    ).fit(good[:3])
    queries = good[3 : 3 + n]
    together = det.score_samples(queries)
    np.testing.assert_array_equal(det.score_samples(queries[::-1]), together[::-1])
    np.testing.assert_array_equal(det.score_samples(queries[1]), together[1:2])


def test_quickstart_writes_a_picture(real_data, real_weights, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    script, out = ROOT / "examples" / "01_quickstart.py", tmp_path / "maps.png"
    command = [script, real_data / "magnetic_tile", "--backbone", "mobilenetv2_100", "--weights", real_weights]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--out", str(out)])
    runpy.run_path(str(script), run_name="__main__")
    assert "AUROC 0." in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
