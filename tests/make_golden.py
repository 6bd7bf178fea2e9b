"""Remake tests/golden.json: python tests/make_golden.py."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from helpers import corrupted, stripes, write_random_weights

from fewshot_ad import DualDistillationDetector

GOLDEN = Path(__file__).with_name("golden.json")
EVIDENCE = ("ssd", "tsd", "patch", "embedding", "all")
CASES = (*EVIDENCE, "paper")


def compute() -> dict[str, dict[str, list[float]]]:
    """Scores of two normal and two painted images, in float64, for each kind of evidence."""
    queries = [*stripes(2, seed=3), *corrupted(stripes(2, seed=4))]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = write_random_weights("toy_resnet", Path(folder, "toy.safetensors"))
        common = {
            "weights": weights, "image_size": 32, "precision": "float64", "random_state": 0, "blur_sigma": 16.0,
            "embedding_weight": 0.2,
        }  # fmt: skip
        for case in CASES:
            if case == "paper":
                det = DualDistillationDetector.paper("toy_resnet", **common)
            else:
                evidence = EVIDENCE[:-1] if case == "all" else case
                det = DualDistillationDetector("toy_resnet", **common, contrast=0.5, evidence=evidence)
            det.set_params(student__n_steps=3, student__batch_size=4).fit(stripes(4))
            results[case] = {
                "score_samples": det.score_samples(queries).tolist(),
                "offset_": [det.offset_],
                "map_means": det.anomaly_map(queries).astype(float).mean((1, 2)).tolist(),
            }
    return results


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(compute(), indent=1) + "\n")
