"""The subspace of the support's patches: compared with scikit-learn, leave-one-out, files and graphs."""

import numpy as np
import pytest
import torch
from helpers import stripes, write_random_weights
from sklearn.decomposition import PCA

from fewshot_ad import DualDistillationDetector
from fewshot_ad.method import subspace
from fewshot_ad.method.layers import Layers
from fewshot_ad.method.matching import patch_features
from fewshot_ad.method.subspace import Moments, Subspaces, find_subspaces, subspace_evidence, subspace_features


@pytest.fixture(scope="module")
def patches():
    """Patches of four images, (50, 12) each, with most variance in a few directions."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator) * (0.5 ** torch.arange(12))[:, None]
    return [torch.randn(50, 12, generator=generator) @ mixing + 1 for _ in range(4)]


def residuals(fitted_on, queries):
    """Compute squared residuals with scikit-learn's principal components."""
    pca = PCA(0.99, svd_solver="full").fit(fitted_on.double().numpy())
    given = queries.double().numpy()
    return ((given - pca.inverse_transform(pca.transform(given))) ** 2).sum(1), pca.n_components_


def test_residuals_equal_principal_component_residuals(patches):
    """The subspaces are those of all images, and of all but one, without any trace of it."""
    left_out = torch.eye(4, dtype=torch.bool)
    left_out[2, 3] = left_out[3, 2] = True  # near-duplicates of each other
    found = find_subspaces([Moments.of([part[:20], part[20:]]) for part in patches], left_out)
    assert found.means.shape == (5, 12)
    queries = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    maps = [queries.T.reshape(1, 12, 5, 6)]
    for owner in range(-1, 4):
        exclude = left_out[owner : owner + 1] if owner >= 0 else torch.zeros(1, 4, dtype=torch.bool)
        kept = torch.cat([part for part, is_out in zip(patches, exclude[0], strict=True) if not is_out])
        # Tokens of one layer have norm 1.
        given = queries / queries.norm(dim=1, keepdim=True)
        expected, rank = residuals(kept, given)
        distance, weights = subspace_evidence(maps, Layers((1,), True), found, exclude)
        np.testing.assert_allclose(distance.flatten(), expected, rtol=2e-3)
        assert found.bases[owner + 1].any(0).sum() == rank < 12
        assert weights.sum() == pytest.approx(1)
        assert not weights[exclude].any()


def test_constant_patches():
    found = find_subspaces([Moments.of([torch.ones(9, 4)])], torch.zeros(1, 1, dtype=torch.bool))
    distance, _ = subspace_evidence([torch.ones(1, 4, 2, 2)], Layers((1,), True), found, torch.zeros(1, 1).bool())
    assert torch.isfinite(distance).all()


def test_patches_in_the_subspace():
    maps = [torch.rand(2, c, 6, 6) for c in (3, 5, 7)]
    torch.testing.assert_close(subspace_features(maps, Layers()), patch_features(maps))
    tokens = [torch.rand(2, 8, 3, 4) for _ in range(2)]
    expected = sum(m / m.norm(dim=1, keepdim=True) for m in tokens) / 2
    torch.testing.assert_close(subspace_features(tokens, Layers((2, 5), True)), expected.flatten(2).transpose(1, 2))


# ---- the detector


@pytest.fixture(scope="module")
def options(toy):
    return {**toy, "evidence": "subspace"}


@pytest.fixture(scope="module")
def det(options, normal):
    return DualDistillationDetector(**options).fit(normal[:4])


def test_anomalies_are_found(det, normal, anomalous):
    assert det.patches_ is None
    assert np.median(det.score_samples(normal[4:])) > det.score_samples(anomalous).max()
    one = det.explain(anomalous[:1])[0]
    assert one.matches is None
    assert one.map[16:26, 16:26].mean() > 3 * one.map[:12, :12].mean()
    np.testing.assert_allclose(det.support_weights(anomalous[:2]), 0.25)


def test_support_image_is_scored_without_itself(det, options, normal):
    """The score is that of a detector fitted without it; the scale of a single component is 1."""
    others = DualDistillationDetector(**options).fit([normal[i] for i in (0, 2, 3)])
    expected = others.score_samples(normal[1:2])
    np.testing.assert_allclose(det.score_samples(normal[1:2]), expected, rtol=1e-6)
    np.testing.assert_allclose(det.support_scores_[1], expected[0], rtol=1e-6)
    assert det.support_weights(normal[1:2])[0, 1] == 0


def test_file_size_and_contents(det, options, normal, anomalous, tmp_path):
    det.save(tmp_path / "model.fsad")
    assert (tmp_path / "model.fsad").stat().st_size < 100_000
    again = DualDistillationDetector.load(tmp_path / "model.fsad")
    queries = [*normal[1:6], *anomalous[:2]]
    np.testing.assert_array_equal(again.score_samples(queries), det.score_samples(queries))
    compact = DualDistillationDetector(evidence="subspace", random_state=0).fit(stripes(4, size=64))
    compact.save(tmp_path / "compact.fsad")
    assert (tmp_path / "compact.fsad").stat().st_size < 1_000_000


def test_rounding_for_the_file_moves_scores_little(det, normal, anomalous, monkeypatch, options):
    held = DualDistillationDetector(**options)

    def exact(*given):
        found = [subspace._principal(given[0], pattern) for pattern in [(False,) * 4, *map(tuple, given[1].tolist())]]
        widest = max(basis.shape[1] for _, basis in found)
        padded = [torch.nn.functional.pad(basis, (0, widest - basis.shape[1])) for _, basis in found]
        return Subspaces(torch.stack([mean for mean, _ in found]).float(), torch.stack(padded).float())

    monkeypatch.setattr("fewshot_ad.support.find_subspaces", exact)
    held.fit(normal[:4])
    queries = [*normal[4:8], *anomalous[:4]]
    # Relative scores, as in tables: 1 is the threshold.
    moved = (det.score_samples(queries) - held.score_samples(queries)) / held.offset_
    assert 0 < np.abs(moved).max() < 1e-3


@pytest.mark.parametrize(
    "evidence", [("subspace", "patch"), ("subspace", "embedding", "tsd"), {"subspace": 2.0}], ids=str
)
def test_combined_with_other_components(toy, normal, anomalous, evidence):
    det = DualDistillationDetector(**{**toy, "evidence": evidence}).fit(normal[:4])
    assert set(det.scales_) == set(evidence)
    assert det.score_samples(normal[4:]).mean() > det.score_samples(anomalous).mean()
    maps = det.anomaly_map(anomalous[:1])
    assert maps.shape == (1, 32, 32)


def test_weight_in_a_mapping(det, options, normal, anomalous):
    twice = DualDistillationDetector(**{**options, "evidence": {"subspace": 2.0}}).fit(normal[:4])
    np.testing.assert_allclose(twice.score_samples(anomalous), 2 * det.score_samples(anomalous), rtol=1e-6)


def test_partial_fit(det, options, normal, anomalous):
    added = DualDistillationDetector(**options).fit(normal[:3]).partial_fit(normal[3:4])
    np.testing.assert_array_equal(added.score_samples(anomalous), det.score_samples(anomalous))


def test_near_duplicates_are_left_out_together(options, normal):
    """A repeated image is scored against neither of its copies."""
    twice = DualDistillationDetector(**options).fit([normal[0], normal[1], normal[2], normal[2].copy()])
    once = DualDistillationDetector(**options).fit(normal[:2])
    np.testing.assert_allclose(twice.score_samples(normal[2:3]), once.score_samples(normal[2:3]), rtol=1e-6)


def test_single_image(options, normal, anomalous):
    with pytest.warns(UserWarning, match="single image"):
        det = DualDistillationDetector(**options, contrast=0.5).fit(normal[:1])
    assert det.score_samples(normal[1:3]).min() > det.score_samples(anomalous).max()


def test_augmented_views_are_used(options, normal):
    plain = DualDistillationDetector(**{**options, "augment": False}).fit(normal[:3])
    turned = DualDistillationDetector(**options).fit(normal[:3])
    query = [np.ascontiguousarray(np.rot90(normal[5]))]
    assert turned.score_samples(query) > plain.score_samples(query)


@pytest.mark.parametrize("damage", ["shape", "dtype", "missing"])
def test_damaged_files_are_refused(det, tmp_path, damage):
    from fewshot_ad.exceptions import CheckpointError
    from fewshot_ad.files import checkpoints, model_file

    tensors, header = (
        model_file._tensors(det.fitted_, False),
        model_file._header(det.fitted_, det.fitted_.settings, False),
    )
    if damage == "missing":
        del tensors["subspace_bases"]
    elif damage == "shape":
        tensors["subspace_means"] = tensors["subspace_means"][:, :-1].contiguous()
    else:
        tensors["subspace_bases"] = tensors["subspace_bases"].float()
    sealed = {**header, "sha256": model_file._digest(header, tensors)}
    checkpoints.save(tmp_path / "m.fsad", tensors, model_file.FORMAT, sealed)
    with pytest.raises(CheckpointError, match=r"is not valid: .*subspace_"):
        DualDistillationDetector.load(tmp_path / "m.fsad")


@pytest.mark.slow
def test_as_onnx(tmp_path, normal, anomalous):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights = write_random_weights("toy_resnet", tmp_path / "weights.safetensors")
    det = DualDistillationDetector(
        "toy_resnet", weights=weights, image_size=32, aspect="square", evidence=("subspace", "patch"), random_state=0,
        precision="float32", augment=False,
    ).fit(normal[:3])  # fmt: skip
    det.export(tmp_path / "model.onnx")
    found = ort.InferenceSession(tmp_path / "model.onnx").run(
        None, {"image": anomalous[:2].transpose(0, 3, 1, 2).astype(np.float32) / 255}
    )
    np.testing.assert_allclose(found[0], det.score_samples(anomalous[:2]), rtol=1e-4)
    np.testing.assert_allclose(found[1], det.anomaly_map(anomalous[:2]), rtol=1e-3, atol=1e-4)
