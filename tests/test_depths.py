"""Every format and depth: black, white and their neighbouring values are read correctly, or the file is refused."""

from __future__ import annotations

import re
from pathlib import Path

import format_trials
import numpy as np
import pytest
from format_trials import Trial, expected_of, outcome, table, trials

from fewshot_ad.data import tiff

TRIALS = trials()
PAGE = Path(__file__).parents[1] / "docs" / "formats.md"


def by_name(trial: Trial) -> str:
    return f"{trial.format}, {trial.depth}"


def check(trial: Trial, near: float) -> None:
    kind, image, message = outcome(trial)
    if kind == "refused":
        assert "Accepted" in message or "accepted" in message
        return
    off = np.abs(image - expected_of(trial)).max()
    assert off <= near, f"{off} from its place"
    assert (image[:, 0] == 0).all() if near < 1e-3 else (image[:, 0] < 0.01).all()
    n_steps = abs((trial.white - trial.black) / trial.steps)
    if kind == "read" and near < 1e-3 and 1 < n_steps < 2**23:  # the precision of float32
        assert (np.diff(image[0, :: format_trials.SIDE // 4, 0]) > 0).all(), "neighbouring values must differ"


@pytest.mark.parametrize("trial", TRIALS, ids=by_name)
def test_extreme_and_neighbouring_values(trial):
    check(trial, trial.near)


@pytest.mark.parametrize("trial", [trial for trial in TRIALS if trial.format == "TIFF"], ids=by_name)
def test_without_tifffile(trial, monkeypatch):
    monkeypatch.setattr(tiff, "open_tiff", lambda _: None)
    check(trial, 1e-6 if outcome(trial)[0] == "read" else 1 / 255)


def test_page_lists_all_formats():
    """The table is updated by `python tests/format_trials.py`."""
    found = re.search(r"^\| format \| read \| read, with a warning .*?(?=\n\n)", PAGE.read_text("utf-8"), re.M | re.S)
    assert found
    assert found[0] == table()
