"""`DualDistillationDetector`, the scikit-learn estimator."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils import ClassifierTags, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from . import __version__, drift
from .attributes import NEEDS_BOTH_CLASSES, FittedAttribute, check_both_classes, classes, summary
from .drift import Drift
from .embedding import count_columns, embed
from .exceptions import VersionWarning, warn
from .explanation import Explanation
from .files import export, model_file
from .method.calibration import Calibration
from .method.scoring import Expert
from .method.student import PAPER_BLOCKS
from .recipes import parameters_of
from .regions import Region
from .runtime import own_torch_state
from .session import Session, together
from .settings import CALL_PARAMETERS, STUDENT_PREFIX, checked
from .student import Student
from .support import FittedSupport
from .support_checks import support_warnings
from .training.calibrating import calibrated, probabilities, pvalues
from .training.fitting import extend_support, fit_support
from .training.students import resolve_evidence

_VERSION = "_fewshot_ad_version"


class DualDistillationDetector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator):
    """Few-shot image anomaly detector (dual distillation).

    Fitted on two to eight normal images, it predicts which new images are anomalous, how anomalous, and where. A frozen
    pretrained *teacher* extracts features of every image; a *student* learns to imitate it on normal images (TSD) and
    to agree with its own features of the support images (SSD), which *learn-to-weight* attention weights per query.

    `score_samples` and `decision_function` are high for normal images, `anomaly_score` and `anomaly_map` are high for
    anomalous ones.

    Parameters
    ----------
    backbone : str, default="compact"
        The teacher: "compact", which comes with the package, or any timm network that supports `features_only`.
    image_size : "auto", int or tuple of two ints, default="auto"
        Square root of the area that each image is resized to, pixels; or its height and width. "auto" is 128, and for
        a plain transformer the largest multiple of its patch size up to 448.
    aspect : {"keep", "square"}, default="keep"
        "keep": each image keeps its aspect ratio, up to 4:1, with sides rounded to multiples of what the teacher needs
        (16 for most). "square": all images become squares of side `image_size`.
    value_range : (float, float), optional
        Input window (low, high) that is mapped to [0, 1], such as a CT window in Hounsfield units. The default is the
        window of a DICOM file, the 0.5 and 99.5 percentiles of a NIfTI volume (docs/formats.md), else (0, maximum of
        the dtype) (uint8 255, uint16 65535, bool and float 1); for 2-D input the full range of an integer dtype, else
        the range of the values at `fit`.
    contamination : "auto" or float in (0, 0.5], default="auto"
        "auto": the threshold keeps about 95 of 100 new normal images below it. A float: this fraction of the support
        images, each scored against the others, is called anomalous.
    evidence : str, sequence of str, or dict, default="auto"
        Score components. "ssd": student against weighted support; "tsd": student against teacher; "patch": each teacher
        patch against its nearest neighbour in the support; "embedding": the teacher's deepest stage, pooled (for a
        transformer its class token), against the most similar view of the support; "subspace": distance of the teacher
        patches to the principal subspace of the support's patches. If several are named, "ssd" and "tsd" form one
        component, SSD + lam * TSD; each component is divided by its score on held-out views of the support, and the
        score is their weighted sum (see the next two parameters; "patch" and "subspace" have weight 1). A dict gives
        the weights of a sum of unscaled maps. "auto" is "patch", plus "ssd" and "tsd" if a student is requested, plus
        "embedding" if it has a weight.
    embedding_weight : float, optional
        Weight of "embedding" relative to "patch". The default is 0.2 if `evidence` names "embedding", else 0. It helps
        where an image differs as a whole, as in histology.
    student_weight : float, optional
        Weight of the student component ("ssd" and "tsd") relative to "patch"; 0 omits it at no cost. The default is 0.1
        if a student is requested by `evidence`, `lam`, `student`, `init` or `auxiliary`, else 0.
    lam : float, default=0.1
        Weight of TSD relative to SSD, in the training loss SSD + lam * TSD and in the score; inf is TSD alone. It has
        no effect without a student (see `evidence`).
    student : Student, optional
        Architecture and training of the student. Its parameters can also be set as `student__n_steps` and so on, in
        `set_params` and in grids; this makes a `Student` if there is none.
    init : "auto", path, or None, default="auto"
        Pretrained student to start from: a file that `pretrain` or `save_student` wrote for the same teacher,
        `architecture` and `weighting`. "auto" is the packaged student if the teacher is the packaged one, else None, an
        untrained student.
    aggregation : {"max", "mean"} or float, default=0.01
        Reduction of the map to the image score. A float in (0, 1] is the mean of this fraction of the highest pixels.
    blur_sigma : float, default=4.0
        Gaussian blur of each map, in pixels of a 128 x 128 map, scaled for other sizes; 0 disables it.
    border_weight : float in [0, 1], default=0.5
        Weight of the map's border in the image score; it rises linearly to 1 within an eighth of each side. Features
        near the border depend partly on padding. 1 weights border and centre equally. The map itself is unchanged.
    contrast : float in [0, 1], default=0.0
        Fraction of the map's mean that is subtracted from the image score. A local anomaly then counts more than an
        image that is slightly unusual everywhere.
    upsampling : {"half_pixel", "align_corners"}, default="half_pixel"
        Upsampling of the coarse maps: aligned at the image edges, or at the centres of the corner pixels as in the
        published code (which also treats the border differently in the blur).
    augment : bool, default=True
        Whether "patch", "embedding" and "subspace" also use copies of the support rotated by 90°, 180° and 270° and
        mirrored, and whether a student that is trained on the support sees slightly augmented views of it.
    foreground : bool or float, default=False
        For plain transformers: whether background patches are kept out of the memory bank and of maps. The foreground
        is where the first principal component of an image's tokens exceeds a threshold; True is 10, published for
        DINOv2 (AnomalyDINO). Other transformers may need another number. "embedding" is not affected.
    max_patches : int, default=2048
        Maximum size of the memory bank, over all support images and views; a coreset is kept.
    n_support : int, optional
        Number of normal images that `fit` draws for the support, with `random_state`. By default all are used. In a
        search with `KShotSplit(n_shots=4)`, 4 makes the refit use as many images as each split. `partial_fit` adds all
        images that it is given.
    weights : path, optional
        The teacher's weights, a safetensors file with timm's tensor names. By default the packaged weights; for a timm
        network those in the hub's cache, or downloaded from the hub.
    layers : "auto", "last", or tuple of ints, default="auto"
        Layers of the teacher whose features are used. In a plain transformer they are blocks, counted from 1: "auto" is
        its upper half (blocks 4, 5, 7, 10 of 12, in proportion for other depths), "last" the last block. In other
        networks they are stages, counted from 1 at stride 4 (`layer1` of a ResNet): "auto" is strides 4, 8 and 16.
    image_shape : tuple of int, optional
        Shape (H, W), (H, W, 1) or (H, W, 3) of the flattened images in 2-D input. By default a row is an image of
        height 1.
    on_error : {"raise", "skip"}, default="raise"
        "skip" leaves unreadable images out of `fit`, with a warning, and scores them NaN.
    memory : joblib.Memory or path, optional
        Cache of the teacher's features, shared by all fits. joblib stores pickles there: use a folder that only you can
        write to.
    device : str or torch.device, default="auto"
        Torch device of the networks; "auto" is CUDA if available, else the CPU.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}, default="auto"
        Precision of the networks. "auto" scores in float32, and trains in bfloat16 if the hardware supports it
        natively. The nearest-neighbour search is exact in "float64" and "float32"; in the others it is approximate, and
        sometimes returns a slightly less similar patch.
    n_jobs : int, optional
        Number of threads that read and score images, as in scikit-learn (-1: all processors); None is torch's number of
        threads. Scores do not depend on it. It has no effect on a GPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the student's initial weights, the views and the episodes.
    verbose : int, default=0
        Verbosity; 1 shows progress bars.

    Attributes
    ----------
    fitted_ : support.FittedSupport
        The immutable fitted state. The other attributes are views of it.
    offset_ : float
        Threshold of `score_samples`: `decision_function` is `score_samples` minus it. It can be set; the other
        attributes are read-only.
    calibration_ : method.calibration.Calibration
        How the threshold was calibrated; only after `calibrate`.
    classes_ : ndarray of shape (2,)
        -1 and 1; only after `calibrate` with images of both classes.
    support_scores_ : ndarray of shape (K,)
        `score_samples` of each support image, scored against the other support images.
    support_ : ndarray of shape (K, 3, H, W), or list of K of shape (3, H, W)
        The support images, float32 in [0, 1]. Missing after `load`, unless they were saved too.
    evidence_ : str, tuple of str, or dict
        `evidence`, with "auto" resolved.
    lam_ : float
        Weight of TSD relative to SSD in the score.
    layers_ : tuple of int
        Layers of the teacher that are used.
    scales_ : dict
        Divisor of each score component.
    loss_curve_ : list of float
        Training loss of each step; empty without training.
    experts_ : list of scoring.Expert
        The trained students, each with its features of the support: one trained elsewhere (`auxiliary`, `init`), two
        each trained on half of the support, or none if no score component needs a student.
    patches_ : Tensor of shape (at most max_patches, channels), or None
        Memory bank: teacher patches of the support and of its views.
    embeddings_ : Tensor of shape (K, views, channels), or None
        Pooled embeddings of the support and of its views.
    teacher_fingerprint_ : str
        sha256 of the teacher's weights.
    row_range_, n_features_in_, feature_names_in_ : tuple, int, ndarray of str
        For 2-D input: the input window (low, high), the number of columns, and their names.

    Notes
    -----
    A query that is pixel for pixel identical to a support image is compared with the *other* support images, so that
    its score is comparable with the scores of new images.

    A changed parameter takes effect at the next `fit`, except those that scores do not depend on: `weights`, `device`,
    `n_jobs`, `memory`, `on_error` and `verbose` take effect at the next call.

    `fit` replaces the fitted state only at its end. If it fails or is interrupted, the detector is unchanged. Other
    threads may score during a fit: each call uses one state.

    References
    ----------
    Dong et al., "Dual Distillation for Few-Shot Anomaly Detection", ICLR 2026, arXiv:2603.01713.

    Examples
    --------
    Fit on four crops of a photograph, and score two others, one with a scratch. File paths work as well.

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
        image_size: str | int | tuple[int, int] = "auto",
        aspect: str = "keep",
        value_range: tuple[float, float] | None = None,
        contamination: str | float = "auto",
        evidence: str | Sequence[str] | Mapping[str, float] = "auto",
        embedding_weight: float | None = None,
        student_weight: float | None = None,
        lam: float = 0.1,
        student: Student | None = None,
        init: str | os.PathLike[str] | None = "auto",
        aggregation: str | float = 0.01,
        blur_sigma: float = 4.0,
        border_weight: float = 0.5,
        contrast: float = 0.0,
        upsampling: str = "half_pixel",
        augment: bool = True,
        foreground: bool | float = False,
        max_patches: int = 2048,
        n_support: int | None = None,
        weights: str | os.PathLike[str] | None = None,
        layers: str | Sequence[int] = "auto",
        image_shape: tuple[int, ...] | None = None,
        on_error: str = "raise",
        memory: Any = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.image_size = image_size
        self.aspect = aspect
        self.value_range = value_range
        self.contamination = contamination
        self.evidence = evidence
        self.embedding_weight = embedding_weight
        self.student_weight = student_weight
        self.lam = lam
        self.student = student
        self.init = init
        self.aggregation = aggregation
        self.blur_sigma = blur_sigma
        self.border_weight = border_weight
        self.contrast = contrast
        self.upsampling = upsampling
        self.augment = augment
        self.foreground = foreground
        self.max_patches = max_patches
        self.n_support = n_support
        self.weights = weights
        self.layers = layers
        self.image_shape = image_shape
        self.on_error = on_error
        self.memory = memory
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def paper(cls, backbone: str = "wide_resnet50_2.tv_in1k", **parameters: Any) -> DualDistillationDetector:
        """Create a detector with the paper's settings; further parameters override them.

        The score is the maximum of the "ssd" map; training uses the flattened loss, learning rate 1e-4 and no early
        stopping. The paper trains on other kinds of images: pass `auxiliary` to `fit`, or `init` with `n_steps=0`.

        Parameters
        ----------
        backbone : str, default="wide_resnet50_2.tv_in1k"
            The paper's teacher.
        **parameters
            Any parameters that `set_params` accepts.

        Returns
        -------
        DualDistillationDetector
        """
        # In full, so that changed defaults do not alter it.
        student = Student(
            architecture="decoder", decoder_blocks=PAPER_BLOCKS, weighting="attention", sharpness=1.0, loss="flattened",
            batch_size=16, learning_rate=1e-4, tol=0.0,
        )  # fmt: skip
        return cls(
            backbone, layers="auto", image_size=128, aspect="square", student=student, lam=0.1, evidence="ssd",
            aggregation="max", upsampling="align_corners", blur_sigma=4.0, border_weight=1.0, contrast=0.0,
        ).set_params(**parameters)  # fmt: skip

    @classmethod
    def recipe(cls, name: str, **parameters: Any) -> DualDistillationDetector:
        """Create a detector that follows another published method; further parameters override its settings.

        docs/choosing.md describes the recipes, and docs/differences.md lists where they deviate from the publications.

        Parameters
        ----------
        name : {"anomalydino", "subspacead"}
            AnomalyDINO compares the last tokens of DINOv2 S/14 with those of the support; SubspaceAD measures the
            distance of the tokens of DINOv2-reg G/14 to the principal subspace of the support's tokens.
        **parameters
            Any parameters that `set_params` accepts, such as `weights`, or another transformer as `backbone`.

        Returns
        -------
        DualDistillationDetector

        Raises
        ------
        ValueError
            There is no recipe of this name.

        Examples
        --------
        >>> from fewshot_ad import DualDistillationDetector
        >>> DualDistillationDetector.recipe("anomalydino", image_size=672).evidence
        'patch'
        """
        return cls(**parameters_of(name)).set_params(**parameters)

    def set_params(self, **params: Any) -> DualDistillationDetector:
        """Set parameters; a parameter of the student, such as `student__n_steps`, makes a `Student` if there is none.

        Parameters
        ----------
        **params
            Parameters, named as in `get_params`.

        Returns
        -------
        DualDistillationDetector
            The detector itself.
        """
        if params.get("student", self.student) is None and any(name.startswith(STUDENT_PREFIX) for name in params):
            params = {**params, "student": Student()}
        return super().set_params(**params)

    def fit(self, X: Any, y: Any = None, *, auxiliary: Mapping[str, Any] | None = None) -> DualDistillationDetector:
        """Fit on normal images.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            The support: paths, frames of files (`images.frames`), PIL images, arrays (H, W, 1|3|4), (N, H, W),
            (N, H, W, C), torch tensors (N, C, H, W), or a list of these that may mix sizes. 2-D input holds one
            flattened image in each row. uint8, uint16, bool, or float in [0, 1], unless `value_range` is given.
        y : array-like of shape (n_samples,), optional
            Rows labelled -1 are left out of the support.
        auxiliary : mapping of str to images, optional
            Normal images of other kinds, by the name of the kind. The student is then trained on episodes drawn from
            them (the paper's training), and the support is only stored. By default it is trained on views of the
            support.

        Returns
        -------
        DualDistillationDetector
            The detector itself.

        Raises
        ------
        ImageError
            There is no image, or one cannot be read; it is named.
        WeightsNotFoundError
            The teacher's weights are not available.
        CheckpointError
            `init` belongs to another teacher.
        TrainingError
            The loss became infinite or NaN.
        """
        settings = checked(self.get_params(deep=False))
        evidence = resolve_evidence(settings, auxiliary)
        seeds = check_random_state(settings.random_state).randint(np.iinfo(np.int32).max, size=4).tolist()
        with own_torch_state():
            fitted = fit_support(settings, X, y, auxiliary, evidence, seeds)
        return self._take(fitted)

    def _take(self, fitted: FittedSupport) -> DualDistillationDetector:
        """Warn about the support, and only then replace the fitted state."""
        for message in support_warnings(fitted):
            warn(message)
        self.fitted_ = fitted
        return self

    def calibrate(
        self, X: Any, y: Any = None, *, false_alarm_rate: float = 0.05, goal: str = "false_alarm_rate"
    ) -> DualDistillationDetector:
        """Calibrate the threshold on new images; it changes only `offset_`, `normal_pvalue` and `predict_proba`.

        With normal images alone, the threshold is a quantile of their scores (split conformal): the probability that a
        new normal image is called anomalous is at most `false_alarm_rate` for any distribution, if these images are
        exchangeable with later ones. n images can guarantee 1 / (n + 1) at best: 5 % needs 19, 2 % needs 49, 1 % needs
        99. With fewer images a log-normal distribution is fitted to the scores, with a warning. `partial_fit`
        recalibrates, or rescales the threshold, with a warning; `fit` and setting `offset_` discard the calibration.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`. Images that the detector was fitted on, and repeated ones, are left out with a warning.
        y : array-like of shape (n_samples,), optional
            +1 for normal, -1 for anomalous images; by default all are normal. With anomalous images, `calibration_` has
            the recall, and `predict_proba` becomes available.
        false_alarm_rate : float in (0, 0.5], default=0.05
            False-positive rate that is allowed: the fraction of new normal images that may be called anomalous.
        goal : {"false_alarm_rate", "f1"}, default="false_alarm_rate"
            "false_alarm_rate": the threshold with the highest recall at this rate. "f1": the threshold with the best F1
            on these images, at any false-positive rate; it needs anomalous images.

        Returns
        -------
        DualDistillationDetector
            The detector itself; `calibration_` has the expected rates.

        Raises
        ------
        ValueError, ImageError
            A rate, goal or label is not valid; there is no new normal image; an image cannot be read.

        Examples
        --------
        >>> from sklearn.datasets import load_sample_image
        >>> photograph = load_sample_image("china.jpg")
        >>> images = [photograph[200:360, x : x + 160] for x in range(100, 124)]
        >>> det = DualDistillationDetector(evidence="patch", random_state=0).fit(images[:4])
        >>> det.calibrate(images[4:], false_alarm_rate=0.1).calibration_.expected_rate
        0.09523809523809523
        """
        session = self.session()
        with own_torch_state():
            self.fitted_ = calibrated(session, X, y, false_alarm_rate, goal)
        return self

    def fit_predict(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and predict labels of the same images, each scored against the others.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`. All are labelled, including those that the detector is not fitted on.
        y : array-like of shape (n_samples,), optional
            As for `fit`.
        **fit_params
            Passed to `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int
            As returned by `predict`.
        """
        X = list(X) if isinstance(X, Iterator) else X
        return self.fit(X, y, **fit_params).predict(X)

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and embed the same images, including those that the detector is not fitted on.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            As for `fit`.
        **fit_params
            Passed to `fit`.

        Returns
        -------
        ndarray of shape (n_samples, C), float64
            As returned by `transform`.
        """
        X = list(X) if isinstance(X, Iterator) else X
        return self.fit(X, y, **fit_params).transform(X)

    def partial_fit(self, X: Any, y: Any = None) -> DualDistillationDetector:
        """Add support images without retraining; the threshold is updated, unless the user has set it.

        A threshold from `calibrate` is recalibrated if the calibration images are still in memory, else rescaled; both
        warn. An image that is already in the support is ignored, with a warning. Before `fit`, this is `fit`.

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
            fitted = extend_support(session, X, y).fitted
        return self if fitted is session.fitted else self._take(fitted)

    def save_student(self, path: str | os.PathLike[str]) -> None:
        """Write the trained student, for `init` of other detectors with the same teacher.

        Parameters
        ----------
        path : path
            File to write, safetensors.
        """
        model_file.save_student(path, self.session().fitted)

    def save(self, path: str | os.PathLike[str], *, support: bool = False, force: bool = False) -> None:
        """Write the fitted detector, without the teacher, to a file that `load` reads.

        The file is safetensors with a JSON header, no pickle; docs/files.md describes it. Tensors are stored as on the
        CPU. The parameters `device`, `n_jobs`, `memory` and `verbose` are not stored, nor is a `random_state` that is a
        generator.

        Parameters
        ----------
        path : path
            File to write, `.fsad` by convention. It is written atomically.
        support : bool, default=False
            Whether to store the support images too; `partial_fit` needs them. By default only their file names (without
            folders), hashes and features are stored.
        force : bool, default=False
            Whether to replace an existing file.

        Raises
        ------
        OutputExistsError, OutputError
            The file exists and `force` is False, or it cannot be written.
        CheckpointError
            A parameter cannot be stored in a file.
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
        """Load a fitted detector that `save` wrote; nothing in the file is executed.

        On the machine where it was saved, its scores are bitwise identical to those of the saved detector.

        Parameters
        ----------
        path : path
            File to read.
        device : str or torch.device, optional
            The parameter `device`; by default "auto".
        weights : path, optional
            The teacher's weights; they are checked to be the same. By default the file that was named when the detector
            was fitted, if it exists; else the packaged weights, or those of the hub.

        Returns
        -------
        DualDistillationDetector
            A fitted detector, without `support_` unless the images were saved too.

        Raises
        ------
        CheckpointError
            The file does not exist, is not a detector, has another format version, or is damaged or altered.
        WeightsNotFoundError
            The teacher's weights are not available.
        """
        defaults = cls().get_params()
        fitted = model_file.load(path, defaults, device=device, weights=weights)
        det = cls().set_params(**fitted.settings.flat())
        det.fitted_ = fitted
        return det

    def export(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the fitted detector as one ONNX graph, for onnxruntime, OpenVINO and the like.

        The graph holds teacher, students, support and scoring in float32. Its input is "image", (N, 3, H, W) float32 in
        [0, 1] with any N, H and W, which the graph resizes as the package does. Its outputs are "score", (N,) as from
        `score_samples`, high = normal, and "anomaly_map", (N, h, w) as from `anomaly_map`, high = anomalous. The
        metadata hold the threshold, "offset", and a description (docs/deployment.md). The graph does not recognise a
        copy of a support image. The export blocks other threads that use the package, for up to a minute.

        Parameters
        ----------
        path : path
            File to write, `.onnx` by convention. It is written atomically.
        force : bool, default=False
            Whether to replace an existing file.

        Raises
        ------
        ValueError
            The backbone cannot be exported for images of any aspect ratio.
        MissingExtraError
            onnx or onnxscript is not installed.
        OutputExistsError, OutputError
            The file exists and `force` is False, or it cannot be written.
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
        """Predict labels of images.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int
            +1 for normal, -1 for anomalous images, and -1 for an unreadable image with on_error="skip".
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def normal_pvalue(self, X: Any) -> np.ndarray:
        """Compute the probability that a normal image has an anomaly score at least this high.

        After `calibrate` these are conformal p-values, (1 + number of calibration images that score as high) / (n + 1):
        at most a fraction p of new normal images has a p-value of p or less. They take n + 1 values, none below
        1 / (n + 1). Before `calibrate` they are estimated with Student's t, fitted to the logarithms of the support
        scores with a prior on their spread; they are 0.05 at the automatic threshold. A p-value is not the probability
        that an image is normal.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            In (0, 1]; low = anomalous. NaN for an unreadable image with on_error="skip".
        """
        return pvalues(self.session(), X)

    @available_if(check_both_classes)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities; available only after `calibrate` with images of both classes.

        They are a logistic function of the logarithm of the anomaly score, fitted with a weak prior. They are valid for
        the class balance of the calibration images. `predict` uses the threshold, not these probabilities.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, 2), float64
            Probabilities of the anomalous and the normal class, in the order of `classes_`; rows sum to 1. NaN for an
            unreadable image with on_error="skip".
        """
        return probabilities(self.session(), X)

    def transform(self, X: Any) -> np.ndarray:
        """Embed images with the teacher, for other estimators.

        The embedding depends on the teacher and on how images are resized, not on the support or on `evidence`.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, C), float64
            The teacher's deepest stage, averaged over positions; rows of norm 1. NaN for an unreadable image with
            on_error="skip". A data frame after `set_output(transform="pandas")`.
        """
        return embed(self.session(), X)

    def anomaly_map(self, X: Any, *, size: str | None = None) -> np.ndarray | list[np.ndarray]:
        """Compute anomaly maps of images; high = anomalous.

        The image score is the `aggregation` of this map, its border weighted by `border_weight`, less `contrast` times
        its mean. The component "embedding" is added to the image score only, unless it is the only component.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        size : "original", optional
            Return maps at the original size of each image, upright. By default they have the size that images are
            resized to.

        Returns
        -------
        ndarray of shape (n_samples, H, W), float32; or a list of n_samples of shape (H, W)
            A list if the shapes differ. NaN for an unreadable image with on_error="skip".
        """
        return self.session().anomaly_map(X, size)

    def regions(self, X: Any, *, min_area: float = 0, level: float | None = None) -> list[list[Region] | None]:
        """Find the regions where images are anomalous.

        A region is a connected component (8-neighbourhood) of the pixels where the map, its border weighted by
        `border_weight` as in the score, is above a level. The default level is half way between the map's mean and its
        peak: the score decides whether an image is anomalous, and the shape of its map decides where. So an anomalous
        image has at least one region, which contains its hot spot, and a normal image has none.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        min_area : float, default=0
            Smallest area to keep, in pixels of the original image.
        level : float, optional
            A fixed level for all images, including normal ones, on the scale of `Region.score`: 1 is the threshold, 1.2
            is 20 % above it.

        Returns
        -------
        list of lists of Region
            One list per image, the highest peak first; it may be empty. None for an unreadable image with
            on_error="skip".

        Raises
        ------
        ValueError
            `min_area` is negative, or `level` is not finite.

        Examples
        --------
        >>> import tempfile
        >>> from fewshot_ad import DualDistillationDetector, demo
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = demo.write_images(folder, n_normal=5, n_anomalous=1)
        ...     normal, bad = (sorted((root / kind).glob("*.png")) for kind in ("good", "bad"))
        ...     det = DualDistillationDetector(random_state=0).fit(normal[:4])
        ...     regions = det.regions([normal[4], bad[0]])
        >>> [len(one) for one in regions]
        [0, 1]
        >>> top, left, bottom, right = regions[1][0].box
        """
        return self.session().regions(X, min_area, level)

    def support_weights(self, X: Any) -> np.ndarray:
        """Compute the weight of each support image for each query.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, K), float64
            Rows sum to 1. With a student, the attention weights, averaged over scales; else with "patch", the fraction
            of patches whose nearest neighbour is in each support image; else with "embedding", 1 for the most similar
            one; with "subspace" alone, all are equal.
        """
        return self.session().support_weights(X)

    def explain(self, X: Any, *, max_side: int | None = 640) -> list[Explanation | None]:
        """Explain the score of each image.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        max_side : int or None, default=640
            Longest side of the pictures for display (`Explanation.picture`), pixels; each image is read a second time
            for its picture. None uses the resized image that was scored instead.

        Returns
        -------
        list of Explanation
            One per image; None for an unreadable image with on_error="skip".
        """
        return self.session().explain(X, max_side)

    def drift(self, X: Any, reference: Any = None) -> Drift:
        """Test whether new images, as a whole, differ from normal ones: another light, focus, camera or product.

        Each of six statistics is compared by a t-test (docs/method.md). One or two anomalies among many images are not
        drift.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`: a random sample of at least 5 readable images, better 20.
        reference : images, or array-like of shape (n_samples, n_features), optional
            Further normal images, as for `calibrate`, to compare with in addition to the support: four images hardly
            tell how much normal ones differ. Images of the support, and repeated ones, count once.

        Returns
        -------
        drift.Drift
            `p_value`, `drifted` (p below 0.01), the `statistic` with the smallest p-value, and `text`. Unreadable
            images are left out with on_error="skip". Light and focus are NaN, and not compared, after `load` from a
            file without support images, unless a reference is given; "score" is NaN if the support is one image.

        Raises
        ------
        ImageError
            Fewer than 5 images that can be read.
        ValueError
            There is nothing to compare with: a single support image, it is not in the file, and no reference.
        """
        session = self.session()
        new = drift.describe(session, X)
        return drift.compare(session.fitted, new, None if reference is None else drift.describe(session, reference))

    def session(self, **overrides: Any) -> Session:
        """Open a session on the current fitted state, for tools and for several calls on one state.

        Parameters
        ----------
        **overrides
            `weights`, `device`, `n_jobs`, `memory`, `on_error`, `verbose`, in place of the detector's parameters.

        Returns
        -------
        session.Session
            It keeps using this state, even if the detector is fitted again.
        """
        check_is_fitted(self)
        return Session(self.fitted_, **{**{name: getattr(self, name) for name in CALL_PARAMETERS}, **overrides})

    fitted_: FittedSupport
    support_ = FittedAttribute[np.ndarray | list[np.ndarray]](
        lambda f: None if f.images is None else together([image.numpy() for image in f.images]), may_lack=True
    )
    support_scores_ = FittedAttribute[np.ndarray](lambda f: f.scores)
    evidence_ = FittedAttribute[str | tuple[str, ...] | dict[str, float]](lambda f: f.evidence)
    lam_ = FittedAttribute[float](lambda f: f.lam)
    layers_ = FittedAttribute[tuple[int, ...]](lambda f: f.layers.numbers)
    scales_ = FittedAttribute[dict[str, float]](lambda f: dict(f.scales))
    loss_curve_ = FittedAttribute[list[float]](lambda f: list(f.loss_curve))
    experts_ = FittedAttribute[list[Expert]](lambda f: list(f.experts))
    patches_ = FittedAttribute[torch.Tensor | None](lambda f: f.patches and f.patches.features)
    embeddings_ = FittedAttribute[torch.Tensor | None](lambda f: f.embeddings)
    calibration_ = FittedAttribute[Calibration](lambda f: f.calibration, may_lack=True)
    classes_ = FittedAttribute[np.ndarray](classes, may_lack=True, hint=NEEDS_BOTH_CLASSES)
    teacher_fingerprint_ = FittedAttribute[str](lambda f: f.teacher_fingerprint)
    row_range_ = FittedAttribute[tuple[float, float] | None](lambda f: f.table and f.table.value_range)
    n_features_in_ = FittedAttribute[int](lambda f: f.table and f.table.n_features, may_lack=True)
    feature_names_in_ = FittedAttribute[np.ndarray](
        lambda f: np.array(f.table.feature_names, dtype=object) if f.table and f.table.feature_names else None,
        may_lack=True,
    )

    @property
    def offset_(self) -> float:
        """The threshold of `score_samples`; it can be set."""
        if "fitted_" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'offset_'")
        return self.fitted_.offset

    @offset_.setter
    def offset_(self, value: float) -> None:
        check_is_fitted(self)
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"offset_={value!r} was given; it must be a finite number.")
        self.fitted_ = self.fitted_.with_offset(float(value))

    @property
    def _n_features_out(self) -> int:
        return count_columns(self.session())

    def __getstate__(self) -> dict[str, Any]:
        """Record the release that writes a pickle."""
        return {**super().__getstate__(), _VERSION: __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Warn of a pickle of another release."""
        state = dict(state)
        version = state.pop(_VERSION, "0.1.0")
        if version != __version__:
            warn(
                f"This detector was pickled by fewshot-ad {version}, but this is {__version__}: it may not work. A "
                "pickle is only for the release that wrote it; use det.save(path) and "
                "DualDistillationDetector.load(path).",
                VersionWarning,
            )
        super().__setstate__(state)

    def _repr_html_inner(self) -> str:
        """Show a summary of the fitted state above scikit-learn's diagram."""
        # This method is private in scikit-learn, and may disappear.
        inner = getattr(super(), "_repr_html_inner", lambda: f"<pre>{html.escape(repr(self))}</pre>")
        return summary(vars(self).get("fitted_")) + inner()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Add the summary for notebooks that prefer a bundle."""
        inner = getattr(super(), "_repr_mimebundle_", lambda **_: {"text/plain": repr(self)})
        bundle: dict[str, Any] = inner(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] = summary(vars(self).get("fitted_")) + bundle["text/html"]
        return bundle

    def __sklearn_tags__(self) -> Any:
        """Declare that images are accepted, and that a detector with probabilities is a binary classifier."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        if hasattr(self, "classes_"):
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags(multi_class=False)
        return tags
