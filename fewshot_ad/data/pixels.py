"""Raw values of an image -> channels in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..exceptions import ImageError
from .sources import Pixels

ACCEPTED = (
    "a path, a Frame of a file of several images, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or "
    "a torch tensor (C, H, W); dtype bool, uint8, uint16, or float in [0, 1] (anything else with "
    "value_range=(low, high))"
)
FULL_SCALE = {np.dtype(bool): 1.0, np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


def unit_channels(pixels: Pixels, name: str, margin: float) -> Iterator[np.ndarray]:
    """Raw values, (H, W) or (H, W, C) -> one or three channels, float32 (H, W), in [0, 1]."""
    raw, value_range, inverted = pixels
    raw = raw[..., None] if raw.ndim == 2 else raw
    if raw.dtype.kind not in "buif":
        raise ImageError(f"{name} has dtype {raw.dtype}. Accepted: {ACCEPTED}.")
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        raise ImageError(f"{name} contains NaN or infinity. Replace those pixels, for instance with numpy.nan_to_num.")
    full = FULL_SCALE.get(raw.dtype, 1.0)
    scaled = value_range is not None or raw.dtype in FULL_SCALE
    if not scaled and not (raw.dtype.kind == "f" and raw.min() >= 0 and raw.max() <= 1):
        raise ImageError(
            f"{name} is {raw.dtype} with values from {raw.min()} to {raw.max()}. Accepted: bool, uint8, uint16, or "
            "float in [0, 1]. Pass value_range=(low, high), the values that mean black and white."
        )
    alpha = None
    if raw.shape[-1] == 4:
        # Transparency keeps the dtype's own scale: a value range is about grey values.
        alpha = raw[..., 3].astype(np.float32) / full
        if alpha.min() < 0 or alpha.max() > 1:
            raise ImageError(
                f"{name} is {raw.dtype} with transparency from {alpha.min()} to {alpha.max()}. Accepted in its fourth "
                "channel: the full scale of bool, uint8 or uint16, else values in [0, 1]."
            )
    for i in range(min(raw.shape[-1], 3)):
        channel: np.ndarray
        if value_range is not None:
            low, high = (float(v) for v in value_range)
            channel = raw[..., i].astype(np.float64)
            channel -= low
            channel /= high - low
            np.clip(channel, -margin, 1.0 + margin, out=channel)
        elif raw.dtype in FULL_SCALE:
            channel = raw[..., i].astype(np.float32)
            channel /= full
        else:
            channel = raw[..., i].copy()
        channel = (1 - channel if inverted else channel).astype(np.float32, copy=False)
        if alpha is not None:
            channel *= alpha
        yield np.ascontiguousarray(channel)
