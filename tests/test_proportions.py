"""Images of several aspect ratios in support and queries, for all methods and score components."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import stripes, write_random_weights
from PIL import Image

from fewshot_ad import DualDistillationDetector, Student

KINDS = ("ssd", "tsd", "patch", "embedding")
SHAPES = [(60, 60), (40, 90), (90, 40), (60, 60), (30, 100), (40, 90), (120, 20)]
EXPECTED = [(32, 32), (16, 48), (48, 16), (32, 32), (16, 64), (16, 48), (64, 16)]


def picture(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Create stripes of this height and width."""
    return stripes(1, size=max(shape), seed=seed)[0][: shape[0], : shape[1]]


@pytest.fixture(scope="module")
def support() -> list[np.ndarray]:
    return [picture(shape, seed) for seed, shape in enumerate(SHAPES[:4])]


@pytest.fixture(scope="module")
def queries() -> list[np.ndarray]:
    return [picture(shape, seed) for seed, shape in enumerate(SHAPES, start=20)]


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def fitted(request, toy, support) -> DualDistillationDetector:
    det = DualDistillationDetector(
        **{**toy, "student": Student(architecture=request.param, n_steps=3, batch_size=4), "evidence": KINDS}
    )
    return det.fit(support)


def test_each_image_has_its_own_shape(fitted, support, queries):
    assert [image.shape[1:] for image in fitted.support_] == EXPECTED[:4]
    maps = fitted.anomaly_map(queries)
    assert [one.shape for one in maps] == EXPECTED
    assert all(one.dtype == np.float32 and np.isfinite(one).all() for one in maps)
    original = fitted.anomaly_map(queries, size="original")
    assert [one.shape for one in original] == SHAPES
    assert isinstance(fitted.anomaly_map(queries[:1] * 2), np.ndarray)
    assert fitted.anomaly_map(queries[:1], size="original").shape == (1, 60, 60)
    with pytest.raises(ValueError, match="size='large' was given; it must be 'original' or None"):
        fitted.anomaly_map(queries, size="large")


def test_an_image_has_the_same_score_in_any_batch(fitted, queries):
    scores, weights, maps = (ask(queries) for ask in (fitted.score_samples, fitted.support_weights, fitted.anomaly_map))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    order = [3, 6, 0, 5, 1, 4, 2]
    np.testing.assert_array_equal(fitted.score_samples([queries[i] for i in order]), scores[order])
    for i, query in enumerate(queries):
        assert fitted.score_samples([query])[0] == scores[i]
        np.testing.assert_array_equal(fitted.support_weights([query])[0], weights[i])
        np.testing.assert_array_equal(fitted.anomaly_map([query])[0], maps[i])
    many = [query for query in queries for _ in range(9)]  # more than a batch of each shape
    np.testing.assert_array_equal(fitted.score_samples(many), np.repeat(scores, 9))


def test_copies_pickles_and_files_give_the_same_scores(fitted, support, queries, tmp_path):
    fitted.save(tmp_path / "model.fsad", support=True)
    for other in (pickle.loads(pickle.dumps(fitted)), DualDistillationDetector.load(tmp_path / "model.fsad")):
        np.testing.assert_array_equal(other.score_samples(queries), fitted.score_samples(queries))
        assert [image.shape for image in other.support_] == [image.shape for image in fitted.support_]
    np.testing.assert_array_equal(fitted.score_samples(support), fitted.support_scores_)


def test_cached_features_change_nothing(toy, support, queries, tmp_path):
    plain = DualDistillationDetector(**{**toy, "evidence": KINDS}).fit(support)
    for _ in range(2):
        cached = DualDistillationDetector(**{**toy, "evidence": KINDS, "memory": tmp_path}).fit(support)
        np.testing.assert_array_equal(cached.score_samples(queries), plain.score_samples(queries))


def test_explanations_with_several_shapes(fitted, queries, support):
    for found, shape in zip(fitted.explain(queries), EXPECTED, strict=True):
        assert found.map.shape == found.faded.shape == found.image.shape[:2] == shape
        assert 0 <= found.hot_spot[0] < shape[0]
        assert 0 <= found.hot_spot[1] < shape[1]
        height, width = EXPECTED[found.matches.support_index]
        assert 0 <= found.matches.row < height
        assert 0 <= found.matches.col < width


def test_hot_spots_are_in_pixels_of_the_files(toy):
    """The hot spot is at a white square in pictures of several sizes and aspect ratios, within a patch and the blur."""
    det = DualDistillationDetector(**{**toy, "evidence": "patch", "image_size": 64})
    det.fit([picture((60, 60), seed) for seed in range(3)])
    pictures = [picture(shape, 20 + seed) for seed, shape in enumerate([(120, 120), (80, 200), (200, 80), (60, 60)])]
    for image in pictures:
        height, width = image.shape[:2]
        image[height // 4 : height // 4 + 20, width // 2 : width // 2 + 20] = 255
    for image, scored in zip(pictures, det.session().score_each(pictures), strict=True):
        height, width = image.shape[:2]
        reach = 20 + (height * width) ** 0.5 / 8
        assert abs(scored.hot_spot[0] - (height // 4 + 10)) < reach
        assert abs(scored.hot_spot[1] - (width // 2 + 10)) < reach
        assert scored.hot_spot[0] < height
        assert scored.hot_spot[1] < width


def test_images_may_be_added_and_labelled(fitted, support, queries):
    more = pickle.loads(pickle.dumps(fitted)).partial_fit(queries[4:5])
    assert more.support_weights(queries).shape == (7, 5)
    assert np.isfinite(more.score_samples(queries)).all()


def test_auxiliary_tasks_of_several_proportions(toy, support, queries):
    det = DualDistillationDetector(**{**toy, "evidence": KINDS})
    det.fit(support, auxiliary={"one": queries, "other": support})
    assert np.isfinite(det.score_samples(queries)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 400), (400, 3), (1, 3000)])
def test_extreme_proportions_are_squeezed_to_four_to_one(toy, support, shape):
    det = DualDistillationDetector(**{**toy, "evidence": ("patch", "embedding")}).fit(support)
    image = np.full((*shape, 3), 0.5)
    assert np.isfinite(det.score_samples([image])).all()
    sides = det.anomaly_map([image])[0].shape
    assert max(sides) / min(sides) == (1 if shape == (1, 1) else 4)
    assert det.anomaly_map([image], size="original")[0].shape == shape
    assert np.isfinite(DualDistillationDetector(**toy).fit([image] * 2).score_samples([image])).all()


def test_given_sides_apply_to_all_images(toy, support, queries):
    det = DualDistillationDetector(**{**toy, "image_size": (32, 48), "evidence": KINDS}).fit(support)
    assert det.support_.shape == (4, 3, 32, 48)
    assert det.anomaly_map(queries).shape == (7, 32, 48)
    square = DualDistillationDetector(**{**toy, "aspect": "square", "evidence": KINDS}).fit(support)
    assert square.anomaly_map(queries).shape == (7, 32, 32)


def test_square_images_do_not_depend_on_aspect(toy, normal, anomalous):
    keep, square = (
        DualDistillationDetector(**{**toy, "aspect": aspect}).fit(normal[:3]) for aspect in ("keep", "square")
    )
    np.testing.assert_array_equal(keep.score_samples(anomalous), square.score_samples(anomalous))


@pytest.mark.parametrize(("size", "nearest"), [
    ((40, 64), r"image_size=\(32, 64\) and image_size=\(48, 64\)"), ((40, 40), "image_size=32 and image_size=48"),
    ((8, 16), r"image_size=16\.$|image_size=16 and"),
])  # fmt: skip
def test_nearest_fitting_sides_are_named(toy, normal, size, nearest):
    det = DualDistillationDetector(**{**toy, "image_size": size})
    with pytest.raises(
        ValueError, match=rf"takes sides that are multiples of 16, .*nearest fitting sizes? (is|are) {nearest}"
    ):
        det.fit(normal[:2])
    with pytest.raises(ValueError, match="'compact' takes sides that are multiples of 16"):
        DualDistillationDetector(image_size=size).fit(normal[:2])


def test_network_for_squares_only(toy, normal, tmp_path):
    weights = write_random_weights("xcit_nano_12_p16_224", tmp_path / "weights.safetensors", img_size=32)
    options = {**toy, "backbone": "xcit_nano_12_p16_224", "weights": weights, "evidence": "patch"}
    with pytest.raises(ValueError, match=r"one shape only: pass aspect='square', or image_size=\(H, W\)"):
        DualDistillationDetector(**options).fit(normal[:2])
    for changed in ({"aspect": "square"}, {"image_size": (32, 32)}):
        det = DualDistillationDetector(**{**options, **changed}).fit(normal[:2])
        assert det.anomaly_map(normal[:1]).shape == (1, 32, 32)


def test_plain_transformer_accepts_any_proportions(toy, normal, queries, tmp_path):
    weights = write_random_weights("vit_tiny_patch16_224", tmp_path / "weights.safetensors")
    options = {**toy, "backbone": "vit_tiny_patch16_224", "weights": weights, "evidence": ("patch", "embedding")}
    det = DualDistillationDetector(**options).fit(normal[:2])
    assert [one.shape for one in det.anomaly_map(queries)] == EXPECTED
    assert np.isfinite(det.score_samples(queries)).all()


def test_network_for_one_shape(toy, support, queries, tmp_path):
    """The support is not rotated by 90° either, only by 180° and mirrored."""
    weights = write_random_weights("vit_tiny_patch16_224", tmp_path / "weights.safetensors", img_size=32)
    options = {"backbone": "vit_tiny_patch16_224", "weights": weights, "evidence": ("patch", "embedding")}
    det = DualDistillationDetector(**{**toy, **options, "image_size": (32, 48)}).fit(support)
    assert det.embeddings_.shape[1] == 4
    assert len(det.patches_) == 4 * 4 * 2 * 3
    assert det.anomaly_map(queries).shape == (7, 32, 48)
    for found in det.explain(queries):
        assert 0 <= found.matches.row < 32
        assert 0 <= found.matches.col < 48


def test_exif_orientation(toy, support, tmp_path):
    """Sizes of photographs are those after EXIF rotation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture((40, 90), 3)).save(tmp_path / "a.jpg", exif=exif)
    det = DualDistillationDetector(**toy).fit(support)
    assert det.anomaly_map([tmp_path / "a.jpg"])[0].shape == (48, 16)
    assert det.anomaly_map([tmp_path / "a.jpg"], size="original")[0].shape == (90, 40)


def test_unreadable_images_have_nan_maps(toy, support, queries, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    det = DualDistillationDetector(**{**toy, "on_error": "skip"}).fit(support)
    with pytest.warns(UserWarning, match="Skipped"):
        maps = det.anomaly_map([queries[0], tmp_path / "bad.png", queries[1]])
    assert [np.isnan(one).all() for one in maps] == [False, True, False]


def test_memory_bank_is_bounded(toy, normal):
    for n in (2, 12):
        det = DualDistillationDetector(**{**toy, "evidence": KINDS, "max_patches": 50}).fit(normal[:n])
        assert len(det.patches_) == 50
        assert all(len(expert.shown) == min(n, 8) for expert in det.experts_)
        assert det.support_weights(normal).shape == (len(normal), n)
        assert np.isfinite(det.score_samples(normal)).all()
    few = DualDistillationDetector(**{**toy, "evidence": "patch", "max_patches": 3}).fit(normal[:5])
    assert len(few.patches_) == 3
    assert np.isfinite(few.support_scores_).all()


def test_patches_have_owners(toy, normal):
    det = DualDistillationDetector(**{**toy, "evidence": "patch", "max_patches": 40}).fit(normal[:4])
    patches = det.fitted_.patches
    assert torch.bincount(patches.owners).tolist() == [10] * 4
    # The kept patches of the other images do not depend on this image.
    others = DualDistillationDetector(**{**toy, "evidence": "patch", "max_patches": 30}).fit(normal[1:4])
    assert torch.equal(others.fitted_.patches.features, patches.features[patches.owners > 0])
