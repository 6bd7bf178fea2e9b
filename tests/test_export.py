"""The exported graph in onnxruntime and OpenVINO: the package's scores, maps and decisions, from the same images."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_detector, write_random_weights
from PIL import Image
from sklearn.exceptions import NotFittedError

from fewshot_ad import DualDistillationDetector, cli
from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.demo import write_images
from fewshot_ad.exceptions import MissingExtraError, OutputExistsError
from fewshot_ad.explanation import relative_score
from fewshot_ad.files.resizing import resizing
from fewshot_ad.method.evidence import EVIDENCE

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:.*is an outlier among", "ignore:The support is a single image")


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    """A detector with all score components, two students, and a support of two shapes."""
    return make_detector(
        **{**toy, "image_size": 64, "evidence": EVIDENCE, "precision": "float32", "student__decoder_blocks": (1, 1, 0)}
    ).fit([*normal[:2], tiled(normal[2:3], 1, 2)[0]])


def tiled(batch: np.ndarray, down: int, across: int) -> np.ndarray:
    """Repeat images (N, H, W, 3) along both sides."""
    return np.tile(batch, (1, down, across, 1))


@pytest.fixture(scope="module")
def exported(fitted, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    fitted.export(path)
    return path


def runtimes(model: Path | bytes) -> dict:
    """Functions that run a graph on images (N, 3, H, W) and return its outputs; OpenVINO only if installed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    in_onnxruntime = {"onnxruntime": lambda batch: session.run(names, {"image": batch})}
    if not HAS_OPENVINO:
        return in_onnxruntime
    import openvino

    precisely = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", precisely)

    def in_openvino(batch: np.ndarray) -> list[np.ndarray]:
        found = compiled(batch)
        return [found[name] for name in names]

    return {**in_onnxruntime, "OpenVINO": in_openvino}


def tensor(arrays: np.ndarray) -> np.ndarray:
    """Convert 8-bit images (N, H, W, 3) to the graph's input."""
    return np.ascontiguousarray(arrays.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def assert_same(det: DualDistillationDetector, path: Path, batches: list[np.ndarray]) -> None:
    """Compare scores, maps, and decisions by the threshold in the file with the package."""
    offset = float(json.loads(metadata(path)["offset"]))
    for name, run in runtimes(path).items():
        for batch in batches:
            native, maps = det.score_samples(batch), det.anomaly_map(batch)
            scores, shown = run(tensor(batch))
            assert (scores.dtype, scores.shape, shown.shape) == (np.float32, native.shape, maps.shape)
            np.testing.assert_allclose(scores, native, rtol=0, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(shown, maps, rtol=0, atol=1e-3, err_msg=name)
            assert np.abs(native - offset).min() > 1e-4  # closer to the threshold, rounding would decide
            np.testing.assert_array_equal(np.where(scores < offset, -1, 1), det.predict(batch), err_msg=name)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.slow
def test_graph_equals_the_detector(fitted, exported, normal, anomalous):
    queries = np.concatenate([normal[3:7], anomalous[:4]])
    few, large = queries[3:5], tiled(queries[3:5], 6, 6)
    batches = [
        queries, queries[:3], queries[:1], tiled(few, 1, 3)[:, :, :100], tiled(few, 3, 1)[:, :100], large[:, :40, :200],
        large[:, :233, :40], large[:, :151, :99], few[:, :13, :17], few[:1, :1],
    ]  # fmt: skip
    assert_same(fitted, exported, batches)
    shapes = [fitted.anomaly_map(batch).shape[1:] for batch in batches[2:]]
    assert shapes == [
        (64, 64), (48, 96), (96, 48), (32, 128), (128, 32), (80, 48), (48, 80), (32, 128),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {
            "evidence": ("ssd", "tsd"), "student__architecture": "encoder", "student__weighting": "uniform",
            "aggregation": "max", "lam": 2.0, "precision": "float64", "student__decoder_blocks": (1, 0, 0),
            "image_size": (32, 48),
        },
        {
            # Less than half a pixel, but at other sizes than the tracer's.
            "evidence": {"patch": 2.0, "embedding": 1.0}, "aggregation": 0.0002, "blur_sigma": 0, "augment": False,
            "precision": "auto",
        },
        {
            "evidence": ("patch", "tsd"), "student__decoder_blocks": (1, 0, 0), "aspect": "square", "image_size": 48,
            "aggregation": "mean",
        },
        {"evidence": "patch", "image_size": (48, 32), "aggregation": 0.1},
    ],
    ids=["students", "no student, one pixel", "squares", "one shape"],
)  # fmt: skip
def test_graph_is_float32_for_all_settings(toy, normal, anomalous, tmp_path, changed):
    det = make_detector(**{**toy, **changed}).fit(normal[:1])
    det.export(tmp_path / "model.onnx")
    assert det.precision == changed.get("precision", "auto")
    in_float32 = replace(det.fitted_, settings=replace(det.fitted_.settings, precision="float32"))
    det.fitted_ = in_float32
    queries = np.concatenate([normal[3:5], anomalous[:2]])
    assert_same(det, tmp_path / "model.onnx", [queries, tiled(queries[:2], 2, 1)])


@pytest.mark.parametrize(
    "geometry", [Geometry(32, False, 16), Geometry(129, False, 14), Geometry((48, 80)), Geometry(24)], ids=str
)
def test_graph_resizes_like_the_package(geometry):
    generator = torch.Generator().manual_seed(0)
    for name, run in runtimes(resizing(geometry, 10).SerializeToString()).items():
        for size in ((301, 97), (32, 32), (20, 33), (64, 48), (1, 300), (90, 500), (1000, 1500)):
            image = torch.rand(3, *size, generator=generator)
            expected = images.load(image, 0, geometry).numpy()
            # OpenVINO divides by multiplying with reciprocals.
            within = 2e-6 if name == "onnxruntime" else 5e-5
            np.testing.assert_allclose(run(image[None].numpy())[0][0], expected, rtol=0, atol=within, err_msg=name)


@pytest.mark.parametrize(("image_size", "multiple"), [(128, 16), (160, 32), (224, 14), (100, 1), (16, 32)])
def test_graph_with_a_fixed_shape(image_size, multiple):
    geometry = Geometry(image_size, False, multiple)
    run = onnxruntime.InferenceSession(resizing(geometry, 10).SerializeToString()).run
    rng = np.random.default_rng(0)
    # Sides halfway between two multiples, and one pixel off; empty batches of these sizes.
    halves = [(2 * k - 1) * multiple for k in range(1, 8 * image_size // multiple)][:40]
    between = [(n**2 + off, (2 * image_size) ** 2) for n in halves for off in (-1, 0, 1)]
    sizes = [*rng.integers(1, 400, (1500, 2)).tolist(), *between, *(size[::-1] for size in between), (5000, 8), (1, 1)]
    for height, width in sizes:
        if 0 < height * width < 2**22:
            shown = run(None, {"image": np.zeros((0, 3, height, width), np.float32)})[0].shape[2:]
            assert shown == geometry.shape(height, width), (height, width)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed: graphs are run in onnxruntime alone")
def test_openvino(exported):
    assert list(runtimes(exported)) == ["onnxruntime", "OpenVINO"]


@pytest.mark.slow
def test_copy_of_a_support_image_matches_itself(fitted, exported, normal):
    found = runtimes(exported)["onnxruntime"](tensor(normal[:2]))[0]
    fresh = DualDistillationDetector(**fitted.get_params(deep=False))
    fresh.fitted_ = replace(fitted.fitted_, hashes=("", "", ""))
    np.testing.assert_allclose(found, fresh.score_samples(normal[:2]), rtol=0, atol=1e-4)
    assert (found > fitted.score_samples(normal[:2]) + 1e-3).all()  # the package excludes the copy


@pytest.mark.slow
def test_metadata(fitted, exported):
    said = metadata(exported)
    sign = "score: high = normal, anomalous where score < offset; anomaly_map: high = anomalous"
    assert (said["format"], said["sign"]) == ("fewshot_ad onnx 2", sign)
    found = {name: json.loads(said[name]) for name in ("offset", "image_size", "value_range", "evidence", "n_support")}
    assert found == {
        "offset": fitted.offset_, "image_size": 64, "value_range": None, "evidence": list(EVIDENCE), "n_support": 3,
    }  # fmt: skip
    assert said["aspect"] == "keep"
    assert said["teacher_fingerprint"] == fitted.teacher_fingerprint_
    graph = onnx.load(exported).graph
    sizes = [[side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim] for value in
             (*graph.input, *graph.output)]  # fmt: skip
    assert sizes == [["n", 3, "height", "width"], ["n"], ["n", "rows", "columns"]]


@pytest.mark.slow
def test_means_are_computed_axis_by_axis(exported):
    """Some exporters silently ignore the custom function, which only matters for scores above 10."""
    graph = onnx.load(exported).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    axes = [onnx.numpy_helper.to_array(held[node.input[1]]) for node in graph.node if node.op_type == "ReduceMean"]
    assert axes
    assert {len(found) for found in axes} == {1}


@pytest.mark.slow
def test_file_has_no_paths_and_is_deterministic(toy, normal, tmp_path):
    folder = tmp_path / "secret folder"
    folder.mkdir()
    for i, image in enumerate(normal[:2]):
        Image.fromarray(image).save(folder / f"{i}.png")
    changed = {"evidence": "ssd", "student__decoder_blocks": (1, 0, 0), "image_size": (32, 32)}
    det = make_detector(**{**toy, **changed}).fit(sorted(folder.iterdir()))
    det.export(folder / "model.onnx")
    content = (folder / "model.onnx").read_bytes()
    assert json.loads(metadata(folder / "model.onnx")["support_names"]) == ["0.png", "1.png"]
    for private in ("secret folder", str(ROOT), sys.prefix, ".py"):
        assert private.encode() not in content
    scores = det.score_samples(normal[2:4])
    det.export(folder / "model.onnx", force=True)
    assert (folder / "model.onnx").read_bytes() == content
    np.testing.assert_array_equal(det.score_samples(normal[2:4]), scores)


def test_errors(toy, fitted, normal, tmp_path, monkeypatch):
    with pytest.raises(NotFittedError):
        DualDistillationDetector(**toy).export(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(OutputExistsError, match="force=True"):
        fitted.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0"))
        with pytest.raises(MissingExtraError, match=r"2\.8 or newer, but this is 2\.6\.0"):
            fitted.export(tmp_path / "other.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"fewshot-ad\[export\]"):
        fitted.export(tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_network_with_padding_by_size(normal, tmp_path):
    name = "tf_mobilenetv3_small_minimal_100"
    weights = write_random_weights(name, tmp_path / "weights.safetensors")
    det = DualDistillationDetector(name, weights=weights, image_size=32, evidence="embedding", precision="float32")
    with pytest.raises(ValueError, match=r"Fit with aspect='square', or with image_size=\(H, W\)\."):
        det.fit(normal[:2]).export(tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    for changed in ({"aspect": "square"}, {"aspect": "keep", "image_size": (32, 64)}):
        det.set_params(**changed).fit(normal[:2]).export(tmp_path / "model.onnx", force=True)
        assert_same(det, tmp_path / "model.onnx", [normal[3:5]])


@pytest.mark.slow
def test_command_and_script(tmp_path, capsys):
    """The stand-alone script agrees on the output of `fewshot-ad export`, for packaged networks and several formats."""

    folder = write_images(tmp_path / "made", n_normal=6, n_anomalous=2)
    good, bad = (sorted((folder / kind).iterdir()) for kind in ("good", "bad"))
    model, out = tmp_path / "model.fsad", tmp_path / "model.onnx"
    DualDistillationDetector(precision="float32", random_state=0).fit(good[:4]).save(model)
    assert cli.main(["export", str(model), "-o", str(out), "--json"]) == 0
    det = DualDistillationDetector.load(model)
    assert json.loads(capsys.readouterr().out) == {
        "model": str(out), "bytes": out.stat().st_size, "offset": det.offset_,
    }  # fmt: skip
    assert cli.main(["export", str(model), "-o", str(out)]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err

    new = tmp_path / "new"
    new.mkdir()
    for path in (*good[4:], *bad):
        (new / path.name).write_bytes(path.read_bytes())
    picture = Image.open(bad[0])
    picture.resize((1200, 900)).save(new / "large.jpg", quality=90)
    picture.convert("L").save(new / "grey.png")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "score_onnx.py", out, new], check=True, capture_output=True, text=True
    )
    paths, scores, labels = zip(*(line.rsplit(maxsplit=2) for line in done.stdout.splitlines()), strict=True)
    assert [Path(path) for path in paths] == sorted(new.iterdir())
    expected = relative_score(det.score_samples(paths), det.offset_)
    np.testing.assert_allclose(np.array(scores, float), expected, rtol=0, atol=1e-4)
    assert [int(label) for label in labels] == det.predict(paths).tolist()
    assert -1 in det.predict(paths)
    assert_same(det, out, [np.stack([np.asarray(Image.open(path)) for path in (*good[4:], *bad)])])


def stub(tmp_path, score):
    """Create a stand-in for onnxruntime that gives all images the same score."""
    (tmp_path / "onnxruntime.py").write_text(
        "class InferenceSession:\n"
        "    def __init__(self, *_, **__): self.custom_metadata_map = {'image_size': '8', 'offset': '-2.0'}\n"
        "    def get_modelmeta(self): return self\n"
        f"    def run(self, *_): return ([float('{score}')],)\n"
    )
    (tmp_path / "new").mkdir()
    for i in range(300):
        Image.new("L", (8, 8)).save(tmp_path / "new" / f"{i}.png")
    return f"{sys.executable} {ROOT / 'examples' / 'score_onnx.py'} model.onnx new"


@pytest.mark.parametrize(("score", "said"), [("nan", "nan -1"), ("-3", "1.5 -1"), ("-2", "1.0 1"), ("-1", "0.5 1")])
def test_example_treats_known_images_as_normal(tmp_path, score, said):
    command = stub(tmp_path, score).split()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0].endswith(f" {said}")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_example_with_closed_output(tmp_path):
    command = f"{stub(tmp_path, '-1')} | head -1"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    start = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(start, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (141, "", 1)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "n_shots", "backbone"),
    [("skin_ham10000", 1, "compact"), ("odir_glaucoma", 4, "mobilenetv2_100")],
)
def test_on_real_images(real_data, request, tmp_path, task, n_shots, backbone):
    """The hardest scores, and another network; benchmarks/export_parity.py covers all tasks."""
    weights = request.getfixturevalue("real_weights") if backbone != "compact" else None
    good, bad = (images.files(real_data / task / kind) for kind in ("good", "bad"))
    good = [good[i] for i in np.random.default_rng(0).permutation(len(good))]  # skin images, with scores up to 16
    options = {"weights": weights, "aspect": "square", "precision": "float32", "random_state": 0}
    det = DualDistillationDetector(backbone, **options).fit(good[:n_shots])
    det.export(tmp_path / "model.onnx")
    batches = [np.asarray(Image.open(path).convert("RGB"))[None] for path in (*good[n_shots : n_shots + 4], *bad[:4])]
    assert_same(det, tmp_path / "model.onnx", batches)
