"""Tables, scikit-learn's (n_samples, n_features): each row is a flattened image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .images import full_scale


@dataclass(frozen=True)
class Table:
    """Properties of the table that `fit` received.

    Attributes
    ----------
    n_features : int
        Number of columns.
    feature_names : tuple of str or None
        Names of the columns, if it was a data frame whose column names are all strings.
    value_range : tuple of two floats
        Input window (low, high): the full scale of an integer dtype, otherwise the range of the values.
    """

    n_features: int
    feature_names: tuple[str, ...] | None
    value_range: tuple[float, float]


def read_rows(X: Any, fitted: Table | None, image_shape: tuple[int, ...] | None) -> tuple[np.ndarray, Table]:
    """Check a table and split it into images.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
    fitted : Table or None
        Properties that the columns must have; None records them.
    image_shape : tuple of int or None
        Shape of each row's image; None means an image of height 1.

    Returns
    -------
    images : numpy.ndarray
        (n_samples, *image_shape), float64.
    table : Table
        `fitted`, or the recorded properties.

    Raises
    ------
    ValueError
        The columns do not match, or values are not numbers.
    """
    from .columns import Columns, validate_data

    columns: Any = Columns()
    if fitted is not None:
        columns.n_features_in_ = fitted.n_features
        if fitted.feature_names is not None:
            columns.feature_names_in_ = np.array(fitted.feature_names, dtype=object)
    white = full_scale(X)
    rows = validate_data(columns, X, reset=fitted is None, dtype=np.float64)
    shape = image_shape or (1, rows.shape[1])
    if math.prod(shape) != rows.shape[1]:
        raise ValueError(f"X has {rows.shape[1]} columns, but image_shape={image_shape} has {math.prod(shape)} values.")
    if fitted is None:
        low, high = (0.0, white) if white else (float(rows.min()), float(rows.max()))
        names = getattr(columns, "feature_names_in_", None)
        fitted = Table(
            columns.n_features_in_,
            None if names is None else tuple(names.tolist()),
            (low, high if high > low else low + 1.0),
        )
    return rows.reshape(-1, *shape), fitted
