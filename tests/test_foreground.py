"""The foreground mask: the first principal component of an image's tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import write_random_weights
from scipy import ndimage

from fewshot_ad import DualDistillationDetector, Student
from fewshot_ad.method.foreground import PUBLISHED, find_foreground, threshold
from fewshot_ad.method.layers import Layers

pytestmark = pytest.mark.filterwarnings("ignore:.*nearly the same")
LAYERS = Layers((12,), True)
# Tokens of the random network are shorter than those of DINOv2: backgrounds are at -3, objects at 16.
LEAST = 5.0


def tokens(height: int, width: int, inside: np.ndarray, seed: int = 0, strength: float = 30.0) -> torch.Tensor:
    """Create tokens (1, 48, H, W): noise around one value, with an offset in the object."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=48)
    found = rng.normal(size=(height, width, 48)) + 3 * rng.normal(size=48)
    found += strength * inside[..., None] * direction / np.linalg.norm(direction)
    return torch.from_numpy(found.astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def block(height: int, width: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    found = np.zeros((height, width), bool)
    found[top : top + rows, left : left + columns] = True
    return found


def mask_of(maps: torch.Tensor, least: float = PUBLISHED) -> np.ndarray:
    found = find_foreground([maps], LAYERS, least)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    return found[0].bool().numpy()


def test_object_is_dilated_by_one_patch():
    found = mask_of(tokens(16, 20, block(16, 20, 4, 5, 8, 9)))
    np.testing.assert_array_equal(found, block(16, 20, 3, 4, 10, 11))


def test_small_holes_are_closed():
    inside = block(16, 20, 4, 5, 8, 9)
    inside[7:9, 8:11] = False
    np.testing.assert_array_equal(mask_of(tokens(16, 20, inside)), block(16, 20, 3, 4, 10, 11))


def test_mask_follows_the_published_steps():
    rng = np.random.default_rng(0)
    for seed in range(20):
        inside = ndimage.gaussian_filter(rng.normal(size=(18, 15)), 2) > 0.05
        maps = tokens(18, 15, inside, seed)
        rows = maps[0].flatten(1).T.double().numpy()
        centred = rows - rows.mean(0)
        projected = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]).reshape(18, 15)
        masks = [side > PUBLISHED for side in (projected, -projected)]
        best = max(masks, key=lambda mask: mask[3:15, 3:12].sum())
        wide = ndimage.binary_dilation(best, np.ones((3, 3)))
        expected = ndimage.binary_erosion(
            ndimage.binary_dilation(wide, np.ones((3, 3))), np.ones((3, 3)), border_value=1
        )
        np.testing.assert_array_equal(mask_of(maps), expected)


def test_centre_determines_the_sign():
    inside = block(16, 16, 4, 4, 8, 8)
    for seed in range(5):
        np.testing.assert_array_equal(mask_of(tokens(16, 16, inside, seed)), block(16, 16, 3, 3, 10, 10))
        np.testing.assert_array_equal(mask_of(tokens(16, 16, ~inside, seed)), block(16, 16, 3, 3, 10, 10))


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_no_object_gives_a_full_mask(strength):
    assert mask_of(tokens(12, 12, block(12, 12, 4, 4, 4, 4), strength=strength)).all()
    assert mask_of(torch.full((1, 48, 12, 12), 3.0)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3)])
def test_small_grids(shape):
    assert mask_of(tokens(*shape, np.zeros(shape, bool))).all()


def test_other_images_do_not_matter():
    maps = torch.cat([tokens(12, 14, block(12, 14, 3, 3, 5, 4 + seed), seed) for seed in range(4)])
    together = find_foreground([maps], LAYERS, PUBLISHED)
    alone = torch.cat([find_foreground([one], LAYERS, PUBLISHED) for one in maps.split(1)])
    assert torch.equal(together, alone)


def test_the_parameter():
    assert [threshold(given) for given in (False, True, 2, 2.5)] == [None, 10.0, 2.0, 2.5]


# ---- the detector


# The object begins at row 42.
BESIDE = 42 - 14 - 7


def scenes(n: int, spot: tuple[int, int] | None = None) -> np.ndarray:
    """Create plain backgrounds with a bright object in the middle, and a cross at a given position."""
    rng = np.random.default_rng(3)
    found = np.full((n, 140, 140, 3), 60, np.uint8) + rng.integers(0, 6, (n, 140, 140, 3), dtype=np.uint8)
    found[:, 42:98, 42:98] = rng.integers(170, 250, (n, 8, 8, 3), dtype=np.uint8).repeat(7, 1).repeat(7, 2)
    if spot is not None:
        row, column = spot
        found[:, row : row + 4, column : column + 14] = found[:, row : row + 14, column + 5 : column + 9] = (250, 0, 0)
    return found


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> dict:
    weights = write_random_weights("toy_dinov2", tmp_path_factory.mktemp("weights") / "weights.safetensors")
    return {"backbone": "toy_dinov2", "weights": weights, "image_size": 140, "random_state": 0}


@pytest.fixture(scope="module")
def det(network) -> DualDistillationDetector:
    return DualDistillationDetector.recipe("anomalydino", **network, foreground=LEAST).fit(list(scenes(3)))


def test_only_the_object_counts(det, network):
    plain = DualDistillationDetector.recipe("anomalydino", **network).fit(list(scenes(3)))
    normal, beside, upon = scenes(1), scenes(1, (14, 14)), scenes(1, (63, 63))
    assert len(det.patches_) < len(plain.patches_)
    for images in (normal, beside, upon):  # one patch for the dilated rim, and half a patch for upsampling
        assert (det.anomaly_map(images)[0][:BESIDE] == 0).all()
    assert plain.anomaly_map(beside)[0][:BESIDE].max() > 0.1
    with_mask, without = (
        [float(one.anomaly_score(images)[0]) for images in (normal, beside, upon)] for one in (det, plain)
    )
    assert with_mask[2] > 1.2 * max(with_mask[:2])
    assert without[1] > 1.2 * without[0]
    assert with_mask[1] < 1.05 * with_mask[0]


def test_true_is_the_published_threshold(network):
    one, other = (
        DualDistillationDetector.recipe("anomalydino", **network, foreground=given).fit(list(scenes(2)))
        for given in (True, PUBLISHED)
    )
    np.testing.assert_array_equal(one.score_samples(scenes(3)), other.score_samples(scenes(3)))


def test_batch_composition_does_not_matter(det):
    images = [*scenes(2), *scenes(2, (63, 63)), *scenes(1, (14, 14))]
    np.testing.assert_array_equal(det.score_samples(images), [det.score_samples([one])[0] for one in images])


def test_weights_and_matches_use_the_object(det):
    found = det.explain(scenes(1, (63, 63)))[0]
    assert found.support_weights.sum() == pytest.approx(1)
    assert all(28 <= place < 112 for place in (found.matches.row, found.matches.col))


@pytest.mark.parametrize("evidence", ["subspace", ("patch", "subspace", "embedding"), ("ssd", "tsd", "patch")])
def test_with_other_evidence(network, evidence):
    det = DualDistillationDetector(
        **network, foreground=LEAST, evidence=evidence, blur_sigma=0, student=Student(n_steps=2, batch_size=2)
    ).fit(list(scenes(2)))
    assert (det.anomaly_map(scenes(1, (14, 14)))[0][:BESIDE] == 0).all()
    assert np.isfinite(det.score_samples(scenes(2))).all()


def test_model_file(det, tmp_path):
    det.save(tmp_path / "m.fsad", support=True)
    loaded = DualDistillationDetector.load(tmp_path / "m.fsad")
    assert loaded.foreground == LEAST
    np.testing.assert_array_equal(loaded.score_samples(scenes(2)), det.score_samples(scenes(2)))


@pytest.mark.slow
def test_graph(network, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    small = "toy_dinov2_reg"  # a third of the layers to trace
    network = network | {"backbone": small, "weights": write_random_weights(small, tmp_path / "weights.safetensors")}
    det = DualDistillationDetector.recipe(
        "anomalydino", **network, foreground=LEAST, aspect="square", precision="float32", augment=False
    ).fit(list(scenes(2)))
    det.export(tmp_path / "m.onnx")
    images = np.concatenate([scenes(1), scenes(1, (14, 14)), scenes(1, (63, 63))])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    scores, maps = session.run(None, {"image": images.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    np.testing.assert_allclose(scores, det.score_samples(images), atol=1e-5)
    np.testing.assert_allclose(maps, det.anomaly_map(images), atol=1e-4)


def test_network_without_tokens(toy, normal):
    det = DualDistillationDetector(backbone=toy["backbone"], weights=toy["weights"], foreground=True)
    with pytest.raises(ValueError, match="'toy_resnet' is not a plain transformer") as caught:
        det.fit(normal[:2])
    assert "Pass foreground=False, or the name of a transformer as backbone." in str(caught.value)
    DualDistillationDetector(
        backbone=toy["backbone"], weights=toy["weights"], image_size=32, evidence="patch", foreground=False
    ).fit(normal[:2])
