"""The example services: real requests to FastAPI on the loopback interface, and an MLflow model."""

from __future__ import annotations

import base64
import importlib.util
import io
import runpy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fewshot_ad import DualDistillationDetector
from fewshot_ad.explanation import overlay

EXAMPLES = Path(__file__).parents[1] / "examples"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def det(normal) -> DualDistillationDetector:
    return DualDistillationDetector(image_size=32, evidence="patch", random_state=0).fit(normal[:4])


@pytest.fixture(scope="module")
def service(det, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The example, served by uvicorn on a free port."""
    for name in ("fastapi", "uvicorn", "httpx", "python_multipart"):
        pytest.importorskip(name, reason="the extra examples")
    import httpx
    import uvicorn

    model = tmp_path_factory.mktemp("model") / "m.fsad"
    det.save(model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FEWSHOT_AD_MODEL", str(model))
        patched.setenv("FEWSHOT_AD_MOST_BYTES", str(MOST_BYTES))
        app = runpy.run_path(str(EXAMPLES / "11_service.py"))["app"]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield SimpleNamespace(client=client, send=lambda data, name="a.png": send(client, data, name))
    finally:
        server.should_exit = True
        thread.join()


def send(client, data: bytes, name: str):
    return client.post("/score", files={"image": (name, data)})


def png(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def test_image_is_scored_and_explained(service, det, anomalous):
    reply = service.send(png(anomalous[0]), "neu ü.png")
    assert reply.status_code == 200
    found, (expected,) = reply.json(), det.explain([png(anomalous[0])])
    assert (found["name"], found["score"]) == ("neu ü.png", expected.relative)
    assert found["anomalous"] is bool(expected.decision < 0)
    assert found["p_value"] == det.normal_pvalue([png(anomalous[0])])[0]
    assert [tuple(one["box"]) for one in found["regions"]] == [one.box for one in expected.regions] != []
    assert [one["area"] for one in found["regions"]] == [one.area for one in expected.regions]
    np.testing.assert_array_equal(found["regions"][0]["polygon"], expected.regions[0].polygon)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["overlay"]))))
    np.testing.assert_array_equal(shown, overlay(expected))


def test_concurrent_requests(service, det, normal, anomalous):
    images = [*normal[4:8], *anomalous[:4]]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda image: service.send(png(image)).json(), images))
    assert [reply["score"] for reply in replies] == [one.relative for one in det.explain(list(images))]


@pytest.mark.parametrize(
    ("data", "said"), [(b"no image", "could not be read"), (b"", "is empty"), (b"GIF89a", "could not be read")]
)
def test_other_files_are_refused(service, data, said):
    reply = service.send(data, "a.png")
    assert reply.status_code == 415
    assert "a.png" in reply.json()["detail"]
    assert said in reply.json()["detail"]


def test_large_requests_are_refused(service, anomalous):
    large = png(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    reply = service.send(large)
    assert reply.status_code == 413
    assert f"more than the {MOST_BYTES} that are accepted" in reply.json()["detail"]
    assert service.send(png(anomalous[0])).status_code == 200


def test_decompression_bomb_is_refused(service):
    data = io.BytesIO()
    Image.new("1", (8000, 8000)).save(data, "PNG")
    assert len(data.getvalue()) < MOST_BYTES
    reply = service.send(data.getvalue())
    assert reply.status_code == 415
    assert "64000000 pixels" in reply.json()["detail"]


def test_request_without_a_length(service):
    reply = service.client.post("/score", content=iter([b"x"] * 3))
    assert reply.status_code == 411
    assert "Content-Length" in reply.json()["detail"]


def test_request_without_an_image(service):
    assert service.client.post("/score").status_code in (411, 422)
    assert service.client.post("/score", data={"image": "text"}).status_code == 422
    assert service.client.get("/score").status_code == 405


@pytest.mark.slow
def test_mlflow_model(capsys):
    pytest.importorskip("mlflow", reason="the extra examples")
    names = runpy.run_path(str(EXAMPLES / "12_mlflow.py"), run_name="__main__")
    assert "as the detector says: True" in capsys.readouterr().out
    assert list(names["found"].columns) == ["score", "label"]
    assert len(names["found"]) == 4


@pytest.mark.parametrize("name", ["11_service", "12_mlflow"])
def test_examples_name_missing_packages(name, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *r: None if n in ("fastapi", "mlflow") else find(n, *r))
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert 'is not installed: pip install "fewshot-ad[examples]"' in capsys.readouterr().out
