"""Update tests/golden.json: python tests/make_golden.py."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from helpers import corrupted, stripes, write_random_weights

from fewshot_ad import DualDistillationDetector

GOLDEN = Path(__file__).with_name("golden.json")
EVIDENCE = ("ssd", "tsd", "patch", "embedding", "all")
CASES = (*EVIDENCE, "paper")
# The packaged networks with default precision, float32.
PACKAGED = {"default": {}, "default with a student": {"student_weight": 0.1}}


def measure(det: DualDistillationDetector, queries: list[np.ndarray]) -> dict[str, list[float]]:
    return {
        "score_samples": det.score_samples(queries).tolist(),
        "offset_": [det.offset_],
        "map_means": det.anomaly_map(queries).astype(float).mean((1, 2)).tolist(),
    }


def compute_packaged() -> dict[str, dict[str, list[float]]]:
    """Compute scores of two normal and two painted images with default settings, except for the seed."""
    queries = [*stripes(2, size=160, seed=3), *corrupted(stripes(2, size=160, seed=4), side=40)]
    return {
        case: measure(DualDistillationDetector(random_state=0, **changed).fit(stripes(4, size=160)), queries)
        for case, changed in PACKAGED.items()
    }


def compute() -> dict[str, dict[str, list[float]]]:
    """Compute scores of two normal and two painted images in float64, for each kind of evidence."""
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
            results[case] = measure(det, queries)
    return results


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(compute() | compute_packaged(), indent=1) + "\n")
