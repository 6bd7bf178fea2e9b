"""`DualDistillationDetector`, the scikit-learn estimator."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from . import __version__
from .attributes import FittedAttribute, summary
from .data.images import MAX_PIXELS
from .exceptions import VersionWarning, warn
from .explanation import Explanation
from .files import export, model_file
from .method.scoring import Expert
from .method.student import PAPER_BLOCKS
from .runtime import own_torch_state
from .session import Session
from .settings import OF_THE_CALL, checked
from .support import FittedSupport, doubts
from .training.fitting import extend_support, fit_support
from .training.students import resolve_evidence

_VERSION = "_fewshot_ad_version"


class DualDistillationDetector(OutlierMixin, BaseEstimator):
    """Few-shot image anomaly detector (dual distillation).

    Fitted on two to eight normal images, it tells which new images are anomalous, how much, and where. A frozen
    pretrained *teacher* describes every image; a *student* learns to imitate it on normal images (TSD) and to agree
    with its own features of the support images (SSD), which *learn-to-weight* attention weighs for each query.

    `score_samples` and `decision_function` are high for normal images, `anomaly_score` and `anomaly_map` are high for
    anomalous ones.

    Parameters
    ----------
    backbone : str, default="compact"
        The teacher: "compact", which comes with the package, or any timm network that `features_only` serves.
    weights : path, optional
        The teacher's weights, a safetensors file in timm's naming. By default the packaged ones; for a network of
        timm's those in the hub's cache, or fetched from there.
    image_size : int, default=128
        Images are resized to a square of this side, pixels.
    student : {"decoder", "encoder"}, default="decoder"
        "decoder" rebuilds the teacher's stages from its embedding (the paper's student); "encoder" is an untrained
        network of the teacher's architecture that sees the image.
    decoder_blocks : tuple of three ints, default=(2, 2, 2)
        Residual blocks of the decoder at strides 16, 8 and 4; the paper's has (3, 4, 6). A pretrained student brings
        its own.
    init : "auto", path, or None, default="auto"
        Pretrained student to start from: a file that `pretrain` or `save_student` wrote, for this very teacher,
        `student` and `weighting`. "auto" is the packaged student where the teacher is the packaged one, else None, an
        untrained student.
    lam : float or "auto", default=0.1
        Weight of TSD beside SSD, in the training loss SSD + lam * TSD and in the score. 0 is SSD alone, inf is TSD
        alone. Without a student (see `evidence`) it is not used. "auto" trains with 0.1, and scores with another value
        if that tells views of the support, each held against the other images, much better from the same views spoilt
        (as `SyntheticAnomalyScorer` does).
    weighting : {"attention", "uniform"}, default="attention"
        Learn-to-weight, or the plain mean of the support.
    sharpness : float, default=1.0
        Factor on the attention's logits; 1 is the published softmax, which is close to one-hot.
    loss : {"position", "flattened"}, default="position"
        Cosine over channels at each position, or of whole feature maps (as the published code trains).
    evidence : str, sequence of str, or dict, default="auto"
        What makes the score. "ssd": student against weighted support; "tsd": student against teacher; "patch": teacher
        patches against the most similar one of the support; "embedding": the teacher's deepest stage, pooled, against
        the most similar view of the support, the same at every pixel. Of several names, "ssd" and "tsd" make one part,
        SSD + lam * TSD, and each other one a part; each part is divided by what it reads on the support's held-out
        views, and they are added by `scoring.SHARES`: 0.1 for the student, 1 for "patch", 0.2 for "embedding". A dict
        gives the weights of a sum of unscaled maps. "auto" is all four where a student comes with the teacher, as with
        the packaged one, or is asked for: by `init`, `student`, `weighting`, `n_steps` or `auxiliary`. Else it is
        ("patch", "embedding"): a student that is trained on the support alone takes time and was found to add nothing.
    aggregation : {"max", "mean"} or float, default=0.01
        From map to image score. A float in (0, 1] is the mean of that share of the pixels, the highest ones.
    blur_sigma : float, default=4.0
        Gaussian blur of the map, within each image, pixels. 0 is none.
    border_weight : float in [0, 1], default=0.5
        Weight of the map's edge in the image score, from where it rises to 1 within an eighth of each side: features
        there are partly of the padding, and read as more anomalous than they are. 1 makes no difference between edge
        and middle. The map itself stays as it is.
    contrast : float in [0, 1], default=0.5
        Share of the map's mean that is taken off the image score: what stands out in an image counts for more than
        what is a little unusual everywhere.
    n_steps : "auto" or int, default="auto"
        Most training steps of a student. 0 makes none: the published way, where fitting only stores the support under a
        pretrained student. "auto" is 0 with a pretrained student (and no `auxiliary`), else 100. A student that is
        trained on the support comes twice, one for each half of it.
    batch_size : int, default=16
        Queries in a training step. Scores do not depend on it: scoring runs in batches of a fixed size.
    learning_rate : float, default=1e-3
        Of Adam. Gradients are clipped to norm 1.
    tol : float, default=1e-3
        Training ends early when the mean loss of 50 steps is less than this fraction below that of the 50 before; 0
        never does.
    augment : bool, default=True
        Whether "patch" and "embedding" also see the support turned by 90, 180 and 270 degrees and mirrored, and whether
        a student that is trained on the support sees slightly changed views of it.
    contamination : "auto" or float in (0, 0.5], default="auto"
        "auto": about 95 of 100 fresh normal images are called normal. A float: that share of the support images, each
        scored against the others, is called anomalous.
    image_shape : tuple of int, optional
        (H, W), (H, W, 1) or (H, W, 3) of the flattened images that 2-D input holds. By default a row is an image of
        height 1.
    value_range : (float, float), optional
        Values that mean black and white, as a CT window in Hounsfield units; values beyond are clipped. By default what
        a DICOM file says, the percentiles 0.5 and 99.5 of a NIfTI volume (docs/formats.md), else by dtype (uint8 255,
        uint16 65535, bool and float 1); for 2-D input the full scale of an integer dtype, else the range seen at `fit`.
    max_pixels : int, default=50_000_000
        Larger files are refused before they are decoded.
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is one, else the CPU.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}, default="auto"
        Of the networks. "auto" runs them in float32 to score, and trains in bfloat16 where the hardware multiplies it
        natively. With "float64" and "float32" the most similar patch of the support is found by comparing all of them;
        the others search quickly ("auto" in bfloat16 where that is native, else in float32), which now and then finds
        one that is a little less similar.
    memory : joblib.Memory or path, optional
        Cache of the teacher's features, one entry for each distinct image, shared by all fits. joblib keeps pickles
        there: use a folder that only you can write to.
    on_error : {"raise", "skip"}, default="raise"
        "skip" leaves unreadable images out of `fit`, with a warning, and scores them NaN.
    random_state : int, RandomState instance or None, default=None
        Of the student's weights, the views and the episodes.
    verbose : int, default=0
        1 shows progress bars.

    Attributes
    ----------
    fitted_ : support.FittedSupport
        The fitted state, frozen. The other attributes are read from it.
    offset_ : float
        `decision_function` is `score_samples` minus this. It may be set; the other attributes are read-only.
    support_scores_ : ndarray of shape (K,)
        `score_samples` of each support image, scored against the other support images.
    support_ : ndarray of shape (K, 3, image_size, image_size)
        The support images, float32 in [0, 1]. Not there after `load`, unless they were saved too.
    evidence_ : str, tuple of str, or dict
        `evidence`, as "auto" was resolved.
    lam_ : float
        Weight of TSD beside SSD in the score.
    scales_ : dict
        What each kind of evidence is divided by.
    loss_curve_ : list of float
        Training loss of every step made; empty where none was.
    experts_ : list of scoring.Expert
        The trained students, each with its maps of the support: one that was trained elsewhere (`auxiliary`, `init`),
        two that were each trained on half of the support, or none where the evidence needs none.
    patches_, embeddings_ : Tensor of shape (K, patches or views, channels), or None
        The teacher's patches, and pooled embeddings, of the support and of its views.
    teacher_fingerprint_ : str
        sha256 of the teacher's weights.
    row_range_ : tuple of float or None
        For 2-D input: the values that became black and white.
    n_features_in_ : int
        For 2-D input: number of columns.
    feature_names_in_ : ndarray of str
        For data frames: names of the columns.

    Notes
    -----
    A query that is, pixel for pixel, one of the support images is held against the *other* support images: it would
    otherwise find itself. All scores of the support are therefore comparable with those of fresh images.

    A pickle, and a file of `save`, holds tensors on the CPU and no teacher: it is found by `backbone` and `weights`.

    A changed parameter acts at the next `fit`, except for those that say where and how the work is done, and on which
    no score depends: `weights`, `max_pixels`, `device`, `memory`, `on_error` and `verbose` act at the next call.

    `fit` builds a new state and puts it in place of the old one at its end. If it fails or is interrupted, the detector
    is as it was before. Threads may score while another fits: each call sees one state.

    References
    ----------
    Dong et al., "Dual Distillation for Few-Shot Anomaly Detection", ICLR 2026, arXiv:2603.01713.

    Examples
    --------
    Four cut-outs of a photograph to fit on; of two others, one has a scratch. Paths of files would do as well.

    >>> from sklearn.datasets import load_sample_image
    >>> from fewshot_ad import DualDistillationDetector
    >>> photograph = load_sample_image("china.jpg")
    >>> support = [photograph[200:360, x : x + 160] for x in (100, 104, 108, 112)]
    >>> det = DualDistillationDetector(random_state=0).fit(support)
    >>> clean = photograph[200:360, 106:266]
    >>> scratched = clean.copy()
    >>> scratched[60:66, 40:110] = 255
    >>> det.predict([clean, scratched])
    array([ 1, -1])
    >>> det.anomaly_map([scratched]).shape
    (1, 128, 128)
    """

    def __init__(
        self,
        backbone: str = "compact",
        *,
        weights: str | os.PathLike[str] | None = None,
        image_size: int = 128,
        student: str = "decoder",
        decoder_blocks: tuple[int, int, int] = (2, 2, 2),
        init: str | os.PathLike[str] | None = "auto",
        lam: float | str = 0.1,
        weighting: str = "attention",
        sharpness: float = 1.0,
        loss: str = "position",
        evidence: str | Sequence[str] | Mapping[str, float] = "auto",
        aggregation: str | float = 0.01,
        blur_sigma: float = 4.0,
        border_weight: float = 0.5,
        contrast: float = 0.5,
        n_steps: str | int = "auto",
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        tol: float = 1e-3,
        augment: bool = True,
        contamination: str | float = "auto",
        image_shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        device: str | torch.device = "auto",
        precision: str = "auto",
        memory: Any = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.student = student
        self.decoder_blocks = decoder_blocks
        self.init = init
        self.lam = lam
        self.weighting = weighting
        self.sharpness = sharpness
        self.loss = loss
        self.evidence = evidence
        self.aggregation = aggregation
        self.blur_sigma = blur_sigma
        self.border_weight = border_weight
        self.contrast = contrast
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tol = tol
        self.augment = augment
        self.contamination = contamination
        self.image_shape = image_shape
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.device = device
        self.precision = precision
        self.memory = memory
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def paper(cls, backbone: str = "wide_resnet50_2.tv_in1k", **parameters: Any) -> DualDistillationDetector:
        """Make a detector with the paper's setting; further parameters override it.

        The score is the "ssd" map alone, blurred with sigma 4, its maximum; training uses the flattened loss, batches
        of 16, learning rate 1e-4 and no early end. The paper trains on other kinds of images: pass `auxiliary` to
        `fit`, or `init` with `n_steps=0`.

        Parameters
        ----------
        backbone : str, default="wide_resnet50_2.tv_in1k"
            The paper's teacher.
        **parameters
            Any of the constructor's.

        Returns
        -------
        DualDistillationDetector
        """
        # In full, whatever the defaults are or will be.
        setting: dict[str, Any] = {
            "image_size": 128, "student": "decoder", "decoder_blocks": PAPER_BLOCKS,
            "lam": 0.1, "weighting": "attention", "sharpness": 1.0,
            "loss": "flattened", "evidence": "ssd", "aggregation": "max", "blur_sigma": 4.0,
            "border_weight": 1.0, "contrast": 0.0, "batch_size": 16, "learning_rate": 1e-4, "tol": 0.0,
        }  # fmt: skip
        return cls(backbone, **{**setting, **parameters})

    def fit(self, X: Any, y: Any = None, *, auxiliary: Mapping[str, Any] | None = None) -> DualDistillationDetector:
        """Fit on normal images.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            The support: paths, frames of files (`images.frames`), PIL images, arrays (H, W, 1|3|4), (N, H, W),
            (N, H, W, C), torch tensors (N, C, H, W), or a list of these that may mix sizes. 2-D input holds one
            flattened image in each row. uint8, uint16, bool, or float in [0, 1], unless `value_range` says otherwise.
        y : array-like of shape (n_samples,), optional
            Rows labelled -1 are left out of the support.
        auxiliary : mapping of str to images, optional
            Normal images of other kinds, by the name of the kind. The student is then trained by episodes over these
            (the paper's training), and the support is only stored. Without it, students (untrained, or from `init`)
            are trained on views of the support, each held against the other images.

        Returns
        -------
        DualDistillationDetector
            The detector itself.

        Raises
        ------
        ImageError
            No image, or one that cannot be read; it is named.
        WeightsNotFoundError
            The teacher's weights are not to be had.
        CheckpointError
            `init` belongs to another teacher.
        TrainingError
            The loss did not stay finite.
        """
        settings = checked(self.get_params(deep=False))
        evidence = resolve_evidence(settings, auxiliary)
        seeds = check_random_state(settings.random_state).randint(np.iinfo(np.int32).max, size=4).tolist()
        with own_torch_state():
            fitted = fit_support(settings, X, y, auxiliary, evidence, seeds)
        return self._take(fitted)

    def _take(self, fitted: FittedSupport) -> DualDistillationDetector:
        """Say what there is to doubt, and only then be fitted."""
        for doubt in doubts(fitted):
            warn(doubt)
        self.fitted_ = fitted
        return self

    def fit_predict(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and label the same images, each compared with the others.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`. All are labelled, also those that are not fitted on.
        y : array-like of shape (n_samples,), optional
            As for `fit`.
        **fit_params
            Passed on to `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int
            As of `predict`.
        """
        X = list(X) if isinstance(X, Iterator) else X
        return self.fit(X, y, **fit_params).predict(X)

    def partial_fit(self, X: Any, y: Any = None) -> DualDistillationDetector:
        """Add support images without training again; the threshold follows, unless the user has set it.

        An image that is in the support already changes nothing, and a warning says so. On a detector that is not fitted
        yet this is `fit`.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            As for `fit`.

        Returns
        -------
        DualDistillationDetector
            The detector itself.

        Raises
        ------
        ValueError
            The detector was loaded from a file that holds no support images.
        """
        if not hasattr(self, "fitted_"):
            return self.fit(X, y)
        session = self.session()
        with own_torch_state():
            fitted = extend_support(session, X, y)
        return self if fitted is session.fitted else self._take(fitted)

    def save_student(self, path: str | os.PathLike[str]) -> None:
        """Write the trained student, for `init` of other detectors with the same teacher.

        Parameters
        ----------
        path : path
            The file to write, safetensors.
        """
        model_file.save_student(path, self.session().fitted)

    def save(self, path: str | os.PathLike[str], *, support: bool = False, force: bool = False) -> None:
        """Write the fitted detector to a file that `load` reads, without the teacher.

        Safetensors with a JSON header, no pickle; docs/files.md says what is in it. Tensors are those of the CPU,
        wherever they were computed. The parameters `device`, `memory` and `verbose` are left out, and a `random_state`
        that is a generator.

        Parameters
        ----------
        path : path
            The file to write, `.fsad` by convention. It is there whole, or not at all.
        support : bool, default=False
            Whether the support images go into the file too, as `partial_fit` needs them. By default they do not: only
            the names of their files (without folders), hashes, and features.
        force : bool, default=False
            Whether a file that exists is replaced.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            There is nothing to save yet.
        OutputExistsError, OutputError
            The file exists, and `force` is False; it cannot be written there.
        CheckpointError
            A parameter that no file can hold.
        DiskFullError
            What was there before stays.
        """
        session = self.session()
        model_file.save(path, session.fitted, session.settings, support=support, force=force)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> DualDistillationDetector:
        """Read a fitted detector that `save` wrote; nothing in the file is executed.

        On the machine where it was saved, its scores are those of the detector that was saved, bit for bit, as far as
        the device is the same.

        Parameters
        ----------
        path : path
            The file.
        device : str or torch.device, optional
            The parameter `device`; by default "auto".
        weights : path, optional
            The teacher's weights. By default the file that was named when the detector was fitted, if it is there; else
            the packaged ones, or those of the hub. They are checked to be the same weights.

        Returns
        -------
        DualDistillationDetector
            Fitted; without `support_` unless the images were saved too.

        Raises
        ------
        CheckpointError
            No such file, not a detector's, of another version of the format, damaged or altered.
        WeightsNotFoundError
            The teacher's weights are not here.
        """
        defaults = cls().get_params(deep=False)
        fitted = model_file.load(path, defaults, device=device, weights=weights)
        det = cls(**{entry.name: getattr(fitted.settings, entry.name) for entry in fields(fitted.settings)})
        det.fitted_ = fitted
        return det

    def export(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the fitted detector as one ONNX graph, for onnxruntime, OpenVINO and the like.

        Teacher, students, support and scoring in float32. Input "image": (N, 3, H, W) float32 in [0, 1], of any N, H
        and W; outputs "score": (N,), as `score_samples` gives it, high = normal, and "anomaly_map": (N, image_size,
        image_size), high = anomalous. The metadata hold the threshold, "offset", and what the file is
        (docs/deployment.md). The graph does not know a copy of a support image for one. Other threads that use the
        package wait meanwhile, some seconds.

        Parameters
        ----------
        path : path
            The file to write, `.onnx` by convention. It is there whole, or not at all.
        force : bool, default=False
            Whether a file that exists is replaced.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            There is nothing to export yet.
        MissingExtraError
            onnx or onnxscript is not installed.
        OutputExistsError, OutputError
            The file exists, and `force` is False; it cannot be written there.
        DiskFullError
            What was there before stays.
        """
        session = self.session(memory=None)
        export.write(path, session.fitted, session.settings, force=force)

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images; high = normal.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            NaN for an unreadable image with on_error="skip".
        """
        return self.session().score_samples(X)

    def anomaly_score(self, X: Any) -> np.ndarray:
        """Score images; high = anomalous. The negative of `score_samples`.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), float64
        """
        return -self.session().score_samples(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score images against the threshold; below 0 = anomaly.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            `score_samples(X) - offset_`.
        """
        return self.session().decision_function(X)

    def predict(self, X: Any) -> np.ndarray:
        """Label images.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int
            +1 for normal, -1 for anomalous images. An image that could not be read (on_error="skip") is not known to be
            normal: -1.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def anomaly_map(self, X: Any) -> np.ndarray:
        """Map where images are anomalous; high = anomalous.

        The image score is the `aggregation` of this map, its border faded by `border_weight`, less `contrast` times its
        mean. What "embedding" reads, which is the same at every pixel, is added to the score alone, unless there is
        nothing else.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, image_size, image_size), float32
        """
        return self.session().anomaly_map(X)

    def support_weights(self, X: Any) -> np.ndarray:
        """Tell how much each support image counted for each query.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, K), float64
            Rows sum to 1: the attention's weights, averaged over scales; without a student, the share of the query's
            patches that found their match in each support image; of "embedding" alone, 1 for the most similar one.
        """
        return self.session().support_weights(X)

    def explain(self, X: Any) -> list[Explanation | None]:
        """Tell what the score of each image comes from.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        list of Explanation
            One for each image, each with score, map, the support's weights, the hottest spot, and the patch of the
            support that is most like it. None for an unreadable image with on_error="skip".
        """
        return self.session().explain(X)

    def session(self, **of_the_call: Any) -> Session:
        """Put the fitted state to work: for tools, and for several questions to one state.

        Parameters
        ----------
        **of_the_call
            `weights`, `max_pixels`, `device`, `memory`, `on_error` or `verbose`, in place of the detector's own.

        Returns
        -------
        session.Session
            All that it answers comes of the state that is fitted now, whatever the detector does meanwhile.
        """
        check_is_fitted(self)
        return Session(self.fitted_, **{**{name: getattr(self, name) for name in OF_THE_CALL}, **of_the_call})

    fitted_: FittedSupport
    support_ = FittedAttribute[np.ndarray](lambda f: None if f.images is None else f.images.numpy(), may_lack=True)
    support_scores_ = FittedAttribute[np.ndarray](lambda f: f.scores)
    evidence_ = FittedAttribute[str | tuple[str, ...] | dict[str, float]](lambda f: f.evidence)
    lam_ = FittedAttribute[float](lambda f: f.lam)
    scales_ = FittedAttribute[dict[str, float]](lambda f: dict(f.scales))
    loss_curve_ = FittedAttribute[list[float]](lambda f: list(f.loss_curve))
    experts_ = FittedAttribute[list[Expert]](lambda f: list(f.experts))
    patches_ = FittedAttribute[torch.Tensor | None](lambda f: f.patches)
    embeddings_ = FittedAttribute[torch.Tensor | None](lambda f: f.embeddings)
    teacher_fingerprint_ = FittedAttribute[str](lambda f: f.teacher_fingerprint)
    row_range_ = FittedAttribute[tuple[float, float] | None](lambda f: f.table and f.table.value_range)
    n_features_in_ = FittedAttribute[int](lambda f: f.table and f.table.n_features, may_lack=True)
    feature_names_in_ = FittedAttribute[np.ndarray](
        lambda f: np.array(f.table.feature_names, dtype=object) if f.table and f.table.feature_names else None,
        may_lack=True,
    )

    @property
    def offset_(self) -> float:
        """The threshold of `score_samples`; it may be set."""
        if "fitted_" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'offset_'")
        return self.fitted_.offset

    @offset_.setter
    def offset_(self, value: float) -> None:
        check_is_fitted(self)
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"offset_={value!r} was given; accepted is a finite number.")
        self.fitted_ = replace(self.fitted_, offset=float(value), offset_given=True)

    def __getstate__(self) -> dict[str, Any]:
        """Say which release wrote a pickle."""
        return {**super().__getstate__(), _VERSION: __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Warn of a pickle of another release."""
        state = dict(state)
        found = state.pop(_VERSION, "0.1.0")
        if found != __version__:
            warn(
                f"This detector was pickled by fewshot-ad {found}, and this is {__version__}: it may not work. Pickles "
                "are for one release; use det.save(path) and DualDistillationDetector.load(path).",
                VersionWarning,
            )
        super().__setstate__(state)

    def _repr_html_inner(self) -> str:
        """Put what was fitted above scikit-learn's diagram."""
        # The name is scikit-learn's own, and may go.
        inner = getattr(super(), "_repr_html_inner", lambda: f"<pre>{html.escape(repr(self))}</pre>")
        return summary(vars(self).get("fitted_")) + inner()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Do the same for notebooks that prefer a bundle."""
        inner = getattr(super(), "_repr_mimebundle_", lambda **_: {"text/plain": repr(self)})
        bundle: dict[str, Any] = inner(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] = summary(vars(self).get("fitted_")) + bundle["text/html"]
        return bundle

    def __sklearn_tags__(self) -> Any:
        """Say that images may be passed, besides rows."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
