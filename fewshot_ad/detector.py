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
from .attributes import BOTH_KINDS, FittedAttribute, classes, saw_both_kinds, summary
from .doubts import doubts
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
from .training.calibrating import calibrated, probabilities, pvalues
from .training.fitting import extend_support, fit_support
from .training.students import resolve_evidence

_VERSION = "_fewshot_ad_version"


class DualDistillationDetector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator):
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
    image_size : "auto", int or tuple of two ints, default="auto"
        Square root of the area that each image is resized to, pixels; or its height and width. "auto" is 128, and of a
        plain transformer the largest multiple of its patch up to 448.
    aspect : {"keep", "square"}, default="keep"
        "keep": each image keeps its own proportions, up to 4:1, its sides rounded to multiples of what the teacher
        needs (16 for most). "square": all become squares of side `image_size`.
    value_range : (float, float), optional
        Values that mean black and white, as a CT window in Hounsfield units. By default what a DICOM file says, the
        percentiles 0.5 and 99.5 of a NIfTI volume (docs/formats.md), else by dtype (uint8 255, uint16 65535, bool and
        float 1); for 2-D input the full scale of an integer dtype, else the range seen at `fit`.
    contamination : "auto" or float in (0, 0.5], default="auto"
        "auto": about 95 of 100 fresh normal images are called normal. A float: that share of the support images, each
        scored against the others, is called anomalous.
    evidence : str, sequence of str, or dict, default="auto"
        What makes the score. "ssd": student against weighted support; "tsd": student against teacher; "patch": teacher
        patches against the most similar one of the support; "embedding": the teacher's deepest stage, pooled (of a
        transformer its class token), against the most similar view of the support; "subspace": what teacher patches
        have beyond the principal subspace of the support's. Of several names, "ssd" and "tsd" make one part,
        SSD + lam * TSD, and each other one a part; each is divided by what it reads on the support's held-out views,
        and they are added by their weights (the next two parameters; "patch" and "subspace" have 1). A dict gives the
        weights of a sum of unscaled maps. "auto" is "patch", with "ssd" and "tsd" where a student is asked for, and
        with "embedding" where that is given a weight.
    embedding_weight : float, optional
        Weight of "embedding", likewise: by default 0.2 where `evidence` names it, else 0. It helps where an image
        differs as a whole, as in histology.
    student_weight : float, optional
        Weight of the student's part, "ssd" and "tsd", where that of "patch" is 1; 0 leaves it out, and costs nothing.
        By default 0.1 where a student is asked for: by `evidence`, `lam`, `student`, `init` or `auxiliary`;
        else 0.
    lam : float, default=0.1
        Weight of TSD beside SSD, in the training loss SSD + lam * TSD and in the score; inf is TSD alone. Without a
        student (see `evidence`) it is not used.
    student : Student, optional
        How the student is made and trained, where it is not by default. Its parameters are also set by names such as
        `student__n_steps`, in `set_params` and in grids, which make a `Student` where there is none.
    init : "auto", path, or None, default="auto"
        Pretrained student to start from: a file that `pretrain` or `save_student` wrote, for this very teacher,
        `architecture` and `weighting`. "auto" is the packaged student where the teacher is the packaged one, else None,
        an untrained student.
    aggregation : {"max", "mean"} or float, default=0.01
        From map to image score. A float in (0, 1] is the mean of that share of the pixels, the highest ones.
    blur_sigma : float, default=4.0
        Gaussian blur of the map, within each image: pixels of a map of 128 x 128, in proportion for others. 0 is none.
    border_weight : float in [0, 1], default=0.5
        Weight of the map's edge in the image score, from where it rises to 1 within an eighth of each side: features
        there are partly of the padding. 1 makes no difference between edge and middle. The map stays as it is.
    contrast : float in [0, 1], default=0.0
        Share of the map's mean that is taken off the image score: what stands out in an image then counts for more
        than what is a little unusual everywhere.
    upsampling : {"half_pixel", "align_corners"}, default="half_pixel"
        How coarse maps become pixels: with their edges on those of the image, or with the centres of their corner
        pixels on each other, as the published code does (which also blurs the map's edge in another way).
    augment : bool, default=True
        Whether "patch", "embedding" and "subspace" also see the support turned by 90, 180 and 270 degrees and mirrored,
        and whether a student that is trained on the support sees slightly changed views of it.
    max_patches : int, default=2048
        Most patches that are kept of the support, of all images and views: those that cover the others best.
    n_support : int, optional
        How many of the normal images `fit` draws for its support, by `random_state`; all images by default. In a search
        with `KShotSplit(n_shots=4)`, 4 refits on as many images as were measured. `partial_fit` adds all it is given.
    weights : path, optional
        The teacher's weights, a safetensors file in timm's naming. By default the packaged ones; for a network of
        timm's those in the hub's cache, or fetched from there.
    layers : "auto", "last", or tuple of ints, default="auto"
        The teacher's layers that describe an image. Of a plain transformer they are blocks, counted from 1: "auto"
        takes its upper half (blocks 4, 5, 7, 10 of 12, in proportion of others), "last" the last block. Of any other
        network they are stages, counted from 1 at stride 4 (a ResNet's `layer1`): "auto" takes strides 4, 8, 16.
    image_shape : tuple of int, optional
        (H, W), (H, W, 1) or (H, W, 3) of the flattened images that 2-D input holds. By default a row is an image of
        height 1.
    on_error : {"raise", "skip"}, default="raise"
        "skip" leaves unreadable images out of `fit`, with a warning, and scores them NaN.
    memory : joblib.Memory or path, optional
        Cache of the teacher's features, shared by all fits. joblib keeps pickles there: use a folder that only you can
        write to.
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is one, else the CPU.
    precision : {"auto", "float64", "float32", "bfloat16", "float16"}, default="auto"
        Of the networks. "auto" runs them in float32 to score, and trains in bfloat16 where the hardware multiplies it
        natively. "float64" and "float32" compare all patches that are kept; the others search quickly, and now and then
        find one that is a little less similar.
    n_jobs : int, optional
        Threads that read and score images, as scikit-learn counts them (-1: all processors); None is as many as torch
        has. Scores do not depend on it. On a GPU it is not used.
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
    calibration_ : method.calibration.Calibration
        What the threshold comes of, after `calibrate`.
    classes_ : ndarray of shape (2,)
        -1 and 1, after `calibrate` with images of both kinds.
    support_scores_ : ndarray of shape (K,)
        `score_samples` of each support image, scored against the other support images.
    support_ : ndarray of shape (K, 3, H, W), or list of K of shape (3, H, W)
        The support images, float32 in [0, 1]. Not there after `load`, unless they were saved too.
    evidence_ : str, tuple of str, or dict
        `evidence`, as "auto" was resolved.
    lam_ : float
        Weight of TSD beside SSD in the score.
    layers_ : tuple of int
        The teacher's layers that were taken.
    scales_ : dict
        What each kind of evidence is divided by.
    loss_curve_ : list of float
        Training loss of every step made; empty where none was.
    experts_ : list of scoring.Expert
        The trained students, each with its maps of the support: one that was trained elsewhere (`auxiliary`, `init`),
        two that were each trained on half of the support, or none where the evidence needs none.
    patches_ : Tensor of shape (at most max_patches, channels), or None
        The teacher's patches that are kept of the support and of its views.
    embeddings_ : Tensor of shape (K, views, channels), or None
        Pooled embeddings of the same.
    teacher_fingerprint_ : str
        sha256 of the teacher's weights.
    row_range_, n_features_in_, feature_names_in_ : tuple, int, ndarray of str
        For 2-D input: the values that became black and white, number of columns, and their names.

    Notes
    -----
    A query that is, pixel for pixel, one of the support images is compared with the *other* ones: its score is
    comparable with those of fresh images.

    A changed parameter acts at the next `fit`, except for those that say where and how the work is done, and on which
    no score depends: `weights`, `device`, `n_jobs`, `memory`, `on_error`, `verbose` act at the next call.

    `fit` puts a new state in place of the old one at its end. If it fails or is interrupted, the detector is as it was
    before. Threads may score while another fits: each call sees one state.

    References
    ----------
    Dong et al., "Dual Distillation for Few-Shot Anomaly Detection", ICLR 2026, arXiv:2603.01713.

    Examples
    --------
    Four crops of a photograph to fit on; of two others, one has a scratch. Paths of files would do as well.

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
        """Make a detector with the paper's setting; further parameters override it.

        The score is the maximum of the "ssd" map; training uses the flattened loss, learning rate 1e-4 and no early
        end. The paper trains on other kinds of images: pass `auxiliary` to `fit`, or `init` with `n_steps=0`.

        Parameters
        ----------
        backbone : str, default="wide_resnet50_2.tv_in1k"
            The paper's teacher.
        **parameters
            Any that `set_params` takes.

        Returns
        -------
        DualDistillationDetector
        """
        # In full, whatever the defaults are or will be.
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
        """Make a detector after a recipe of others; further parameters override it.

        docs/choosing.md describes the recipes, and docs/differences.md says what is done otherwise here.

        Parameters
        ----------
        name : {"anomalydino", "subspacead"}
            AnomalyDINO compares the last tokens of DINOv2 S/14 with those of the support; SubspaceAD measures what the
            tokens of DINOv2-reg G/14 have beyond the principal subspace of the support's.
        **parameters
            Any that `set_params` takes, such as `weights`, or another transformer as `backbone`.

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
        """Set parameters; one of the student's, as `student__n_steps`, makes a `Student` where there is none.

        Parameters
        ----------
        **params
            By the names of `get_params`.

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
            Normal images of other kinds, by the name of the kind. The student is then trained by episodes over these
            (the paper's training), and the support is only stored. Without it, it is trained on views of the support.

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

    def calibrate(
        self, X: Any, y: Any = None, *, false_alarm_rate: float = 0.05, goal: str = "false_alarm_rate"
    ) -> DualDistillationDetector:
        """Choose the threshold by fresh images; nothing but `offset_` moves, and what tells how rare a score is.

        With normal images alone, the threshold is a quantile of their scores (split conformal): the probability that a
        fresh normal image is called anomalous is at most `false_alarm_rate`, whatever the distribution, if these images
        are drawn as later ones are. n images can promise 1 / (n + 1) at best: 5 % takes 19, 2 % takes 49, 1 % takes 99.
        With fewer a log-normal distribution is fitted to the scores, with a warning. `partial_fit` calibrates anew, or
        brings the threshold to the new scale, with a warning; `fit`, and setting `offset_`, end the calibration.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`. Images that the detector was fitted on, and repeated ones, are left out with a warning.
        y : array-like of shape (n_samples,), optional
            +1 for normal, -1 for anomalous images. Without it all are normal. With anomalous ones, `calibration_` says
            how many of them are found, and `predict_proba` is there.
        false_alarm_rate : float in (0, 0.5], default=0.05
            Share of fresh normal images that may be called anomalous.
        goal : {"false_alarm_rate", "f1"}, default="false_alarm_rate"
            "false_alarm_rate": of the thresholds that keep this rate, the one with the highest recall. "f1": the one
            with the best F1 on these images, whatever its rate; anomalous ones are needed.

        Returns
        -------
        DualDistillationDetector
            The detector itself; `calibration_` says what to expect.

        Raises
        ------
        ValueError, ImageError
            A rate, goal or label that is not accepted; no fresh normal image; an image that cannot be read.

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

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and describe the same images, also those that are not fitted on.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            As for `fit`.
        **fit_params
            Passed on to `fit`.

        Returns
        -------
        ndarray of shape (n_samples, C), float64
            As of `transform`.
        """
        X = list(X) if isinstance(X, Iterator) else X
        return self.fit(X, y, **fit_params).transform(X)

    def partial_fit(self, X: Any, y: Any = None) -> DualDistillationDetector:
        """Add support images without training again; the threshold follows, unless the user has set it.

        One from `calibrate` is calibrated anew where the images are at hand, else brought to the new scale; it warns.

        An image that is in the support already changes nothing, with a warning. Before `fit` this is `fit`.

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
            The file to write, safetensors.
        """
        model_file.save_student(path, self.session().fitted)

    def save(self, path: str | os.PathLike[str], *, support: bool = False, force: bool = False) -> None:
        """Write the fitted detector to a file that `load` reads, without the teacher.

        Safetensors with a JSON header, no pickle; docs/files.md says what is in it. Tensors are those of the CPU. The
        parameters `device`, `n_jobs`, `memory` and `verbose` are left out, and a `random_state` that is a generator.

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
        OutputExistsError, OutputError
            The file exists, and `force` is False; it cannot be written there.
        CheckpointError
            A parameter that no file can hold.
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

        On the machine where it was saved its scores are those of the detector that was saved, bit for bit.

        Parameters
        ----------
        path : path
            The file.
        device : str or torch.device, optional
            The parameter `device`; by default "auto".
        weights : path, optional
            The teacher's weights, checked to be the same. By default the file that was named when the detector was
            fitted, if it is there; else the packaged ones, or those of the hub.

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
        defaults = cls().get_params()
        fitted = model_file.load(path, defaults, device=device, weights=weights)
        det = cls().set_params(**fitted.settings.flat())
        det.fitted_ = fitted
        return det

    def export(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the fitted detector as one ONNX graph, for onnxruntime, OpenVINO and the like.

        Teacher, students, support and scoring in float32. Input "image": (N, 3, H, W) float32 in [0, 1], of any N, H
        and W, which the graph resizes as the package does; outputs "score": (N,), as `score_samples` gives it, high =
        normal, and "anomaly_map": (N, h, w), high = anomalous, in the proportions that `anomaly_map` gives. The
        metadata hold the threshold, "offset", and what the file is (docs/deployment.md). The graph does not know a copy
        of a support image for one. Other threads that use the package wait meanwhile, up to a minute.

        Parameters
        ----------
        path : path
            The file to write, `.onnx` by convention. It is there whole, or not at all.
        force : bool, default=False
            Whether a file that exists is replaced.

        Raises
        ------
        ValueError
            The backbone cannot be exported for images of any proportions.
        MissingExtraError
            onnx or onnxscript is not installed.
        OutputExistsError, OutputError
            The file exists, and `force` is False; it cannot be written there.
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

    def normal_pvalue(self, X: Any) -> np.ndarray:
        """Tell how often a normal image would score as high an anomaly score, or a higher one.

        After `calibrate` these are conformal p-values, (1 + calibration images that score as high) / (n + 1): among
        fresh normal images a share of at most p has a value of p or less. They take n + 1 values, and none is below
        1 / (n + 1). Before, they come of Student's t, fitted to the logarithms of the support's scores with a prior on
        their spread: with a few images an estimate, and 0.05 at the automatic threshold. It is not the probability that
        an image is normal.

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

    @available_if(saw_both_kinds)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> np.ndarray:
        """Give the probability that images are anomalous; only after `calibrate` saw images of both kinds.

        A logistic function of the logarithm of the anomaly score, fitted with a mild prior. It holds for images mixed
        as those that were calibrated on. `predict` goes by the threshold, not by this.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, 2), float64
            Of the anomalous and the normal class, as `classes_` has them; rows sum to 1. NaN for an unreadable image
            with on_error="skip".
        """
        return probabilities(self.session(), X)

    def transform(self, X: Any) -> np.ndarray:
        """Describe images by the teacher's embedding, for other estimators.

        It depends on the teacher and on how images are resized, not on the support, and not on `evidence`.

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
        """Map where images are anomalous; high = anomalous.

        The image score is the `aggregation` of this map, its border faded by `border_weight`, less `contrast` times its
        mean. What "embedding" reads of the image as a whole is added to the score alone, unless there is nothing else.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        size : "original", optional
            Maps in the pixels of the images as they were given, upright. By default in those that the detector sees.

        Returns
        -------
        ndarray of shape (n_samples, H, W), float32; or a list of n_samples of shape (H, W)
            A list where images have several shapes. NaN for an unreadable image with on_error="skip".
        """
        return self.session().anomaly_map(X, size)

    def regions(self, X: Any, *, min_area: float = 0, level: float | None = None) -> list[list[Region] | None]:
        """Find the regions where images are anomalous.

        A region is a connected part (8-neighbourhood) of an image where its map, the border faded by `border_weight` as
        in the score, is above a level. By default that is half the map's height, half way between its mean and its
        peak: whether an image is anomalous is for its score to say, and where, for the shape of its map. So an
        anomalous image has at least one region, in which its hot spot lies, and a normal image has none.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        min_area : float, default=0
            Regions of fewer pixels, of the image as it was given, are left out.
        level : float, optional
            One level for all images, normal ones too, on the scale of `Region.score`: 1 is the threshold, 1.2 a fifth
            above it.

        Returns
        -------
        list of lists of Region
            One list for each image, the highest peak first; it may be empty. None for an unreadable image with
            on_error="skip".

        Raises
        ------
        ValueError
            `min_area` is below 0, or `level` is not finite.

        Examples
        --------
        >>> import tempfile
        >>> from fewshot_ad import DualDistillationDetector, demo
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = demo.write_images(folder, n_normal=5, n_anomalous=1)
        ...     normal, bad = (sorted((root / kind).glob("*.png")) for kind in ("good", "bad"))
        ...     det = DualDistillationDetector(random_state=0).fit(normal[:4])
        ...     found = det.regions([normal[4], bad[0]])
        >>> [len(regions) for regions in found]
        [0, 1]
        >>> top, left, bottom, right = found[1][0].box
        """
        return self.session().regions(X, min_area, level)

    def support_weights(self, X: Any) -> np.ndarray:
        """Tell how much each support image counted for each query.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, K), float64
            Rows sum to 1: the attention's weights, averaged over scales; without a student, the share of patches that
            found their match in each image; without "patch", 1 for the one that "embedding" finds most similar; of
            "subspace" alone all are equal.
        """
        return self.session().support_weights(X)

    def explain(self, X: Any, *, max_side: int | None = 640) -> list[Explanation | None]:
        """Tell what the score of each image comes from.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        max_side : int or None, default=640
            Longest side of the pictures to look at (`Explanation.picture`), pixels; each image is read a second time
            for its picture. None leaves them out: then the picture is what the detector saw.

        Returns
        -------
        list of Explanation
            One for each image. None for an unreadable image with on_error="skip".
        """
        return self.session().explain(X, max_side)

    def drift(self, X: Any) -> Drift:
        """Tell whether new images, as a whole, left the range of the support: another light, focus, camera or product.

        Each of five statistics is compared with those of the support by a t-test (docs/method.md). An anomaly or two
        among many images are no drift.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`: at least 5 that can be read, better 20, as they come.

        Returns
        -------
        drift.Drift
            `p_value`, `drifted` (p below 0.01), which `statistic` says so, and `text`. Unreadable images are left out
            with on_error="skip". After `load` light and focus are NaN, and not compared, unless the support images are
            in the file; "score" is NaN where the support is a single image.

        Raises
        ------
        ImageError
            Fewer than 5 images that can be read.
        ValueError
            There is nothing to compare with: a single support image, and it is not in the file.
        """
        return drift.measure(self.session(), X)

    def session(self, **of_the_call: Any) -> Session:
        """Put the fitted state to work: for tools, and for several questions to one state.

        Parameters
        ----------
        **of_the_call
            `weights`, `device`, `n_jobs`, `memory`, `on_error`, `verbose`, in place of its own.

        Returns
        -------
        session.Session
            All that it answers comes of the state that is fitted now, whatever the detector does meanwhile.
        """
        check_is_fitted(self)
        return Session(self.fitted_, **{**{name: getattr(self, name) for name in CALL_PARAMETERS}, **of_the_call})

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
    classes_ = FittedAttribute[np.ndarray](classes, may_lack=True, hint=BOTH_KINDS)
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
        self.fitted_ = self.fitted_.with_offset(float(value))

    @property
    def _n_features_out(self) -> int:
        return count_columns(self.session())

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
        """Say that images may be passed, besides rows; and that what gives probabilities is a binary classifier."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        if hasattr(self, "classes_"):
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags(multi_class=False)
        return tags
