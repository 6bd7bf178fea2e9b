"""Write the results of a benchmark to a small JSON file, like those in docs/results.

python benchmarks/publish.py quality OUT quality.json --methods default memory-rotated
python benchmarks/publish.py paper OUT paper.json
python benchmarks/publish.py defaults OUT defaults.json
python benchmarks/publish.py calibrate OUT calibrate.json

OUT is the folder in which quality.py, paper.py, defaults.py or calibrate.py stores its results. A list in the file has
one entry for each draw of the support, in the order of the seeds. The file contains neither paths nor times.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibrate import SIZES, measure_rates, rates_after
from defaults import VALUES
from protocol import write

from fewshot_ad import DualDistillationDetector

METRICS = {
    "image": "image AUROC",
    "leaky": "image AUROC of maps blurred across images, as in the published code: not a valid measurement",
    "ap": "average precision",
    "f1": "F1-max",
    "pixel": "pixel AUROC",
    "aupro": "AUPRO up to a false-positive rate of 0.3",
    "alarms": "false-positive rate at the automatic threshold",
    "recall": "true-positive rate at the automatic threshold",
}
RATES = "[false-positive rate, true-positive rate]"
Row = dict[str, Any]


def stored(folder: Path) -> list[tuple[Row, Row]]:
    """Read a store: pairs of key and result, in the order of the seeds."""
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return sorted(((one["key"], one["found"]) for one in found if "key" in one), key=lambda pair: pair[0]["seed"])


def rounded(value: Any) -> Any:
    """Round to four digits; NaN becomes null."""
    if isinstance(value, (list, np.ndarray)):
        return None if np.isnan(value).any() else [round(float(one), 4) for one in value]
    return None if np.isnan(value) else round(float(value), 4)


def quality(out: Path, methods: Sequence[str] | None) -> Iterator[tuple[Row, Row]]:
    """Yield labels and metrics of each result with a support of normal images."""
    for key, found in stored(out / "results"):
        if not key.get("n_corrupted") and (methods is None or key["method"] in methods):
            yield (
                {name: key[name] for name in ("task", "shots", "method")},
                {name: rounded(found["fused"][name]) for name in METRICS if name in found["fused"]},
            )


def defaults(out: Path, methods: Sequence[str] | None) -> Iterator[tuple[Row, Row]]:
    """Yield the parameters that differ from the defaults, and image AUROC."""
    usual = {name: one.default for name, one in inspect.signature(DualDistillationDetector).parameters.items()}
    for key, found in stored(out / "results"):
        own = {name: key["parameters"][name] for name in [*VALUES, "evidence"] if name in key["parameters"]}
        changed = {name: value for name, value in own.items() if value != usual[name]}
        yield (
            {"task": key["task"], "shots": key["shots"], "changed": changed},
            {"image": rounded(found["fused"]["image"])},
        )


def calibrated(out: Path, methods: Sequence[str] | None) -> Iterator[tuple[Row, Row]]:
    """Yield the rates before and after a calibration."""
    for key, found in stored(out):
        rates = {"before": rounded(measure_rates(found, found["offset"]))}
        rates |= {f"calibrated_{n}": rounded(rates_after(found, n, key["seed"])) for n in SIZES}
        yield {"task": key["task"], "shots": key["shots"]}, rates


KINDS = {
    "quality": (quality, METRICS),
    "paper": (quality, METRICS),
    "defaults": (defaults, {"changed": "parameters that differ from the defaults", "image": METRICS["image"]}),
    "calibrate": (
        calibrated,
        {
            "before": f"{RATES} at the automatic threshold",
            "calibrated_N": f"{RATES} after calibrate(N fresh normal images); null where none are left to test on",
        },
    ),
}


def grouped(results: Iterator[tuple[Row, Row]]) -> list[Row]:
    """Collect the draws of each setting in lists."""
    rows: dict[str, Row] = {}
    for labels, values in results:
        row = rows.setdefault(json.dumps(labels), labels | {name: [] for name in values})
        for name, value in values.items():
            row[name].append(value)
    return [rows[name] for name in sorted(rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--methods", nargs="+", help="of quality.py or paper.py; default: all")
    args = parser.parse_args()
    read, fields = KINDS[args.kind]
    rows = grouped(read(args.out, args.methods))
    if not rows:
        parser.error(f"{args.out} holds no results of benchmarks/{args.kind}.py.")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    head = json.dumps({"made_by": f"benchmarks/{args.kind}.py", "fields": fields}, indent=1)
    write(args.file, f'{head[:-2]},\n "results": [\n{lines}\n ]\n}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
