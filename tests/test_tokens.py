"""Tokens of plain transformers: equal to timm's, and used as patches and embeddings."""

import math

import numpy as np
import pytest
import timm
import torch
from helpers import stripes, write_random_weights
from safetensors.torch import load_file
from torch.nn import functional as F

from fewshot_ad import DualDistillationDetector, Student
from fewshot_ad.method import matching
from fewshot_ad.method.teacher import build_backbone

NETWORKS = ["toy_dinov2", "toy_dinov2_reg", "toy_dinov3"]
MULTIPLE = {"toy_dinov2": 14, "toy_dinov2_reg": 14, "toy_dinov3": 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {name: write_random_weights(name, folder / f"{name}.safetensors") for name in NETWORKS}


def reference(name, weights, **options):
    """Build the network with timm alone."""
    model = timm.create_model(name, **options).eval()
    model.load_state_dict(load_file(weights))
    return model


@pytest.mark.parametrize("shape", [(5, 5), (3, 7)])
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_tokens_equal_timm(files, name, shape):
    """Position embeddings are resampled in the same way for square and oblong images."""
    size = MULTIPLE[name] * shape[0], MULTIPLE[name] * shape[1]
    teacher = build_backbone(name, 70, square=False, weights=files[name])
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    given = (images - teacher.mean) / teacher.std
    model = reference(name, files[name], dynamic_img_size=True)
    numbers = teacher.layers.numbers
    expected = model.forward_intermediates(
        given, indices=[number - 1 for number in numbers], norm=True, intermediates_only=True
    )
    *layers, start, whole = teacher(images)
    assert teacher.layers.tokens
    assert teacher.channels == tuple(m.shape[1] for m in (*layers, start, whole))
    for found, wanted in zip(layers, expected, strict=True):
        assert found.shape[2:] == shape
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert len({round(float(m[0, 0, 0, 0]), 4) for m in layers}) == len(layers), "blocks differ"

    last = model.forward_features(given)
    torch.testing.assert_close(whole[..., 0, 0], last[:, 0], rtol=0, atol=1e-6)
    tokens = last[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, shape)
    torch.testing.assert_close(start, tokens, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_fixed_shape(files):
    """In a network for one shape, position embeddings are resampled when weights are loaded."""
    weights = files["toy_dinov2"]
    teacher = build_backbone("toy_dinov2", (28, 42), weights=weights, layers="last")
    images = torch.rand(1, 3, 28, 42)
    source = {"file": str(weights), "custom_load": False}
    model = timm.create_model("toy_dinov2", img_size=(28, 42), pretrained=True, pretrained_cfg_overlay=source).eval()
    last = model.forward_features((images - teacher.mean) / teacher.std)
    torch.testing.assert_close(
        teacher(images)[0].flatten(2).transpose(1, 2), last[:, model.num_prefix_tokens :], rtol=0, atol=1e-6
    )


def test_layers_are_in_the_upper_half(files):
    def taken(name, layers="auto"):
        return build_backbone(
            name, 70, weights=files[name], layers=layers, square=False, embedding=False
        ).layers.numbers

    assert taken("toy_dinov2") == (4, 5, 7, 10)
    assert taken("toy_dinov2_reg") == (1, 2, 3)
    assert taken("toy_dinov2", "last") == (12,)
    assert taken("toy_dinov2", (9, 2)) == (2, 9)


def test_later_blocks_are_not_computed(files):
    teacher = build_backbone("toy_dinov2", 70, weights=files["toy_dinov2"], layers=(3, 5), embedding=False)
    assert len(teacher.model.model.blocks) == 5
    assert [m.shape[1] for m in teacher(torch.rand(1, 3, 70, 70))] == [96, 96]


@torch.inference_mode()
def test_patches_are_normalised_tokens(files):
    teacher = build_backbone("toy_dinov2", 70, weights=files["toy_dinov2"])
    maps = teacher(torch.rand(1, 3, 70, 70))
    found = matching.patch_features(maps, teacher.layers)
    assert found.shape == (1, 25, 4 * 96)
    row, column = 1, 3
    vectors = [m[0, :, row, column] / m[0, :, row, column].norm() for m in maps[:4]]
    torch.testing.assert_close(found[0, row * 5 + column], torch.cat(vectors) / math.sqrt(4))


def test_distance_is_the_cosine_of_last_tokens(files):
    """The distance is that of AnomalyDINO, with patches rounded to float16."""
    det = DualDistillationDetector(
        "toy_dinov2", weights=files["toy_dinov2"], layers="last", image_size=70, evidence="patch", augment=False,
        precision="float32", blur_sigma=0.0, random_state=0,
    )  # fmt: skip
    images = stripes(4, size=70)
    det.fit(images[:2])
    model = reference("toy_dinov2", files["toy_dinov2"])

    @torch.inference_mode()
    def tokens(image):
        teacher = det.session().scorer.extract.teacher
        given = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        return F.normalize(model.forward_features((given - teacher.mean) / teacher.std)[0, 1:], dim=1)

    bank = torch.cat([tokens(image) for image in images[:2]])
    assert len(det.patches_) == len(bank)
    for image in images[2:]:
        expected = (1 - tokens(image) @ bank.T).amin(1).view(5, 5)
        found = matching.patch_evidence(
            det.session().scorer.extract.batch(torch.from_numpy(image).permute(2, 0, 1)[None] / 255),
            det.session().scorer.memory.bank, torch.zeros(1, 2, dtype=torch.bool), det.fitted_.layers,
        )[0][0]  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert expected.max() > 1e-2


@pytest.fixture(scope="module")
def options(files):
    return {"backbone": "toy_dinov2", "weights": files["toy_dinov2"], "image_size": 70, "random_state": 0}


@pytest.fixture(scope="module")
def queries():
    return [np.ascontiguousarray(image) for image in (stripes(1, size=70, seed=3)[0], stripes(1, 90, seed=4)[0][:50])]


EVIDENCE = ["patch", ("patch", "embedding"), "subspace", ("ssd", "tsd", "patch", "embedding", "subspace")]


@pytest.mark.parametrize("evidence", EVIDENCE, ids=str)
def test_model_file(options, queries, tmp_path, evidence):
    det = DualDistillationDetector(**options, evidence=evidence, student=Student(n_steps=1, batch_size=2)).fit(
        stripes(3, size=70)
    )
    det.save(tmp_path / "model.fsad")
    again = DualDistillationDetector.load(tmp_path / "model.fsad", weights=options["weights"])
    assert again.layers_ == det.layers_ == (4, 5, 7, 10)
    np.testing.assert_array_equal(again.score_samples(queries), det.score_samples(queries))
    assert [one.shape for one in det.anomaly_map(queries)] == [(70, 70), (56, 98)]
    assert all((one.matches is None) == ("patch" not in evidence) for one in again.explain(queries))
    np.testing.assert_allclose(again.support_weights(queries).sum(1), 1, rtol=1e-6)


def test_patches_are_stored_in_float16(options, tmp_path):
    det = DualDistillationDetector(**options, evidence="patch").fit(stripes(3, size=70))
    det.save(tmp_path / "model.fsad")
    held = load_file(tmp_path / "model.fsad")["patches"]
    assert held.dtype == torch.float16
    assert torch.equal(held.float(), det.patches_)


def test_scores_do_not_depend_on_the_batch(options, queries):
    det = DualDistillationDetector(**options).fit(stripes(3, size=70))
    together = det.score_samples([*queries, *stripes(5, size=70, seed=7)])
    assert [det.score_samples([query])[0] for query in queries] == together[:2].tolist()


@pytest.mark.parametrize("student", ["decoder", "encoder"])
def test_students_imitate_the_three_deepest_layers(options, queries, student):
    changed = {"student": Student(architecture=student, n_steps=1, batch_size=2)}
    det = DualDistillationDetector(**options, **changed, evidence=("ssd", "tsd")).fit(stripes(2, size=70))
    assert [m.shape[1] for m in det.experts_[0].maps[0]] == [96] * 3
    assert np.isfinite(det.score_samples(queries)).all()
    with pytest.raises(ValueError, match=r"layers='last' was given, .* a student, which imitates 3 layers"):
        DualDistillationDetector(**options, **changed, evidence="tsd", layers="last").fit(stripes(2, size=70))


def test_default_sizes(files):
    for name in ("toy_dinov2", "toy_dinov3"):
        teacher = build_backbone(name, "auto", square=False, weights=files[name], embedding=False)
        assert (teacher.geometry.image_size, teacher.geometry.usual) == (448, (448, 448))
    squares = build_backbone("toy_dinov2", "auto", weights=files["toy_dinov2"], embedding=False)
    assert squares.geometry.fixed == (448, 448)


@pytest.mark.parametrize(
    ("size", "square", "nearest"),
    [
        ((100, 126), False, r"image_size=\(98, 126\) and image_size=\(112, 126\)"),
        ((100, 100), True, "image_size=98 and image_size=112"),
        (128, True, "image_size=126 and image_size=140"),
        (8, True, r"image_size=14\."),
    ],
)
def test_sizes_must_be_multiples_of_the_patch_size(files, size, square, nearest):
    with pytest.raises(ValueError, match=rf"'toy_dinov2' takes sides that are multiples of 14, .* (is|are) {nearest}"):
        build_backbone("toy_dinov2", size, square=square, weights=files["toy_dinov2"], embedding=False)


def test_sides_are_rounded_with_aspect_keep(files):
    teacher = build_backbone("toy_dinov2", 128, square=False, weights=files["toy_dinov2"], embedding=False)
    assert [teacher.geometry.shape(*shape) for shape in ((9, 9), (100, 200))] == [(126, 126), (84, 182)]


# ---- as ONNX


def test_rotary_positions_are_not_exported(files, tmp_path):
    """A graph of DINOv3 that is traced at one size would fail at another."""
    pytest.importorskip("onnxscript")
    det = DualDistillationDetector(
        "toy_dinov3", weights=files["toy_dinov3"], image_size=32, evidence="patch", augment=False, random_state=0
    ).fit(stripes(2, size=32))
    with pytest.raises(ValueError, match=r"depends on the image size .* Fit with aspect='square'"):
        det.export(tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "aspect"), [("toy_dinov2_reg", "keep"), ("toy_dinov3", "square")])
def test_as_onnx(files, queries, tmp_path, name, aspect):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    det = DualDistillationDetector(
        name, weights=files[name], image_size=5 * MULTIPLE[name], aspect=aspect, precision="float32", augment=False,
        evidence=("patch", "embedding", "subspace"), random_state=0,
    ).fit(stripes(3, size=70))  # fmt: skip
    det.export(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for query in queries:
        score, shown = session.run(None, {"image": query.transpose(2, 0, 1)[None].astype(np.float32) / 255})
        np.testing.assert_allclose(score, det.score_samples([query]), rtol=1e-4)
        np.testing.assert_allclose(shown[0], det.anomaly_map([query])[0], rtol=1e-3, atol=1e-4)
