"""Displays in the style of scikit-learn: anomaly maps, support weights, score histograms, ROC and PR curves.

Each display takes its data in the constructor, or computes them in `from_estimator`, which also plots. matplotlib comes
with the extra "plot"; the displays never call `pyplot.show`.
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
