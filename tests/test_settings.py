"""The rules of all parameters: errors name each invalid value, and what is accepted."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import corrupted, make_detector, stripes
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fewshot_ad import DualDistillationDetector, KShotSplit, Student, pretrain
from fewshot_ad.settings import CALL_PARAMETERS, RULES, StudentSettings, check, checked

BAD = {
    "backbone": [None, 3, ""],
    "weights": [3, "", b"x"],
    "layers": [3, "first", (), None, (1.0, 2), (-1,), (True,), "123", {1, 2}, np.array([1, 2])],
    "image_size": [4, 32.0, "32", True, None, (32,), (32, 4), (32, 32.0), (32, 32, 3), "large"],
    "aspect": ["stretch", None, True],
    "student": ["decoder", 3, {"n_steps": 2}],
    "student__architecture": ["both", None, ["decoder"]],
    "student__decoder_blocks": [None, 2, (1, 2), (0, 1, 1), (1, 0, 1), (1, -1, 0), (1, 1.5, 1), "222"],
    "init": [3, "", object()],
    "lam": [-1, "0.1", "auto", np.nan, None, (0.1,), True],
    "student__weighting": ["none", None],
    "student__sharpness": [-1, np.inf, None],
    "student__loss": ["l2", 0],
    "evidence": [
        None, 5, "all", (), {}, ["patch", 3], {"patch": "1"}, {"patch": -1.0}, {"patch": np.nan}, {3: 1.0},
        np.array(["patch", "ssd"]),
    ],
    "student_weight": [-0.1, np.nan, np.inf, "0.1"],
    "embedding_weight": [-1, np.nan, "auto"],
    "aggregation": [0, 1.5, "median", None, True],
    "blur_sigma": [-1, 1e5, "4", None, np.nan],
    "upsampling": ["bilinear", True, None],
    "border_weight": [1.1, -0.1, None],
    "contrast": [-0.1, 1.1, "0"],
    "student__n_steps": [-1, 1.0, "all", None],
    "student__batch_size": [0, 2.0],
    "student__learning_rate": [0, -1, np.inf, 10**400],
    "student__tol": [-1, None],
    "augment": ["no", None, 1, 0],
    "foreground": ["yes", None, 0, -1.0, np.inf, np.nan],
    "max_patches": [0, 1.5, None, "all"],
    "n_support": [0, -1, 2.0, "auto", True],
    "contamination": [0.6, 0, "high", None],
    "image_shape": [5, (4,), (4, 4, 2), (-4, -4), (0, 4), (4.0, 4), "44"],
    "value_range": [5, (0, 10**400), (1, 0), (1, 1), (-np.inf, 0), (0, 1, 2), "01", (None, 1), {0: 1, 1: 2}],
    "device": [None, 3, ""],
    "precision": ["int8", None, torch.float32],
    "n_jobs": [0, 1.5, "all", True],
    "memory": [3, object()],
    "on_error": ["ignore", None, True],
    "random_state": [-1, "0", 2**32, np.random.default_rng(0)],
    "verbose": ["x", -1, None, 1.5],
}  # fmt: skip
GOOD = {
    "weights": [None, "a", Path("a")], "init": [None, "auto", Path("a")], "lam": [0, np.float32(1), np.inf],
    "evidence": ["auto", ["ssd"], ("patch", "tsd"), {"patch": np.float64(2)}],
    "layers": ["auto", "last", (1,), [4, 5, 7], (np.int64(2), 3), (0, 1)],
    "image_size": ["auto", 8, np.int64(9), (16, 32), [16, 32]],
    "student__decoder_blocks": [[1, 2, 3], (1, 1, 0), (2, 0, 0)], "n_jobs": [None, 1, -1, np.int64(3)],
    "foreground": [True, 2],
    "n_support": [None, 1, np.int64(60)], "augment": [np.True_], "image_shape": [None, [4, 4], (4, 4, 3)],
    "value_range": [None, [0, 1], np.array([0.0, 2.0])], "device": ["cuda:1", torch.device("cpu")],
    "memory": [None, "folder"], "random_state": [None, 0, np.random, np.random.RandomState(0)],
    "verbose": [True, 2], "contamination": ["auto", 0.5], "aggregation": ["mean", 1], "student__n_steps": ["auto", 0],
}  # fmt: skip


def test_every_parameter_has_a_rule():
    parameters = set(inspect.signature(DualDistillationDetector).parameters)
    of_student = {f"student__{name}" for name in inspect.signature(Student).parameters}
    assert RULES.keys() == parameters | of_student == BAD.keys()
    assert set(CALL_PARAMETERS) < parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(n, v, id=f"{n}-{i}") for n, values in BAD.items() for i, v in enumerate(values)],
)
def test_invalid_values_are_reported_first(normal, name, value):
    det = make_detector(**{name: value})  # the constructors only store
    with pytest.raises(ValueError, match=rf"^{name}=") as caught:
        det.fit(normal[:2])
    message = str(caught.value)
    assert f"{name}={value!r} was given; it must be {RULES[name].accepted}." == message
    assert not vars(det).keys() & {"fitted_"}


def test_valid_values_are_accepted():
    plain = DualDistillationDetector(student=Student()).get_params()
    checked(plain)
    for name, values in GOOD.items():
        for value in values:
            checked(make_detector(**{name: value}).get_params())


def test_checked_values_are_copied():
    evidence, blocks, window = {"patch": 1.0}, [1, 1, 1], np.array([0.0, 1.0])
    student = Student(decoder_blocks=blocks)
    given = {"evidence": evidence, "student": student, "value_range": window}
    settings = checked({**DualDistillationDetector().get_params(), **given})
    student.n_steps = 7
    evidence["patch"], blocks[0], window[0] = 2.0, 9, -5.0
    assert settings.evidence == {"patch": 1.0}
    assert settings.training.decoder_blocks == (1, 1, 1)
    assert settings.training.n_steps == "auto"
    assert settings.value_range == (0.0, 1.0)
    with pytest.raises(AttributeError):
        settings.lam = 3.0


@pytest.mark.parametrize(
    "bad",
    [
        {"backbone": None}, {"image_size": 4}, {"architecture": "both"}, {"decoder_blocks": None}, {"lam": "auto"},
        {"loss": "l2"}, {"batch_size": 0}, {"device": None}, {"precision": "int8"}, {"weights": 3}, {"n_steps": "auto"},
        {"n_shots": 0}, {"held_out": 0.6}, {"held_out": "x"}, {"random_state": None}, {"checkpoint_minutes": -1},
        {"verbose": "x"}, {"num_workers": 0}, {"resume": "yes"}, {"cache": 3},
    ],
    ids=str,
)  # fmt: skip
def test_pretrain_uses_the_same_rules(tmp_path, bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"{name}={value!r} was given; it must be "):
        pretrain({"a": []}, tmp_path / "student.safetensors", **bad)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name():
    with pytest.raises(KeyError):
        check({"colour": 1})


# ---- changed parameters take effect at the next fit


CHANGES = {
    "backbone": "resnet18", "image_size": 64, "student__architecture": "encoder", "student__decoder_blocks": (1, 1, 1),
    "init": None,
    "lam": 5.0, "student__weighting": "uniform", "student__sharpness": 0.1, "student__loss": "flattened",
    "evidence": "patch",
    "aspect": "square", "max_patches": 7, "n_support": 1, "layers": (2, 3, 4),
    "student_weight": 0.0, "embedding_weight": 1.0,
    "aggregation": "max", "upsampling": "align_corners", "blur_sigma": 0.0, "border_weight": 1.0, "contrast": 0.0,
    "student__n_steps": 0, "student__batch_size": 1,
    "student__learning_rate": 0.5, "student__tol": 0.5, "augment": False, "foreground": True,
    "contamination": 0.5, "image_shape": (1, 1),
    "value_range": (0, 10), "precision": "float64", "random_state": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    return DualDistillationDetector(**toy).fit(normal[:3])


def test_all_fit_parameters_are_covered():
    assert CHANGES.keys() == RULES.keys() - set(CALL_PARAMETERS) - {"student"}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_changed_parameter_has_no_effect_before_fit(toy, normal, anomalous, tmp_path, name):
    det = make_detector(**{**toy, "evidence": ("ssd", "tsd", "patch", "embedding")}).fit(normal[:3])
    det.save(tmp_path / "before.fsad")

    def read() -> list[np.ndarray]:
        queries = anomalous[:3]
        one = det.explain(queries[:1])[0]
        shown = [det.decision_function(queries), det.anomaly_map(queries), det.support_weights(queries), one.map]
        return [*shown, one.score, one.level, det.offset_]

    before = read()
    det.set_params(**{name: CHANGES[name]})
    for one, other in zip(before, read(), strict=True):
        np.testing.assert_array_equal(one, other)
    det.save(tmp_path / "after.fsad")
    assert (tmp_path / "after.fsad").read_bytes() == (tmp_path / "before.fsad").read_bytes()


def test_changed_parameter_takes_effect_at_fit(toy, normal, anomalous):
    det = DualDistillationDetector(**toy).fit(normal[:3])
    det.set_params(contrast=0.0, lam=5.0, image_size=64).fit(normal[:3])
    new = DualDistillationDetector(**{**toy, "contrast": 0.0, "lam": 5.0, "image_size": 64}).fit(normal[:3])
    np.testing.assert_array_equal(det.score_samples(anomalous), new.score_samples(anomalous))
    assert det.offset_ == new.offset_
    assert det.anomaly_map(anomalous[:1]).shape == (1, 64, 64)


def test_partial_fit_uses_parameters_of_the_last_fit(toy, normal, anomalous):
    det, plain = (DualDistillationDetector(**toy).fit(normal[:3]) for _ in range(2))
    det.set_params(contrast=0.0, evidence="patch").partial_fit(normal[3:5])
    np.testing.assert_array_equal(
        det.decision_function(anomalous), plain.partial_fit(normal[3:5]).decision_function(anomalous)
    )


def test_call_parameters_take_effect_at_once(toy, fitted, anomalous, tmp_path, capsys):
    det = DualDistillationDetector(**toy)
    det.fitted_ = fitted.fitted_
    expected = det.score_samples(anomalous)
    np.testing.assert_array_equal(det.set_params(verbose=1, memory=tmp_path).score_samples(anomalous), expected)
    assert "scoring" in capsys.readouterr().err
    assert any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="device='toaster' cannot be used"):
        det.set_params(device="toaster").score_samples(anomalous)
    with pytest.raises(ValueError, match="on_error='never' was given"):
        det.set_params(device="cpu", on_error="never").score_samples(anomalous)


# ---- parameters of the student


def test_defaults_agree():
    assert vars(StudentSettings()) == Student().get_params()
    assert DualDistillationDetector().student is None


def test_set_params_of_the_student():
    det = DualDistillationDetector()
    assert not any(name.startswith("student__") for name in det.get_params())
    assert det.set_params(student__n_steps=7).student.get_params() == Student(n_steps=7).get_params()
    given = Student(weighting="uniform")
    det.set_params(student=given, student__n_steps=5)
    assert det.student is given
    assert given.get_params() == Student(weighting="uniform", n_steps=5).get_params()
    assert clone(det).student is not given
    with pytest.raises(ValueError, match="Invalid parameter 'colour' for estimator Student"):
        det.set_params(student__colour=1)
    assert DualDistillationDetector().set_params(**DualDistillationDetector().get_params()).student is None


def test_student_parameters_in_pipeline_and_grid(toy, normal):
    pipe = make_pipeline(FunctionTransformer(), DualDistillationDetector())
    pipe.set_params(dualdistillationdetector__student__loss="flattened")
    assert pipe[-1].student.loss == "flattened"
    y = [1] * 6 + [-1] * 2
    images = [*normal[:6], *corrupted(stripes(2, seed=1))]
    bare = DualDistillationDetector(**{**toy, "student": None}, evidence=("ssd", "tsd"))
    grid = {"student__n_steps": [1, 2], "student__weighting": ["attention", "uniform"]}
    search = GridSearchCV(bare, grid, cv=KShotSplit(3, 1, 0), scoring="roc_auc", error_score="raise").fit(images, y)
    assert len(search.best_estimator_.loss_curve_) == 2 * search.best_params_["student__n_steps"]
    assert bare.student is None
