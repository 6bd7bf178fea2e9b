"""What scikit-learn checks of a table's columns; apart, so that images are scored without its import."""

from __future__ import annotations

from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data as validate_data


class Columns(BaseEstimator):
    """Where scikit-learn keeps, and looks up, what it checks of columns."""

    def __init__(self) -> None:
        pass

    def __sklearn_is_fitted__(self) -> bool:
        """Tell whether there are columns to compare with."""
        return hasattr(self, "n_features_in_")


Columns.__name__ = "DualDistillationDetector"  # scikit-learn's messages name the class
