"""Displays, after scikit-learn's: why an image is called anomalous, whom it was compared with, and how scores lie.

Each display takes its data in the constructor, or computes them by `from_estimator`, which also draws. matplotlib comes
with the extra "plot"; nothing is shown unless the caller does so.
"""

from .common import warm_colours
from .curves import PrecisionRecallDisplay, RocCurveDisplay
from .maps import AnomalyMapDisplay
from .scores import ScoreHistogramDisplay, SupportWeightsDisplay

__all__ = [
    "AnomalyMapDisplay",
    "PrecisionRecallDisplay",
    "RocCurveDisplay",
    "ScoreHistogramDisplay",
    "SupportWeightsDisplay",
    "warm_colours",
]
