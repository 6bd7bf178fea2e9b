"""The teacher's pooled embedding of images, for other estimators."""

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

# Number of images to read before they are batched by shape.
_WINDOW = 64


def embed(session: Session, X: Any) -> np.ndarray:
    """Embed images, (n_samples, C) float64; see `DualDistillationDetector.transform`."""
    extract = _extractor(session)
    items, options = session.items(X)
    embeddings = np.full((len(items), extract.teacher.channels[-1]), np.nan)
    window: list[images.Loaded] = []
    for i, loaded in images.load_each(items, session.settings.on_error, **options):
        if loaded is not None:
            window.append(loaded)
        if len(window) == _WINDOW or i == len(items) - 1:
            _embed(window, extract, embeddings)
            window = []
    return embeddings


def score_and_embed(session: Session, X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Score images, (n_samples,) high = anomalous, and embed them as `embed` does, in one pass of the teacher."""
    n, scorer = len(session.items(X)[0]), session.fitted.scorer(_extractor(session))
    scores, embeddings = np.full(n, np.nan), np.full((n, scorer.extract.teacher.channels[-1]), np.nan)

    def reduce(scorer: Scorer, one: QueryResult, _: images.Loaded) -> tuple[float, np.ndarray]:
        return float(scorer.image_scores(one.evidence)[0]), pooled_embedding(one.maps)[0].cpu().double().numpy()

    for row, result in session.each(X, session.settings.on_error, reduce, scorer):
        scores[row], embeddings[row] = result
    return scores, embeddings


def count_columns(session: Session) -> int:
    """Return the number of columns of `embed`."""
    stored = session.fitted.embeddings
    return int(stored.shape[-1]) if stored is not None else int(_extractor(session).teacher.channels[-1])


@torch.inference_mode()
def _embed(window: list[images.Loaded], extract: FeatureExtractor, embeddings: np.ndarray) -> None:
    """Fill the rows of the images in a window, in the threads of the runtime."""
    for one, maps in zip(window, extract([loaded.image for loaded in window]), strict=True):
        embeddings[one.index] = pooled_embedding(maps)[0].cpu().double().numpy()


def _extractor(session: Session) -> FeatureExtractor:
    """Find the teacher with its deepest stage, even if no score component needs this stage."""
    runtime, fitted = find_runtime(session.settings), session.fitted
    find_teacher(session.settings, fitted.evidence, runtime, fitted.teacher_fingerprint)  # checks the weights
    return find_teacher(session.settings, ("embedding",), runtime)[0]
