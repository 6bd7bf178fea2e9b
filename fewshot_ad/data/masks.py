"""Masks of images: read, and checked by their size before anything is decoded."""

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

# Of these, black need not be 0: what is up to half as bright as the brightest, or nearly black, is normal.
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_NEARLY_BLACK = 31


class MaskError(ImageError):
    """What is wrong with a mask, and the same in few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_size(mask: Path, image: Path) -> None:
    """Raise a MaskError where a mask, or one of several in a folder, has not its image's size; no pixel is decoded."""
    expected = shown_size(image)
    for file in _parts(mask):
        size = shown_size(file)
        if size is None:
            raise MaskError(
                f"The mask {file} cannot be read, not even its size. Remove it or write it again.",
                "a mask that cannot be read",
            )
        if expected is not None and size != expected:
            raise MaskError(
                f"The mask {file} is {size[0]} x {size[1]} pixels, but its image {image} is {expected[0]} x "
                f"{expected[1]} (width x height). Resize the mask, or remove it.",
                "a mask of another size than its image",
            )


def _parts(mask: Path) -> list[Path]:
    parts = files(mask) if mask.is_dir() else [mask]
    if not parts:
        raise MaskError(f"The folder {mask} holds no mask. Remove it.", "a folder without a mask")
    return parts


def shown_size(item: Any) -> tuple[int, int] | None:
    """Read the width and height of an image, as shown, without decoding it.

    Parameters
    ----------
    item : path or Frame

    Returns
    -------
    tuple of (int, int) or None
        None where they cannot be read.
    """
    # Readers raise whatever a damaged file leads them to; a size that Pillow warns of is for MAX_PIXELS to judge.
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        return images.size_of(item)
    return None


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read where an image is anomalous.

    Parameters
    ----------
    path : path
        A mask, or a folder of masks of one image, which are joined. Every pixel that is not 0, of whatever number,
        colour or index of a palette, is anomalous; in lossy formats, every pixel of more than half the highest value.

    Returns
    -------
    ndarray of shape (H, W), bool
        As shown (EXIF orientation counts).

    Raises
    ------
    ImageError
        The mask cannot be read, its parts are of several sizes, or it has several values and none of them is 0.
    """
    parts = [_read_part(part) for part in _parts(Path(path))]
    if len({part.shape for part in parts}) > 1:
        raise MaskError(f"The masks in {path} are of several sizes. Write them anew.", "masks of several sizes")
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
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        said = " ".join(str(error).split()).rstrip(".")
        raise MaskError(f"The mask {path} cannot be read: {said}.", "a mask that cannot be read") from error
    marked = (values != 0).any(0)
    if marked.all() and values.min() != values.max():
        raise MaskError(
            f"The mask {path} has no pixel of value 0, which is what a normal one has. Write it anew, with 0 there.",
            "a mask without a pixel of value 0",
        )
    return marked


def _marked(picture: Image.Image, *, lossy: bool) -> np.ndarray:
    """Give each pixel a number that is 0 where it is normal, (H, W)."""
    bands = picture.getbands()
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGB")).max(-1)
        # A palette may say nothing: all black, or without black.
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
