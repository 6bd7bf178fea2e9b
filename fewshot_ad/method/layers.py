"""Choice of the layers that describe an image: blocks of a transformer, stages of any other network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_OfLevel = TypeVar("_OfLevel")
# Number of the teacher's layers that a student imitates.
N_SCALES = 3
_PYRAMID_STRIDES = (4, 8, 16)
# The upper half of a transformer, for a depth of twelve blocks (docs/choosing.md gives the source).
_BLOCKS_OF_TWELVE = (4, 5, 7, 10)
# Default square root of the area that images are resized to: for pyramids, and the largest for transformers.
USUAL_SIZE, _TOKENS_SIZE = 128, 448


@dataclass(frozen=True)
class Layers:
    """The layers that describe an image.

    A network's maps, and lists of their properties, are in this order: the layers, shallow to deep; then, if the
    network returns an embedding, the input of a decoder; and last the map that the embedding is pooled from.

    Attributes
    ----------
    numbers : tuple of int
        Numbers as in the literature. Blocks of a transformer count from 1 to its depth. Stages count from 1, the first
        one at a stride of 4 pixels or more (a ResNet's `layer1`).
    tokens : bool
        Whether they are blocks of a plain transformer: maps of tokens, normalised by the network.
    """

    numbers: tuple[int, ...] = (1, 2, 3)
    tokens: bool = False

    def of(self, levels: Sequence[_OfLevel]) -> list[_OfLevel]:
        """Return the entries of the layers."""
        return list(levels[: len(self.numbers)])

    def middle(self, levels: Sequence[_OfLevel]) -> _OfLevel:
        """Return the entry of the middle layer, whose positions are the patches."""
        return levels[(len(self.numbers) - 1) // 2]

    def for_student(self, levels: Sequence[_OfLevel]) -> list[_OfLevel]:
        """Return the entries of the three deepest layers, which a student imitates, and of a decoder's input."""
        n = len(self.numbers)
        return [*levels[max(0, n - N_SCALES) : n], levels[min(n, len(levels) - 1)]]


def is_plain(strides: Sequence[int]) -> bool:
    """Return whether a network is a plain transformer, whose blocks all have one stride."""
    return len(strides) > 1 and len(set(strides)) == 1


def usual_size(strides: Sequence[int]) -> int:
    """Return the default `image_size`."""
    return max(1, _TOKENS_SIZE // strides[0]) * strides[0] if is_plain(strides) else USUAL_SIZE


def choose(name: str, asked: str | Sequence[int], strides: Sequence[int]) -> tuple[Layers, tuple[int, ...]]:
    """Choose layers.

    Parameters
    ----------
    name : str
        Name of the network, for messages.
    asked : {"auto", "last"} or sequence of int
        The parameter `layers`.
    strides : sequence of int
        Stride of each block or stage of the network, shallow to deep.

    Returns
    -------
    layers : Layers
    places : tuple of int
        Index of each layer in `strides`.

    Raises
    ------
    ValueError
        A layer does not exist (the message names the nearest ones that do), or "last" is given for a network without
        tokens.
    """
    tokens = is_plain(strides)
    first = 0 if tokens else next((i for i, stride in enumerate(strides) if stride >= _PYRAMID_STRIDES[0]), 0)
    available = range(1 - first, len(strides) + 1 - first)
    what = f"{'blocks' if tokens else 'stages'} {max(1, available[0])} to {available[-1]}"
    if asked == "auto":
        numbers = _upper_half(len(strides)) if tokens else tuple(available[i] for i in usual_stages(strides))
    elif asked == "last":
        if not tokens:
            raise ValueError(
                f"layers='last' was given, but {name!r} has no tokens: it is not a plain transformer, and has {what}. "
                "Pass layers='auto' or a tuple of these, or the name of a transformer as backbone."
            )
        numbers = (available[-1],)
    else:
        numbers = tuple(sorted({int(number) for number in asked}))
        if not set(numbers) <= set(available):
            near = tuple(sorted({min(max(number, 1), available[-1]) for number in numbers}))
            raise ValueError(
                f"layers={tuple(asked)} was given, but {name!r} has {what}. The nearest fitting choice is "
                f"layers={near}."
            )
    return Layers(numbers, tokens), tuple(available.index(number) for number in numbers)


def _upper_half(depth: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, math.floor(block * depth / 12 + 0.5)) for block in _BLOCKS_OF_TWELVE}))


def usual_stages(strides: Sequence[int]) -> tuple[int, ...]:
    """Choose the stages of strides 4, 8 and 16; in a network without these, the last three before the embedding."""
    chosen = tuple(strides.index(stride) for stride in _PYRAMID_STRIDES if stride in strides)
    return chosen if len(chosen) == len(_PYRAMID_STRIDES) else tuple(range(len(strides)))[-4:][:3]


def embedding_place(places: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the index of the embedding: the last block, or the next deeper stage; None if there is none."""
    last = len(strides) - 1
    if is_plain(strides):
        return last
    return places[-1] + 1 if places[-1] < last else None
