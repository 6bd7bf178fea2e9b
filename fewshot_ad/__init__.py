"""Few-shot image anomaly detection by dual distillation, as a scikit-learn estimator."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .detector import DualDistillationDetector
    from .model_selection import KShotSplit, SyntheticAnomalyScorer
    from .student import Student
    from .training.pretraining import pretrain

__version__ = "0.2.0"
__all__ = ["DualDistillationDetector", "KShotSplit", "Student", "SyntheticAnomalyScorer", "__version__", "pretrain"]


def __getattr__(name: str) -> Any:
    # Lazy, as torch takes seconds to import.
    if name == "DualDistillationDetector":
        from .detector import DualDistillationDetector

        return DualDistillationDetector
    if name in ("KShotSplit", "SyntheticAnomalyScorer"):
        from . import model_selection

        return getattr(model_selection, name)
    if name == "Student":
        from .student import Student

        return Student
    if name == "pretrain":
        from .training.pretraining import pretrain

        return pretrain
    if name == "images":  # messages name fewshot_ad.images.frames
        return importlib.import_module(".images", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
