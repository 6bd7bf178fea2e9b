"""ROC and precision-recall curves as SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.integrate import trapezoid  # numpy has it since 2.0
from sklearn.metrics import average_precision_score, roc_auc_score

from fewshot_ad.report_curves import curves


@pytest.fixture(scope="module")
def labels_and_scores():
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 1], 80)
    return labels, rng.normal(size=80).round(1) - labels  # with ties


def points(svg, name):
    path = re.search(rf'id="{name}".*?class="curve" d="M([^"]*)"', svg)[1]
    x, y = np.array([place.split() for place in path.split("L")], float).T / 100
    return x, 1 - y


def test_anomalous_is_positive_and_unknown_labels_are_ignored(labels_and_scores):
    labels, scores = labels_and_scores
    found, known = curves(labels, scores), labels != 0
    assert found.auroc == roc_auc_score(labels[known] == -1, scores[known]) > 0.7
    assert found.average_precision == average_precision_score(labels[known] == -1, scores[known])
    assert f"AUROC {found.auroc:.3f}" in found.svg
    assert f"average precision {found.average_precision:.3f}" in found.svg


def test_areas_under_the_curves(labels_and_scores):
    found = curves(*labels_and_scores)
    x, y = points(found.svg, "roc")
    assert trapezoid(y, x) == pytest.approx(found.auroc, abs=1e-3)
    x, y = points(found.svg, "pr")
    assert -trapezoid(y, x) == pytest.approx(found.average_precision, abs=1e-3)


def test_svg_is_well_formed_without_style(labels_and_scores):
    svg = curves(*labels_and_scores).svg
    root = ElementTree.fromstring(f"<div>{svg}</div>")
    assert [one.tag for one in root] == ["figure", "figure"]
    assert {element.get("id") for element in root.iter() if element.get("id")} == {"roc", "roc-point", "pr", "pr-point"}
    assert "style" not in svg


@pytest.mark.parametrize("labels", [[1, 1, 0], [-1, -1, -1], [0, 0, 0]])
def test_single_class_has_no_curves(labels):
    assert curves(np.array(labels), np.arange(3.0)) is None
