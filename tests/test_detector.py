from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from helpers import corrupted, make_detector, stripes, write_random_weights
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.nn import functional as F

import fewshot_ad.images
from fewshot_ad import DualDistillationDetector, support
from fewshot_ad.data import images, views
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import (
    CheckpointError,
    ImageError,
    ImageSkippedWarning,
    SupportWarning,
    TrainingError,
    WeightsNotFoundError,
)
from fewshot_ad.method.features import FeatureExtractor
from fewshot_ad.method.scoring import Evidence, run_student
from fewshot_ad.training import students

EVIDENCE = ["ssd", "tsd", "patch", "embedding", ("ssd", "tsd", "patch", "embedding"), {"ssd": 1.0, "tsd": 0.1}]


@pytest.fixture
def make(toy):
    return lambda **parameters: make_detector(**{**toy, **parameters})


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    return DualDistillationDetector(**toy).fit(normal[:4])


# ---- results


def test_shapes_types_and_signs(fitted, normal, anomalous):
    queries = np.concatenate([normal[4:], anomalous])
    scores = fitted.score_samples(queries)
    decision = fitted.decision_function(queries)
    maps = fitted.anomaly_map(queries)
    weights = fitted.support_weights(queries)
    assert scores.dtype == decision.dtype == np.float64
    assert maps.dtype == np.float32
    assert maps.shape == (16, 32, 32)
    assert weights.shape == (16, 4)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(fitted.anomaly_score(queries), -scores)
    np.testing.assert_array_equal(decision, scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(queries), np.where(decision >= 0, 1, -1))


@pytest.mark.parametrize("evidence", EVIDENCE, ids=str)
@pytest.mark.parametrize("aggregation", ["max", "mean", 0.05])
def test_score_is_the_aggregate_of_the_map(make, normal, anomalous, evidence, aggregation):
    det = make(evidence=evidence, aggregation=aggregation, border_weight=0.25, contrast=0.0).fit(normal[:3])
    maps = det.anomaly_map(anomalous[:3])
    whole = np.zeros(3)  # of the embedding, which has no map unless it is the only component
    if "embedding" in evidence and evidence != "embedding":
        queries = torch.stack([images.load(image, 0, Geometry(32)) for image in anomalous[:3]])
        read = det.session().scorer.read_all(queries, torch.zeros(3, 3, dtype=torch.bool))
        whole = np.array([float(one.whole[0, 0]) for one in read]) / det.scales_["embedding"]
    count = {"max": 1, "mean": 1024}.get(aggregation, 51)
    # 0.25 at the edge, 1 from an eighth, four pixels, on.
    middle = np.minimum(np.arange(32) + 0.5, 31.5 - np.arange(32))
    weight = 0.25 + 0.75 * np.minimum(np.minimum.outer(middle, middle) / 4, 1)
    for border_weight, faded, contrast in ((0.25, weight, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 0.4)):
        settings = replace(det.fitted_.settings, border_weight=border_weight, contrast=contrast)
        det.fitted_ = replace(det.fitted_, settings=settings)
        pixels = np.sort((maps * faded).reshape(3, -1).astype(float), axis=1)
        expected = whole + pixels[:, -count:].mean(1) - contrast * maps.mean((1, 2))
        if evidence == "embedding":  # one number per image
            expected = maps[:, 0, 0]
        np.testing.assert_allclose(det.anomaly_score(anomalous[:3]), expected, rtol=1e-5)
        np.testing.assert_array_equal(det.anomaly_map(anomalous[:3]), maps)


@pytest.mark.parametrize("evidence", ["patch", ("ssd", "tsd", "patch")], ids=str)
def test_painted_defects_are_detected_and_localised(make, evidence):
    det = make(evidence=evidence, blur_sigma=1.0).fit(stripes(4))
    fresh = stripes(8, seed=5)
    normal, bad = det.score_samples(fresh), det.score_samples(corrupted(fresh))
    assert (bad < normal).mean() >= 7 / 8
    maps = det.anomaly_map(corrupted(fresh)) - det.anomaly_map(fresh)
    # The square covers rows and columns 20 to 32 of 40, that is 16 to 26 of 32.
    assert maps[:, 16:26, 16:26].mean() > 3 * np.abs(maps[:, :10, :10]).mean()


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_scores_do_not_depend_on_batch_size_order_or_other_images(make, normal, anomalous, precision):
    det = make(precision=precision).fit(normal[:4])
    queries = np.concatenate([normal[4:], anomalous])
    scores, maps, weights = det.score_samples(queries), det.anomaly_map(queries), det.support_weights(queries)
    order = np.random.default_rng(0).permutation(len(queries))
    np.testing.assert_array_equal(det.score_samples(queries[order]), scores[order])
    np.testing.assert_array_equal(det.anomaly_map(queries[order]), maps[order])
    for i in (0, 7, 15):
        np.testing.assert_array_equal(det.score_samples(queries[i : i + 1]), scores[i : i + 1])
        np.testing.assert_array_equal(det.anomaly_map(queries[i : i + 1]), maps[i : i + 1])
        np.testing.assert_array_equal(det.support_weights(queries[i : i + 1]), weights[i : i + 1])
    det.set_params(student__batch_size=3)
    np.testing.assert_array_equal(det.score_samples(queries), scores)


def test_same_seed_same_bits(make, normal, anomalous):
    scores = [make(random_state=seed).fit(normal[:4]).score_samples(anomalous) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_random_state_object(make, normal, anomalous):
    a = make(random_state=np.random.RandomState(3)).fit(normal[:4]).score_samples(anomalous)
    b = make(random_state=np.random.RandomState(3)).fit(normal[:4]).score_samples(anomalous)
    np.testing.assert_array_equal(a, b)


def test_copy_of_a_support_image_is_scored_against_the_others(fitted, normal):
    np.testing.assert_array_equal(fitted.score_samples(normal[:4]), fitted.support_scores_)
    weights = fitted.support_weights(normal[:4])
    np.testing.assert_array_equal(np.diag(weights), 0)


def test_input_types_give_the_same_scores(fitted, anomalous, tmp_path):
    expected = fitted.score_samples(anomalous[:2])
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, anomalous, strict=False):
        Image.fromarray(image).save(path)
    for same in [
        paths,
        [str(path) for path in paths],
        np.array([str(path) for path in paths]),
        [Image.fromarray(image) for image in anomalous[:2]],
        list(anomalous[:2]),
        torch.from_numpy(anomalous[:2]).permute(0, 3, 1, 2),
        anomalous[:2] / np.float32(255),
        anomalous[:2].astype(np.uint16) * 257,
    ]:
        np.testing.assert_allclose(fitted.score_samples(same), expected, rtol=1e-4)
    np.testing.assert_array_equal(fitted.score_samples(paths[1]), fitted.score_samples(paths)[1:])


def test_grey_images_and_2d_queries(make):
    grey = stripes(5)[..., 0]
    det = make().fit(grey[:4])
    # After fitting on images, a 2-D array is one grey image.
    np.testing.assert_array_equal(det.score_samples(grey[4]), det.score_samples(grey[4:]))


def test_rows_are_images_of_image_shape(make):
    images = stripes(7)[[0, 1, 2, 4, 5, 6]]  # 2 and 3 are near-duplicates, which are not searched in rows
    rows = images.reshape(6, -1)
    by_rows = make(image_shape=(40, 40, 3)).fit(rows[:4])
    by_images = make().fit(images[:4])
    np.testing.assert_allclose(by_rows.score_samples(rows[4:]), by_images.score_samples(images[4:]), rtol=1e-5)
    assert by_rows.row_range_ == (0.0, 255.0)
    assert by_rows.n_features_in_ == 4800
    with pytest.raises(ValueError, match="4800 columns, but image_shape="):
        make(image_shape=(40, 40)).fit(rows)


def test_rows_use_the_value_range_of_fit(make):
    rows = np.random.default_rng(0).normal(size=(8, 20))
    det = make().fit(rows)
    assert det.row_range_ == (rows.min(), rows.max())
    far = np.vstack([rows[0], rows[0] + 1e9])
    assert np.isfinite(det.score_samples(far)).all()


def test_value_range_is_a_window(make):
    images = stripes(6)
    window = make(value_range=(-1000.0, 2000.0)).fit(list(images[:4] * (3000.0 / 255) - 1000))
    plain = make().fit(images[:4])
    shifted = list(images[4:] * (3000.0 / 255) - 1000)
    np.testing.assert_allclose(window.score_samples(shifted), plain.score_samples(images[4:]), rtol=1e-4)


# ---- evidence, paper's setting, training


def test_scales_are_mean_components(make, normal):
    det = make(evidence=("patch", "ssd", "tsd", "embedding")).fit(normal[:4])
    assert list(det.scales_) == ["patch", "ssd", "tsd", "embedding"]
    scorer = det.session().scorer
    support = torch.from_numpy(det.support_)
    held_out = views.random_views(support, 2, np.random.default_rng(det.fitted_.held_out_seed))
    of_each = scorer.read_all(held_out, torch.eye(4, dtype=torch.bool).repeat_interleave(2, 0))
    read = Evidence(*map(torch.cat, zip(*of_each, strict=True)))
    weighted = read.maps * torch.tensor(list(scorer.weights.values())[:3])[:, None, None]
    found = [scorer.reduction.reduce(weighted[:, kinds].sum(1)).mean().item() for kinds in ([0], [1, 2])]
    found.append(read.whole[:, 0].mean().item() * scorer.weights["embedding"])
    assert found == pytest.approx([1 / 1.3, 0.1 / 1.3, 0.2 / 1.3], rel=1e-4)  # the weights of patch, student, embedding
    assert make(evidence="ssd").fit(normal[:4]).scales_ == {"ssd": 1.0}


def test_paper_setting():
    det = DualDistillationDetector.paper()
    assert det.backbone == "wide_resnet50_2.tv_in1k"
    assert (det.evidence, det.aggregation, det.blur_sigma, det.lam) == ("ssd", "max", 4.0, 0.1)
    assert (det.student.loss, det.student.decoder_blocks, det.student.tol) == ("flattened", (3, 4, 6), 0)
    assert (det.border_weight, det.contrast, det.upsampling) == (1, 0, "align_corners")
    assert DualDistillationDetector.paper("resnet18", lam=1.0).lam == 1.0
    changed = DualDistillationDetector.paper(student__weighting="uniform").student
    assert (changed.weighting, changed.loss) == ("uniform", "flattened")


def test_paper_map_equals_the_published_code(toy, normal, anomalous):
    """The reference sums cosine distances upsampled with aligned corners, and blurs them with scipy, per image."""
    det = DualDistillationDetector.paper(**{**toy, "precision": "float64", "blur_sigma": 16.0}).fit(normal[:4])
    scorer = det.session().scorer
    batch = torch.stack([images.load(image, 0, det.fitted_.geometry) for image in anomalous[:2]])
    read = scorer.read(batch, torch.zeros(2, 4, dtype=torch.bool))
    for one, shown, score in zip(read, det.anomaly_map(anomalous[:2]), det.anomaly_score(anomalous[:2]), strict=True):
        distance = 0.0
        for expert in scorer.memory.experts:
            own = run_student(expert.student, batch, one.maps, scorer.extract.runtime)
            shapes = expert.support(own)
            references, _ = expert.student.weighting(own, shapes.maps, shapes.keys, torch.zeros(1, 4, dtype=torch.bool))
            for maps, reference in zip(own, references, strict=True):
                found = 1 - F.cosine_similarity(maps, reference, dim=1)
                large = F.interpolate(found[:, None], size=shown.shape, mode="bilinear", align_corners=True)[0, 0]
                distance = distance + large.double().numpy() / len(scorer.memory.experts)
        published = gaussian_filter(distance, 16.0 * 32 / 128)
        np.testing.assert_allclose(shown, published, rtol=0, atol=1e-5)
        assert score == pytest.approx(published.max(), abs=1e-5)


def test_patch_alone_needs_no_training(make, normal):
    det = make(evidence="patch").fit(normal[:4])
    assert det.experts_ == []
    assert det.loss_curve_ == []


def test_uniform_weighting(make, normal):
    weights = make(student__weighting="uniform", evidence="ssd").fit(normal[:4]).support_weights(normal[5:7])
    np.testing.assert_allclose(weights, 0.25)


def test_lam_changes_the_student_and_inf_is_tsd_alone(make, normal, anomalous):
    scores = [
        make(lam=lam, evidence="tsd", student__n_steps=20).fit(normal[:4]).score_samples(anomalous)
        for lam in (0.0, 0.1, 1.0, np.inf)
    ]
    for a, b in itertools.pairwise(scores):
        assert not np.array_equal(a, b)


def test_encoder_student(make, normal, anomalous):
    det = make(student__architecture="encoder", student__n_steps=10).fit(normal[:4])
    assert det.score_samples(anomalous).shape == (8,)
    assert np.mean(det.loss_curve_[8:10]) < np.mean(det.loss_curve_[:2])


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("resnet18", 48), ("mobilenetv2_100", 48), ("convnext_atto", 64), ("swin_s3_tiny_224", 32),
        ("vit_tiny_patch16_224", 48),
    ],
)  # fmt: skip
@pytest.mark.parametrize("student", ["decoder", "encoder"])
def test_backbones(make, normal, anomalous, tmp_path, backbone, size, student):
    options = {"img_size": size} if "224" in backbone else {}
    weights = write_random_weights(backbone, tmp_path / "weights.safetensors", **options)
    aspect = "square" if options else "keep"
    det = make(
        backbone=backbone, weights=weights, image_size=size, aspect=aspect, student__architecture=student,
        student__n_steps=1, student__batch_size=2,
    )  # fmt: skip
    det.fit(normal[:2])
    scores = det.score_samples(anomalous[:2])
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(det.score_samples(anomalous[1:2]), scores[1:])
    assert det.anomaly_map(anomalous[:1]).shape == (1, size, size)


def test_support_is_cross_fitted(fitted):
    seen = torch.stack([expert.seen for expert in fitted.experts_])
    assert seen.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert len(fitted.loss_curve_) == 2 * 3


def test_auxiliary_trains_one_student(make, normal, anomalous, tmp_path):
    auxiliary = {"dots": corrupted(stripes(6, seed=9), side=6), "grey": list(stripes(5, seed=8)[..., :1])}
    det = make(student__n_steps=5).fit(normal[:4], auxiliary=auxiliary)
    assert [expert.seen.any().item() for expert in det.experts_] == [False]
    path = tmp_path / "student.safetensors"
    det.save_student(path)
    again = make(init=path, student__n_steps=0).fit(normal[:4])
    np.testing.assert_array_equal(again.score_samples(anomalous), det.score_samples(anomalous))
    assert again.loss_curve_ == []
    tuned = make(init=path, student__n_steps=2).fit(normal[:4])
    assert not np.array_equal(tuned.score_samples(anomalous), det.score_samples(anomalous))


def test_init_of_another_teacher_or_form_is_refused(make, toy, normal, tmp_path):
    path = tmp_path / "student.safetensors"
    make(evidence="ssd").fit(normal[:4], auxiliary={"a": stripes(6)}).save_student(path)
    other = write_random_weights("toy_resnet", tmp_path / "other.safetensors", seed=1)
    with pytest.raises(CheckpointError, match=r"belongs to the teacher 'toy_resnet'.*not to 'toy_resnet'"):
        make(init=path, weights=other).fit(normal[:4])
    with pytest.raises(CheckpointError, match="weighting='attention'"):
        make(init=path, student__weighting="uniform").fit(normal[:4])
    with pytest.raises(CheckpointError, match="does not exist"):
        make(init=tmp_path / "none.safetensors").fit(normal[:4])


@pytest.mark.parametrize(("evidence", "reason"), [("patch", "trains none"), ("ssd", "for this support only")])
def test_student_trained_on_the_support_is_not_saved(make, normal, tmp_path, evidence, reason):
    with pytest.raises(ValueError, match=reason):
        make(evidence=evidence).fit(normal[:4]).save_student(tmp_path / "student.safetensors")


def test_zero_steps_need_a_trained_student(make, normal):
    with pytest.raises(ValueError, match=r"n_steps=0 trains no student.*Pass init="):
        make(student__n_steps=0).fit(normal[:4])
    with pytest.raises(ValueError, match="auxiliary= was given to train it"):
        make(student__n_steps=0).fit(normal[:4], auxiliary={"a": normal})
    make(student__n_steps=0, evidence="patch").fit(normal[:4])


@pytest.mark.parametrize("auxiliary", [{}, [1, 2]])
def test_auxiliary_must_be_a_mapping(make, normal, auxiliary):
    with pytest.raises(ValueError, match="it must be a mapping"):
        make().fit(normal[:4], auxiliary=auxiliary)


def test_auxiliary_errors_name_the_task(make, normal):
    with pytest.raises(ValueError, match="Auxiliary task 'alone' has 1 usable"):
        make().fit(normal[:4], auxiliary={"alone": normal[:1]})
    with pytest.raises(ImageError, match="Auxiliary task 'lost'"):
        make().fit(normal[:4], auxiliary={"lost": ["nowhere.png", "nowhere2.png"]})


def test_memory_computes_features_once(make, normal, anomalous, tmp_path, monkeypatch):
    seen = []
    real = FeatureExtractor._compute
    monkeypatch.setattr(FeatureExtractor, "_compute", lambda self, images: (seen.extend(images), real(self, images))[1])
    det = make().fit(normal[:4])
    assert len(seen) == len({image.numpy().tobytes() for image in seen})  # one fit, without memory
    assert len(seen) == 4 * (1 + 16 + 7 + 2)  # image, training views, rotated and mirrored views, held-out views
    plain = det.score_samples(anomalous)
    seen.clear()
    for lam in (0.01, 0.1, 1.0):
        det = make(lam=lam, memory=tmp_path).fit(normal[:4])
        scores = det.score_samples(anomalous)
        if lam == 0.1:
            np.testing.assert_array_equal(scores, plain)
    distinct = {image.numpy().tobytes() for image in seen}
    assert len(seen) == len(distinct)
    make(memory=joblib.Memory(str(tmp_path), verbose=0)).fit(normal[:4])
    assert len(seen) == len(distinct)


def test_partial_fit_adds_support(make, normal, anomalous):
    det = make().fit(normal[:2])
    students = [copy.deepcopy(expert.student.state_dict()) for expert in det.experts_]
    det.partial_fit(normal[2:4])
    assert det.support_.shape == (4, 3, 32, 32)
    assert det.support_weights(anomalous).shape == (8, 4)
    assert det.support_scores_.shape == (4,)
    for before, expert in zip(students, det.experts_, strict=True):
        assert all(torch.equal(before[key], value) for key, value in expert.student.state_dict().items())
    first = make().partial_fit(normal[:2])
    np.testing.assert_array_equal(first.score_samples(anomalous), make().fit(normal[:2]).score_samples(anomalous))


def test_partial_fit_of_patches_equals_fit(make, normal, anomalous):
    step = make(evidence="patch").fit(normal[:2]).partial_fit(normal[2:4])
    whole = make(evidence="patch").fit(normal[:4])
    np.testing.assert_array_equal(step.score_samples(anomalous), whole.score_samples(anomalous))


def test_contamination_is_the_fraction_of_the_support(make, normal):
    det = make(contamination=0.25, evidence="patch").fit(normal)
    assert (det.predict(normal) == -1).sum() == 3


def test_labelled_rows_are_left_out(make, normal, anomalous):
    mixed = np.concatenate([anomalous[:2], normal[:4]])
    a = make().fit(mixed, [-1, -1, 1, 1, 1, 1])
    np.testing.assert_array_equal(a.score_samples(anomalous), make().fit(normal[:4]).score_samples(anomalous))
    with pytest.raises(ValueError, match="every image -1"):
        make().fit(anomalous, [-1] * 8)
    np.testing.assert_array_equal(make().fit(mixed, [-1.0, -1, 1, 1, 1, 1]).offset_, a.offset_)
    for labels in ([1, 1, 0, 0, 0, 0], ["bad", "bad", *["good"] * 4], [True, True, *[False] * 4], [np.nan, *[1] * 5]):
        for y in (labels, np.array(labels, object)):
            with pytest.raises(ValueError, match=r"y has the labels .*they must be \+1 for normal"):
                make().fit(mixed, y)
    with pytest.raises(ValueError, match="inconsistent"):
        make().fit(mixed, [1, 1])


# ---- small, unusual and invalid supports


@pytest.mark.parametrize("evidence", EVIDENCE, ids=str)
def test_one_support_image_works_with_a_warning(make, normal, anomalous, evidence):
    with pytest.warns(SupportWarning, match="single image.*thresholds are guesses"):
        det = make(evidence=evidence).fit(normal[:1])
    assert np.isfinite(det.decision_function(anomalous)).all()


def test_outlier_in_the_support_is_named(make, normal, tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("one", "two", "alien", "four")]
    for path, image in zip(paths, [*normal[:2], corrupted(normal[2:3])[0] ^ 255, normal[3]], strict=True):
        Image.fromarray(image).save(path)
    with pytest.warns(
        SupportWarning, match=r"alien\.png is an outlier among the support images.*times the median"
    ) as caught:
        det = make(evidence="patch").fit(paths)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert det.support_scores_.argmin() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = make(evidence="patch").fit(normal[[0, 1, 2, 4]])
    with pytest.warns(SupportWarning, match="image 0 is an outlier"):
        clean.partial_fit([normal[5] ^ 255])


def test_equal_support_images_work_with_a_warning(make, normal, anomalous):
    with pytest.warns(SupportWarning, match="All 3 support images are identical"):
        det = make().fit(np.stack([normal[0]] * 3))
    assert np.isfinite(det.decision_function(anomalous)).all()


def test_an_ordinary_support_does_not_warn(make, normal):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().fit(normal[:2])


@pytest.mark.parametrize("empty", [[], np.zeros((0, 8, 8, 3), np.uint8), ()])
def test_empty_support(make, empty):
    with pytest.raises(ImageError, match="no images"):
        make().fit(empty)


def test_unreadable_files(make, normal, tmp_path):
    good = [tmp_path / f"good{i}.png" for i in range(3)]
    for path, image in zip(good, normal, strict=False):
        Image.fromarray(image).save(path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good[0].read_bytes()[:500])
    files = [good[0], broken, *good[1:]]
    with pytest.raises(ImageError, match=r"Image 2 of 4: .*broken\.png"):
        make().fit(files)
    det = make(on_error="skip")
    with pytest.warns(ImageSkippedWarning, match=r"broken\.png"):
        det.fit(files)
    assert len(det.support_) == 3
    with pytest.warns(ImageSkippedWarning):
        scores = det.score_samples(files)
    assert np.isnan(scores).tolist() == [False, True, False, False]
    with pytest.warns(ImageSkippedWarning):
        assert det.predict([broken]).tolist() == [-1]
    with pytest.warns(ImageSkippedWarning):
        assert np.isnan(det.anomaly_map([broken])).all()
    with pytest.warns(ImageSkippedWarning), pytest.raises(ImageError, match="None of the 1 images"):
        make(on_error="skip").fit([broken])


def test_max_pixels(make, normal, monkeypatch):
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="40 x 40 = 1600 pixels, more than the limit of 1000"):
        make().fit([Image.fromarray(image) for image in normal[:2]])


def test_not_fitted(make, normal):
    for method in ("predict", "decision_function", "score_samples", "anomaly_map", "support_weights"):
        with pytest.raises(NotFittedError):
            getattr(make(), method)(normal)
    with pytest.raises(NotFittedError):
        make().save_student("student.safetensors")


@pytest.mark.parametrize(
    "bad",
    [
        {"student__architecture": "both"}, {"student__decoder_blocks": (1, 2)}, {"student__decoder_blocks": (1, 0, 1)},
        {"student__weighting": "none"}, {"student__loss": "l2"}, {"on_error": "ignore"}, {"image_size": 4},
        {"image_size": 32.0}, {"lam": -1}, {"lam": "0.1"}, {"lam": np.nan}, {"student__sharpness": -1},
        {"blur_sigma": -1},
        {"border_weight": 1.1},
        {"contrast": -0.1},
        {"student__n_steps": -1}, {"student__batch_size": 0},
        {"student__learning_rate": 0}, {"student__tol": -1}, {"aggregation": 0}, {"aggregation": 1.5},
        {"aggregation": "median"}, {"contamination": 0.6}, {"contamination": 0}, {"value_range": (1, 0)},
        {"image_shape": (4,)}, {"image_shape": (4, 4, 2)}, {"value_range": (-np.inf, 0)},
        {"evidence": "all"}, {"precision": "int8"},
        {"device": "toaster"}, {"contamination": "high"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_parameters_are_named(make, normal, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}="):
        make(**bad).fit(normal[:2])


def test_missing_weights(make, normal):
    with pytest.raises(WeightsNotFoundError, match=r"nowhere\.safetensors does not exist"):
        make(weights="nowhere.safetensors").fit(normal[:2])


# ---- faults


def test_failed_fit_leaves_the_detector_unchanged(make, normal, anomalous, monkeypatch):
    det = make()
    untouched = dict(vars(det))
    with pytest.raises(ImageError):
        det.fit(["nowhere.png"])
    assert vars(det) == untouched
    det.fit(normal[:4])
    before = det.score_samples(anomalous)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(students, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        det.fit(normal[4:8])
    np.testing.assert_array_equal(det.score_samples(anomalous), before)
    with pytest.raises(KeyboardInterrupt):
        clone(det).fit(normal[4:8])
    monkeypatch.setattr(support.calibration, "offset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        det.partial_fit(normal[4:8])
    np.testing.assert_array_equal(det.score_samples(anomalous), before)


def test_divergence_is_reported(make, normal):
    with pytest.raises(TrainingError, match="Lower learning_rate"):
        make(student__learning_rate=1e30, student__n_steps=200).fit(normal[:4])


# ---- pickles


@pytest.mark.parametrize("through", ["pickle", "joblib", "deepcopy"])
def test_round_trip(fitted, anomalous, tmp_path, through):
    if through == "pickle":
        again = pickle.loads(pickle.dumps(fitted))
    elif through == "joblib":
        joblib.dump(fitted, tmp_path / "det.joblib")
        again = joblib.load(tmp_path / "det.joblib")
    else:
        again = copy.deepcopy(fitted)
    np.testing.assert_array_equal(again.decision_function(anomalous), fitted.decision_function(anomalous))


def test_pickle_has_cpu_tensors_and_no_teacher(make, normal):
    det = make(evidence="patch").fit(normal[:2])
    data = pickle.dumps(det)
    assert len(data) < det.patches_.nbytes + det.support_.nbytes + 30_000
    fitted = pickle.loads(data).fitted_
    tensors = [*fitted.images, *vars(fitted.patches).values()]
    assert len(tensors) == 2 + 3
    assert all(tensor.device.type == "cpu" for tensor in tensors)


def test_the_teacher_of_a_pickle_is_checked(toy, normal, tmp_path):
    weights = write_random_weights("toy_resnet", tmp_path / "teacher.safetensors")
    data = pickle.dumps(DualDistillationDetector(**{**toy, "weights": weights}).fit(normal[:2]))
    write_random_weights("toy_resnet", weights, seed=7)
    with pytest.raises(WeightsNotFoundError, match="not those that this detector was fitted with"):
        pickle.loads(data).predict(normal)
    weights.unlink()
    with pytest.raises(WeightsNotFoundError, match="does not exist"):
        pickle.loads(data).predict(normal)


def test_verbose_shows_progress(make, normal, capsys):
    make(verbose=1).fit(normal[:2], auxiliary={"a": normal}).score_samples(normal)
    shown = capsys.readouterr().err
    assert "auxiliary: 100%" in shown
    assert "training: 100%" in shown
    assert "scoring: 100%" in shown


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ({}, ("patch",)),
        ({"student__n_steps": 2}, ("ssd", "tsd", "patch")),
        ({"lam": 1.0}, ("ssd", "tsd", "patch")),
        ({"student_weight": 0.1}, ("ssd", "tsd", "patch")),
        ({"student_weight": 0.0, "lam": 1.0}, ("patch",)),
        ({"embedding_weight": 0.1}, ("patch", "embedding")),
        ({"init": None}, ("ssd", "tsd", "patch")),
        ({"student__weighting": "uniform"}, ("ssd", "tsd", "patch")),
        ({"evidence": ["patch", "tsd"]}, ("patch", "tsd")),
    ],
)
def test_student_is_trained_only_on_request(toy, normal, monkeypatch, asked, kinds):
    monkeypatch.setattr(students, "_STEPS", 2)
    det = make_detector(**{**toy, "student": None, **asked}).fit(normal[:3])
    assert det.evidence_ == kinds
    assert set(det.scales_) == set(kinds)
    assert bool(det.experts_) == bool({"ssd", "tsd"} & set(kinds))
    assert det.get_params()["evidence"] == asked.get("evidence", "auto")


def test_auxiliary_images_request_a_student(toy, normal, anomalous):
    toy = toy | {"student": None}
    det = DualDistillationDetector(**toy)
    assert det.fit(normal[:3]).evidence_ == ("patch",)
    det.set_params(student__n_steps=2).fit(normal[:3], auxiliary={"other": anomalous})
    assert "ssd" in det.evidence_
