"""Fixtures: a toy detector, small images, and real images and weights if they are available."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PROXIES, corrupted, stripes, write_random_weights
from huggingface_hub import constants

from fewshot_ad import Student

# Toy maps are too small to share between threads, and idle threads that wait for a busy core make them many times
# slower.
torch.set_num_threads(1)

_DATA = Path(os.environ.get("FEWSHOT_AD_DATA", Path(__file__).parents[2] / "shared" / "data"))
_SHARED_WEIGHTS = _DATA.parent / "weights"


def pytest_collection_modifyitems(items):
    """Put slow tests at the front of both halves of the list, so that two processes do not wait for the last of them.

    Tests of a file stay together, because they share fixtures.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    files = list(dict.fromkeys(item.path for item in slow))
    first, second = ([item for item in slow if files.index(item.path) % 2 == i] for i in (0, 1))
    n_quick = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *quick[:n_quick], *second, *quick[n_quick:]]


def pytest_collection_finish():
    """Spare the garbage collector what libraries made when they were imported: it takes a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> dict:
    """Constructor parameters of a detector that is fast to fit."""
    path = write_random_weights("toy_resnet", tmp_path_factory.mktemp("weights") / "toy.safetensors")
    return {
        "backbone": "toy_resnet",
        "weights": path,
        "image_size": 32,
        "student": Student(decoder_blocks=(1, 1, 1), n_steps=3, batch_size=4),
        "random_state": 0,
    }


@pytest.fixture(scope="session")
def normal() -> np.ndarray:
    return stripes(12)


@pytest.fixture(scope="session")
def anomalous() -> np.ndarray:
    return corrupted(stripes(8, seed=1))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, one sub-folder with good/ and bad/ for each task."""
    if not (_DATA / "busi" / "good").is_dir():
        pytest.skip("real images are not here: set FEWSHOT_AD_DATA to their folder")
    return _DATA


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """ImageNet weights of mobilenetv2_100."""
    path = _SHARED_WEIGHTS / "mobilenetv2_100.safetensors"
    if not path.is_file():
        pytest.skip("mobilenetv2_100.safetensors is not beside the folder that FEWSHOT_AD_DATA names")
    return path


@pytest.fixture
def two_threads():
    """Let torch compute with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def off_line(monkeypatch, tmp_path):
    """No network: an empty cache, no environment variable that says so, and no name resolution."""

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return tmp_path
