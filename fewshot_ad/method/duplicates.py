"""Near-duplicates among support images: frames of one still scene, one image saved several times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

# Side at which images are compared, in pixels, and the correlation from which on they may be near-duplicates.
# On twenty tasks four versions of an image (JPEG qualities 50 to 95; noise, light and a shift of a pixel) correlate by
# 0.98 and more. So do many pairs of different images of one object in the same place: hence the second test.
_SIDE = 32
_CORRELATION = 0.98
# Anomaly score of a support image against the others, divided by that of its augmented views: 0.04 to 0.36 with a
# near-duplicate, otherwise 0.2 to 1.4. One ratio must be below the first limit before pairs below the second count.
_LOW, _LOWISH = 1 / 3, 1 / 2


def similar_pairs(images: Sequence[torch.Tensor]) -> np.ndarray:
    """Return which pairs of K images (3, H, W) in [0, 1] may be near-duplicates, (K, K) of bool."""
    shrunk = [
        F.interpolate(image[None], size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
        for image in images
    ]
    small = torch.cat(shrunk).flatten(1)
    centred = F.normalize(small - small.mean(1, keepdim=True), dim=1)
    return (centred @ centred.T).numpy() > _CORRELATION


def near_duplicates(similar: np.ndarray, ratios: np.ndarray) -> list[int]:
    """Group near-duplicates among support images.

    Parameters
    ----------
    similar : numpy.ndarray
        (K, K), from `similar_pairs`.
    ratios : numpy.ndarray
        (K,): anomaly score of each image against all patches of the others, divided by that of its augmented views.

    Returns
    -------
    list of int
        Number of each image's group, in the order of their first images; all differ if there are no near-duplicates.
    """
    from scipy.sparse.csgraph import connected_components

    if not (ratios < _LOW).any():
        return list(range(len(ratios)))
    lowish = ratios < _LOWISH
    labels = connected_components(similar & lowish[:, None] & lowish, directed=False)[1].tolist()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]


def one_of_each(values: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """Average values (K,) within groups of near-duplicates, which count as one observation."""
    labels = np.asarray(groups)
    return np.array([values[labels == group].mean() for group in dict.fromkeys(groups)])
