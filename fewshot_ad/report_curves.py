"""ROC and precision-recall curves as small SVG elements for the HTML report."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from .metrics import average_precision


class Curves(NamedTuple):
    """ROC and precision-recall curves, with anomalous as the positive class.

    Attributes
    ----------
    auroc, average_precision : float
        Areas under the curves.
    svg : str
        Both curves, each in a `figure`. The circles `roc-point` and `pr-point` mark the operating point; coordinates
        are in per cent, y downwards.
    """

    auroc: float
    average_precision: float
    svg: str


def curves(labels: np.ndarray, scores: np.ndarray) -> Curves | None:
    """Draw both curves.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        +1 normal, -1 anomalous; images with another label are ignored.
    scores : ndarray of shape (n,)
        Scores, high = anomalous.

    Returns
    -------
    Curves or None
        None unless there are both normal and anomalous images.
    """
    known = np.isin(labels, (-1, 1))
    positive, scores = labels[known] == -1, scores[known]
    if positive.all() or not positive.any():
        return None
    auroc, precision = float(roc_auc_score(positive, scores)), average_precision(labels[known], scores)
    false_rate, true_rate, _ = roc_curve(positive, scores)
    precisions, recalls, _ = precision_recall_curve(positive, scores)
    roc = _figure(
        "roc", "ROC", f"AUROC {auroc:.3f}", "false-positive rate", "recall",
        _path(false_rate, true_rate), chance=(0.0, 1.0),
    )  # fmt: skip
    # A step curve from recall 1 to 0: each precision holds down to the next recall.
    pr = _figure(
        "pr", "Precision and recall", f"average precision {precision:.3f}", "recall", "precision",
        _path(np.repeat(recalls, 2)[1:], np.repeat(precisions, 2)[:-1]), chance=(positive.mean(),) * 2,
    )  # fmt: skip
    return Curves(auroc, precision, roc + pr)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    places = [f"{100 * a:.4g} {100 - 100 * b:.4g}" for a, b in zip(x, y, strict=True)]
    return "M" + "L".join(places)


def _figure(name: str, title: str, value: str, x: str, y: str, path: str, chance: tuple[float, float]) -> str:
    """Draw axes from 0 to 100 per cent, a dashed line for chance, and the curve."""
    left, right = (f"{100 - 100 * float(end):.4g}" for end in chance)
    return (
        f'<figure><figcaption>{title}</figcaption><svg id="{name}" role="img" viewBox="-13 -5 120 120" '
        f'aria-label="{title} curve, {value}; {y} against {x}">'
        f'<path class="axes" d="M0 0V100H100V0Z"/><path class="chance" d="M0 {left}L100 {right}"/>'
        f'<path class="curve" d="{path}"/><circle id="{name}-point" r="3.5" cx="0" cy="100"/>'
        f'<text x="0" y="110">0</text><text x="50" y="110" text-anchor="middle">{x}</text>'
        f'<text x="100" y="110" text-anchor="end">1</text>'
        f'<text transform="translate(-4 50) rotate(-90)" text-anchor="middle">{y}</text>'
        f'<text transform="translate(-4 4) rotate(-90)" text-anchor="end">1</text></svg></figure>'
    )
