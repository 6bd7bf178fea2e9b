"""Model files: the same scores after loading, and clear errors for all other files."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time

import numpy as np
import pytest
import sklearn
import torch
from helpers import make_detector, stripes, write_random_weights
from make_model_file import DATA, scores
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from fewshot_ad import DualDistillationDetector
from fewshot_ad.exceptions import CheckpointError, FewShotADError, OutputError, OutputExistsError, WeightsNotFoundError
from fewshot_ad.files import checkpoints, format_1, model_file
from fewshot_ad.files.header import LEFT_OUT

load = DualDistillationDetector.load
pytestmark = pytest.mark.filterwarnings("ignore:.*is an outlier among", "ignore:X does not have valid feature names")


@pytest.fixture
def make(toy):
    return lambda **parameters: make_detector(**{**toy, "student__decoder_blocks": (1, 1, 1), **parameters})


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    return make_detector(**toy, student__decoder_blocks=(1, 2, 1), embedding_weight=0.2).fit(normal[:4])


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.fsad"
    fitted.save(path)
    return path


@pytest.fixture
def forged(saved, tmp_path):
    """Write an altered copy of the saved file, with a valid checksum."""

    def write(change):
        tensors, header = checkpoints.load(saved, model_file.FORMAT, "")
        del header["sha256"]
        change(header, tensors)
        path = tmp_path / "forged.fsad"
        checkpoints.save(path, tensors, model_file.FORMAT, {**header, "sha256": model_file._digest(header, tensors)})
        return path

    return write


def assert_same(one: DualDistillationDetector, two: DualDistillationDetector, queries: np.ndarray) -> None:
    np.testing.assert_array_equal(one.decision_function(queries), two.decision_function(queries))
    np.testing.assert_array_equal(one.anomaly_map(queries), two.anomaly_map(queries))
    np.testing.assert_array_equal(one.support_weights(queries), two.support_weights(queries))


def refusal(path, read=load) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- equality after loading


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"student__architecture": "encoder"},
        {"student__weighting": "uniform"},
        {"precision": "float64", "lam": float("inf")},
        {"precision": "bfloat16", "lam": 0.3, "student__n_steps": 1},
        {"evidence": {"tsd": 0.5, "ssd": 2.0, "patch": 1.0}},
        {"evidence": "embedding", "random_state": np.random.RandomState(0)},
        {"evidence": ["ssd"], "student__sharpness": np.float32(0.5), "image_size": np.int64(48), "aggregation": "max"},
        {"image_size": (48, 32), "n_jobs": 2, "max_patches": 40},
        {
            "aspect": "square",
            "evidence": "patch",
            "augment": False,
            "value_range": (0, 200),
            "contamination": 0.1,
        },
    ],
    ids="default encoder uniform float64 bfloat16 dict embedding ssd sides square".split(),
)
@pytest.mark.parametrize("support", [False, True])
def test_loaded_scores_are_the_same_bits(make, normal, anomalous, tmp_path, parameters, support):
    det = make(**parameters).fit(normal[:3])
    det.save(tmp_path / "model.fsad", support=support)
    again = load(tmp_path / "model.fsad")
    assert_same(det, again, np.concatenate([normal[1:5], anomalous]))
    assert hasattr(again, "support_") is support
    assert vars(det).keys() == vars(again).keys()
    assert (again.offset_, again.lam_, again.scales_) == (det.offset_, det.lam_, det.scales_)
    assert (again.loss_curve_, again.row_range_) == (det.loss_curve_, det.row_range_)
    np.testing.assert_array_equal(again.support_scores_, det.support_scores_)
    given, found = det.get_params(), again.get_params()
    for name in given.keys() - {"evidence", "random_state", "n_jobs", "student"}:
        assert found[name] == (str(given[name]) if name == "weights" else given[name]), name
    assert list(found["evidence"]) == list(given["evidence"])
    assert found["random_state"] == (0 if given["random_state"] == 0 else None)


def test_student_trained_on_other_tasks(make, normal, anomalous, tmp_path):
    det = make().fit(normal[:3], auxiliary={"other": stripes(6, seed=7)})
    det.save_student(tmp_path / "student.safetensors")
    options = {"student__decoder_blocks": (2, 2, 2), "student__n_steps": 0}
    for one in (det, make(init=tmp_path / "student.safetensors", **options).fit(normal[:3])):
        one.save(tmp_path / "model.fsad", force=True)
        (tmp_path / "student.safetensors").unlink(missing_ok=True)  # the model file contains the student
        assert_same(one, load(tmp_path / "model.fsad"), anomalous)


@pytest.mark.parametrize("with_names", [False, True])
def test_rows(make, normal, tmp_path, with_names):
    rows = normal[:, ::4, ::4, 0].reshape(len(normal), -1).astype(float)
    if with_names:
        rows = pytest.importorskip("pandas").DataFrame(rows, columns=[f"pixel {i}" for i in range(rows.shape[1])])
    det = make(image_shape=(10, 10)).fit(rows[:4])
    det.save(tmp_path / "model.fsad")
    again = load(tmp_path / "model.fsad")
    np.testing.assert_array_equal(again.score_samples(rows), det.score_samples(rows))
    assert again.row_range_ == det.row_range_
    assert again.n_features_in_ == 100
    if with_names:
        assert list(again.feature_names_in_) == list(det.feature_names_in_)
        assert again.feature_names_in_.dtype == object
        with pytest.raises(ValueError, match="feature names"):
            again.predict(rows.rename(columns={"pixel 3": "other"}))
    with pytest.raises(ValueError, match="100 features"):
        again.predict(np.zeros((2, 99)))


def test_support_is_stored_only_on_request(make, normal, anomalous, tmp_path):
    det = make().fit(normal[:3])
    det.save(tmp_path / "without.fsad")
    det.save(tmp_path / "with.fsad", support=True)
    image = det.support_[0].tobytes()
    assert image in (tmp_path / "with.fsad").read_bytes()
    assert image not in (tmp_path / "without.fsad").read_bytes()

    without = load(tmp_path / "without.fsad")
    assert not hasattr(without, "support_")
    with pytest.raises(ValueError, match="holds no support images"):
        without.partial_fit(normal[3:5])
    with pytest.raises(CheckpointError, match="holds no support images"):
        without.save(tmp_path / "again.fsad", support=True)
    without.save(tmp_path / "again.fsad")
    assert (tmp_path / "again.fsad").read_bytes() == (tmp_path / "without.fsad").read_bytes()
    without.fit(normal[:4])
    assert without.support_.shape == (4, 3, 32, 32)

    added = load(tmp_path / "with.fsad").partial_fit(normal[3:5])
    assert_same(added, det.partial_fit(normal[3:5]), anomalous)


def test_loaded_support_image_is_not_scored_against_itself(fitted, saved, normal):
    np.testing.assert_array_equal(load(saved).score_samples(normal[:4]), fitted.support_scores_)


def test_file_has_no_folder_names(make, normal, tmp_path):
    folder = tmp_path / "patient_4711"
    folder.mkdir()
    for i, image in enumerate(normal[:2]):
        Image.fromarray(image).save(folder / f"{i}.png")
    det = make(evidence="patch").fit(sorted(folder.iterdir()))
    det.save(tmp_path / "model.fsad")
    assert b"4711" not in (tmp_path / "model.fsad").read_bytes()
    assert model_file.describe(tmp_path / "model.fsad")["support_names"] == ["0.png", "1.png"]


def test_clone_and_pickle_of_a_loaded_detector(fitted, saved, anomalous):
    again = load(saved)
    copy = pickle.loads(pickle.dumps(again))
    assert_same(copy, fitted, anomalous)
    # Each tensor has its own storage, not that of the whole file.
    assert len(pickle.dumps(again)) < len(pickle.dumps(fitted))
    assert not hasattr(clone(again), "offset_")


def test_loaded_detector_does_not_need_the_file(make, fitted, normal, anomalous, tmp_path):
    fitted.save(tmp_path / "model.fsad")
    again = load(tmp_path / "model.fsad")
    with (tmp_path / "model.fsad").open("r+b") as file:
        file.truncate(10)
    assert_same(again, fitted, anomalous)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_device(saved, device):
    assert load(saved, device=device).device == ("auto" if device is None else device)


def test_unavailable_device(saved):
    with pytest.raises(ValueError, match="cannot be used here"):
        load(saved, device="cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_saved_on_a_gpu(toy, normal, anomalous, tmp_path):
    det = DualDistillationDetector(**toy, device="cuda").fit(normal[:4])
    det.save(tmp_path / "model.fsad")
    assert_same(load(tmp_path / "model.fsad", device="cuda"), det, anomalous)
    assert_same(load(tmp_path / "model.fsad", device="cpu"), det.set_params(device="cpu"), anomalous)


def test_subclass(saved, anomalous, fitted):
    class Mine(DualDistillationDetector):
        pass

    again = Mine.load(saved)
    assert type(again) is Mine
    assert_same(again, fitted, anomalous)


# ---- writing


def test_files_are_deterministic(fitted, saved, tmp_path):
    for i in range(5):
        fitted.save(tmp_path / f"{i}.fsad")
        assert (tmp_path / f"{i}.fsad").read_bytes() == saved.read_bytes()


def test_existing_file_is_not_replaced(fitted, make, normal, tmp_path):
    path = tmp_path / "model.fsad"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="force=True") as caught:
        fitted.save(path)
    assert isinstance(caught.value, FileExistsError)
    assert path.read_text() == "precious"
    fitted.save(path, force=True)
    assert load(path).offset_ == fitted.offset_


def test_failed_write_leaves_the_old_file(fitted, tmp_path, monkeypatch):
    path = tmp_path / "model.fsad"
    fitted.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        fitted.save(path, force=True)
    assert os.listdir(tmp_path) == ["model.fsad"]
    assert path.read_bytes() == before


def test_unwritable_destination(fitted, tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        fitted.save(tmp_path / "missing" / "model.fsad")
    with pytest.raises(OutputError, match="is a folder"):
        fitted.save(tmp_path, force=True)
    assert os.listdir(tmp_path) == []


def test_parameters_that_cannot_be_saved(make, fitted, toy, normal, tmp_path):
    path = tmp_path / "model.fsad"
    with pytest.raises(NotFittedError):
        make().save(path)
    det = clone(fitted).set_params(evidence="patch").fit(normal[:2])
    with pytest.raises(ValueError, match="on_error='never'"):
        pickle.loads(pickle.dumps(det)).set_params(on_error="never").save(path)
    settings = dataclasses.replace(det.fitted_.settings, backbone="hf-hub:somebody/something")
    with pytest.raises(CheckpointError, match="not a network that timm"):
        model_file.save(path, det.fitted_, settings)
    assert os.listdir(tmp_path) == []


# ---- the teacher


def test_moved_weights(toy, normal, anomalous, tmp_path):
    weights = write_random_weights("toy_resnet", tmp_path / "toy.safetensors")
    det = DualDistillationDetector(**{**toy, "weights": weights, "evidence": "patch"}).fit(normal[:2])
    det.save(tmp_path / "model.fsad")
    expected = det.score_samples(anomalous)
    weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsNotFoundError) as caught:
        load(tmp_path / "model.fsad")
    for part in ("toy_resnet", str(weights), det.teacher_fingerprint_[:12], "weights=FILE", "from the hub"):
        assert part in str(caught.value)
    again = load(tmp_path / "model.fsad", weights=tmp_path / "moved.safetensors")
    np.testing.assert_array_equal(again.score_samples(anomalous), expected)
    assert again.weights == tmp_path / "moved.safetensors"

    other = write_random_weights("toy_resnet", tmp_path / "other.safetensors", seed=1)
    with pytest.raises(WeightsNotFoundError, match=r"not those.*weights=FILE"):
        load(tmp_path / "model.fsad", weights=other)
    other.rename(weights)
    with pytest.raises(WeightsNotFoundError, match="not those"):
        load(tmp_path / "model.fsad")


@pytest.mark.parametrize("name", ["hf-hub:somebody/something", "local-dir:/", "no_such_network"])
def test_unknown_backbone(forged, name, monkeypatch):
    path = forged(lambda header, _: header["parameters"].update(backbone=name))
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was asked"))
    assert "not a network that timm" in refusal(path)


# ---- other versions


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_all_versions_are_read(version):
    path = DATA / f"model_{version}.fsad"
    assert model_file.describe(path)["format"] == f"fewshot_ad model {version}"
    golden = json.loads(path.with_suffix(".json").read_text())
    for name, values in scores(load(path)).items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-4, err_msg=name)


def test_version_1_is_saved_as_the_newest(tmp_path):
    old = load(DATA / "model_1.fsad")
    old.save(tmp_path / "new.fsad")
    new = load(tmp_path / "new.fsad")
    assert model_file.describe(tmp_path / "new.fsad")["format"] == model_file.FORMAT
    assert scores(new) == scores(old)


def test_names_of_the_format(saved):
    # Changing these requires a new version of the format.
    tensors, header = checkpoints.load(saved, "fewshot_ad model 2", "")
    plain = {name for name in tensors if not name.startswith("students.")}
    assert plain == {"support_scores", "loss_curve", "patches", "patch_owners", "patch_spots", "embeddings"}
    assert {"students.0.seen", "students.1.maps.3.2", "students.0.weighting.phi.0.weight"} <= set(tensors)
    assert {f"students.0.net.stages.1.{i}.branch.0.weight" for i in range(2)} <= set(tensors)
    assert header.keys() == {"versions", "parameters", "fitted", "support_images", "students", "sha256"}


@pytest.mark.parametrize("read", [load, model_file.describe])
def test_newer_version(saved, tmp_path, read):
    tensors, header = checkpoints.load(saved, model_file.FORMAT, "")
    checkpoints.save(tmp_path / "new.fsad", tensors, "fewshot_ad model 3", header)
    assert "version 3 of its format" in refusal(tmp_path / "new.fsad", read)


@pytest.mark.parametrize("name", ["from_the_future", "device"])
def test_unknown_parameter(forged, name):
    assert repr(name) in refusal(forged(lambda header, _: header["parameters"].update({name: "cpu"})))


def test_missing_parameter_has_its_default(forged, fitted, anomalous):
    again = load(forged(lambda header, _: header["parameters"].pop("contrast")))
    assert again.contrast == 0.0
    assert_same(again, fitted, anomalous)


# ---- damage


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was loaded",)


@pytest.mark.parametrize("read", [load, model_file.describe])
def test_other_files(fitted, normal, make, tmp_path, read):
    path = tmp_path / "file"
    assert "does not exist" in refusal(path, read)
    assert "does not exist" in refusal(tmp_path, read)
    for data in (b"", b"text", pickle.dumps(Bomb()), b"\xff" * 100):
        path.write_bytes(data)
        assert "not a readable safetensors file" in refusal(path, read)
    make(student__n_steps=1).fit(normal[:2], auxiliary={"other": normal[:4]}).save_student(path)
    assert "save()" in refusal(path, read)
    assert "'fewshot_ad student 1'" in refusal(path, read)


@pytest.mark.parametrize("keep", [1, 8, 200, 5000, -1])
def test_truncated(saved, tmp_path, keep):
    path = tmp_path / "cut.fsad"
    path.write_bytes(saved.read_bytes()[:keep])
    refusal(path)


def test_flipped_bits(saved, tmp_path):
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    end = len(data[:header].rstrip(b" "))  # followed by padding to eight bytes
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, end, 60), *rng.integers(header, len(data), 60), len(data) - 1]
    path = tmp_path / "flipped.fsad"
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        refusal(path)


def set_entry(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(header, _):
        for key in keys:
            header = header[key]
        header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_entry("versions", None),
        set_entry("versions", {"fewshot_ad": 1, "torch": "2", "timm": "1"}),
        set_entry("parameters", []),
        set_entry("fitted", "offset_"),
        set_entry("students", {}),
        set_entry("students", [{}]),
        set_entry("students", 0, "student", ["decoder"]),
        set_entry("students", 0, "decoder_blocks", [1, 2]),
        set_entry("students", 0, "decoder_blocks", [1, 2, 0]),
        set_entry("students", 0, "decoder_blocks", [10**9] * 3),
        set_entry("students", 0, "sharpness", "1"),
        set_entry("students", 0, "shown", [0, 1, 2, 4]),
        set_entry("students", 0, "shown", [0, 1, 2, -1]),
        set_entry("students", 0, "shown", [0, 1, 1, 2]),
        set_entry("students", 0, "shown", []),
        set_entry("students", []),
        set_entry("support_images", 1),
        set_entry("support_images", True),
        set_entry("fitted", "offset_", None),
        set_entry("fitted", "offset_", float("nan")),
        set_entry("fitted", "offset_", 10**400),
        set_entry("fitted", "lam_", "0.1"),
        set_entry("fitted", "scales_", {"patch": 0}),
        set_entry("fitted", "scales_", [1.0]),
        set_entry("fitted", "row_range_", [1, 0]),
        set_entry("fitted", "n_features_in_", True),
        set_entry("fitted", "feature_names_in_", [1]),
        set_entry("fitted", "_held_out_seed", -1),
        set_entry("fitted", "_support_hashes", ["0" * 32]),
        set_entry("fitted", "_support_hashes", ["z" * 32] * 4),
        set_entry("fitted", "_support_names", []),
        set_entry("fitted", "teacher_fingerprint_", None),
        set_entry("fitted", "__class__", "x"),
        set_entry("fitted", "fit", "x"),
        set_entry("parameters", "backbone", ["compact"]),
        set_entry("parameters", "weights", {"file": "x"}),
        set_entry("parameters", "init", 3),
        set_entry("parameters", "image_size", 10**6),
        set_entry("parameters", "image_size", 32.5),
        set_entry("parameters", "image_size", 64),
        set_entry("parameters", "image_size", [32]),
        set_entry("parameters", "image_size", [32, 64]),
        set_entry("parameters", "image_size", [10**6, 32]),
        set_entry("parameters", "aspect", "stretch"),
        set_entry("parameters", "image_shape", [[3], 4]),
        set_entry("parameters", "lam", "auto"),
        set_entry("parameters", "evidence", [["patch"]]),
        set_entry("parameters", "evidence", {"patch": "x"}),
        set_entry("parameters", "value_range", ["a", "b"]),
        set_entry("parameters", "precision", ["float32"]),
        set_entry("parameters", "precision", "float64"),
        set_entry("parameters", "random_state", "0"),
        set_entry("parameters", "augment", "yes"),
        set_entry("parameters", "lam", None),
        set_entry("parameters", "blur_sigma", 1e308),
    ],
)
def test_invalid_headers(forged, change):
    path = forged(change)
    started = time.monotonic()
    message = refusal(path)
    assert len(message) < 1000
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("header", ["[]", "1", "null", "[" * 100_000, "1" + "0" * 5000])
def test_headers_that_are_not_a_dict(saved, tmp_path, header, monkeypatch):
    tensors, _ = checkpoints.load(saved, model_file.FORMAT, "")
    with monkeypatch.context() as patch:
        dumps = json.dumps
        patch.setattr(json, "dumps", lambda value, **options: header if value == "x" else dumps(value, **options))
        checkpoints.save(tmp_path / "model.fsad", tensors, model_file.FORMAT, "x")
    refusal(tmp_path / "model.fsad")
    refusal(tmp_path / "model.fsad", model_file.describe)


def without(name):
    return lambda _, tensors: tensors.pop(name)


def replaced(name, function):
    return lambda _, tensors: tensors.update({name: function(tensors[name])})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (without("patches"), "patches"),
        (without("embeddings"), "embeddings"),
        (without("loss_curve"), "loss_curve"),
        (without("patch_owners"), "patch_owners"),
        (without("patch_spots"), "patch_spots"),
        (without("students.1.maps.3.2"), "students.1.maps.3.2"),
        (without("students.0.seen"), "students.0.seen"),
        (without("students.0.weighting.phi.1.bias"), "students.0.weighting.phi.1.bias"),
        (replaced("patches", lambda t: t[:2]), "patch_owners"),
        (replaced("patch_owners", torch.Tensor.int), "patch_owners"),
        (replaced("patch_spots", lambda t: t[:, :1]), "patch_spots"),
        (replaced("patches", lambda t: t[..., :5]), "patches"),
        (replaced("patches", torch.Tensor.half), "patches"),
        (replaced("support_scores", torch.Tensor.float), "support_scores"),
        (replaced("support_scores", lambda t: t[None]), "support_scores"),
        (replaced("students.0.maps.2.1", lambda t: t[:, :1]), "students.0.maps.2.1"),
        (replaced("students.0.maps.2.1", lambda t: t[:, :, :1]), "students.0.maps.2.1"),
        (replaced("students.0.seen", torch.Tensor.int), "students.0.seen"),
        (replaced("students.1.weighting.phi.0.weight", lambda t: t[:1]), "students.1.weighting.phi.0.weight"),
        (lambda _, tensors: tensors.update(more=torch.zeros(1)), "more"),
        (lambda _, tensors: tensors.update({"students.2.seen": torch.zeros(4, dtype=torch.uint8)}), "students.2.seen"),
    ],
)
def test_invalid_tensors(forged, change, name):
    assert repr(name) in refusal(forged(change))


@pytest.mark.parametrize("owner", [-1, 4])
def test_patches_with_invalid_owners(forged, owner):
    path = forged(replaced("patch_owners", lambda t: torch.full_like(t, owner)))
    assert "its patches are not those of 4 support images" in refusal(path)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (1e30, "longer than 1")])
def test_patches_with_invalid_values(forged, value, message):
    assert message in refusal(forged(replaced("patches", lambda t: torch.full_like(t, value))))


def test_wrong_checksum(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.fsad").write_bytes(data)
    assert "altered or damaged" in refusal(tmp_path / "model.fsad")


# ---- descriptions


def test_describe_reads_only_the_header(fitted, saved, tmp_path):
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "model.fsad"
    path.write_bytes(data[:header] + bytes(len(data) - header))
    found = model_file.describe(path)
    json.dumps(found)
    assert found["bytes"] == len(data)
    assert found["backbone"] == "toy_resnet"
    assert found["teacher_fingerprint"] == fitted.teacher_fingerprint_
    assert found["n_support"] == 4
    assert found["support_names"] == [f"image {i}" for i in range(4)]
    assert found["support_images"] is False
    assert found["offset_"] == fitted.offset_
    assert found["n_features_in_"] is None
    assert [student["decoder_blocks"] for student in found["students"]] == [[1, 2, 1]] * 2
    assert found["parameters"]["image_size"] == 32
    assert found["parameters"].keys() == fitted.get_params().keys() - {*LEFT_OUT, "student"}
    assert issubclass(CheckpointError, FewShotADError)


def test_notebook_summary(fitted, saved, make):
    assert "Fitted" not in make()._repr_html_().partition("<style>")[0]
    for det in (fitted, load(saved)):
        for shown in (det._repr_html_(), det._repr_mimebundle_()["text/html"]):
            summary = shown.partition("<style>")[0]
            for part in ("4 images", f"{det.offset_:.4g}", "0.1", "toy_resnet", det.teacher_fingerprint_[:12]):
                assert part in summary
            assert "sk-top-container" in shown
    with sklearn.config_context(display="text"):
        assert not hasattr(fitted, "_repr_html_")
        assert "text/html" not in fitted._repr_mimebundle_()


def test_notebook_summary_escapes_names(fitted):
    det = pickle.loads(pickle.dumps(fitted)).set_params(backbone="<script>alert(1)</script>")
    assert "<script>alert" not in det._repr_html_()
    assert "&lt;script&gt;alert(1)" in det._repr_html_()


def test_parameters_of_format_1_are_renamed():
    given = {"backbone": "compact", "student": "encoder", "n_steps": 5, "tol": 0.1, "lam": "auto", "max_pixels": 7}
    header = {"parameters": given, "fitted": {"lam_": 0.3}, "students": []}
    assert format_1.renamed(header)["parameters"] == {
        "backbone": "compact", "student__architecture": "encoder", "student__n_steps": 5, "student__tol": 0.1,
        "lam": 0.3,
    }  # fmt: skip
    assert format_1.renamed({"parameters": 3}) == {"parameters": 3}  # left to the check
    old = DualDistillationDetector.load(DATA / "model_1.fsad").get_params()
    assert old["student"] is not None
    assert old["student__decoder_blocks"] == (2, 2, 2)
