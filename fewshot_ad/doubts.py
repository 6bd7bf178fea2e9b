"""What about a support should make its user doubt."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .support import FittedSupport

# A support image that reads so many times the median of all is named in a warning. On eleven tasks, four images: in 1
# of 33 draws of normal ones, and for 1 of 8 anomalous ones among three normal (docs/experiments.md).
_ODD = 2.5
# Values of an image that differ by less were one value before it was resized.
_ONE_VALUE = 1e-5


def doubts(fitted: FittedSupport) -> Iterator[str]:
    """Say what about a support should make its user doubt the threshold, or an image of it."""
    guess = ": how much normal images differ cannot be seen, and thresholds are guesses."
    k, images = len(fitted.hashes), fitted.images
    if k == 1:
        yield f"The support is a single image{guess}"
    elif len(set(fitted.hashes)) == 1:
        yield f"All {k} support images are the same{guess}"
    elif len(set(fitted.groups)) < k:
        twins = [[n for n, group in zip(fitted.names, fitted.groups, strict=True) if group == g] for g in fitted.groups]
        named = "; ".join(dict.fromkeys(" and ".join(names[:5]) for names in twins if len(names) > 1))
        end = guess if len(set(fitted.groups)) == 1 else ". They count as one for the threshold; pass different images."
        yield f"{named} are nearly the same image{end}"
    # A row of a table may well be of one value, or be one value.
    shown = () if images is None or fitted.table is not None else images
    constant = [i for i, image in enumerate(shown) if (image.amax((1, 2)) - image.amin((1, 2))).max() < _ONE_VALUE]
    if constant:
        yield (
            f"{fitted.names[constant[0]]}"
            + (f" and {len(constant) - 1} more of {k} support images have" if len(constant) > 1 else " has")
            + " one value at every pixel: scores say little of what is normal. Check the image, and value_range."
        )
    middle = np.median(fitted.scores)
    for i in np.flatnonzero(fitted.scores < _ODD * middle) if k > 2 and middle < 0 else ():
        yield (
            f"{fitted.names[i]} looks unlike the rest of the support: it reads {fitted.scores[i] / middle:.1f} "
            "times as anomalous as the middle one. If it is not normal, fit without it: what looks like it passes "
            "for normal."
        )
