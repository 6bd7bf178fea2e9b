"""Toy backbones registered with timm, random weights, and small images."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

# Read by the hub's client on import: a test that needs the network must fail at once, not after retries.
os.environ["HF_HUB_OFFLINE"] = "1"

# Environment variables that would redirect a connection.
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from timm.layers import LayerNorm
from timm.models import build_model_with_cfg, eva, generate_default_cfgs, register_model, vision_transformer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

from fewshot_ad import DualDistillationDetector, Student


def make_detector(**parameters) -> DualDistillationDetector:
    """Create a detector from parameters with any names that `set_params` accepts; a given `Student` is not changed."""
    if isinstance(parameters.get("student"), Student):
        parameters["student"] = clone(parameters["student"])
    return DualDistillationDetector().set_params(**parameters)


@register_model
def toy_resnet(pretrained: bool = False, **options) -> ResNet:
    """Build a network with four stages, at strides 4, 8, 16 and 32, and 60,000 weights."""
    options = {
        "block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8, **options,
    }  # fmt: skip
    return build_model_with_cfg(ResNet, "toy_resnet", pretrained, **options)


# timm requires these in the module that registers a network.
default_cfgs = generate_default_cfgs({
    "toy_dinov2.none": {"input_size": (3, 70, 70), "fixed_input_size": True},
    "toy_dinov2_reg.none": {"input_size": (3, 70, 70), "fixed_input_size": True},
    "toy_dinov3.none": {"input_size": (3, 64, 64), "fixed_input_size": True},
})  # fmt: skip


def _transformer(name: str, module, network: type, pretrained: bool, **options):
    """Build a transformer like timm does, with a larger contribution of the blocks than at initialisation."""
    return build_model_with_cfg(
        network, name, pretrained, feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        pretrained_filter_fn=module.checkpoint_filter_fn, **{"num_heads": 3, "init_values": 0.5, **options},
    )  # fmt: skip


@register_model
def toy_dinov2(pretrained: bool = False, **options) -> VisionTransformer:
    """Build a small DINOv2: patches of 14 px, 12 blocks, a class token."""
    options = {"patch_size": 14, "img_size": 70, "embed_dim": 96, "depth": 12, **options}
    return _transformer("toy_dinov2", vision_transformer, VisionTransformer, pretrained, **options)


@register_model
def toy_dinov2_reg(pretrained: bool = False, **options) -> VisionTransformer:
    """Build a small DINOv2 with four register tokens and four blocks."""
    options = {"patch_size": 14, "img_size": 70, "embed_dim": 24, "depth": 4, **options}
    registers = {"reg_tokens": 4, "no_embed_class": True}
    return _transformer("toy_dinov2_reg", vision_transformer, VisionTransformer, pretrained, **registers, **options)


@register_model
def toy_dinov3(pretrained: bool = False, **options) -> eva.Eva:
    """Build a small DINOv3: patches of 16 px, 4 blocks, rotary positions, class and register tokens."""
    options = {
        "patch_size": 16, "img_size": 64, "dynamic_img_size": True, "embed_dim": 48, "depth": 4, "qkv_bias": False,
        "rope_type": "dinov3", "rope_temperature": 100, "use_rot_pos_emb": True, "use_abs_pos_emb": False,
        "rope_rotate_half": True, "use_fc_norm": False, "num_reg_tokens": 4, **options,
    }  # fmt: skip
    return _transformer("toy_dinov3", eva, eva.Eva, pretrained, norm_layer=partial(LayerNorm, eps=1e-5), **options)


def write_random_weights(name: str, path: Path, seed: int = 0, **options) -> Path:
    """Save random weights of a timm network, as a stand-in for pretrained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, **options)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def stripes(n: int, size: int = 40, seed: int = 0) -> np.ndarray:
    """Create normal images of slanted colour stripes, (n, size, size, 3) uint8, with different phases and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    wave = 0.5 + 0.3 * np.sin((rows + 2 * columns) * 2 * np.pi / 16 + phase)
    image = wave[..., None] * [1.0, 0.8, 0.6] + rng.normal(0, 0.02, (n, size, size, 3))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def corrupted(images: np.ndarray, side: int = 12) -> np.ndarray:
    """Paint a flat grey square in the lower right quarter of each image."""
    images = images.copy()
    start = images.shape[1] // 2
    images[:, start : start + side, start : start + side] = 128
    return images


def plain_and_marked(height: int, width: int) -> tuple[list[np.ndarray], np.ndarray, tuple[float, float]]:
    """Create four plain noisy images, one with a bright spot, and its position as fractions of height and width."""
    rng = np.random.default_rng(0)
    images = [rng.integers(90, 110, (height, width, 3), dtype=np.uint8) for _ in range(5)]
    top, bottom = round(0.63 * height), round(0.77 * height)
    left, right = round(0.23 * width), round(0.37 * width)
    images[-1][top:bottom, left:right] = 255
    return images[:4], images[-1], ((top + bottom) / 2 / height, (left + right) / 2 / width)
