from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import spoilt, stripes
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch.nn import functional as F

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data.views import turned_and_mirrored
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning
from fewshot_ad.explanation import relative_score
from fewshot_ad.method import matching, reduction


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    return DualDistillationDetector(**toy).fit(normal[:4])


@pytest.fixture(scope="module")
def by_patch(toy) -> DualDistillationDetector:
    """Fitted on images without symmetry, so that each of their patches is found in one place."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return DualDistillationDetector(**toy | {"evidence": "patch", "border_weight": 1.0, "blur_sigma": 0.0}).fit(images)


def test_explanations_say_what_the_other_methods_say(fitted, anomalous):
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
def test_the_hottest_pixels_exceed_the_level_where_an_image_is_anomalous(toy, normal, anomalous, evidence, aggregation):
    det = DualDistillationDetector(
        **toy | {"evidence": evidence, "aggregation": aggregation, "contamination": 0.25}
    ).fit(normal[:4])
    for e in det.explain([*normal[4:6], *anomalous[:2]]):
        assert e.excess.dtype == np.float32
        hottest = reduction.aggregate(torch.from_numpy(e.excess), aggregation).item()
        assert hottest == pytest.approx(-e.decision, rel=1e-4, abs=1e-5)


def test_the_hot_spot_lies_in_the_painted_square(toy, normal, anomalous):
    det = DualDistillationDetector(**toy | {"evidence": "patch"}).fit(normal[:4])
    for e in det.explain(anomalous):  # rows and columns 20 to 31 of 40, that is 16 to 25 of 32, and the blur around
        assert 12 <= min(e.hot_spot)
        assert max(e.hot_spot) <= 29


def test_the_image_is_what_the_detector_saw(fitted, toy, normal):
    small = stripes(1, size=32, seed=3)
    (seen,) = fitted.explain(small)
    assert seen.image.dtype == np.uint8
    np.testing.assert_array_equal(seen.image, small[0])
    (grey,) = fitted.explain(small[..., 0])
    np.testing.assert_array_equal(grey.image, np.repeat(small[0, :, :, :1], 3, 2))
    det = DualDistillationDetector(**toy | {"value_range": (0, 100)}).fit(normal[:4])
    np.testing.assert_array_equal(det.explain(np.full((1, 32, 32), 50, np.int32))[0].image, 128)
    assert det.explain(np.full((1, 32, 32), 500, np.int32))[0].image.max() == 255


@pytest.mark.parametrize("view", range(8))
def test_a_patch_is_found_where_it_is_in_the_unturned_support(by_patch, view):
    """A query that is a turned or mirrored support image matches itself: the positions say so, through the view."""
    support = torch.from_numpy(by_patch.support_)
    positions = turned_and_mirrored(torch.arange(32 * 32).view(1, 1, 32, 32))[0, view, 0]
    query = turned_and_mirrored(support[1:2])[0, view].permute(1, 2, 0).numpy()
    scorer = by_patch.session().scorer
    batch = torch.from_numpy(query).permute(2, 0, 1)[None].contiguous()
    maps = scorer.extract(batch)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    half = 4  # the toy's middle stage has a stride of 8 pixels
    for row, column in [(3, 2), (4, 12), (12, 26), (27, 31)]:
        (match,) = matching.match(maps, scorer.memory.bank, nothing, [(row, column)], 32)
        assert match.similarity == pytest.approx(1, abs=1e-5)
        assert match.support_index == 1
        centre = (row // 8 * 8 + half, column // 8 * 8 + half)
        block = positions[centre[0] - half : centre[0] + half, centre[1] - half : centre[1] + half]
        rows, columns = np.divmod(block.numpy(), 32)
        assert (match.row, match.col) == (rows.mean(), columns.mean())


def test_the_match_is_the_most_similar_of_all_patches(by_patch):
    queries = spoilt(stripes(3, size=32, seed=1))  # of the detector's size, so that what it saw is known exactly
    maps = by_patch.session().scorer.extract(torch.from_numpy(queries).permute(0, 3, 1, 2) / 255)
    for e, patches in zip(by_patch.explain(queries), matching.patch_features(maps[:3]), strict=True):
        cell = e.hot_spot[0] // 8 * 4 + e.hot_spot[1] // 8
        similarity = (by_patch.patches_ @ patches[cell]).numpy()
        assert e.matches.similarity == pytest.approx(similarity.max(), abs=1e-6)
        assert similarity[e.matches.support_index].max() == pytest.approx(similarity.max(), abs=1e-6)


def test_a_support_image_is_held_against_the_others(by_patch):
    for i, e in enumerate(by_patch.explain(list(by_patch.support_.transpose(0, 2, 3, 1)))):
        assert e.score == by_patch.support_scores_[i]
        assert e.support_weights[i] == 0
        assert e.matches.support_index != i
        assert e.matches.similarity < 1 - 1e-3


@pytest.mark.parametrize("evidence", ["ssd", "embedding", ("tsd", "embedding")], ids=str)
def test_without_patch_there_is_no_match(toy, normal, anomalous, evidence):
    det = DualDistillationDetector(**toy | {"evidence": evidence}).fit(normal[:4])
    for e in det.explain(anomalous[:2]):
        assert e.matches is None
        assert e.patch_size == 8


def test_locate_compares_in_full_and_prefers_the_image_itself():
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(1 + 0.1 * torch.randn(3, 50, 16, generator=generator), dim=-1)
    bank[:, 30] = bank[:, 7]  # the same patch in two views
    for lowered in (None, torch.bfloat16):
        searched = matching.PatchBank(bank, lowered)
        for support in range(3):
            nothing = torch.zeros(3, dtype=torch.bool)
            similarity, *place = searched.locate(bank[support, 7], nothing)
            assert place == [support, 7]
            assert similarity == pytest.approx(1, abs=1e-6)
            nothing[support] = True
            assert searched.locate(bank[support, 7], nothing)[1] != support


@pytest.mark.parametrize("augment", [True, False])
def test_one_image_and_no_turned_views(toy, normal, anomalous, augment):
    parameters = toy | {"evidence": "patch", "augment": augment}
    with pytest.warns(UserWarning, match="single image"):
        det = DualDistillationDetector(**parameters).fit(normal[:1])
    for e in det.explain(anomalous[:2]):
        assert e.matches.support_index == e.support_index == 0
        assert 0 <= min(e.matches.row, e.matches.col) <= max(e.matches.row, e.matches.col) < 32


def test_company_does_not_matter(fitted, normal, anomalous):
    alone, in_company = fitted.explain(anomalous[2:3])[0], fitted.explain([*normal, *anomalous])[len(normal) + 2]
    for name, value in vars(alone).items():
        np.testing.assert_equal(getattr(in_company, name), value, err_msg=name)


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


def test_an_unfitted_detector_says_so(normal):
    with pytest.raises(NotFittedError):
        DualDistillationDetector().explain(normal)


def test_explanations_cannot_be_changed(fitted, anomalous):
    (e,) = fitted.explain(anomalous[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.score = 0.0


# ---- the scale for people


def test_a_relative_score_is_above_1_where_predict_says_anomalous(fitted, normal, anomalous):
    images = [*normal, *anomalous]
    scores = relative_score(fitted.score_samples(images), fitted.offset_)
    np.testing.assert_allclose(scores, fitted.anomaly_score(images) / -fitted.offset_, rtol=1e-15)
    np.testing.assert_array_equal(scores > 1, fitted.predict(images) == -1)


@pytest.mark.parametrize("offset", [-1.0, -1e-9, -3e5, -0.1, 0.0, 2.0])
def test_the_threshold_is_1_to_the_last_bit(offset):
    beyond, within = np.nextafter(offset, -np.inf), np.nextafter(offset, np.inf)
    below, at, above = relative_score([within, offset, beyond], offset)
    assert below <= at == 1 < above
    far = relative_score([offset + 5, offset - 5], offset)
    assert far[0] < 1 < far[1]


def test_relative_scores_of_what_was_not_scored():
    found = relative_score([np.nan, 0.0], -2.0)
    assert np.isnan(found[0])
    assert str(found[1]) == "0.0"
