"""What users import to list images: the images of files that hold several, and folders of labelled images."""

from .data.datasets import ImageFolder, load_folder, read_mask
from .data.formats import Frame
from .data.images import frames

__all__ = ["Frame", "ImageFolder", "frames", "load_folder", "read_mask"]
