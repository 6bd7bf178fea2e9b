"""`Student`, the parameters of a student: a nested estimator in the parameters of the detector."""

from __future__ import annotations

from sklearn.base import BaseEstimator


class Student(BaseEstimator):
    """Architecture and training of the student of a `DualDistillationDetector`.

    `DualDistillationDetector(student=Student(n_steps=50))` adds a student to the score. Grid search sets its parameters
    by names such as `student__n_steps`.

    Parameters
    ----------
    architecture : {"decoder", "encoder"}, default="decoder"
        "decoder" reconstructs the teacher's stages from its embedding (the paper's student); "encoder" is a network of
        the teacher's architecture, initialised at random, whose input is the image.
    decoder_blocks : tuple of three ints, default=(2, 2, 2)
        Residual blocks of the decoder at strides 16, 8 and 4; (3, 4, 6) in the paper. A 0 omits its scale and all finer
        ones. A pretrained student has its own numbers.
    weighting : {"attention", "uniform"}, default="attention"
        Weighting of the support: learn-to-weight attention, or the plain mean.
    sharpness : float, default=0.003
        Factor on the attention's logits. 1 is the published softmax, which is close to one-hot and has a lower AUROC
        than the plain mean (docs/experiments.md).
    loss : {"position", "flattened"}, default="position"
        Cosine distance over channels at each position, or of whole feature maps as in the published code.
    n_steps : "auto" or int, default="auto"
        Maximum number of training steps. With 0, as published, fitting only stores the support for a pretrained
        student. "auto" is 0 with a pretrained student (and no `auxiliary`), else 100. Training on the support fits two
        students, each on half of it.
    batch_size : int, default=16
        Queries per training step.
    learning_rate : float, default=1e-3
        Learning rate of Adam. Gradients are clipped to norm 1.
    tol : float, default=1e-3
        Tolerance of early stopping: training stops when the mean loss of 50 steps is not lower than that of the 50
        steps before by this fraction.

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
