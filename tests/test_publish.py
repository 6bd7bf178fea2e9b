"""Output of `benchmarks/publish.py`, and consistency of docs/results with it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
publish = importlib.import_module("publish")


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["publish", *map(str, arguments)])
    return publish.main()


def test_draws_are_in_the_order_of_their_seeds(tmp_path, monkeypatch):
    store = tmp_path / "out" / "results"
    store.mkdir(parents=True)
    for seed, image in ((1, 0.91239), (0, 0.5)):
        for n_corrupted in (0, 1):
            key = {"task": "busi", "shots": 4, "seed": seed, "method": "default", "n_corrupted": n_corrupted}
            found = {"fused": {"image": image, "fit": 1.0}, "patch": {"image": 0.1}}
            (store / f"{seed}{n_corrupted}.json").write_text(json.dumps({"key": key, "found": found}))
    assert run(monkeypatch, "quality", tmp_path / "out", tmp_path / "q.json", "--methods", "default") == 0
    written = json.loads((tmp_path / "q.json").read_text())
    assert written["results"] == [{"task": "busi", "shots": 4, "method": "default", "image": [0.5, 0.9124]}]
    with pytest.raises(SystemExit):
        run(monkeypatch, "quality", tmp_path / "out", tmp_path / "q.json", "--methods", "padim")


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_published_results(file):
    published = json.loads(file.read_text(encoding="utf-8"))
    assert published["made_by"] in {f"benchmarks/{kind}.py" for kind in publish.KINDS}
    rows = published["results"]
    assert {name for row in rows for name in row} - {"task", "shots", "method", "changed"} <= {
        *published["fields"], *(f"calibrated_{n}" for n in publish.SIZES),
    }  # fmt: skip
    lists = [value for row in rows for value in row.values() if isinstance(value, list)]
    assert len({len(value) for value in lists}) == 1
