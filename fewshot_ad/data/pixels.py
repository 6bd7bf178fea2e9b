"""Raw values of an image -> channels in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..exceptions import ImageError, warn
from .sources import Pixels, native

ACCEPTED = (
    "a path, a Frame of a file of several images, the bytes of a file, a file opened in binary mode, a PIL image, an "
    "array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or "
    "a torch tensor (C, H, W); dtype bool, uint8, uint16, or float in [0, 1] (anything else with "
    "value_range=(low, high))"
)
FULL_SCALE = {np.dtype(bool): 1.0, np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


# Values further outside [0, 1] than this many steps of a float's precision are not due to rounding.
_STEPS = 16
_BELOW = 1 / 8


def rounding(dtype: Any) -> float:
    """Return how far outside [0, 1] rounding may put floats, as after a resize or a weighted sum."""
    return _STEPS * max(float(torch.finfo(dtype).eps), float(torch.finfo(torch.float32).eps))


def unit_channels(pixels: Pixels, name: str, margin: float) -> Iterator[np.ndarray]:
    """Raw values, (H, W) or (H, W, C) -> one or three channels, float32 (H, W), in [0, 1]."""
    raw, value_range, inverted, hidden, _ = pixels
    raw = native(raw)
    raw = raw[..., None] if raw.ndim == 2 else raw
    if raw.dtype.kind not in "buif":
        raise ImageError(f"{name} has dtype {raw.dtype}. Accepted: {ACCEPTED}.")
    if hidden is not None:
        raw = np.where(hidden[..., None], raw.dtype.type(0), raw)
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        raise ImageError(f"{name} contains NaN or infinity. Replace those pixels, for instance with numpy.nan_to_num.")
    full = FULL_SCALE.get(raw.dtype, 1.0)
    scaled = value_range is not None or raw.dtype in FULL_SCALE
    slack = _slack(raw.dtype)
    if not scaled and not (raw.dtype.kind == "f" and raw.min() >= -slack and raw.max() <= 1 + slack):
        raise ImageError(
            f"{name} is {raw.dtype} with values from {raw.min()} to {raw.max()}. Accepted: bool, uint8, uint16, or "
            "float in [0, 1]. Pass value_range=(low, high), the input window that becomes 0 to 1."
        )
    alpha = None
    if raw.shape[-1] == 4:
        # Transparency keeps the full scale of the dtype: a value range applies to grey values only.
        alpha = raw[..., 3].astype(np.float32) / full
        if alpha.min() < -slack or alpha.max() > 1 + slack:
            raise ImageError(
                f"{name} is {raw.dtype} with transparency from {alpha.min()} to {alpha.max()}. Accepted in its fourth "
                "channel: the full scale of bool, uint8 or uint16, otherwise values in [0, 1]."
            )
        np.clip(alpha, 0, 1, out=alpha)
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
            channel = np.clip(raw[..., i], 0, 1)
        channel = (1 - channel if inverted else channel).astype(np.float32, copy=False)
        if alpha is not None:
            channel *= alpha
        if hidden is not None:
            channel[hidden] = 0
        yield np.ascontiguousarray(channel)


def _slack(dtype: np.dtype) -> float:
    return rounding(getattr(torch, dtype.name)) if dtype.name in ("float16", "float32", "float64") else 0.0


def is_invisible(values: np.ndarray) -> bool:
    """Return whether an image is fully transparent."""
    return values.ndim == 3 and values.shape[-1] == 4 and not values[..., 3].any()


def warn_of_low_use(images: Sequence[torch.Tensor]) -> None:
    """Warn of a support that uses little of the range of values, such as 12 bits in uint16.

    Parameters
    ----------
    images : sequence of torch.Tensor
        The support, (3, H, W) each in [0, 1], from `images.load`.

    Warns
    -----
    SupportWarning
        No value reaches 1/8 of the full scale.
    """
    largest = max((float(image.max()) for image in images), default=1.0)
    if largest < _BELOW:
        warn(
            f"The support uses only the lowest {largest:.2%} of the range of values, which makes anomalies hard to "
            "detect. If its files or arrays hold fewer bits than their dtype (12 bits in uint16), pass "
            "value_range=(low, high), the input window, for instance value_range=(0, 4095)."
        )
