"""Update tests/data/model_2.fsad and its scores: python tests/make_model_file.py.

Run it only for a new version of the format, under that version's name: old files must remain readable.
"""

from __future__ import annotations

import json
from pathlib import Path

from helpers import corrupted, stripes

from fewshot_ad import DualDistillationDetector

DATA = Path(__file__).parent / "data"
MODEL = DATA / "model_2.fsad"


def scores(det: DualDistillationDetector) -> dict[str, list[float]]:
    """Compute scores and map means of two normal and two painted images."""
    queries = [*stripes(2, seed=3), *corrupted(stripes(2, seed=4))]
    return {
        "decision_function": det.decision_function(queries).tolist(),
        "map_means": det.anomaly_map(queries).astype(float).mean((1, 2)).tolist(),
    }


def main() -> None:
    """Fit and save a detector without a student, which keeps the file small."""
    det = DualDistillationDetector(
        image_size=64, evidence=("patch", "embedding"), contrast=0.5, augment=False, precision="float32", random_state=0
    ).fit(stripes(2))
    det.save(MODEL, force=True)
    MODEL.with_suffix(".json").write_text(json.dumps(scores(det), indent=1) + "\n")


if __name__ == "__main__":
    main()
