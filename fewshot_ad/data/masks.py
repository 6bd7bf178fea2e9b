"""Ground-truth masks: reading, and a check of their sizes before anything is decoded."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..exceptions import ImageError
from . import images
from .listing import files
from .pictures import FORMATS

# In lossy formats black may not be exactly 0: values up to half of the maximum, or nearly black ones, are normal.
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_NEARLY_BLACK = 31


class MaskError(ImageError):
    """An invalid mask; `reason` is a short form of the message."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_size(mask: Path, image: Path) -> None:
    """Raise a MaskError if a mask, or one in a folder of masks, differs in size from its image; no pixel is decoded."""
    expected = shown_size(image)
    for file in _parts(mask):
        size = shown_size(file)
        if size is None:
            raise MaskError(
                f"The mask {file} cannot be read. Remove it or save it again.",
                "a mask that cannot be read",
            )
        if expected is not None and size != expected:
            raise MaskError(
                f"The mask {file} is {size[0]} x {size[1]} pixels, but its image {image} is {expected[0]} x "
                f"{expected[1]} (width x height). Resize the mask, or remove it.",
                "a mask that differs in size from its image",
            )


def _parts(mask: Path) -> list[Path]:
    parts = files(mask) if mask.is_dir() else [mask]
    if not parts:
        raise MaskError(f"The folder {mask} contains no mask. Remove it.", "a folder without a mask")
    return parts


def shown_size(item: Any) -> tuple[int, int] | None:
    """Return the width and height of an image as displayed, without decoding it.

    Parameters
    ----------
    item : path or Frame

    Returns
    -------
    tuple of (int, int) or None
        None if they cannot be read.
    """
    # Readers raise all kinds of errors for damaged files; MAX_PIXELS decides about sizes that Pillow warns of.
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        return images.size_of(item)
    return None


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a ground-truth mask.

    Parameters
    ----------
    path : path
        A mask, or a folder of masks of one image, which are combined. Every pixel whose value, colour or palette index
        is not 0 is anomalous; in lossy formats, every pixel above half of the maximum.

    Returns
    -------
    ndarray of shape (H, W), bool
        As displayed (EXIF orientation is applied).

    Raises
    ------
    ImageError
        The mask cannot be read, the masks in the folder differ in size, or it has several values and none of them is 0.
    """
    parts = [_read_part(part) for part in _parts(Path(path))]
    if len({part.shape for part in parts}) > 1:
        raise MaskError(f"The masks in {path} differ in size. Save them again.", "masks of several sizes")
    return np.logical_or.reduce(parts)


def _read_part(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            pages = []
            for index in range(getattr(picture, "n_frames", 1) if picture.format in ("GIF", "TIFF") else 1):
                picture.seek(index)
                lossy = picture.format in _LOSSY
                pages.append(_marked(ImageOps.exif_transpose(picture), lossy=lossy))
        values = np.stack(pages)
    except Exception as error:  # Pillow's readers raise all kinds of errors for damaged files
        reason = " ".join(str(error).split()).rstrip(".")
        raise MaskError(f"The mask {path} cannot be read: {reason}.", "a mask that cannot be read") from error
    marked = (values != 0).any(0)
    if marked.all() and values.min() != values.max():
        raise MaskError(
            f"The mask {path} has no pixel of value 0, the value of normal pixels. Save it again, with 0 there.",
            "a mask without a pixel of value 0",
        )
    return marked


def _marked(picture: Image.Image, *, lossy: bool) -> np.ndarray:
    """Return values (H, W) that are 0 at normal pixels."""
    bands = picture.getbands()
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGB")).max(-1)
        # A palette may be of no use: all black, or without black.
        return colours if 0 < np.count_nonzero(colours) < colours.size else np.asarray(picture)
    values = np.asarray(picture)
    if bands[-1] in ("A", "a"):
        alpha, values = values[..., -1], values[..., :-1].max(-1)
        if alpha.min() < alpha.max():
            values = np.where(alpha > 0, values, 0)
            values = values if values.any() else alpha
    elif picture.mode == "CMYK":
        values = np.asarray(picture.convert("RGB")).max(-1)
    elif values.ndim == 3:
        values = values.max(-1)
    return np.where(values > max(values.max() / 2, _NEARLY_BLACK), values, 0) if lossy else values
