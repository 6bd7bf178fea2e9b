"""Public functions for lists of images: frames of multi-image files, and folders of labelled images.

`MAX_PIXELS`, 50 million by default, is a setting of this module, like Pillow's `Image.MAX_IMAGE_PIXELS`: an image with
more pixels is rejected before it is decoded. Set it to another number, or to None for no limit.
"""

import sys
from types import ModuleType

from .data import reading
from .data.datasets import ImageFolder, load_folder, read_mask
from .data.formats import Frame
from .data.images import frames

__all__ = ["Frame", "ImageFolder", "frames", "load_folder", "read_mask"]


MAX_PIXELS: int | None


class _Images(ModuleType):
    @property
    def MAX_PIXELS(self) -> int | None:
        return reading.MAX_PIXELS

    @MAX_PIXELS.setter
    def MAX_PIXELS(self, value: int | None) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(
                f"MAX_PIXELS={value!r} was given; it must be an integer of at least 1, or None for no limit."
            )
        reading.MAX_PIXELS = value


sys.modules[__name__].__class__ = _Images
