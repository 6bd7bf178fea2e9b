"""Rendered example images: deterministic, classified correctly by default, with matching masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector
from fewshot_ad.demo import write_images


def pixels(folder, name) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / name).iterdir())])


@pytest.mark.parametrize("kind", ["photograph", "metal", "retina"])
def test_images_are_deterministic_and_distinct(tmp_path, kind):
    one, other = (write_images(tmp_path / name, 3, 2, kind=kind) for name in "ab")
    for name, n in (("good", 3), ("bad", 2), ("masks", 2)):
        found = pixels(one, name)
        assert found.shape == (n, 160, 160) + (() if name == "masks" else (3,))
        np.testing.assert_array_equal(found, pixels(other, name))
        assert len({image.tobytes() for image in found}) == n
    assert set(np.unique(pixels(one, "masks"))) == {0, 255}


@pytest.mark.parametrize("kind", ["metal", "retina"])
def test_default_detector_finds_the_anomalies(tmp_path, kind):
    folder = write_images(tmp_path / kind, 12, 6, kind=kind)
    good, bad = (sorted((folder / name).iterdir()) for name in ("good", "bad"))
    det = DualDistillationDetector(random_state=0).fit(good[:4])
    scores = det.anomaly_score([*good[4:], *bad])
    assert roc_auc_score(np.repeat([0, 1], [8, 6]), scores) > 0.95
    masks = pixels(folder, "masks") > 0
    touched = [
        mask[region.box[0] : region.box[2], region.box[1] : region.box[3]].any()
        for mask, found in zip(masks, det.regions(bad), strict=True)
        for region in found
    ]
    assert np.mean(touched) > 0.5


def test_unknown_kind(tmp_path):
    with pytest.raises(ValueError, match="kind='lung' was given; it must be one of 'photograph', 'metal', 'retina'"):
        write_images(tmp_path / "images", kind="lung")
    assert list(tmp_path.iterdir()) == []
