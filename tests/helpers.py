"""A toy backbone that timm builds, random weights, and small images."""

from __future__ import annotations

import os
from pathlib import Path

# The hub's client reads it when it is imported: a test that needs the network must fail at once, not after its retries.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet


@register_model
def toy_resnet(pretrained: bool = False, **options) -> ResNet:
    """Four stages at strides 4, 8, 16, 32 and 60,000 weights."""
    options = {
        "block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8, **options,
    }  # fmt: skip
    return build_model_with_cfg(ResNet, "toy_resnet", pretrained, **options)


def write_random_weights(name: str, path: Path, seed: int = 0, **options) -> Path:
    """Save random weights of a timm network, as a stand-in for pretrained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, **options)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def stripes(n: int, size: int = 40, seed: int = 0) -> np.ndarray:
    """Normal images: slanted colour stripes, (n, size, size, 3) uint8, each with its own phase and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    wave = 0.5 + 0.3 * np.sin((rows + 2 * columns) * 2 * np.pi / 16 + phase)
    image = wave[..., None] * [1.0, 0.8, 0.6] + rng.normal(0, 0.02, (n, size, size, 3))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def spoilt(images: np.ndarray, side: int = 12) -> np.ndarray:
    """Paint a flat grey square into the lower right quarter of each image."""
    images = images.copy()
    start = images.shape[1] // 2
    images[:, start : start + side, start : start + side] = 128
    return images


def plain_and_marked(height: int, width: int) -> tuple[list[np.ndarray], np.ndarray, tuple[float, float]]:
    """Make four plain noisy images, one with a bright spot in it, and where that is: shares of height and width."""
    rng = np.random.default_rng(0)
    images = [rng.integers(90, 110, (height, width, 3), dtype=np.uint8) for _ in range(5)]
    top, bottom = round(0.63 * height), round(0.77 * height)
    left, right = round(0.23 * width), round(0.37 * width)
    images[-1][top:bottom, left:right] = 255
    return images[:4], images[-1], ((top + bottom) / 2 / height, (left + right) / 2 / width)
