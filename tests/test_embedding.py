"""`transform`: images as rows of numbers, for other estimators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import stripes
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from fewshot_ad import DualDistillationDetector
from fewshot_ad.embedding import score_and_embed
from fewshot_ad.method.features import FeatureExtractor
from fewshot_ad.method.matching import pooled_embedding


@pytest.fixture(scope="module")
def make(toy):
    return lambda **parameters: DualDistillationDetector(**{**toy, "evidence": "patch", **parameters})


@pytest.fixture(scope="module")
def det(make, normal) -> DualDistillationDetector:
    return make().fit(normal[:3])


def test_rows_are_pooled_features(make, det, normal):
    found = det.transform(normal)
    assert (found.shape, found.dtype) == ((12, 32), np.float64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    with_embedding = make(evidence=("patch", "embedding"), augment=False).fit(normal[:3])
    np.testing.assert_array_equal(with_embedding.transform(normal), found)  # independent of `evidence`
    np.testing.assert_array_equal(with_embedding.embeddings_[:, 0].double().numpy(), found[:3])
    extract = with_embedding.session().scorer.extract
    pixels = [torch.from_numpy(image) for image in with_embedding.support_]
    expected = [pooled_embedding(maps)[0].double().numpy() for maps in extract(pixels)]
    np.testing.assert_array_equal(np.stack(expected), found[:3])


def test_rows_depend_only_on_the_image(make, det, normal, anomalous):
    mixed = [normal[5], anomalous[0][:20], anomalous[1], normal[5][:, :15]]
    together = det.transform(mixed)
    for image, row in zip(mixed, together, strict=True):
        np.testing.assert_array_equal(det.transform([image])[0], row)
    np.testing.assert_array_equal(make().fit(normal[6:9]).transform(mixed), together)


def test_more_images_than_a_window(det):
    images = stripes(70, size=16, seed=3)
    found = det.transform(images)
    assert not np.isnan(found).any()
    np.testing.assert_array_equal(found[60:], det.transform(images[60:]))


def test_unreadable_images_are_nan(make, normal, tmp_path):
    lenient = make(on_error="skip").fit(normal[:3])
    for given in ([tmp_path / "none.png", *normal[:2]], [*normal[:2], tmp_path / "none.png"]):
        with pytest.warns(match="Skipped"):
            found = lenient.transform(given)
        assert np.isnan(found).all(1).sum() == 1
        assert not np.isnan(found[1]).any()
    with pytest.raises(ValueError, match=r"none\.png"):
        make().fit(normal[:3]).transform([tmp_path / "none.png"])
    with pytest.raises(NotFittedError):
        make().transform(normal)


def test_fit_transform(make, det, normal):
    y = np.where(np.arange(5) < 3, 1, -1)
    found = make().fit_transform(iter(normal[:5]), y)
    np.testing.assert_array_equal(found, det.transform(normal[:5]))


def test_names_and_data_frames(make, det, normal):
    pandas = pytest.importorskip("pandas")
    names = [f"dualdistillationdetector{i}" for i in range(32)]
    assert det.get_feature_names_out().tolist() == names
    frames = clone(det).set_output(transform="pandas")
    frame = frames.fit_transform(normal[:3])
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == names
    np.testing.assert_array_equal(frames.transform(normal), det.transform(normal))
    assert isinstance(frames.score_samples(normal), np.ndarray)


def test_in_a_pipeline(make, normal, anomalous):
    reduced = make_pipeline(make(), PCA(2)).fit(normal[:4])
    assert reduced.transform(anomalous).shape == (8, 2)
    forest = make_pipeline(make(), IsolationForest(n_estimators=5, random_state=0)).fit(normal[:4])
    assert set(forest.predict(anomalous)) <= {-1, 1}


def test_columns_of_a_table(make, normal):
    pandas = pytest.importorskip("pandas")
    pixels = normal[:4, ::5, ::5].reshape(4, -1) / 255
    table = pandas.DataFrame(pixels, columns=[f"p{i}" for i in range(pixels.shape[1])]).assign(age=np.arange(4.0))
    embed = make(image_shape=(8, 8, 3))
    columns = ColumnTransformer([("image", embed, list(table.columns[:-1]))], remainder="passthrough")
    found = columns.set_output(transform="pandas").fit_transform(table)
    assert list(found.columns[[0, 31, 32]]) == [
        "image__dualdistillationdetector0", "image__dualdistillationdetector31", "remainder__age",
    ]  # fmt: skip
    again = clone(embed).fit(table.iloc[:, :-1])
    np.testing.assert_array_equal(found.iloc[:, :32], again.transform(table.iloc[:, :-1]))
    with pytest.raises(ValueError, match="feature names"):
        again.transform(table.iloc[:, 1:])


@pytest.mark.parametrize("evidence", ["patch", ("patch", "embedding")])
def test_score_and_embed_in_one_pass(make, normal, anomalous, evidence, monkeypatch):
    det = make(evidence=evidence).fit(normal[:3])
    queries = [*normal[3:7], *anomalous[:2]]
    expected = det.anomaly_score(queries), det.transform(queries)
    n_seen = []
    batch = FeatureExtractor.batch
    monkeypatch.setattr(FeatureExtractor, "batch", lambda self, x: n_seen.append(len(x)) or batch(self, x))
    scores, embeddings = score_and_embed(det.session(), queries)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(embeddings, expected[1])
    assert sum(n_seen) == len(queries)
