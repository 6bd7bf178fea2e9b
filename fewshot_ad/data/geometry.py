"""The size that each image is resized to: for a network, and for display."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, TypeAlias

# Images of more extreme proportions, in either direction, are squeezed.
LONGEST = 4


@dataclass(frozen=True)
class Geometry:
    """The size that an image is resized to, given its own size.

    Attributes
    ----------
    image_size : int or tuple of two ints
        Square root of the area, or height and width of all images; pixels.
    square : bool, default=True
        Whether all images become squares; otherwise each keeps its own proportions, up to 4:1.
    multiple : int, default=1
        Images that keep their proportions get sides that are multiples of this.
    """

    image_size: int | tuple[int, int]
    square: bool = True
    multiple: int = 1

    # A JPEG is decoded to at least this multiple of the longer side that it is resized to.
    spare: ClassVar[int] = 4

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width, if they are the same for all images."""
        if isinstance(self.image_size, tuple):
            return self.image_size
        return (self.image_size, self.image_size) if self.square else None

    @property
    def usual(self) -> tuple[int, int]:
        """Height and width of a square image, or of all."""
        return self.shape(1, 1)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this height and width is resized to."""
        if self.fixed is not None:
            return self.fixed
        return self._side(height, width), self._side(width, height)

    def check(self, network: str, *, strictly: bool = True) -> None:
        """Refuse given sides that a network would not use completely.

        Parameters
        ----------
        network : str
            For the message.
        strictly : bool, optional
            Whether squares must fit too; a convolutional network accepts any.

        Raises
        ------
        ValueError
            The sides do not fit; the message names the nearest sizes that do.
        """
        n, given = self.multiple, self.fixed
        if given is None or not any(side % n for side in given) or not (strictly or isinstance(self.image_size, tuple)):
            return
        near = {
            tuple(n * max(1, whole(side / n)) for side in given) for whole in (math.floor, math.ceil)
        }  # fmt: skip
        named = " and ".join(asked(shape) for shape in sorted(near))
        raise ValueError(
            f"{network!r} takes sides that are multiples of {n}, but {asked(given)} was given. The nearest fitting "
            f"sizes are {named}."
        )

    def _side(self, along: int, across: int) -> int:
        """Return the new length of a side of `along` pixels; in integers, so that all machines agree."""
        assert not isinstance(self.image_size, tuple)  # nosec B101
        along, across = min(along, LONGEST * across), min(across, LONGEST * along)
        # Twice image_size * sqrt(along / across), in multiples.
        twice = math.isqrt(4 * int(self.image_size) ** 2 * along // (self.multiple**2 * across))
        return self.multiple * max(1, (twice + 1) // 2)


def asked(shape: tuple[int, ...] | None) -> str:
    """Return the parameter that requests images of a shape; None is any shape."""
    if shape is None:
        return "aspect='keep'"
    return f"image_size={shape[0] if len(set(shape)) == 1 else shape}"


@dataclass(frozen=True)
class FigureSize:
    """The size that an image is displayed at: in its own proportions, and never enlarged.

    Attributes
    ----------
    max_side : int, default=640
        Its longest side, pixels.

    Raises
    ------
    ValueError
        `max_side` is not a positive integer.
    """

    max_side: int = 640

    spare: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the side."""
        if not (isinstance(self.max_side, Integral) and self.max_side >= 1):
            raise ValueError(
                f"max_side={self.max_side!r} was given; it must be an integer of at least 1, or None for the size "
                "that the detector used."
            )

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this height and width is displayed at."""
        scale = min(1.0, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


Target: TypeAlias = Geometry | FigureSize
