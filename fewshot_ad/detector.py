"""`DualDistillationDetector`, the scikit-learn estimator."""

from __future__ import annotations

import html
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, check_memory, validate_data
from tqdm.auto import tqdm

from . import explanation
from .data import images, views
from .exceptions import CheckpointError, ImageError, SupportWarning, WeightsNotFoundError
from .files import checkpoints, export, model_file
from .method import calibration, matching, scoring
from .method.features import CHUNK, FeatureExtractor, image_hash, load_teacher
from .method.packaged import PACKAGED, timm_name
from .method.student import PAPER_BLOCKS, Student, build_student
from .method.teacher import Backbone
from .runtime import Runtime, is_out_of_memory, resolve_runtime
from .training.episodes import Task
from .training.loop import train

# Training steps of a student that is not pretrained.
_STEPS = 100
# Views that the student learns from: as many as make about this many images in all, at most 16 of each.
_TRAINING_VIEWS = 64
_HELD_OUT_VIEWS = 2
# A support image that reads so many times the median of all is named in a warning. On eleven tasks, four images: in 1
# of 33 draws of normal ones, and for 1 of 8 anomalous ones among three normal (docs/experiments.md).
_ODD = 2.5
# What lam="auto" chooses from, by so many views of each support image; what it trains with, and stays with unless the
# AUROC of another is larger by the margin: smaller differences are of the few views (docs/experiments.md).
_LAMS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_SPOILT_VIEWS = 4
_USUAL_LAM = 0.1
_LAM_MARGIN = 0.15
# What a row's value may exceed the range seen at fit by, in units of that range.
_ROW_MARGIN = 1.0


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
        network of
        the teacher's architecture that sees the image.
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
        "auto": about 95 of 100 fresh normal images are called normal. A float: that share of the support, each
        image held
        against the others, is called anomalous.
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
    offset_ : float
        `decision_function` is `score_samples` minus this.
    support_scores_ : ndarray of shape (K,)
        `score_samples` of each support image held against the others.
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

    A pickle, and a file of `save`, holds tensors on the CPU and no teacher: that is found again by `backbone` and
    `weights`, and checked.

    `fit` that fails or is interrupted leaves the detector as it was before.

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
        max_pixels: int = images.MAX_PIXELS,
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

    # ---- fitting

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
        before = dict(self.__dict__)
        try:
            return self._fit(X, y, auxiliary)
        except BaseException:  # Ctrl-C too: never half a state
            self.__dict__ = before
            raise

    def _fit(self, X: Any, y: Any, auxiliary: Mapping[str, Any] | None) -> DualDistillationDetector:
        self._check_parameters()
        self.evidence_ = self._resolve_evidence(auxiliary)
        seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=4).tolist()
        runtime = resolve_runtime(self.device, self.precision)
        support, names = self._load_support(X, y)
        teacher, fingerprint = self._load_teacher(runtime)
        extract = FeatureExtractor(teacher, fingerprint, runtime, self._memory())
        extract.keep(support)

        experts: list[scoring.Expert] = []
        curve: list[float] = []
        for tasks, seen in self._curricula(support, auxiliary, extract, seeds[1]):
            student = self._initial_student(teacher, fingerprint, seeds[0]).to(runtime.device, runtime.dtype).eval()
            if tasks:
                curve += train(
                    student, tasks, n_steps=self._steps(auxiliary), n_shots=min(len(support), 8),
                    batch_size=self.batch_size, learning_rate=self.learning_rate, lam=self._training_lam(),
                    loss=self.loss, tol=self.tol, seed=seeds[2], runtime=runtime, verbose=self.verbose,
                )  # fmt: skip
            experts.append(scoring.Expert(student.cpu(), seen))
        self.experts_ = experts
        self.loss_curve_ = curve
        self.teacher_fingerprint_ = fingerprint
        self._held_out_seed = seeds[3]
        self._store_support(support, names, extract)
        return self

    def _curricula(
        self, support: torch.Tensor, auxiliary: Mapping[str, Any] | None, extract: FeatureExtractor, seed: int
    ) -> Iterator[tuple[list[Task], torch.Tensor]]:
        """Say what each student is trained on: its tasks, and which support images are among them."""
        nothing = torch.zeros(len(support), dtype=torch.bool)
        if not self._needs_student():
            return
        if self._steps(auxiliary) == 0:
            if self._init_file() is None or auxiliary is not None:
                raise ValueError(
                    f"n_steps=0 trains no student, but evidence={self.evidence_!r} needs one"
                    + (" and auxiliary= was given to train it" if auxiliary is not None else "")
                    + ". Pass init= a trained student without auxiliary, n_steps above 0, or evidence='patch'."
                )
            yield [], nothing
        elif auxiliary is not None:
            yield self._auxiliary_tasks(auxiliary, extract), nothing
        else:
            bank = self._support_task(support, extract, seed)
            # Cross-fitting: each student is trained on one half and judges the other, so that a support image reads as
            # a fresh one would. Fresh images are judged by both.
            half = torch.arange(len(support)) % 2 == 0
            for seen in [half, ~half] if len(support) > 1 else [half]:
                yield [bank.select(seen.numpy()[bank.sources])], seen

    def _steps(self, auxiliary: Mapping[str, Any] | None) -> int:
        if self.n_steps != "auto":
            return int(self.n_steps)
        return 0 if self._init_file() is not None and auxiliary is None else _STEPS

    def partial_fit(self, X: Any, y: Any = None) -> DualDistillationDetector:
        """Add support images without training again; the threshold follows.

        On a detector that is not fitted yet this is `fit`.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.
        y : array-like of shape (n_samples,), optional
            Rows labelled -1 are left out of the support.

        Returns
        -------
        DualDistillationDetector
            The detector itself.

        Raises
        ------
        ValueError
            The detector was loaded from a file that holds no support images.
        """
        if not hasattr(self, "offset_"):
            return self.fit(X, y)
        if not hasattr(self, "support_"):
            raise ValueError(
                "This detector was loaded from a file that holds no support images, and cannot be added to. Save it "
                "with support=True, or fit again on all images."
            )
        before = dict(self.__dict__)
        try:
            new, names = self._load_support(X, y, reset=False)
            support, extract = torch.cat([torch.from_numpy(self.support_), new]), self._extractor()
            extract.keep(support)
            self._store_support(support, self._support_names + names, extract)
            return self
        except BaseException:
            self.__dict__ = before
            raise

    def save_student(self, path: str | os.PathLike[str]) -> None:
        """Write the trained student, for `init` of other detectors with the same teacher.

        Parameters
        ----------
        path : path
            The file to write, safetensors.
        """
        check_is_fitted(self)
        if not self.experts_ or self.experts_[0].seen.any():
            raise ValueError(
                f"There is no student to save: evidence={self.evidence_!r} trains none."
                if not self.experts_
                else "A student that was trained on the support is good for that support only. Pass auxiliary= to "
                "fit, images of other kinds, to train one that can be used elsewhere."
            )
        student = self.experts_[0].student
        header = checkpoints.student_header(self.backbone, self.teacher_fingerprint_, student)
        checkpoints.save_student(path, student, header)

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
        OutputExistsError
            The file exists, and `force` is False.
        OutputError
            It cannot be written there.
        CheckpointError
            A parameter that no file can hold.
        DiskFullError
            What was there before stays.
        """
        model_file.save(path, self, support=support, force=force)

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
        return model_file.load(path, cls, device=device, weights=weights)

    def export(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the fitted detector as one ONNX graph, for onnxruntime, OpenVINO and the like.

        Teacher, students, support and scoring in float32. Input "image": (N, 3, H, W) float32 in [0, 1], of any N, H
        and W; outputs "score": (N,), as `score_samples` gives it, high = normal, and "anomaly_map": (N, image_size,
        image_size), high = anomalous. The metadata hold the threshold, "offset", and what the file is
        (docs/deployment.md). The graph does not know a copy of a support image for one.

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
        OutputExistsError
            The file exists, and `force` is False.
        OutputError
            It cannot be written there.
        DiskFullError
            What was there before stays.
        """
        export.write(path, self, force=force)

    # ---- scoring

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
        return -self.anomaly_score(X)

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
        return self._collect(X, lambda scorer, evidence, _: scorer.score(evidence), (), np.float64)

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
        return self.score_samples(X) - self.offset_

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
        shape = (self.image_size, self.image_size)
        return self._collect(X, lambda scorer, evidence, _: scorer.fuse(evidence), shape, np.float32)

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
        check_is_fitted(self)
        return self._collect(X, lambda _scorer, _evidence, weights: weights, (self._n_support(),), np.float64)

    def explain(self, X: Any) -> list[explanation.Explanation | None]:
        """Tell what the score of each image comes from.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        list of explanation.Explanation
            One for each image, each with score, map, the support's weights, the hottest spot, and the patch of the
            support that is most like it. None for an unreadable image with on_error="skip".
        """
        check_is_fitted(self)
        items, options = self._items(X, reset=False)
        found: list[explanation.Explanation | None] = [None] * len(items)
        for row, one in self._explanations(items, self.on_error, options):
            found[row] = one
        return found

    def _score_files(
        self, paths: Sequence[str | images.Frame], maps: bool = False, keep: bool = False
    ) -> dict[str, np.ndarray]:
        """Score files into columns, a row for each: path, score, label, error, which is None or why, and map.

        With `keep`, what was scored before memory ran out is returned; the others have an error.
        """
        check_is_fitted(self)
        errors: dict[int, str] = {}
        items, options = self._items(list(paths), reset=False)
        columns: dict[str, np.ndarray] = {
            "path": np.array(list(map(str, paths)), object),
            "score": np.full(len(paths), np.nan),
        }
        if maps:
            columns["map"] = np.full((len(paths), self.image_size, self.image_size), np.nan, np.float32)
        done = 0
        try:
            for rows, scorer, evidence, _ in self._evidence(items, lambda i, e: errors.update({i: str(e)}), options):
                columns["score"][rows] = -scorer.score(evidence).numpy()
                if maps:
                    columns["map"][rows] = scorer.fuse(evidence).numpy()
                done = rows[-1] + 1
        except (RuntimeError, MemoryError) as error:
            if not keep or not done or not is_out_of_memory(error):
                raise
            for i in range(done, len(paths)):
                errors.setdefault(
                    i, f"{paths[i]} was not scored: memory ran out. Score it again with more memory free."
                )
        columns["label"] = np.where(columns["score"] - self.offset_ >= 0, 1, -1)
        columns["error"] = np.array([errors.get(i) for i in range(len(paths))], object)
        return columns

    # ---- parts

    def _check_parameters(self) -> None:
        def one_of(name: str, *accepted: Any) -> None:
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} was given; accepted are {', '.join(map(repr, accepted))}."
                )

        def number(name: str, kind: Any, low: float, high: float = np.inf, open_low: bool = False) -> None:
            value: Any = getattr(self, name)
            fits = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
            if not fits or (open_low and value == low):
                bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
                    f", at most {high:g}" if high < np.inf else ""
                )
                what = "an integer" if kind is _INTEGER else "a number"
                raise ValueError(f"{name}={value!r} was given; accepted is {what}, {bounds}.")

        one_of("student", "decoder", "encoder")
        blocks = self.decoder_blocks
        if len(blocks) != 3 or not all(isinstance(n, _INTEGER) and n >= 1 for n in blocks):
            raise ValueError(f"decoder_blocks={blocks!r} was given; accepted are three integers of at least 1.")
        one_of("weighting", "attention", "uniform")
        one_of("loss", "position", "flattened")
        one_of("on_error", "raise", "skip")
        number("image_size", _INTEGER, 8)
        if not isinstance(self.lam, str):
            number("lam", _REAL, 0)
        else:
            one_of("lam", "auto")
        number("sharpness", _REAL, 0)
        number("blur_sigma", _REAL, 0, 10_000)
        number("border_weight", _REAL, 0, 1)
        number("contrast", _REAL, 0, 1)
        if self.n_steps != "auto":
            number("n_steps", _INTEGER, 0)
        number("batch_size", _INTEGER, 1)
        number("learning_rate", _REAL, 0, open_low=True)
        number("tol", _REAL, 0)
        number("max_pixels", _INTEGER, 1)
        if not isinstance(self.aggregation, str):
            number("aggregation", _REAL, 0, 1, open_low=True)
        else:
            one_of("aggregation", "max", "mean")
        if self.contamination != "auto":
            number("contamination", _REAL, 0, 0.5, open_low=True)
        window = self.value_range
        if window is not None and not (len(window) == 2 and -np.inf < window[0] < window[1] < np.inf):
            raise ValueError(f"value_range={window!r} was given; accepted is (low, high), finite, with low < high.")
        shape = self.image_shape
        if shape is not None and not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
            raise ValueError(f"image_shape={shape!r} was given; accepted are (H, W), (H, W, 1) and (H, W, 3).")
        if self.evidence != "auto":
            scoring.parse_evidence(self.evidence, _USUAL_LAM)

    def _resolve_evidence(self, auxiliary: Mapping[str, Any] | None) -> str | tuple[str, ...] | dict[str, float]:
        if isinstance(self.evidence, Mapping):
            return dict(self.evidence)
        if self.evidence != "auto":
            return self.evidence if isinstance(self.evidence, str) else tuple(self.evidence)
        usual = (self.init, self.student, self.weighting, self.n_steps) == ("auto", "decoder", "attention", "auto")
        student = not usual or auxiliary is not None or self._init_file() is not None
        return scoring.EVIDENCE if student else tuple(name for name in scoring.EVIDENCE if name not in ("ssd", "tsd"))

    def _n_support(self) -> int:
        return len(self._support_hashes)

    def _kinds(self) -> set[str]:
        return set(scoring.parse_evidence(self.evidence_, _USUAL_LAM)[0])

    def _needs_student(self) -> bool:
        return bool({"ssd", "tsd"} & self._kinds())

    def _training_lam(self) -> float:
        return _USUAL_LAM if self.lam == "auto" else float(self.lam)

    def _memory(self) -> Any:
        if self.memory is None or hasattr(self.memory, "cache"):
            return self.memory
        return check_memory(os.fspath(self.memory))

    def _load_teacher(self, runtime: Runtime) -> tuple[Backbone, str]:
        embedding = "embedding" in self._kinds() or (self._needs_student() and self.student == "decoder")
        return load_teacher(self.backbone, self.image_size, self.weights, embedding, runtime)

    def _extractor(self) -> FeatureExtractor:
        """Find the teacher again, for a detector that may come from a pickle."""
        runtime = resolve_runtime(self.device, self.precision)
        teacher, fingerprint = self._load_teacher(runtime)
        if fingerprint != self.teacher_fingerprint_:
            raise WeightsNotFoundError(
                f"The weights of {self.backbone!r} ({self.weights or 'from the hub'}) are not those that this detector "
                f"was fitted with: fingerprint {fingerprint[:12]}, expected {self.teacher_fingerprint_[:12]}. Set "
                "weights= to the file used then, or fit again."
            )
        return FeatureExtractor(teacher, fingerprint, runtime, self._memory())

    def _items(self, X: Any, reset: bool) -> tuple[Sequence[Any], dict[str, Any]]:
        """Split the input into single images, and say how they are to be read."""
        options: dict[str, Any] = {
            "size": self.image_size, "value_range": self.value_range, "max_pixels": self.max_pixels,
        }  # fmt: skip
        # Once fitted on images, a 2-D array is one grey image.
        if not images.is_rows(X) or not (reset or hasattr(self, "n_features_in_")):
            if reset:
                self.row_range_ = None
            return images.as_items(X), options
        full_scale = images.full_scale(X)
        rows = validate_data(self, X, reset=reset, dtype=np.float64)
        if reset:
            low, high = (0.0, full_scale) if full_scale else (float(rows.min()), float(rows.max()))
            self.row_range_ = (low, high if high > low else low + 1.0)
        shape = self.image_shape or (1, rows.shape[1])
        if np.prod(shape) != rows.shape[1]:
            raise ValueError(
                f"X has {rows.shape[1]} columns, but image_shape={self.image_shape} has {np.prod(shape)} values."
            )
        if self.value_range is None:
            options.update(value_range=self.row_range_, margin=_ROW_MARGIN)
        return rows.reshape(-1, *shape), options

    def _load_support(self, X: Any, y: Any, reset: bool = True) -> tuple[torch.Tensor, list[str]]:
        """Read the images that are not labelled anomalous, (K, 3, S, S), and tell what each is called."""
        items, options = self._items(X, reset)
        if y is not None:
            check_consistent_length(items, y)
            labels = np.asarray(y).ravel()
            if not np.isin(labels, (-1, 1)).all():
                warnings.warn(
                    f"y has the labels {np.unique(labels)[:5].tolist()}; +1 is normal and -1 is anomalous. Only rows "
                    "labelled -1 are left out of the support.",
                    SupportWarning,
                    stacklevel=4,
                )
            items = [items[int(i)] for i in np.flatnonzero(labels != -1)]
            if not items:
                raise ValueError("y labels every image -1: no normal image is left to fit on.")
        loaded = [(i, image) for i, image in images.load_each(items, self.on_error, **options) if image is not None]
        if not loaded:
            raise ImageError(f"None of the {len(items)} images could be read: there is nothing to fit on.")
        return torch.stack([image for _, image in loaded]), [images.label(items[i], i) for i, _ in loaded]

    def _init_file(self) -> Path | None:
        """Return the file of the student to start from; None for an untrained one."""
        if self.init != "auto":
            return None if self.init is None else Path(self.init)
        packaged = PACKAGED.get(self.backbone)
        fits = self.weights is None and self.student == "decoder" and self.weighting == "attention"
        return packaged.check(packaged.student) if packaged is not None and fits else None

    def _initial_student(self, teacher: Backbone, fingerprint: str, seed: int) -> Student:
        file = self._init_file()
        blocks, tensors = self.decoder_blocks, None
        if file is not None:
            tensors, header = checkpoints.load_student(file)
            self._check_student(file, header, fingerprint)
            blocks = header.get("decoder_blocks") or blocks
        student = build_student(
            self.student,
            teacher,
            timm_name(self.backbone),
            self.image_size,
            blocks=blocks,
            attention=self.weighting == "attention",
            sharpness=self.sharpness,
            seed=seed,
        )
        if tensors is not None:
            try:
                student.load_state_dict(tensors)
            except RuntimeError as error:
                raise CheckpointError(f"The student {file} does not fit: {error}") from error
        return student

    def _check_student(self, file: Path, header: Mapping[str, Any], fingerprint: str) -> None:
        if header["teacher"] != fingerprint:
            raise CheckpointError(
                f"The student {file} belongs to the teacher {header['backbone']!r} (fingerprint "
                f"{header['teacher'][:12]}), not to {self.backbone!r} (fingerprint {fingerprint[:12]}). Pass that "
                "teacher as backbone and weights, or train a student for this one."
            )
        for name in ("student", "weighting"):
            if header[name] != getattr(self, name):
                raise CheckpointError(
                    f"The student {file} has {name}={header[name]!r}; pass the same, or another student."
                )

    def _support_task(self, support: torch.Tensor, extract: FeatureExtractor, seed: int) -> Task:
        """Make the support a task of its own, of slightly changed views."""
        bank = support[:, None]
        if self.augment:
            n_views = int(np.clip(_TRAINING_VIEWS // len(support), 1, 16))
            bank = torch.cat([bank, views.random_views(support, n_views, np.random.default_rng(seed))], 1)
        sources = np.repeat(np.arange(len(support)), bank.shape[1])
        return self._task("support", bank.flatten(0, 1), sources, extract)

    def _task(self, name: str, batch: torch.Tensor, sources: np.ndarray, extract: FeatureExtractor) -> Task:
        maps = [m.cpu() for m in extract(batch)]
        return Task(name, maps[:3], batch if self.student == "encoder" else maps[-1], sources)

    def _auxiliary_tasks(self, auxiliary: Mapping[str, Any], extract: FeatureExtractor) -> list[Task]:
        if not isinstance(auxiliary, Mapping) or not auxiliary:
            raise ValueError(
                f"auxiliary is {type(auxiliary).__name__} with {len(auxiliary)} tasks; pass a mapping of at least "
                "one task's name to its normal images."
            )
        options = {"size": self.image_size, "value_range": self.value_range, "max_pixels": self.max_pixels}
        tasks = []
        for name, X in tqdm(auxiliary.items(), desc="auxiliary", disable=not self.verbose):
            try:
                read = images.load_each(images.as_items(X), self.on_error, **options)
                loaded = [image for _, image in read if image is not None]
            except ImageError as error:
                raise ImageError(f"Auxiliary task {name!r}: {error}") from error
            if len(loaded) < 2:
                raise ValueError(
                    f"Auxiliary task {name!r} has {len(loaded)} usable image(s); an episode needs at least 2."
                )
            tasks.append(self._task(str(name), torch.stack(loaded), np.arange(len(loaded)), extract))
        return tasks

    def _store_support(self, support: torch.Tensor, names: list[str], extract: FeatureExtractor) -> None:
        """Compute everything that depends on the support: memory, scales, threshold."""
        if len(support) == 1:
            self._warn("The support is a single image")
        elif (support == support[:1]).all():
            self._warn(f"All {len(support)} support images are the same")
        self.support_ = support.numpy()
        self._support_names = names
        self._support_hashes = np.array([image_hash(image) for image in support])
        self._store_banks(support, extract)
        self.experts_ = [self._show_support(expert, support, extract) for expert in self.experts_]
        self.lam_, self.scales_ = self._training_lam(), {}
        own = self._exclude(support)
        held_out = views.random_views(support, _HELD_OUT_VIEWS, np.random.default_rng(self._held_out_seed))
        of_views = self._read(held_out.flatten(0, 1), own.repeat_interleave(_HELD_OUT_VIEWS, 0), extract)
        if self.lam == "auto" and {"ssd", "tsd"} <= self._kinds() and not isinstance(self.evidence_, Mapping):
            self.lam_ = self._choose_lam(support, own, extract)
        self.scales_ = self._scales(of_views, self.lam_, extract)
        scorer = self._scorer(extract)
        self.support_scores_ = -scorer.score(self._read(support, own, extract)).double().numpy()
        if own.any():
            self.offset_ = calibration.offset(self.support_scores_, self.contamination)
        else:  # no support image has another to be held against: its changed views must do
            known = -scorer.score(of_views).double().numpy()
            self.offset_ = calibration.offset(known, self.contamination, of_views=True)
        middle = np.median(self.support_scores_)
        for i in np.flatnonzero(self.support_scores_ < _ODD * middle) if len(support) > 2 and middle < 0 else ():
            warnings.warn(
                f"{names[i]} looks unlike the rest of the support: it reads {self.support_scores_[i] / middle:.1f} "
                "times as anomalous as the middle one. If it is not normal, fit without it: what looks like it passes "
                "for normal.",
                SupportWarning,
                stacklevel=4,
            )

    def _scales(self, of_views: torch.Tensor, lam: float, extract: FeatureExtractor) -> dict[str, float]:
        """Compute what each kind of evidence is divided by, from that (N, E, S, S) of normal images."""
        weights, parts = scoring.parse_evidence(self.evidence_, lam)
        scales = dict.fromkeys(weights, 1.0)
        scorer = self._scorer(extract)
        for part, share in parts.items():
            fused = torch.stack([of_views[:, i] * weights[name] for i, name in enumerate(weights) if name in part])
            read = torch.cat([scorer.reduce(one) for one in fused.sum(0).split(1)]).double().mean().item()
            scales |= dict.fromkeys(part, max(read, 1e-12) / share)
        return scales

    def _choose_lam(self, support: torch.Tensor, own: torch.Tensor, extract: FeatureExtractor) -> float:
        """Find the lam that tells views of the support best from the same views, spoilt; the usual one in doubt."""
        rng = np.random.default_rng([self._held_out_seed, 1])
        normal = views.random_views(support, _SPOILT_VIEWS, rng).flatten(0, 1)
        others = own.repeat_interleave(_SPOILT_VIEWS, 0)
        read = [self._read(batch, others, extract) for batch in (normal, views.synthetic_anomalies(normal, rng)[0])]
        labels = np.repeat([0, 1], len(normal))
        found = {}
        for lam in sorted(_LAMS, key=lambda lam: abs(np.log(lam / _USUAL_LAM))):
            scorer = self._scorer(extract, lam, self._scales(read[0], lam, extract))
            found[lam] = roc_auc_score(labels, torch.cat([scorer.score(e) for e in read]).numpy())
        best = max(found, key=lambda lam: found[lam])
        return best if found[best] > found[_USUAL_LAM] + _LAM_MARGIN else _USUAL_LAM

    def _tell_spoilt(self, X: Any, y: Any, n_views: int, rng: np.random.Generator) -> float:
        """Compute the AUROC between views of normal images and the same views, spoilt (`SyntheticAnomalyScorer`)."""
        check_is_fitted(self)
        normal = views.random_views(self._load_support(X, y, reset=False)[0], n_views, rng).flatten(0, 1)
        both = torch.cat([normal, views.synthetic_anomalies(normal, rng)[0]])
        scorer = self._scorer(self._extractor())
        scores = [scorer.score(scorer.evidence(batch, self._exclude(batch))[0]) for batch in both.split(CHUNK)]
        return roc_auc_score(np.repeat([0, 1], len(normal)), torch.cat(scores).double().numpy())

    def _read(self, batch: torch.Tensor, exclude: torch.Tensor, extract: FeatureExtractor) -> torch.Tensor:
        """Compute the evidence (N, E, S, S) of a few images."""
        scorer = self._scorer(extract)
        chunks = zip(batch.split(CHUNK), exclude.split(CHUNK), strict=True)
        return torch.cat([scorer.evidence(images_, left_out)[0] for images_, left_out in chunks])

    def _store_banks(self, support: torch.Tensor, extract: FeatureExtractor) -> None:
        kinds = self._kinds()
        self.patches_ = self.embeddings_ = None
        self._bank: tuple[Runtime, matching.PatchBank] | None = None
        if not {"patch", "embedding"} & kinds:
            return
        bank = views.turned_and_mirrored(support) if self.augment else support[:, None]
        maps = extract(bank.flatten(0, 1))
        if "patch" in kinds:
            patches = matching.patch_features(maps[:3])
            self.patches_ = patches.view(len(support), -1, patches.shape[-1]).cpu()
        if "embedding" in kinds:
            self.embeddings_ = matching.pooled_embedding(maps).view(*bank.shape[:2], -1).cpu()

    @torch.inference_mode()
    def _show_support(self, expert: scoring.Expert, support: torch.Tensor, extract: FeatureExtractor) -> scoring.Expert:
        """Compute an expert's maps of the support; images that are new to it count as unseen."""
        seen = torch.zeros(len(support), dtype=torch.bool)
        seen[: len(expert.seen)] = expert.seen
        runtime = extract.runtime
        student = scoring.Expert(expert.student, seen).to(runtime.device, runtime.dtype).student
        maps = scoring.run_student(student, support, extract(support), runtime)
        return scoring.Expert(student, seen, maps, student.weighting.keys(maps)).to("cpu", runtime.dtype)

    def _scorer(
        self, extract: FeatureExtractor, lam: float | None = None, scales: Mapping[str, float] | None = None
    ) -> scoring.Scorer:
        weights = scoring.parse_evidence(self.evidence_, self.lam_ if lam is None else lam)[0]
        scales = self.scales_ if scales is None else scales
        weights = {name: weight / scales.get(name, 1.0) for name, weight in weights.items()}
        final = (self.aggregation, float(self.blur_sigma), float(self.border_weight), float(self.contrast))
        bank = self._patch_bank(extract.runtime)
        return scoring.Scorer(extract, self.experts_, bank, self.embeddings_, weights, *final)

    def _patch_bank(self, runtime: Runtime) -> matching.PatchBank | None:
        """Prepare the support's patches for the search, once."""
        if self.patches_ is None:
            return None
        if self._bank is None or self._bank[0] != runtime:
            patches = self.patches_.to(runtime.device, runtime.dtype)
            self._bank = runtime, matching.PatchBank(patches, runtime.matching_dtype)
        return self._bank[1]

    def _exclude(self, batch: torch.Tensor) -> torch.Tensor:
        """Mark the support images that each of N images is a copy of, (N, K)."""
        same = np.array([image_hash(image) for image in batch])[:, None] == self._support_hashes
        same[same.all(1)] = False  # nothing else to be held against
        return torch.from_numpy(same)

    def _collect(
        self,
        X: Any,
        reduce: Callable[[scoring.Scorer, torch.Tensor, torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        dtype: type,
    ) -> np.ndarray:
        """Run the scoring path over any number of images; what an unreadable one would have given is NaN."""
        check_is_fitted(self)
        items, options = self._items(X, reset=False)
        results: np.ndarray = np.full((len(items), *shape), np.nan, dtype)
        for rows, scorer, evidence, weights in self._evidence(items, self.on_error, options):
            results[rows] = reduce(scorer, evidence, weights).numpy()
        return results

    def _evidence(
        self, items: Sequence[Any], on_error: str | Callable[[int, ImageError], None], options: dict[str, Any]
    ) -> Iterator[tuple[list[int], scoring.Scorer, torch.Tensor, torch.Tensor]]:
        """Read images a few at a time, and compute the evidence (n, E, S, S) and the support's weights (n, K)."""
        scorer = self._scorer(self._extractor())
        for rows, batch in self._batches(items, on_error, options):
            yield rows, scorer, *scorer.evidence(batch, self._exclude(batch))

    def _explanations(
        self, items: Sequence[Any], on_error: str | Callable[[int, ImageError], None], options: dict[str, Any]
    ) -> Iterator[tuple[int, explanation.Explanation]]:
        """Explain images, a few at a time; those that cannot be read are left out."""
        scorer = self._scorer(self._extractor())
        for rows, batch in self._batches(items, on_error, options):
            yield from zip(rows, explanation.explain(scorer, batch, self._exclude(batch), self.offset_), strict=True)

    def _batches(
        self, items: Sequence[Any], on_error: str | Callable[[int, ImageError], None], options: dict[str, Any]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Read images a few at a time: the places of the readable ones, and (n, 3, S, S)."""
        read = tqdm(
            images.load_each(items, on_error, **options), total=len(items), desc="scoring", disable=not self.verbose
        )
        readable = ((index, image) for index, image in read if image is not None)
        while pairs := list(itertools.islice(readable, CHUNK)):
            yield [index for index, _ in pairs], torch.stack([image for _, image in pairs])

    def _warn(self, what: str) -> None:
        message = f"{what}: how much normal images differ cannot be seen, and thresholds are guesses."
        warnings.warn(message, SupportWarning, stacklevel=5)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is only prepared: it belongs to a device, and is made again."""
        return super().__getstate__() | ({"_bank": None} if hasattr(self, "_bank") else {})

    def _repr_html_inner(self) -> str:
        """Put what was fitted above scikit-learn's diagram."""
        return self._summary() + super()._repr_html_inner()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Do the same for notebooks that prefer a bundle."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] = self._summary() + bundle["text/html"]
        return bundle

    def _summary(self) -> str:
        """Say in HTML what was fitted; nothing before that."""
        if not hasattr(self, "offset_"):
            return ""
        shown = {
            "support": f"{self._n_support()} images" + ("" if hasattr(self, "support_") else " (not kept)"),
            "offset_": f"{self.offset_:.4g}",
            "lam_": f"{self.lam_:g}",
            "teacher": f"{self.backbone} ({self.teacher_fingerprint_[:12]})",
        }
        cells = (f"<b>{html.escape(name)}</b>: {html.escape(value)}" for name, value in shown.items())
        return f"<p>Fitted; {', '.join(cells)}</p>"

    def __sklearn_tags__(self) -> Any:
        """Say that images may be passed, besides rows."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


_INTEGER = (int, np.integer)
_REAL = (int, float, np.integer, np.floating)
