"""Choice of layers for each kind of network, and errors for layers that do not exist."""

import numpy as np
import pytest
from helpers import stripes, write_random_weights

from fewshot_ad import DualDistillationDetector
from fewshot_ad.method.layers import Layers, choose, embedding_place, usual_size

RESNET, CONVNEXT, VIT = [2, 4, 8, 16, 32], [4, 8, 16, 32], [14] * 12


@pytest.mark.parametrize(
    ("strides", "numbers", "places", "embedding"),
    [
        (RESNET, (1, 2, 3), (1, 2, 3), 4),
        (CONVNEXT, (1, 2, 3), (0, 1, 2), 3),
        ([1, 2, 4, 8, 16, 32], (1, 2, 3), (2, 3, 4), 5),
        ([3, 6, 12, 24, 48], (1, 2, 3), (1, 2, 3), 4),  # none of the usual strides
        ([16, 32, 64], (1, 2, 3), (0, 1, 2), None),  # no stage is left for the embedding
        (VIT, (4, 5, 7, 10), (3, 4, 6, 9), 11),
        ([16] * 24, (8, 10, 14, 20), (7, 9, 13, 19), 23),
        ([14] * 40, (13, 17, 23, 33), (12, 16, 22, 32), 39),
        ([16] * 6, (2, 3, 4, 5), (1, 2, 3, 4), 5),
        ([16] * 2, (1, 2), (0, 1), 1),
    ],
)
def test_auto(strides, numbers, places, embedding):
    layers, found = choose("net", "auto", strides)
    assert (layers.numbers, found, embedding_place(found, strides)) == (numbers, places, embedding)
    assert layers.tokens == (len(set(strides)) == 1)
    assert choose("net", layers.numbers, strides) == (layers, found)


def test_numbers():
    assert choose("net", (4, 2), RESNET) == (Layers((2, 4)), (2, 4))
    assert choose("net", (0, 1), RESNET) == (Layers((0, 1)), (0, 1))  # the stem, at stride 2
    assert choose("net", np.array([12, 3]).tolist(), VIT) == (Layers((3, 12), True), (2, 11))
    assert choose("net", "last", VIT) == (Layers((12,), True), (11,))


@pytest.mark.parametrize(
    ("strides", "asked", "message"),
    [
        (RESNET, (4, 5, 7), r"layers=\(4, 5, 7\) was given, but 'net' has stages 1 to 4\. .* choice is layers=\(4,\)"),
        (CONVNEXT, (0, 2), r"'net' has stages 1 to 4\. .* choice is layers=\(1, 2\)"),
        (VIT, (0, 13), r"'net' has blocks 1 to 12\. .* choice is layers=\(1, 12\)"),
        (RESNET, "last", r"layers='last' was given, but 'net' has no tokens: it is not a plain transformer"),
    ],
)
def test_missing_layers(strides, asked, message):
    with pytest.raises(ValueError, match=message):
        choose("net", asked, strides)


def test_usual_sizes():
    assert [usual_size([patch] * 12) for patch in (8, 14, 16, 32, 600)] == [448, 448, 448, 448, 600]
    assert usual_size([18] * 12) == 432
    assert usual_size(RESNET) == 128


def test_layers_for_a_student():
    assert Layers().for_student("abcd") == list("abcd")
    assert Layers().for_student("abc") == list("abcc")  # a network without a deeper stage
    assert Layers((4, 5, 7, 10), True).for_student("abcdef") == list("bcde")
    assert Layers((12,), True).of("abc") == ["a"]
    assert [Layers(tuple(range(n))).middle("abcd") for n in (1, 2, 3, 4)] == list("aabb")


# ---- the detector


@pytest.fixture(scope="module")
def images():
    return list(stripes(4))


def test_stages_of_a_pyramid(toy, images):
    det = DualDistillationDetector(**{**toy, "evidence": ("patch", "embedding")})
    usual = det.fit(images[:3]).score_samples(images[3:])
    assert det.layers_ == (1, 2, 3)
    assert det.patches_.shape[1] == 8 + 16 + 24
    assert det.set_params(layers=[3, 1, 2]).fit(images[:3]).score_samples(images[3:]) == usual
    det.set_params(layers=(2, 4)).fit(images[:3])
    assert det.layers_ == (2, 4)
    assert (det.patches_.shape[1], det.embeddings_.shape[2]) == (16 + 32, 32)
    assert det.anomaly_map(images[3:]).shape == (1, 32, 32)
    assert det.explain(images[3:])[0].patch_size == 8


def test_packaged_student_needs_its_layers(images):
    det = DualDistillationDetector(image_size=32, student_weight=0.1, random_state=0).fit(images[:3])
    assert "ssd" in det.evidence_
    usual = det.score_samples(images[3:])
    assert det.set_params(layers=(1, 2, 3)).fit(images[:3]).score_samples(images[3:]) == usual
    det.set_params(layers=(2, 3), student_weight=None).fit(images[:3])
    assert (det.evidence_, det.layers_, det.patches_.shape[1]) == (("patch",), (2, 3), 128 + 256)
    with pytest.raises(ValueError, match="'compact' has stages 1 to 4"):
        det.set_params(layers=(5,)).fit(images[:3])


def test_layers_are_stored(toy, images, tmp_path):
    from fewshot_ad.files.model_file import describe

    det = DualDistillationDetector(**{**toy, "evidence": "patch", "layers": (1, 2)}).fit(images[:3])
    det.save(tmp_path / "model.fsad")
    assert describe(tmp_path / "model.fsad")["layers_"] == [1, 2]
    again = DualDistillationDetector.load(tmp_path / "model.fsad")
    assert again.layers_ == (1, 2)
    assert again.score_samples(images[3:]) == det.score_samples(images[3:])
    assert "<b>layers_</b>: 1, 2" in det._repr_html_inner()


def test_cached_features_depend_on_the_layers(images, tmp_path):
    """All blocks of a transformer have the same number of channels."""
    weights = write_random_weights("toy_dinov3", tmp_path / "weights.safetensors")
    options = {"backbone": "toy_dinov3", "weights": weights, "image_size": 32, "evidence": "patch", "augment": False}
    kept = {**options, "memory": tmp_path / "features"}
    DualDistillationDetector(**kept, layers=(1,)).fit(images[:3])
    found = DualDistillationDetector(**kept, layers=(3,)).fit(images[:3])
    expected = DualDistillationDetector(**options, layers=(3,)).fit(images[:3])
    np.testing.assert_array_equal(found.score_samples(images[3:]), expected.score_samples(images[3:]))
