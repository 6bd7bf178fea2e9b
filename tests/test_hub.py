"""Weights from timm's hub: offline, an immediate error that names the missing file and where to put it."""

from __future__ import annotations

import logging
import re
import socket
import time
from pathlib import Path

import pytest
import timm
from helpers import write_random_weights

from fewshot_ad.exceptions import WeightsNotFoundError
from fewshot_ad.method import hub
from fewshot_ad.method.teacher import build_backbone


def refusal(name: str, size: int = 64) -> str:
    with pytest.raises(WeightsNotFoundError) as caught:
        build_backbone(name, size)
    return str(caught.value)


def test_missing_weights_are_reported_at_once(off_line, capfd, caplog):
    began = time.monotonic()
    message = refusal("resnet18")
    assert time.monotonic() - began < 3
    for part in ("resnet18", "model.safetensors of timm/resnet18.a1_in1k", "Name or service not known", "weights=FILE"):
        assert part in message
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet.r160_in1k"])
def test_named_path_works(off_line, name):
    place = Path(re.search(r"put it at (\S+),", refusal(name))[1])
    place.parent.mkdir(parents=True)
    write_random_weights(name, place)
    assert build_backbone(name, 64).fingerprint() == build_backbone(name, 64, weights=place).fingerprint()


def test_weights_outside_a_repository(off_line, monkeypatch):
    config = timm.models.get_pretrained_cfg("resnet18")
    monkeypatch.setattr(config, "hf_hub_id", None)
    monkeypatch.setattr(config, "url", "https://example.org/a/b-0123.pth")
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda *_, **__: config)
    message = refusal("resnet18")
    assert "b-0123.pth of https://example.org/a/b-0123.pth" in message
    assert str(off_line / "torch" / "checkpoints" / "b-0123.pth") in message


def test_named_repository(off_line):
    assert "config.json of somebody/something is not" in refusal("hf-hub:somebody/something")


def test_pickled_file_in_the_cache_is_left_to_timm(off_line):
    config = timm.models.get_pretrained_cfg("resnet18")
    place = off_line / "cache" / "models--timm--resnet18.a1_in1k" / "snapshots" / "main" / "pytorch_model.bin"
    place.parent.mkdir(parents=True)
    place.touch()
    assert hub.cached_weights("resnet18", config) is None


def test_no_answer(off_line, monkeypatch):
    monkeypatch.setattr(hub, "_PATIENCE", 0.1)
    found = socket.getaddrinfo  # it fails, but later

    def wait(*arguments, **options):
        time.sleep(0.5)
        return found(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    assert "no answer from huggingface.co" in refusal("resnet18")


def test_reachable_hub(off_line, monkeypatch):
    asked = []

    class Connection:
        close = staticmethod(lambda: None)

    monkeypatch.setattr(socket, "create_connection", lambda address, _: asked.append(address) or Connection)
    config = timm.models.get_pretrained_cfg("resnet18")
    assert hub.cached_weights("resnet18", config) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert hub.cached_weights("resnet18", config) is None
    assert asked == [("huggingface.co", 443), ("proxy.example", 3128)]


def test_hub_client_does_not_log_retries(monkeypatch, off_line, caplog):
    def fail(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise OSError("no way")

    monkeypatch.setattr(hub.Probe, "problem", lambda _: None)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: fail() if k.get("pretrained") else create(*a, **k))
    assert "could not be downloaded" in refusal("resnet18")
    assert not caplog.records


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "resnet18.", "resnet18.a1_in1k.x"])
@pytest.mark.parametrize("with_file", [False, True])
def test_wrong_tag(name, with_file, tmp_path):
    weights = write_random_weights("resnet18", tmp_path / "w.safetensors") if with_file else None
    with pytest.raises(WeightsNotFoundError, match=rf"'{re.escape(name)}'.*resnet18\.a1_in1k.*Pass one"):
        build_backbone(name, 64, weights=weights)
