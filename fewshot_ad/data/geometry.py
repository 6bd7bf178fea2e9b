"""How large each image becomes: before a network sees it, and as a picture to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, TypeAlias

# Beyond these proportions, in either direction, an image is squeezed.
LONGEST = 4


@dataclass(frozen=True)
class Geometry:
    """What size an image is resized to, by its own size alone.

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

    # A JPEG is decoded to no less than so many times the longer side that it is resized to.
    spare: ClassVar[int] = 4

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width, where they are the same for all images."""
        if isinstance(self.image_size, tuple):
            return self.image_size
        return (self.image_size, self.image_size) if self.square else None

    @property
    def usual(self) -> tuple[int, int]:
        """Height and width of a square image, or of all."""
        return self.shape(1, 1)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Tell what height and width an image of this height and width is resized to."""
        if self.fixed is not None:
            return self.fixed
        return self._side(height, width), self._side(width, height)

    def check(self, network: str, *, strictly: bool = True) -> None:
        """Refuse given sides that a network would not see all of.

        Parameters
        ----------
        network : str
            For the message.
        strictly : bool, optional
            Whether squares have to fit too; a convolutional network sees all of any.

        Raises
        ------
        ValueError
            With the nearest fitting sizes.
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
        """Tell the side along which an image is `along` pixels long, in whole numbers: no machine rounds otherwise."""
        assert not isinstance(self.image_size, tuple)  # nosec B101
        along, across = min(along, LONGEST * across), min(across, LONGEST * along)
        # Twice image_size * sqrt(along / across), in multiples.
        twice = math.isqrt(4 * int(self.image_size) ** 2 * along // (self.multiple**2 * across))
        return self.multiple * max(1, (twice + 1) // 2)


def asked(shape: tuple[int, ...] | None) -> str:
    """Say which parameter asks for images of a shape, or of any."""
    if shape is None:
        return "aspect='keep'"
    return f"image_size={shape[0] if len(set(shape)) == 1 else shape}"


@dataclass(frozen=True)
class FigureSize:
    """What size a picture is shown at: in its own proportions, and no larger than it is.

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
                f"max_side={self.max_side!r} was given; accepted is an integer of at least 1, or None for what the "
                "detector saw."
            )

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Tell what height and width a picture of this height and width is shown at."""
        scale = min(1.0, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


Target: TypeAlias = Geometry | FigureSize
