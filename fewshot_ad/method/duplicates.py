"""Near-duplicates among support images: frames of one still scene, one image saved several times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

# Side at which images are compared, pixels, and the correlation of their values from which on they may be one image.
# On twenty tasks four versions of an image (JPEG qualities 50 to 95; noise, light and a shift of a pixel) correlate by
# 0.98 and more. So do many pairs of different images that show the same thing in the same place: hence the second test.
_SIDE = 32
_CORRELATION = 0.98
# What a support image scores against the others, over what its own changed views do: 0.04 to 0.36 beside nearly the
# same image, else 0.2 to 1.4. One as low as the first is needed before pairs that are both below the second count.
_LOW, _LOWISH = 1 / 3, 1 / 2


def alike(images: Sequence[torch.Tensor]) -> np.ndarray:
    """Tell which of K images (3, H, W), in [0, 1], may be nearly the same: (K, K) of bool."""
    shrunk = [
        F.interpolate(image[None], size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
        for image in images
    ]
    small = torch.cat(shrunk).flatten(1)
    centred = F.normalize(small - small.mean(1, keepdim=True), dim=1)
    return (centred @ centred.T).numpy() > _CORRELATION


def near_duplicates(may_be: np.ndarray, ratios: np.ndarray) -> list[int]:
    """Group support images that are nearly the same.

    Parameters
    ----------
    may_be : numpy.ndarray
        (K, K), from `alike`.
    ratios : numpy.ndarray
        (K,): what each scores against all patches of the others, over what its own changed views score against them.

    Returns
    -------
    list of int
        Number of each image's group, in the order of their first images; all differ where there are no near-duplicates.
    """
    from scipy.sparse.csgraph import connected_components

    if not (ratios < _LOW).any():
        return list(range(len(ratios)))
    lowish = ratios < _LOWISH
    found = connected_components(may_be & lowish[:, None] & lowish, directed=False)[1]
    first = {group: number for number, group in enumerate(dict.fromkeys(found.tolist()))}
    return [first[group] for group in found.tolist()]


def one_of_each(values: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """Average values (K,) within groups of near-duplicates: they are one observation."""
    labels = np.asarray(groups)
    return np.array([values[labels == group].mean() for group in dict.fromkeys(groups)])
