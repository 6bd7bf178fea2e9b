"""Selection of the normal images by their labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..exceptions import ImageError, warn
from . import images


def read_normal(
    items: Sequence[Any],
    y: Any,
    on_error: str | Callable[[int, ImageError], None],
    options: dict[str, Any],
    *,
    rows: bool = False,
    n_drawn: int | None = None,
    seed: Any = None,
) -> tuple[list[torch.Tensor], list[int]]:
    """Read the images that are not labelled anomalous.

    Parameters
    ----------
    items : sequence
    y : array-like of shape (n,), or None
        +1 for normal, -1 for anomalous images.
    on_error : {"raise", "skip"} or callable
    options : dict
        Options for `images.load_each`.
    rows : bool, optional
        Whether the items are rows of a table. For these, scikit-learn's tools pass targets of other tasks as y.
    n_drawn : int, optional
        How many are drawn at random; by default all are used.
    seed : int or sequence of int, optional
        Seed of the draw.

    Returns
    -------
    images : list of torch.Tensor
        (3, H, W) each, in [0, 1].
    places : list of int
        Position of each image in `items`.

    Raises
    ------
    ValueError
        Other labels, none that is +1, or fewer normal images than `n_drawn`.
    ImageError
        An image cannot be read.
    """
    chosen = list(range(len(items)))
    if y is not None:
        from sklearn.utils.validation import check_consistent_length

        check_consistent_length(items, y)
        chosen = np.flatnonzero(is_normal(np.asarray(y).ravel(), rows)).tolist()
        if not chosen:
            raise ValueError("y labels every image -1: no normal image is left to fit on.")
    if n_drawn is not None:
        if n_drawn > len(chosen):
            raise ValueError(
                f"n_support={n_drawn} was given, but there are only {len(chosen)} normal images. Pass more of them, or "
                f"set n_support to at most {len(chosen)}."
            )
        chosen = np.random.default_rng(seed).permutation(chosen).tolist()
    each = images.load_each(items, on_error, only=chosen, **options)
    # In the order of the draw, so that the next image replaces one that cannot be read.
    loaded = list(itertools.islice(((i, one.image) for i, one in each if one is not None), n_drawn))
    loaded.sort(key=lambda one: one[0])
    if not loaded:
        raise ImageError(f"None of the {len(chosen)} images could be read: there is nothing to fit on.")
    return [image for _, image in loaded], [i for i, _ in loaded]


def is_normal(labels: np.ndarray, rows: bool) -> np.ndarray:
    """Return which labels are +1, and refuse labels other than +1 and -1; see `read_normal`."""
    known = np.isin(labels, (-1, 1)) if labels.dtype.kind in "iuf" else np.zeros(len(labels), bool)
    if labels.dtype.kind == "O":
        known = np.array([type(label) is not bool and label in (-1, 1) for label in labels])
    if known.all():
        return labels == 1
    shown = np.unique(labels[~known].astype(str))[:5].tolist()
    if not (rows and labels.dtype.kind in "iuf"):
        raise ValueError(
            f"Unknown label type: y has the labels {', '.join(shown)}; they must be +1 for normal and -1 for anomalous "
            "images. Use numpy.where(is_normal, 1, -1), or leave y out if all images are normal."
        )
    warn(
        f"y has the labels {', '.join(shown)}, and was ignored: all rows are fitted on. Pass +1 for normal and -1 for "
        "anomalous rows."
    )
    return np.ones(len(labels), bool)
