"""scikit-learn's checks of a table's columns; a separate module, so that scoring images does not import it."""

from __future__ import annotations

from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data as validate_data


class Columns(BaseEstimator):
    """Estimator in which scikit-learn stores the columns that it checks against."""

    def __init__(self) -> None:
        pass

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there are columns to compare with."""
        return hasattr(self, "n_features_in_")


Columns.__name__ = "DualDistillationDetector"  # scikit-learn's messages name the class
