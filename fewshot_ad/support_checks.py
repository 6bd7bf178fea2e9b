"""Warnings about the support: too few, constant, near-duplicate or outlying images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .support import FittedSupport

# A support image that scores at least this many times the median is an outlier. On eleven tasks with four images this
# warns in 1 of 33 draws of normal images, and for 1 of 8 anomalous images among three normal (docs/experiments.md).
_OUTLIER = 2.5
# An image with a smaller range of values was constant before it was resized.
_CONSTANT = 1e-5


def support_warnings(fitted: FittedSupport) -> Iterator[str]:
    """Yield warnings about a support: reasons to doubt the threshold, or one of the images."""
    guess = ": the variation of normal images cannot be estimated, and thresholds are guesses."
    k, images = len(fitted.hashes), fitted.images
    if k == 1:
        yield f"The support is a single image{guess}"
    elif len(set(fitted.hashes)) == 1:
        yield f"All {k} support images are identical{guess}"
    elif len(set(fitted.groups)) < k:
        groups = [
            [name for name, group in zip(fitted.names, fitted.groups, strict=True) if group == g] for g in fitted.groups
        ]
        listed = "; ".join(dict.fromkeys(" and ".join(names[:5]) for names in groups if len(names) > 1))
        end = guess if len(set(fitted.groups)) == 1 else ". They count as one for the threshold; pass different images."
        yield f"{listed} are near-duplicates{end}"
    # A row of a table may have a single column or a constant value.
    checked = () if images is None or fitted.table is not None else images
    constant = [i for i, image in enumerate(checked) if (image.amax((1, 2)) - image.amin((1, 2))).max() < _CONSTANT]
    if constant:
        yield (
            f"{fitted.names[constant[0]]}"
            + (f" and {len(constant) - 1} more of {k} support images have" if len(constant) > 1 else " has")
            + " the same value at every pixel: scores are hardly informative. Check the image, and value_range."
        )
    median = np.median(fitted.scores)
    for i in np.flatnonzero(fitted.scores < _OUTLIER * median) if k > 2 and median < 0 else ():
        yield (
            f"{fitted.names[i]} is an outlier among the support images: its anomaly score is "
            f"{fitted.scores[i] / median:.1f} times the median. If it is not normal, fit without it: otherwise "
            "images like it are called normal."
        )
