from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from helpers import corrupted, plain_and_marked, stripes
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch.nn import functional as F

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data import images
from fewshot_ad.data.views import rotated_and_mirrored
from fewshot_ad.drawing import warm
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning, ImageWarning
from fewshot_ad.explanation import opacity, overlay, relative_score
from fewshot_ad.method import matching, reduction
from fewshot_ad.method.coreset import Patches


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    return DualDistillationDetector(**toy).fit(normal[:4])


@pytest.fixture(scope="module")
def by_patch(toy) -> DualDistillationDetector:
    """A detector fitted on asymmetric images, so that each patch has a unique position."""
    return _by_patch(toy, (32, 32))


def _by_patch(toy, shape) -> DualDistillationDetector:
    noise = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    return DualDistillationDetector(**toy | {"evidence": "patch", "border_weight": 1.0, "blur_sigma": 0.0}).fit(noise)


def test_explanations_agree_with_other_methods(fitted, anomalous):
    found = fitted.explain(anomalous)
    assert [e.score for e in found] == fitted.score_samples(anomalous).tolist()
    assert [e.decision for e in found] == fitted.decision_function(anomalous).tolist()
    maps = np.stack([e.map for e in found])
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, fitted.anomaly_map(anomalous))
    weights = fitted.support_weights(anomalous)
    np.testing.assert_array_equal(np.stack([e.support_weights for e in found]), weights)
    assert found[0].support_weights.dtype == weights.dtype
    assert [e.support_index for e in found] == weights.argmax(1).tolist()


def test_the_hot_spot_is_the_highest_pixel_of_the_faded_map(fitted, anomalous):
    for e in fitted.explain(anomalous):
        faded = reduction.fade_border(torch.from_numpy(e.map), fitted.border_weight).numpy()
        np.testing.assert_array_equal(e.faded, faded)
        assert faded[e.hot_spot] == faded.max()
        assert all(type(v) is int for v in e.hot_spot)


@pytest.mark.parametrize("evidence", ["patch", "embedding", ("ssd", "tsd", "patch", "embedding")], ids=str)
@pytest.mark.parametrize("aggregation", ["max", "mean", 0.05])
def test_hottest_pixels_of_anomalous_images_exceed_the_level(toy, normal, anomalous, evidence, aggregation):
    det = DualDistillationDetector(
        **toy | {"evidence": evidence, "aggregation": aggregation, "contamination": 0.25}
    ).fit(normal[:4])
    for e in det.explain([*normal[4:6], *anomalous[:2]]):
        assert e.excess.dtype == np.float32
        hottest = reduction.aggregate(torch.from_numpy(e.excess), aggregation).item()
        assert hottest == pytest.approx(-e.decision, rel=1e-4, abs=1e-5)


def test_hot_spot_is_in_the_painted_square(toy, normal, anomalous):
    det = DualDistillationDetector(**toy | {"evidence": "patch"}).fit(normal[:4])
    for e in det.explain(anomalous):  # rows and columns 20 to 31 of 40, that is 16 to 25 of 32, and the blur around
        assert 12 <= min(e.hot_spot)
        assert max(e.hot_spot) <= 29


def test_image_is_the_resized_image(fitted, toy, normal):
    small = stripes(1, size=32, seed=3)
    (seen,) = fitted.explain(small)
    assert seen.image.dtype == np.uint8
    np.testing.assert_array_equal(seen.image, small[0])
    (grey,) = fitted.explain(small[..., 0])
    np.testing.assert_array_equal(grey.image, np.repeat(small[0, :, :, :1], 3, 2))
    det = DualDistillationDetector(**toy | {"value_range": (0, 100)}).fit(normal[:4])
    np.testing.assert_array_equal(det.explain(np.full((1, 32, 32), 50, np.int32))[0].image, 128)
    assert det.explain(np.full((1, 32, 32), 500, np.int32))[0].image.max() == 255


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)], ids=str)
@pytest.mark.parametrize("view", range(8))
def test_match_position_in_the_original_support_image(toy, shape, view):
    """A rotated or mirrored support image matches itself, with positions in the original image."""
    det = _by_patch(toy, shape)
    positions = rotated_and_mirrored(torch.arange(shape[0] * shape[1]).view(shape))[view]
    query = rotated_and_mirrored(torch.from_numpy(det.support_)[1])[view].contiguous()
    maps = det.session().scorer.extract(query[None])[0]
    nothing = torch.zeros(3, dtype=torch.bool)
    half = 4  # the toy's middle stage has a stride of 8 pixels
    for row, column in [(3, 2), (4, 12), (12, 6), (query.shape[1] - 5, query.shape[2] - 1)]:
        match = matching.best_match(
            det.fitted_.patches, matching.patch_at(maps, query.shape[1:], (row, column)), nothing
        )
        assert match.similarity == pytest.approx(1, abs=1e-5)
        assert match.support_index == 1
        centre = (row // 8 * 8 + half, column // 8 * 8 + half)
        block = positions[centre[0] - half : centre[0] + half, centre[1] - half : centre[1] + half]
        rows, columns = np.divmod(block.numpy(), shape[1])
        assert (match.row, match.col) == (rows.mean(), columns.mean())


def test_match_is_the_nearest_neighbour(by_patch):
    queries = corrupted(stripes(3, size=32, seed=1))  # of the detector's size, so that images are not resized
    read = by_patch.session().scorer.extract(torch.from_numpy(queries).permute(0, 3, 1, 2) / 255)
    kept = by_patch.fitted_.patches
    for e, maps in zip(by_patch.explain(queries), read, strict=True):
        (patches,) = matching.patch_features(maps[:3])
        cell = e.hot_spot[0] // 8 * 4 + e.hot_spot[1] // 8
        similarity = (kept.features @ patches[cell]).numpy()
        assert e.matches.similarity == pytest.approx(similarity.max(), abs=1e-6)
        assert similarity[kept.owners == e.matches.support_index].max() == pytest.approx(similarity.max(), abs=1e-6)


def test_support_image_is_compared_with_the_others(by_patch):
    for i, e in enumerate(by_patch.explain(list(by_patch.support_.transpose(0, 2, 3, 1)))):
        assert e.score == by_patch.support_scores_[i]
        assert e.support_weights[i] == 0
        assert e.matches.support_index != i
        assert e.matches.similarity < 1 - 1e-3


@pytest.mark.parametrize("evidence", ["ssd", "embedding", ("tsd", "embedding")], ids=str)
def test_no_match_without_patch(toy, normal, anomalous, evidence):
    det = DualDistillationDetector(**toy | {"evidence": evidence}).fit(normal[:4])
    for e in det.explain(anomalous[:2]):
        assert e.matches is None
        assert e.patch_size == 8


def test_ties_and_excluded_images():
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(1 + 0.1 * torch.randn(3, 50, 16, generator=generator), dim=-1)
    features[:, 30] = features[:, 7]  # the same patch in two views
    spots = torch.arange(300, dtype=torch.float32).view(150, 2)
    patches = Patches(features.flatten(0, 1), torch.arange(3).repeat_interleave(50), spots)
    for support in range(3):
        nothing = torch.zeros(3, dtype=torch.bool)
        found = matching.best_match(patches, features[support, 7], nothing)
        assert (found.support_index, found.row) == (support, 100 * support + 14)
        assert found.similarity == pytest.approx(1, abs=1e-6)
        nothing[support] = True
        assert matching.best_match(patches, features[support, 7], nothing).support_index != support
    assert matching.best_match(patches, features[0, 7], torch.ones(3, dtype=torch.bool)) is None


@pytest.mark.parametrize("augment", [True, False])
def test_single_image_without_augmentation(toy, normal, anomalous, augment):
    parameters = toy | {"evidence": "patch", "augment": augment}
    with pytest.warns(UserWarning, match="single image"):
        det = DualDistillationDetector(**parameters).fit(normal[:1])
    for e in det.explain(anomalous[:2]):
        assert e.matches.support_index == e.support_index == 0
        assert 0 <= min(e.matches.row, e.matches.col) <= max(e.matches.row, e.matches.col) < 32


def test_batch_of_other_shapes_does_not_matter(fitted, normal, anomalous):
    mixed = [image[: 40 - 4 * i, i:] for i, image in enumerate(anomalous)]
    found = fitted.explain(mixed)
    assert len({e.map.shape for e in found}) > 1
    for e, image in zip(found, mixed, strict=True):
        assert e.picture.shape == image.shape
        for name, value in vars(fitted.explain([image])[0]).items():
            np.testing.assert_equal(getattr(e, name), value, err_msg=name)


def test_batch_composition_does_not_matter(fitted, normal, anomalous):
    alone, in_batch = fitted.explain(anomalous[2:3])[0], fitted.explain([*normal, *anomalous])[len(normal) + 2]
    for name, value in vars(alone).items():
        np.testing.assert_equal(getattr(in_batch, name), value, err_msg=name)


def test_unreadable_images_are_none_or_an_error(toy, normal, anomalous, tmp_path):
    Image.fromarray(anomalous[0]).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    paths = [tmp_path / "broken.png", tmp_path / "a.png"]
    det = DualDistillationDetector(**toy | {"on_error": "skip"}).fit(normal[:4])
    with pytest.warns(ImageSkippedWarning, match="broken"):
        skipped, kept = det.explain(paths)
    assert skipped is None
    assert kept.score == det.score_samples(anomalous[:1])[0]
    with pytest.raises(ImageError, match="broken"):
        det.set_params(on_error="raise").explain(paths)


def test_not_fitted(normal):
    with pytest.raises(NotFittedError):
        DualDistillationDetector().explain(normal)


def test_explanations_are_frozen(fitted, anomalous):
    (e,) = fitted.explain(anomalous[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.score = 0.0


# ---- pictures


@pytest.mark.parametrize("aspect", ["keep", "square"])
@pytest.mark.parametrize("shape", [(240, 80), (80, 240), (120, 120), (360, 60), (40, 30), (1400, 500)], ids=str)
def test_map_and_box_match_the_picture(toy, shape, aspect):
    normal, marked, place = plain_and_marked(*shape)
    det = DualDistillationDetector(**toy | {"evidence": "patch", "image_size": 64, "aspect": aspect, "memory": None})
    det.fit(normal)
    det.offset_ = det.score_samples([marked])[0]  # so that only the hottest pixels have colour
    (e,) = det.explain([marked])
    height, width = e.picture.shape[:2]
    shrink = min(1, 640 / max(shape))
    assert (height, width) == (round(shape[0] * shrink), round(shape[1] * shrink))
    assert e.original_size == shape
    at = place[0] * height, place[1] * width
    box = e.hot_box
    assert abs(box.top + box.height / 2 - at[0]) <= box.height
    assert abs(box.left + box.width / 2 - at[1]) <= box.width
    laid = overlay(e)
    assert laid.shape == e.picture.shape
    colour = np.abs(laid.astype(float) - e.picture).sum(-1)
    rows, columns = np.mgrid[:height, :width] + 0.5
    assert abs((colour * rows).sum() / colour.sum() - at[0]) <= box.height
    assert abs((colour * columns).sum() / colour.sum() - at[1]) <= box.width
    (whole,) = det.anomaly_map([marked], size="original")
    assert whole.shape == shape
    hottest = np.argwhere(whole >= np.quantile(whole, 0.99)).mean(0) + 0.5
    for found, share, side, seen in zip(hottest, place, shape, e.map.shape, strict=True):
        assert abs(found - share * side) <= e.patch_size * side / seen


def test_picture_size(fitted, tmp_path):
    wide = stripes(1, size=80)[0, :36]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (e,) = fitted.explain([tmp_path / "wide.png"])
    np.testing.assert_array_equal(e.picture, wide)
    (small,) = fitted.explain([tmp_path / "wide.png"], max_side=20)
    assert small.picture.shape == (9, 20, 3)
    assert small.image.shape == (16, 48, 3)
    for name, value in vars(e).items():
        if name != "picture":
            np.testing.assert_equal(getattr(small, name), value, err_msg=name)
    with pytest.raises(ValueError, match="max_side=0 was given; it must be an integer of at least 1, or None"):
        fitted.explain([wide], max_side=0)


@pytest.mark.parametrize("shape", [(200, 1), (1, 200), (1, 1), (2, 4000), (9, 5)], ids=str)
def test_tiny_images(fitted, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    (e,) = fitted.explain([image])
    assert e.original_size == shape
    assert overlay(e).shape == e.picture.shape
    assert e.picture.shape[:2] == ((1, 640) if shape == (2, 4000) else shape)
    assert fitted.anomaly_map([image], size="original").shape == (1, *shape)
    assert 0 <= e.hot_box.top <= e.hot_box.top + e.hot_box.height <= e.picture.shape[0] + 1e-6
    assert 0 <= e.hot_box.left <= e.hot_box.left + e.hot_box.width <= e.picture.shape[1] + 1e-6


def test_scores_do_not_depend_on_the_picture_size(fitted, tmp_path):
    """A JPEG is decoded at a scale that depends on the size."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).resize((1800, 1200))
    noise.save(tmp_path / "a.jpg")
    found = [fitted.explain([tmp_path / "a.jpg"], max_side=side)[0] for side in (None, 10, 640, 1800)]
    assert {e.score for e in found} == {fitted.score_samples([tmp_path / "a.jpg"])[0]}
    for e in found[1:]:
        np.testing.assert_array_equal(e.map, found[0].map)
        np.testing.assert_array_equal(e.image, found[0].image)
    assert [e.picture.shape[:2] for e in found[1:]] == [(7, 10), (427, 640), (1200, 1800)]
    original = np.asarray(noise.resize((640, 427), Image.Resampling.BILINEAR), float)
    assert np.abs(found[2].picture - original).mean() < 3


def test_images_are_read_again_only_for_pictures(fitted, anomalous, monkeypatch):
    monkeypatch.setattr(images, "picture", lambda *_, **__: pytest.fail("read a second time"))
    fitted.anomaly_map(anomalous[:2], size="original")
    (e,) = fitted.explain(anomalous[:1], max_side=None)
    np.testing.assert_array_equal(e.picture, e.image)


def test_picture_of_an_image_that_can_be_read_once(fitted, anomalous):
    """The image is a pipe, or a file that is deleted."""
    data = io.BytesIO()
    Image.fromarray(anomalous[0]).save(data, "PNG")

    class Pipe:
        def __init__(self):
            self.left = data.getvalue()

        def read(self):
            read, self.left = self.left, b""
            return read

    (e,) = fitted.explain([Pipe()])
    assert e.score == fitted.score_samples(anomalous[:1])[0]
    np.testing.assert_array_equal(e.picture, e.image)


def test_second_reading_does_not_warn(fitted, anomalous):
    transparent = np.dstack([anomalous[0], np.zeros((40, 40), np.uint8)])
    with pytest.warns(ImageWarning, match="fully transparent") as message:
        fitted.explain([transparent])
    assert len(message) == 1


def test_pictures_of_rows(toy, normal, anomalous):
    rows = normal[:4].mean(-1).reshape(4, -1)
    det = DualDistillationDetector(**toy | {"evidence": "patch"}, image_shape=(40, 40)).fit(rows)
    (e,) = det.explain(anomalous[:1].mean(-1).reshape(1, -1))
    assert e.picture.shape == (40, 40, 3)
    assert np.corrcoef(e.picture[..., 0].ravel(), anomalous[0].mean(-1).ravel())[0, 1] > 0.999


def test_overlay_pixels(fitted, anomalous):
    (e,) = fitted.explain(anomalous[:1])
    ramp = np.repeat(np.linspace(0, 1, 32, dtype=np.float32)[:, None], 32, 1)
    e = dataclasses.replace(e, picture=np.zeros((64, 96, 3), np.uint8), faded=0.7 + 0.6 * ramp, level=1.0)
    np.testing.assert_allclose(opacity(e), ramp, atol=1e-6)
    # A ramp remains a ramp: pixels keep their positions, to a fraction of a pixel.
    shares = (((np.arange(64) + 0.5) / 2 - 0.5) / 31).clip(0, 1)[:, None].repeat(96, 1)
    expected = 0.4 * shares[..., None] * warm(shares)
    np.testing.assert_allclose(overlay(dataclasses.replace(e, decision=1.0)), expected, atol=1)
    assert (overlay(e) == [255, 176, 0]).all(-1).any()  # an anomalous image has an outline
    e = dataclasses.replace(e, decision=1.0)
    np.testing.assert_array_equal(overlay(dataclasses.replace(e, level=2.0)), 0)
    np.testing.assert_array_equal(overlay(dataclasses.replace(e, level=0.0)), np.full((64, 96, 3), [51, 28, 5]))


def test_boxes_are_in_pixels_of_the_picture(fitted, anomalous):
    (e,) = fitted.explain(anomalous[:1])
    e = dataclasses.replace(e, picture=np.zeros((64, 96, 3), np.uint8), hot_spot=(9, 31))
    assert e.hot_box == (16, 72, 16, 24)
    e = dataclasses.replace(e, matches=matching.Match(0, row=3.5, col=11.5, similarity=1.0))
    assert e.match_box == (0, 8, 8, 8)
    assert dataclasses.replace(e, matches=None).match_box is None


# ---- relative scores


def test_relative_score_agrees_with_predict(fitted, normal, anomalous):
    images = [*normal, *anomalous]
    scores = relative_score(fitted.score_samples(images), fitted.offset_)
    np.testing.assert_allclose(scores, fitted.anomaly_score(images) / -fitted.offset_, rtol=1e-15)
    np.testing.assert_array_equal(scores > 1, fitted.predict(images) == -1)


@pytest.mark.parametrize("offset", [-1.0, -1e-9, -3e5, -0.1, 0.0, 2.0])
def test_threshold_is_exactly_1(offset):
    beyond, within = np.nextafter(offset, -np.inf), np.nextafter(offset, np.inf)
    below, at, above = relative_score([within, offset, beyond], offset)
    assert below <= at == 1 < above
    far = relative_score([offset + 5, offset - 5], offset)
    assert far[0] < 1 < far[1]


def test_relative_score_of_nan():
    found = relative_score([np.nan, 0.0], -2.0)
    assert np.isnan(found[0])
    assert str(found[1]) == "0.0"
