"""Images as rows of numbers: the teacher's pooled embedding, for other estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .data import images
from .method.features import FeatureExtractor
from .method.matching import pooled_embedding
from .method.scoring import QueryResult, Scorer
from .session import Session, find_runtime
from .support import find_teacher

# Images that are read before they are put together by their shapes.
_WINDOW = 64


def embed(session: Session, X: Any) -> np.ndarray:
    """Describe images, (n_samples, C) float64; see `DualDistillationDetector.transform`."""
    extract = _extractor(session)
    items, options = session.items(X)
    found = np.full((len(items), extract.teacher.channels[-1]), np.nan)
    window: list[images.Loaded] = []
    for i, loaded in images.load_each(items, session.settings.on_error, **options):
        if loaded is not None:
            window.append(loaded)
        if len(window) == _WINDOW or i == len(items) - 1:
            _describe(window, extract, found)
            window = []
    return found


def score_and_embed(session: Session, X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Score images, (n_samples,) high = anomalous, and describe them as `embed` does, in one pass of the teacher."""
    n, scorer = len(session.items(X)[0]), session.fitted.scorer(_extractor(session))
    scores, embeddings = np.full(n, np.nan), np.full((n, scorer.extract.teacher.channels[-1]), np.nan)

    def reduce(scorer: Scorer, one: QueryResult, _: images.Loaded) -> tuple[float, np.ndarray]:
        return float(scorer.image_scores(one.evidence)[0]), pooled_embedding(one.maps)[0].cpu().double().numpy()

    for row, found in session.each(X, session.settings.on_error, reduce, scorer):
        scores[row], embeddings[row] = found
    return scores, embeddings


def count_columns(session: Session) -> int:
    """Tell how many columns `embed` returns."""
    known = session.fitted.embeddings
    return int(known.shape[-1]) if known is not None else int(_extractor(session).teacher.channels[-1])


@torch.inference_mode()
def _describe(window: list[images.Loaded], extract: FeatureExtractor, found: np.ndarray) -> None:
    """Fill the rows of images that are read, in as many threads as the runtime has."""
    for one, maps in zip(window, extract([loaded.image for loaded in window]), strict=True):
        found[one.index] = pooled_embedding(maps)[0].cpu().double().numpy()


def _extractor(session: Session) -> FeatureExtractor:
    """Find the teacher with its deepest stage, which the evidence may do without."""
    runtime, fitted = find_runtime(session.settings), session.fitted
    find_teacher(session.settings, fitted.evidence, runtime, fitted.teacher_fingerprint)  # its weights are checked
    return find_teacher(session.settings, ("embedding",), runtime)[0]
