"""How a student is made and trained: parameters of their own, within those of the detector."""

from __future__ import annotations

from sklearn.base import BaseEstimator


class Student(BaseEstimator):
    """How the student of a `DualDistillationDetector` is made and trained.

    A detector that is given one has a student in its score: `DualDistillationDetector(student=Student(n_steps=50))`. A
    grid searches its parameters by names such as `student__n_steps`.

    Parameters
    ----------
    architecture : {"decoder", "encoder"}, default="decoder"
        "decoder" rebuilds the teacher's stages from its embedding (the paper's student); "encoder" is an untrained
        network of the teacher's architecture that sees the image.
    decoder_blocks : tuple of three ints, default=(2, 2, 2)
        Residual blocks of the decoder at strides 16, 8 and 4; the paper's has (3, 4, 6). From a 0 on a scale is left
        out. A pretrained student brings its own.
    weighting : {"attention", "uniform"}, default="attention"
        Learn-to-weight, or the plain mean of the support.
    sharpness : float, default=0.003
        Factor on the attention's logits. 1 is the published softmax, which is close to one-hot, and has a lower AUROC
        than the plain mean (docs/experiments.md).
    loss : {"position", "flattened"}, default="position"
        Cosine over channels at each position, or of whole feature maps (as the published code trains).
    n_steps : "auto" or int, default="auto"
        Most training steps of a student. 0 makes none, as published: fitting only stores the support under a pretrained
        student. "auto" is 0 with a pretrained student (and no `auxiliary`), else 100. A student that is trained on the
        support comes twice, one for each half of it.
    batch_size : int, default=16
        Queries in a training step.
    learning_rate : float, default=1e-3
        Of Adam. Gradients are clipped to norm 1.
    tol : float, default=1e-3
        Training ends early when the mean loss of 50 steps is less than this fraction below that of the 50 before.

    Examples
    --------
    >>> from fewshot_ad import DualDistillationDetector, Student
    >>> det = DualDistillationDetector(student=Student(weighting="uniform"))
    >>> det.set_params(student__n_steps=50).student
    Student(n_steps=50, weighting='uniform')
    """

    def __init__(
        self,
        *,
        architecture: str = "decoder",
        decoder_blocks: tuple[int, int, int] = (2, 2, 2),
        weighting: str = "attention",
        sharpness: float = 0.003,
        loss: str = "position",
        n_steps: str | int = "auto",
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        tol: float = 1e-3,
    ) -> None:
        self.architecture = architecture
        self.decoder_blocks = decoder_blocks
        self.weighting = weighting
        self.sharpness = sharpness
        self.loss = loss
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tol = tol
