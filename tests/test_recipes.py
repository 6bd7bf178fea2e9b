"""Recipes: their published parameters, and overrides."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
from helpers import corrupted, stripes, write_random_weights

from fewshot_ad import DualDistillationDetector
from fewshot_ad.recipes import RECIPES
from fewshot_ad.settings import check

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_accepted(name):
    det = DualDistillationDetector.recipe(name)
    check(det.get_params())
    assert timm.is_model(det.backbone)
    assert re.search(r"20\d\d", RECIPES[name].source)
    assert DualDistillationDetector.recipe(name, image_size=224).image_size == 224


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_detects_anomalies(name, tmp_path):
    weights = write_random_weights("toy_dinov2", tmp_path / "weights.safetensors")
    changed = {"backbone": "toy_dinov2", "weights": weights, "image_size": 70, "random_state": 0}
    images = list(stripes(6, size=70))
    det = DualDistillationDetector.recipe(name, **changed).fit(images[:4])
    assert det.layers_ == {"anomalydino": (12,), "subspacead": (4, 5, 7, 10)}[name]
    assert det.score_samples(images[4:]).min() > det.score_samples(list(corrupted(stripes(2, size=70, seed=1)))).max()
    if name == "anomalydino":
        assert len(det.patches_) == 4 * 8 * 25, "all patches of all views are kept"
        found = det.anomaly_map(images[4:5])[0]
        top = np.sort(found.ravel())[-round(0.01 * found.size) :]
        assert -det.score_samples(images[4:5])[0] == pytest.approx(top.mean(), rel=1e-5)


def test_network_without_tokens(toy, normal):
    det = DualDistillationDetector.recipe("anomalydino", backbone=toy["backbone"], weights=toy["weights"])
    with pytest.raises(ValueError, match="'toy_resnet' has no tokens"):
        det.fit(normal[:2])


def test_unknown_recipe():
    with pytest.raises(ValueError, match="recipe='patchcore' was given; it must be one of 'anomalydino', 'subspacead'"):
        DualDistillationDetector.recipe("patchcore")


@pytest.mark.parametrize("page", ["choosing.md", "differences.md"])
def test_pages_describe_each_recipe(page):
    text = (DOCS / page).read_text(encoding="utf-8").lower()
    assert all(name in text for name in RECIPES)
